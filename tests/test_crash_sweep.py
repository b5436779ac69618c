"""Every named point of a crash, once; and the harness that tells of it must be able to fail."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from signal import SIGKILL

import pytest

from tests.broken_reader import BUGS as READER_BUGS
from tests.broken_worker import BUGS
from verify.dying import Death
from verify.feed import START_MS, Traffic
from verify.harness import Row, Story, Trial, play
from verify.hostile import replay
from verify.oracle import FUTURE_SKEW_MS
from verify.room import FILE_BYTES_MAX
from verify.stories import (
    more_keys_than_memory_holds,
    named_points,
    reading,
    report_of,
)

SEED = 1
CENTURY_MS = 100 * 365 * 24 * 3_600_000


def test_a_crash_at_every_named_point_loses_and_doubles_nothing(tmp_path: Path) -> None:
    row, fault = play("each named point", named_points, tmp_path / "trial", SEED)
    assert (fault, row.lost, row.doubled) == ("", 0, 0)
    assert row.kills == 20


def redelivery_after_a_crash(trial: Trial) -> None:
    trial.feed.send(1000, Traffic(retries=0))
    trial.dies(Death("log-append", "before", 25), 1)
    trial.ends(1)
    for name, messages in trial.feed.messages.items():
        trial.feed.append(name, messages[-200:])


def crash_after_a_commit(trial: Trial) -> None:
    trial.settings.update(PUBLISH_INTERVAL="1h", EPOCH_INTERVAL="50ms")
    trial.feed.send(3000, Traffic())
    trial.dies(Death("snapshot-return", "after", 10), 1)  # of the fourth epoch, for 3 partitions


def crash_before_evictions_are_committed(trial: Trial) -> None:
    trial.feed.send(100, Traffic())
    trial.ends(1)
    trial.feed.send(1500, Traffic())
    trial.settings["EPOCH_INTERVAL"] = "1h"
    trial.dies(Death("log-delete", "after", 12), 1)
    del trial.settings["EPOCH_INTERVAL"]


def broken_between_others(trial: Trial) -> None:
    trial.feed.send(500, Traffic(broken=0.1))
    trial.dies(Death("log-append", "after", 5), 1)


def replay_after_a_crash(trial: Trial) -> None:
    trial.limits = [100]
    for name in trial.feed.names:
        trial.feed.append(name, [trial.feed.event(START_MS, "x" * 100)])
    trial.feed.send(500, Traffic())
    trial.dies(Death("log-append", "after", 5), 1)
    trial.ends(1)
    trial.limits.append(1000)
    replay(trial)


def evicted_events_come_again(trial: Trial) -> None:
    trial.feed.send(600, Traffic(step_ms=200))
    trial.dies(Death("manifest-publish", "after", 6), 1)
    trial.ends(1)
    for name, messages in trial.feed.messages.items():
        trial.feed.append(name, messages[:50])


def clocks(trial: Trial, *off_ms: int) -> None:
    """Of each partition's messages, a few are of a clock that is this far off."""
    trial.feed.now_ms = time.time_ns() // 1_000_000
    trial.feed.send(300, Traffic())
    for name in trial.feed.names:
        trial.feed.append(name, map(trial.feed.event, (trial.feed.now_ms + ms for ms in off_ms)))


def a_clock_far_ahead(trial: Trial) -> None:
    clocks(trial, CENTURY_MS)


