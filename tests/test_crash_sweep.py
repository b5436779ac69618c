"""Every named point of a crash, once; and the harness that tells of it must be able to fail."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from signal import SIGKILL
from unittest.mock import Mock

import pytest

from forebay.verify import stories, values
from forebay.verify.dying import Death
from forebay.verify.feed import Traffic
from forebay.verify.harness import Row, Story, Trial, play
from forebay.verify.hostile import hostile
from forebay.verify.reader import Tally
from forebay.verify.small_disk import FILE_BYTES_MAX
from forebay.verify.stories import (
    STORIES,
    named_points,
    reading,
    tally_of,
)
from tests import LONG
from tests.broken_reader import BUGS as READER_BUGS
from tests.broken_worker import BUGS

pytestmark = pytest.mark.executed

SEED = time.time_ns() % 1_000_000 if LONG else 1
CRASHES = (
    "each named point",
    "random moments",
    "two crashes in a row",
    "another worker count",
    "out of order by minutes",
    "readers during change",
)
"""The stories that are about kills."""


@pytest.mark.long
def test_a_crash_at_every_named_point_loses_and_doubles_nothing(tmp_path: Path) -> None:
    row, fault = play("each named point", named_points, tmp_path / "trial", SEED)
    assert (fault, row.lost, row.doubled) == ("", 0, 0)
    assert row.kills == 20


def test_the_stories_have_at_least_fifty_kills_for_certain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those without which a story fails."""
    kill = Mock()
    monkeypatch.setattr(stories, "_die", kill)
    monkeypatch.setattr(stories, "reading", lambda *_: nullcontext())
    monkeypatch.setattr(stories, "tally_of", lambda *_: Tally())
    for name in CRASHES:
        trial = Mock(rng=random.Random(SEED), rounds=range, settings={}, afterwards=[])
        trial.configure_mock(lost=0, doubled=0, **{"orphans.return_value": 0})
        trial.feed.names, trial.peak_bytes.return_value = ["p"], 0
        STORIES[name](trial)
    assert kill.call_count >= 50


def crash_after_a_commit(trial: Trial) -> None:
    trial.settings.update(PUBLISH_INTERVAL="1h", GRACE="1h", EPOCH_INTERVAL="50ms")
    trial.feed.send(3000, Traffic())
    trial.dies(Death("snapshot-return", "after", 10), 1)  # of the fourth epoch, for 3 partitions


def crash_before_evictions_are_committed(trial: Trial) -> None:
    trial.feed.send(100, Traffic())
    trial.ends(1)
    trial.feed.send(1500, Traffic())
    trial.settings.update(EPOCH_INTERVAL="1h", GRACE="1h")
    trial.dies(Death("log-delete", "after", 12), 1)
    del trial.settings["EPOCH_INTERVAL"], trial.settings["GRACE"]


def evicted_events_come_again(trial: Trial) -> None:
    trial.feed.send(600, Traffic(step_ms=200))
    trial.dies(Death("manifest-publish", "after", 6), 1)
    trial.ends(1)
    for name, messages in trial.feed.messages.items():
        trial.feed.append(name, messages[:50])


def evictions_under_a_reader(trial: Trial) -> None:
    trial.settings["GRACE"] = "60s"
    trial.data.mkdir()
    with reading(trial, "60") as reader:
        trial.feed.send(6000, Traffic(step_ms=200))
        trial.ends(1)
        tally_of(trial, reader)


def a_log_that_takes_no_more(trial: Trial) -> None:
    """The first run has one epoch, so that only logs become larger than a file may be."""
    trial.settings.update(EPOCH_INTERVAL="1h", GRACE="1h")
    trial.settings.update(BLOCK_SPAN="3600s", DEDUP_WINDOW="3600s")
    feed = trial.feed
    for name in feed.names:
        ids = [trial.rng.randbytes(200).hex() for _ in range(500)]
        feed.append(name, [feed.event(feed.now_ms, id) for id in ids])
    trial.run(None, 1, f"FSIZE={FILE_BYTES_MAX}")


def typed_events_come_again(trial: Trial) -> None:
    trial.typed()
    evicted_events_come_again(trial)


