"""The stories: what happens to the job, its input, its disk and its readers.

Each is played on a `Trial`, after which the job runs to the end and everything is compared. Every
story draws from the trial's own random numbers, so a seed repeats it; the exact moment at which a
process dies depends on the machine.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path

from forebay import query
from forebay.query.view import take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import PERMANENT, Corruption
from forebay.storage.base.times import now_ms
from forebay.verify.dying import MOMENT, NTH_MAX, POINTS, Death, every_death
from forebay.verify.feed import START_MS, Traffic
from forebay.verify.harness import Failure, Story, Trial
from forebay.verify.hostile import hostile_input, rejects_replayed
from forebay.verify.oracle import FUTURE_SKEW_MS, Place
from forebay.verify.reader import Tally
from forebay.verify.small_disk import small_disk

TRIES = 6
PORTION = 1500
HOUR_MS, MINUTE_MS = 3_600_000, 60_000
FAR_FUTURE_MS = START_MS + 120 * 365 * 24 * HOUR_MS
ORDINARY = Traffic()
CACHE_MIB = 1
MEMORY_SLACK = 96 << 20
"""What the allocator and the readers of more and larger files may add to a worker: 14 MiB were
measured, of 230."""
READ_BACK_MAX = 0.7
"""How often a message may make a worker read a log or chunk: 0.32 were measured at most, and 1.5 at
least where a log is read for each key."""
LONG_ID_BYTES = 16_000
KEYS_SLACK = 8 << 20
"""Between two runs over as many bytes: 4 MiB were measured, and 25 where no key is let go."""
FILES_MOST = (36, 28, 20)
"""Descriptors: with the first a run may have enough, with the last none has."""
READ_S = 60.0
EVENTS = "select _partition, _offset from events"


def named_points(trial: Trial) -> None:
    deaths = every_death(trial.rng, NTH_MAX)
    trial.rng.shuffle(deaths)
    for death in deaths:
        _die(trial, death)


def random_moments(trial: Trial) -> None:
    """Deaths at random moments; events have columns of every type, retries other values in them."""
    trial.typed()
    for _ in trial.rounds(10):
        _die(trial, trial.moment())


def two_crashes_in_a_row(trial: Trial) -> None:
    """The second crash comes before the first run's last snapshot is replaced, with new events for
    one partition only: the engine may have stored the others' without their epoch."""
    early = [("manifest-publish", 3), ("log-append", 3), ("snapshot-return", 2)]
    for _ in trial.rounds(5):
        _die(trial, Death.drawn(trial.rng, "snapshot-return", 6, "after"))
        trial.feed.send(200, ORDINARY, [trial.rng.choice(trial.feed.names)])
        trial.may_die(Death.drawn(trial.rng, *trial.rng.choice(early)))
    trial.ends()
    if woken := trial.orphans():
        raise Failure(f"expected orphan snapshots to be written over, {woken} workers had one")


def another_worker_count(trial: Trial) -> None:
    workers = 1
    for _ in trial.rounds(6):
        workers = trial.rng.choice([count for count in (1, 2, 3) if count != workers])
        _die(trial, trial.death(), workers=workers)


def bounded(**settings: str) -> Callable[[Story], Story]:
    """The story under these settings. However much is redelivered, no worker may take more memory
    than an ordinary portion took, plus the configured cache and some slack, nor read its logs and
    chunks more than so many times per message."""

    def bound(story: Story) -> Story:
        @wraps(story)
        def told(trial: Trial) -> None:
            trial.settings.update(CACHE_BYTES=f"{CACHE_MIB}MiB", **settings)
            trial.feed.send(PORTION, Traffic(retries=0))
            trial.ends(1)
            most = trial.peak_bytes() + (CACHE_MIB << 20) + MEMORY_SLACK
            story(trial)
            trial.afterwards.append(lambda: _require_little_memory(most, trial.peak_bytes()))
            trial.afterwards.append(lambda: _require_little_reading(trial))

        return told

    return bound


@bounded(DEDUP_WINDOW="1s", BLOCK_SPAN="1s")
def stall_then_redelivery(trial: Trial) -> None:
    """Stream time stands still while the job is down, for longer than the dedup window, which is
    made shorter than a start takes; then the bus redelivers the end of each partition."""
    trial.feed.send(PORTION, Traffic(retries=0))
    trial.may_die(trial.moment())
    trial.ends()
    _send_again(trial, {name: messages[-400:] for name, messages in trial.feed.messages.items()})
    trial.may_die(trial.moment())