def a_clock_a_little_ahead(trial: Trial) -> None:
    clocks(trial, FUTURE_SKEW_MS // 2)


def evictions_under_a_reader(trial: Trial) -> None:
    trial.settings["GRACE"] = "60s"
    trial.data.mkdir()
    with reading(trial, "60") as reader:
        trial.feed.send(1500, Traffic(step_ms=200))
        trial.ends(1)
        report_of(trial, reader)


def a_log_that_takes_no_more(trial: Trial) -> None:
    """The first run has one epoch, so that only logs become larger than a file may be."""
    trial.settings.update(EPOCH_INTERVAL="1h", BLOCK_SPAN="3600s", DEDUP_WINDOW="3600s")
    feed = trial.feed
    for name in feed.names:
        ids = [trial.rng.randbytes(200).hex() for _ in range(500)]
        feed.append(name, [feed.event(feed.now_ms, id) for id in ids])
    trial.run(None, 1, f"FSIZE={FILE_BYTES_MAX}")


Noticed = Callable[[Row, str], bool]


def differs(row: Row, fault: str) -> bool:
    """The story went as it must, but not all came out that went in, or not once."""
    return not fault and bool(row.lost or row.doubled)


def tells(text: str) -> Noticed:
    """The story ended with this."""
    return lambda _, fault: text in fault


STORIES_OF: dict[str, tuple[Story, Noticed]] = {
    "keys": (redelivery_after_a_crash, differs),
    "hollow": (crash_after_a_commit, differs),
    "hasty": (crash_before_evictions_are_committed, tells("MissingFile")),
    "short": (evicted_events_come_again, differs),
    "credulous": (a_clock_far_ahead, differs),
    "strict": (a_clock_a_little_ahead, differs),
    "graceless": (evictions_under_a_reader, tells("views lost some")),
    "leaky": (more_keys_than_memory_holds, tells("bytes of memory")),
    "touchy": (broken_between_others, differs),
    "forgetful": (replay_after_a_crash, differs),
    "deaf": (a_log_that_takes_no_more, tells("Corruption")),
}


@pytest.mark.parametrize("bug", STORIES_OF)
def test_a_story_shows_a_bug(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", bug)
    story, noticed = STORIES_OF[bug]
    row, fault = play(bug, story, tmp_path / "trial", SEED, "tests.broken_worker")
    assert noticed(row, fault), f"{row}\n{fault}"


def test_each_broken_worker_is_noticed_here_or_beside_the_broker() -> None:
    assert {*STORIES_OF, "parted", "trusting", "unsettled"} == set(BUGS)


def test_readers_that_are_broken_are_noticed_and_a_sound_one_beside_them_is_not(
    tmp_path: Path,
) -> None:
    trial = Trial(tmp_path / "trial", str(SEED))
    trial.data.mkdir()
    trial.feed.send(1000, Traffic(step_ms=200))
    with ExitStack() as stack:
        broken = [
            stack.enter_context(reading(trial, bug, module="tests.broken_reader"))
            for bug in READER_BUGS
        ]
        sound = stack.enter_context(reading(trial))
        trial.dies(Death("catalog-publish", "after", 4), 1)
        trial.feed.send(1000, Traffic(step_ms=200))
        trial.ends(1)
        reports = [report_of(trial, reader) for reader in (sound, *broken)]
    wrong = [bool(report.lost or report.doubled) for report in reports]
    assert wrong == [False, *(True for _ in READER_BUGS)], reports


@pytest.mark.parametrize("module", ["verify.worker", "tests.broken_worker"])
def test_a_snapshot_of_a_lost_run_is_written_over_and_would_do_no_harm_else(
    module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run's snapshots are stored, but not their epoch. The second hears nothing of one
    partition for more epochs than that, and dies. If it did not commit that partition, the engine
    wakes the third up with what the first left."""

    def story(trial: Trial) -> None:
        trial.settings.update(EPOCH_INTERVAL="50ms", GRACE="1h")
        silent = trial.feed.names[-1]
        path = trial.feed.folder / silent
        trial.feed.send(300, Traffic())
        trial.ends(1)
        known = path.read_bytes()
        trial.feed.send(150, Traffic())
        monkeypatch.setenv("BROKEN", "parted")
        trial.module = "tests.broken_worker"
        assert trial.run(None, 1) == -SIGKILL
        monkeypatch.setenv("BROKEN", "unsettled")
        trial.module = module
        whole = path.read_bytes()
        path.write_bytes(known)
        trial.feed.send(3000, Traffic(), trial.feed.names[:-1])
        trial.dies(Death("snapshot-return", "before", 9), 1)
        path.write_bytes(whole)
        trial.ends(1)
        orphans.append(trial.orphans())

    orphans: list[int] = []
    row, fault = play("orphan", story, tmp_path / "trial", SEED)
    assert (fault, row.lost, row.doubled) == ("", 0, 0)
    assert orphans == [1 if module == "tests.broken_worker" else 0]