def hostile_values(trial: Trial) -> None:
    """Each once, before or behind an ordinary copy."""
    trial.typed()
    for field in (*values.HOSTILE, *values.HOSTILE_KEYS):
        name = trial.rng.choice(trial.feed.names)
        trial.feed.send(3, Traffic(), [name])
        event = trial.feed.event(trial.feed.now_ms)
        piece = [b"%(open)b," + field + b"}", b"%(event)b"]
        trial.feed.append(name, hostile(trial.rng, piece, event))


Noticed = Callable[[Row, str], bool]


def differs(row: Row, fault: str) -> bool:
    """The story went as it must, but not all came out that went in, or not once."""
    return not fault and bool(row.lost or row.doubled)


def differs_and_more(row: Row, _: str) -> bool:
    """Not all came out, or not once, and whatever else went wrong."""
    return bool(row.lost or row.doubled)


def tells(text: str) -> Noticed:
    """The story ended with this."""
    return lambda _, fault: text in fault


STORIES_OF: dict[str, tuple[Story, Noticed]] = {
    "hollow": (crash_after_a_commit, differs),
    "hasty": (crash_before_evictions_are_committed, tells("MissingFile")),
    "short": (evicted_events_come_again, differs),
    "graceless": (evictions_under_a_reader, tells("views lost some")),
    "deaf": (a_log_that_takes_no_more, tells("Corruption")),
    "boundless": (hostile_values, differs_and_more),
    "trimming": (hostile_values, differs),
    "seconds": (typed_events_come_again, differs),
}


BUG_OF: dict[str, tuple[str, Noticed]] = {
    "each named point": ("hasty", tells("MissingFile")),
    "random moments": ("keys", differs),
    "two crashes in a row": ("lasting", differs),
    "another worker count": ("salted", tells("another job runs")),
    "stall, then redelivery": ("keys", differs),
    "redelivery of an hour ago": ("short", differs),
    "more keys than memory holds": ("leaky", tells("bytes of memory")),
    "redelivery storm": ("plodding", tells("to be read")),
    "out of order by minutes": ("wavering", differs),
    "clocks far off": ("credulous", differs),
    "clocks a little off": ("strict", differs),
    "readers during change": ("both", differs),
    "torn log": ("lenient", tells("expected Corruption")),
    "flipped byte": ("blind", tells("expected Corruption")),
    "full disk": ("mute", tells("expected one of")),
    "few open files": ("mute", tells("expected one of")),
    "hostile input": ("touchy", differs_and_more),
    "rejects replayed": ("forgetful", tells("expected each reject once")),
}
"""What each story of `forebay verify` is there to find."""


@pytest.mark.mutant
@pytest.mark.parametrize("name", STORIES)
def test_a_story_of_verify_notices_its_bug(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bug, noticed = BUG_OF[name]
    module = "tests.broken_worker" if bug in BUGS else "forebay.verify.worker"
    monkeypatch.setenv("BROKEN", bug)
    if bug in READER_BUGS:
        broken = partial(reading, module="tests.broken_reader")
        monkeypatch.setattr(stories, "reading", lambda trial, *how: broken(trial, bug, *how))
    row, fault = play(name, STORIES[name], tmp_path / "trial", SEED, module, brief=not LONG)
    assert noticed(row, fault), f"seed {SEED}: {row}\n{fault}"


@pytest.mark.long
@pytest.mark.parametrize("story", [hostile_values, typed_events_come_again])
def test_values_of_every_type_go_all_the_way(story: Story, tmp_path: Path) -> None:
    row, fault = play("values", story, tmp_path / "trial", SEED)
    assert (fault, row.lost, row.doubled) == ("", 0, 0)


@pytest.mark.mutant
@pytest.mark.parametrize("bug", STORIES_OF)
def test_a_story_shows_a_bug(bug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BROKEN", bug)
    story, noticed = STORIES_OF[bug]
    row, fault = play(bug, story, tmp_path / "trial", SEED, "tests.broken_worker")
    assert noticed(row, fault), f"{row}\n{fault}"


@pytest.mark.mutant
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
        reports = [tally_of(trial, reader) for reader in (sound, *broken)]
    wrong = [bool(report.lost or report.doubled) for report in reports]
    assert wrong == [False, *(True for _ in READER_BUGS)], reports


@pytest.mark.long
@pytest.mark.parametrize(
    "module",
    ["forebay.verify.worker", pytest.param("tests.broken_worker", marks=pytest.mark.mutant)],
)
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