@bounded(DEDUP_WINDOW="120s", BLOCK_SPAN="60s")
def redelivery_of_an_hour_ago(trial: Trial) -> None:
    """Long keys and the smallest cache, so that the keys of an hour ago are not in memory."""
    trial.feed.id_bytes = 400
    slow = Traffic(step_ms=2000, retries=0, late_ms=10 * MINUTE_MS)
    trial.feed.send(2 * PORTION, slow)
    _die(trial, trial.moment(), slow)
    trial.ends()
    before_ms = trial.feed.now_ms - HOUR_MS
    again = {
        name: [m for m in messages if before_ms <= _at_ms(m) < before_ms + 10 * MINUTE_MS]
        for name, messages in trial.feed.messages.items()
    }
    _send_again(trial, again)
    trial.may_die(trial.moment())


def more_keys_than_memory_holds(trial: Trial) -> None:
    """As much is redelivered as before, but of ten times as many keys, and takes no more memory."""
    # Nothing is merged, because that takes more memory than what is measured.
    own = {"CACHE_BYTES": f"{CACHE_MIB}MiB", "BLOCKS_PER_CHUNK": "1000"}
    trial.settings.update(own, DEDUP_WINDOW="120s", BLOCK_SPAN="60s")
    trial.feed.id_bytes = LONG_ID_BYTES
    trial.feed.send(PORTION, Traffic(step_ms=4000, copies=0, retries=0))
    trial.ends(1)
    every = {name: list(messages) for name, messages in trial.feed.messages.items()}
    few = {name: 10 * messages[: len(messages) // 10] for name, messages in every.items()}
    most = _peak_of(trial, few) + (CACHE_MIB << 20) + KEYS_SLACK
    _require_little_memory(most, _peak_of(trial, every))
    _require_little_reading(trial)


def _peak_of(trial: Trial, again: dict[str, list[bytes]]) -> int:
    """The memory of one worker to which all this is redelivered."""
    _send_again(trial, again)
    trial.ends(1)
    return trial.notes()[-1].peak_bytes


def _require_little_memory(most: int, peak: int) -> None:
    if peak > most:
        raise Failure(f"expected at most {most:,} bytes of memory, a worker had {peak:,}")


def _require_little_reading(trial: Trial) -> None:
    read, most = trial.read_back(), int(READ_BACK_MAX * trial.feed.count)
    if read > most:
        raise Failure(f"expected logs and chunks to be read {most:,} times at most, not {read:,}")


@bounded()
def redelivery_storm(trial: Trial) -> None:
    for _ in trial.rounds(3):
        for _ in trial.rounds(4):
            trial.feed.send(120, ORDINARY)
            for name in trial.feed.names:
                again = 10 * trial.feed.messages[name][-40:]
                trial.rng.shuffle(again)
                trial.feed.append(name, again)
        trial.may_die(trial.moment())


@bounded(DEDUP_WINDOW="600s", BLOCK_SPAN="60s")
def out_of_order_by_minutes(trial: Trial) -> None:
    for _ in trial.rounds(3):
        _die(trial, trial.death("log-append", "snapshot-return"), Traffic(1000, 5 * MINUTE_MS))


@bounded()
def clocks_far_off(trial: Trial) -> None:
    """One producer in the year 2144 and one at epoch zero are rejects, and move nothing."""
    for _ in trial.rounds(3):
        for name in trial.feed.names:
            for _ in range(20):
                trial.feed.send(20, ORDINARY, [name])
                off_ms = trial.rng.choice([FAR_FUTURE_MS, 0, -HOUR_MS])
                trial.feed.append(name, [trial.feed.event(off_ms)])
        trial.may_die(trial.moment())


@bounded(DEDUP_WINDOW="60s", BLOCK_SPAN="30s")
def clocks_a_little_off(trial: Trial) -> None:
    """One producer is ahead of the clock, by half of what is accepted, and one is minutes behind:
    all that they send is accepted, and late where it lies behind the others."""
    for _ in trial.rounds(3):
        for name in trial.feed.names:
            for _ in range(20):
                off_ms = trial.rng.choice([FUTURE_SKEW_MS // 2, 0, -3 * MINUTE_MS])
                trial.feed.now_ms = now_ms() + off_ms
                trial.feed.send(20, ORDINARY, [name])
        trial.may_die(trial.moment())


def readers_during_change(trial: Trial) -> None:
    trial.settings.update(GRACE="2s")
    trial.data.mkdir()
    with reading(trial) as one, reading(trial, "2") as other:
        for _ in trial.rounds(6):
            _die(trial, trial.death(*POINTS, MOMENT))
        trial.ends()
        for reader in (one, other):
            tally = tally_of(trial, reader)
            trial.lost += tally.lost
            trial.doubled += tally.doubled


def torn_log(trial: Trial) -> None:
    """A log lacks its last byte: the job refuses to go on, readers get all that is whole."""
    name, wanted, answer = _damage(trial, lambda data: data[:-1])
    if isinstance(answer, Corruption):
        raise Failure(f"expected what is intact, the query failed: {answer}")
    trial.lost += len([row for row in wanted - set(answer) if row[0] != name])
    trial.doubled += len(answer) - len(wanted.intersection(answer))


def flipped_byte(trial: Trial) -> None:
    """A bit of a log is flipped: neither the job nor a query goes on as if nothing had happened."""

    def flip(data: bytes) -> bytes:
        at, bit = trial.rng.randrange(len(data)), 1 << trial.rng.randrange(8)
        return data[:at] + bytes([data[at] ^ bit]) + data[at + 1 :]

    name, _, answer = _damage(trial, flip)
    if not isinstance(answer, Corruption):
        raise Failure(f"expected a query to find the flipped bit in a log of {name}, got answers")


def full_disk(trial: Trial) -> None:
    """The job ends and says why, readers go on; so does the job once there is room again."""
    disk = trial.cleanup.enter_context(small_disk(trial.folder / "disk"))
    trial.data = disk.folder / "data"
    _runs_out(trial, [disk.limit] * TRIES, disk.reasons, disk.shrink)
    disk.grow()


def few_open_files(trial: Trial) -> None:
    """So few descriptors that they run out in mid-work: the job ends and says why, readers go on;
    with more, so does the job."""
    limits = [f"NOFILE={most}" for most in FILES_MOST]
    _runs_out(trial, limits, ("Too many open files",))


STORIES: dict[str, Story] = {
    "each named point": named_points,
    "random moments": random_moments,
    "two crashes in a row": two_crashes_in_a_row,
    "another worker count": another_worker_count,
    "stall, then redelivery": stall_then_redelivery,
    "redelivery of an hour ago": redelivery_of_an_hour_ago,
    "more keys than memory holds": more_keys_than_memory_holds,
    "redelivery storm": redelivery_storm,
    "out of order by minutes": out_of_order_by_minutes,
    "clocks far off": clocks_far_off,
    "clocks a little off": clocks_a_little_off,
    "readers during change": readers_during_change,
    "torn log": torn_log,
    "flipped byte": flipped_byte,
    "full disk": full_disk,
    "few open files": few_open_files,
    "hostile input": hostile_input,
    "rejects replayed": rejects_replayed,
}


def _die(
    trial: Trial, death: Death, traffic: Traffic = ORDINARY, workers: int | None = None
) -> None:
    """Send more, and more at once, until the job dies like this."""
    for attempt in range(TRIES):
        trial.feed.send(PORTION << attempt, traffic)
        if trial.may_die(death, workers):
            return
    raise Failure(f"{death} was never reached")


def _runs_out(
    trial: Trial,
    limits: Sequence[str | None],
    reasons: tuple[str, ...],
    shrink: Callable[[], None] = lambda: None,
) -> None:
    """After an ordinary portion and `shrink`, send more under each limit in turn until one ends the
    job, and start it once more under that; check that it says why, and that readers keep what they
    had. (One worker: with several, the engine may report nothing about its own store.)"""
    trial.feed.send(PORTION, ORDINARY)
    trial.ends(1)
    shrink()
    firm = read(trial, set())
    for limit in limits:
        trial.feed.send(2 * PORTION, ORDINARY)
        if trial.run(None, 1, limit):
            break
        firm = read(trial, firm)
    else:
        raise Failure(f"expected one of {reasons} under one of {limits}, the job went on")
    if not any(reason in trial.told() for reason in reasons):
        raise Failure(f"expected one of {reasons}, the job told:\n{trial.told()}")
    read(trial, firm)
    trial.feed.send(2 * PORTION, ORDINARY)
    trial.run(None, 1, limit)
    read(trial, firm)


def read(trial: Trial, firm: set[Place]) -> set[Place]:
    """What a query finds now; counts events that it has twice, that were never sent, and those of
    `firm` that it lacks."""
    wanted, answer = _places(trial), query.open(trial.data).sql(EVENTS).rows()
    trial.doubled += len(answer) - len(wanted.intersection(answer))
    trial.lost += len(firm.difference(answer))
    return set(answer)


def _send_again(trial: Trial, messages: dict[str, list[bytes]]) -> None:
    """Redeliver messages of events that are all known: none may be accepted again."""
    accepted = _places(trial)
    for name, again in messages.items():
        trial.feed.append(name, again)
    if not any(messages.values()) or _places(trial) != accepted:
        raise AssertionError("bug: expected redelivered messages to be duplicates")


def _places(trial: Trial) -> set[Place]:
    return {(name, offset) for name, one in trial.expected().items() for offset in one.events}


def _at_ms(message: bytes) -> int:
    """The upload time of a message; 0 if it is broken."""
    found = re.search(rb'"at":([0-9]+)', message)
    return int(found[1]) if found else 0


@contextmanager
def reading(
    trial: Trial, *how: str, module: str = "forebay.verify.reader"
) -> Iterator[subprocess.Popen[bytes]]:
    """A reader of the trial's data, for as long as this lasts. `how` are its arguments."""
    with trial.log.open("ab") as log:
        reader = subprocess.Popen(
            [sys.executable, "-m", module, str(trial.data), *how],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    try:
        yield reader
    finally:
        reader.kill()
        reader.communicate()


def tally_of(trial: Trial, reader: subprocess.Popen[bytes]) -> Tally:
    """End a reader, and take what it reports."""
    line, _ = reader.communicate(timeout=READ_S)
    if reader.returncode:
        raise Failure(f"a reader failed:\n{trial.told()}")
    tally = Tally(**json.loads(line))
    if not tally.answers:
        raise Failure("expected answers, a reader got none")
    if tally.gone:
        raise Failure(f"expected files to stay for the grace period, {tally.gone} views lost some")
    return tally


def _damage(
    trial: Trial, change: Callable[[bytes], bytes]
) -> tuple[str, set[Place], list[Place] | Corruption]:
    """Change the log of a hot block, after a run and a kill; check that the job ends and names the
    file; repair it. Returns the partition, what a query should find, and what it finds."""
    _die(trial, trial.moment())
    trial.ends()
    view = take_view(Disk(), [trial.data])
    logs = [(p, p.folder / e.file) for p in view.partitions for b in p.hot for e in b.extents]
    partition, path = trial.rng.choice(logs)
    whole = path.read_bytes()
    _put(path, change(whole))
    wanted = _places(trial)
    answer: list[Place] | Corruption
    try:
        answer = query.open(trial.data).sql(EVENTS).rows()
    except Corruption as error:
        answer = error
    trial.feed.send(PORTION, ORDINARY)
    code = trial.run()
    if code != PERMANENT or not tells_corruption(trial.log.read_text(errors="replace"), path):
        raise Failure(f"expected Corruption of {path}, the job ended with {code}:\n{trial.told()}")
    if isinstance(answer, Corruption) and str(path) not in str(answer):
        raise Failure(f"expected an error that names {path}, got: {answer}")
    _put(path, whole)
    return partition.state.partition, wanted, answer


def tells_corruption(log: str, path: Path) -> bool:
    """Whether a line of the job's log says Corruption and names the file. What else it says depends
    on who read the file first, and on which of its bytes has changed."""
    return any(str(path) in line.partition("Corruption: ")[2] for line in log.splitlines())


def _put(path: Path, data: bytes) -> None:
    """Another file of this name: what is open or mapped stays as it is."""
    path.with_suffix(".other").write_bytes(data)
    path.with_suffix(".other").replace(path)
