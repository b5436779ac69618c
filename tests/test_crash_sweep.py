"""Every named point of a crash, once; and the harness that tells of it must be able to fail."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.broken_worker import BUGS
from verify.dying import Death
from verify.feed import START_MS, Traffic
from verify.harness import Story, Trial, play
from verify.hostile import replay
from verify.stories import clocks_far_off, named_points, redelivery_of_an_hour_ago

SEED = 1


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


@pytest.mark.parametrize(
    ("bug", "story"),
    [
        ("keys", redelivery_after_a_crash),
        ("hollow", crash_after_a_commit),
        ("hasty", crash_before_evictions_are_committed),
        ("short", redelivery_of_an_hour_ago),
        ("credulous", clocks_far_off),
        ("touchy", broken_between_others),
        ("forgetful", replay_after_a_crash),
    ],
    ids=list(BUGS),
)
def test_a_story_shows_a_bug(
    bug: str, story: Story, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BROKEN", bug)
    row, fault = play(bug, story, tmp_path / "trial", SEED, "tests.broken_worker")
    print(row, fault)
    assert row.kills or story is clocks_far_off, fault  # which may miss its moments
    assert row.lost or row.doubled, fault
