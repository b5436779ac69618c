"""A trial: one data directory, the feed of its job, every run of it, and the comparison at the end.

The job is the one that users run: a supervised cluster of worker processes over files. Its settings
make blocks, chunks, commits and deletions so frequent that a second of it has them all. What always
holds: a run ends because the input has ended, or because a worker died as requested; any other
end is a `Failure` with the end of the job's log.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from signal import SIGKILL

import polars as pl

from forebay import query
from forebay.flows.cluster import Cluster
from forebay.flows.settings import ENV_PREFIX
from forebay.query import Store
from forebay.storage.base.times import now_ms
from forebay.verify import values
from forebay.verify.dying import MOMENT, NTH_MAX, POINTS, Death
from forebay.verify.feed import Feed
from forebay.verify.oracle import BYTES_MAX, COLUMNS, KINDS, Expected, judge
from forebay.verify.worker import DEATH, LIMIT, NOTES, Note

PARTITIONS = 3
WORKERS = (1, 1, 1, 2, 2, 3)
"""How many a run has, unless given; each costs a core about two seconds to start."""
MOMENT_MS_MAX = 400
TOLD_CHARS = 2000
SETTINGS = {
    "SOURCE": "files",
    "SCHEMA": "none",
    "COLUMNS": '[{"name": "device", "path": "device"}, {"name": "id", "path": "id"}]',
    "DEDUP_KEY": '["device", "id"]',
    "UPLOAD_TIME": "at",
    "RAW": "false",
    "BLOCK_SPAN": "3s",
    "DEDUP_WINDOW": "6s",
    "BLOCKS_PER_CHUNK": "2",
    "EPOCH_INTERVAL": "100ms",
    "PUBLISH_INTERVAL": "30ms",
    "BATCH_ROWS": "50",
    "GRACE": "1s",
}


class Failure(Exception):
    """A story did not go as it must, whatever events came out."""


@dataclass(frozen=True)
class Difference:
    """`lost`: events and rejects that no answer has, and counts that are too low. `doubled`: those
    that an answer has more than once, or that were never sent, and counts that are too high."""

    lost: int
    doubled: int


@dataclass
class Trial:
    """`settings` replace those above; `module` is what the worker processes run. The last of
    `limits`, as in `judge`, is the one that the job runs with. A `brief` trial has one round where
    a story has several, and one worker unless given."""

    folder: Path
    seed: str
    module: str = "forebay.verify.worker"
    brief: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    columns: dict[str, str] = field(default_factory=lambda: COLUMNS)
    """With their types, and `key` those by which an event is known."""
    key: tuple[str, ...] = tuple(COLUMNS)
    limits: list[int] = field(default_factory=lambda: [BYTES_MAX])
    data: Path = field(init=False)
    kills: int = 0
    lost: int = 0
    """What a reader missed while the job went on; `doubled` likewise."""
    doubled: int = 0
    afterwards: list[Callable[[], None]] = field(default_factory=list)
    """What looks, once the input has ended, whether all went as it must."""

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True)
        self.rng = random.Random(self.seed)
        self.feed = Feed(self.folder / "events", self.rng, PARTITIONS)
        self.data = self.folder / "data"
        self.log = self.folder / "job.log"
        self._notes = self.folder / "notes"
        # The job must not see any forebay.toml or variables that exist here.
        self._config = self.folder / "forebay.toml"
        self._config.touch()
        self.cleanup = ExitStack()

    def rounds(self, count: int) -> range:
        return range(1 if self.brief else count)

    def death(self, *points: str) -> Death:
        """At one of these points, by default any but the deletion of logs, which takes long."""
        point = self.rng.choice(points or [point for point in POINTS if point != "log-delete"])
        return self.moment() if point == MOMENT else Death.drawn(self.rng, point, NTH_MAX[point])

    def moment(self, ms_max: int = MOMENT_MS_MAX) -> Death:
        """At some time after the first append."""
        return Death(MOMENT, "after", self.rng.randint(1, ms_max))

    def typed(self) -> None:
        """From now on events have columns of every type, and `raw`."""
        self.columns, self.key = values.COLUMNS, values.KEY
        self.settings.update(values.settings())
        self.feed.fields = partial(values.fields, self.rng)

    def run(
        self, death: Death | None = None, workers: int | None = None, limit: str | None = None
    ) -> int:
        """One run of the job, by 1 to 3 workers: 0 when its input has ended, -SIGKILL when a worker
        died, else the exit code of the first that failed."""
        count = workers or (1 if self.brief else self.rng.choice(WORKERS))
        environment = {**self.environment, DEATH: str(death or ""), LIMIT: limit or ""}
        with self.log.open("ab") as log:
            cluster = Cluster(
                self.data, count, module=self.module, environment=environment, output=log
            )
            with closing(cluster):
                code = cluster.once()
        if code == -SIGKILL:
            self.kills += 1
        return code

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process of the job, with nothing of what is configured here."""
        own = {
            **SETTINGS,
            "DATA_DIR": str(self.data),
            "CONFIG": str(self._config),
            "FILES__PATH": str(self.feed.folder),
            "MESSAGE_BYTES_MAX": str(self.limits[-1]),
            **self.settings,
        }
        environment = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
        environment |= {f"{ENV_PREFIX}{name}": value for name, value in own.items()}
        return {**environment, NOTES: str(self._notes)}

    def dies(self, death: Death, workers: int | None = None) -> None:
        """A run that must die like this."""
        self._expect(self.run(death, workers), -SIGKILL, death)

    def may_die(self, death: Death, workers: int | None = None) -> bool:
        """A run that dies like this, unless its input ends first. Returns whether it died."""
        code = self.run(death, workers)
        if code:
            self._expect(code, -SIGKILL, death)
        return code != 0

    def ends(self, workers: int | None = None) -> None:
        """A run to the end of the input."""
        self._expect(self.run(None, workers), 0, "the end of the input")

    def _expect(self, code: int, expected: int, what: object) -> None:
        if code != expected:
            raise Failure(f"expected {what}, the job ended with {code}:\n{self.told()}")

    def peak_bytes(self) -> int:
        """The most memory that any worker has had so far."""
        return max(note.peak_bytes for note in self.notes())

    def orphans(self) -> int:
        """How many workers so far resumed from a snapshot that a lost run had left behind."""
        return sum(note.orphans > 0 for note in self.notes())

    def read_back(self) -> int:
        """How often workers have read a log or chunk so far."""
        return sum(note.read_back for note in self.notes())

    def notes(self) -> list[Note]:
        """What is noted of each worker that has ended."""
        lines = self._notes.read_text().splitlines() if self._notes.exists() else []
        return [Note.parse(line) for line in lines]

    def told(self) -> str:
        """The end of what the job printed."""
        return self.log.read_text(errors="replace")[-TOLD_CHARS:] if self.log.exists() else ""

    def expected(self) -> dict[str, Expected]:
        """What the rules make of all messages so far."""
        span_ms, window_ms = (
            1000 * int({**SETTINGS, **self.settings}[name].removesuffix("s"))
            for name in ("BLOCK_SPAN", "DEDUP_WINDOW")
        )
        read_ms = now_ms()
        return {
            name: judge(messages, span_ms, window_ms, read_ms, self.limits, self.columns, self.key)
            for name, messages in self.feed.messages.items()
        }

    def compare(self) -> Difference:
        """What a query finds now, compared with the rules; and whatever a reader missed before."""
        store = query.open(self.data)
        raw = ["raw"] if self.settings.get("RAW") == "true" else []
        wanted, wanted_counts = Counter[object](), Counter[object]()
        for name, one in self.expected().items():
            sent = self.feed.messages[name]
            for offset, row in one.events.items():
                wanted[name, offset, *row, *(sent[offset] for _ in raw)] += 1
            wanted.update((name, offset, message) for offset, message in one.rejects.items())
            if one.messages:
                wanted_counts.update(_counts(name, one.messages, one.stream_time_ms, one.counts))
        found, found_counts = Counter[object](self._events(store, raw)), Counter[object]()
        found.update(store.rejects().select("_partition", "_offset", "message").collect().rows())
        stream_time = pl.col("stream_time").dt.epoch("ms")
        for told in store.partitions().with_columns(stream_time).to_dicts():
            at = told["partition"], told["next_offset"], told["stream_time"]
            found_counts.update(_counts(*at, told))
        lost = max((wanted - found).total(), (wanted_counts - found_counts).total())
        doubled = max((found - wanted).total(), (found_counts - wanted_counts).total())
        return Difference(self.lost + lost, self.doubled + doubled)

    def _events(self, store: Store, more: list[str]) -> Iterator[tuple[object, ...]]:
        """The rows of a query as the oracle has them."""
        times = [pl.col(name).dt.epoch("us") for name in self.columns if self._is_time(name)]
        frame = store.scan().select("_partition", "_offset", *self.columns, *more)
        for row in frame.with_columns(times).collect().iter_rows():
            yield tuple(value.hex() if isinstance(value, float) else value for value in row)

    def _is_time(self, name: str) -> bool:
        return self.columns[name].startswith("time")


def _counts(
    partition: str, next_offset: int, stream_time_ms: int | None, counts: Mapping[str, int]
) -> dict[object, int]:
    """What was counted, by partition and kind; and the position, which counts one."""
    at = f"at {next_offset}, {stream_time_ms}"
    return {**{(partition, kind): counts[kind] for kind in KINDS}, (partition, at): 1}


Story = Callable[[Trial], None]


@dataclass(frozen=True)
class Row:
    """What came of a story. `events` counts the messages sent."""

    story: str
    events: int
    kills: int
    lost: int
    doubled: int
    seconds: float


def play(
    name: str,
    story: Story,
    folder: Path,
    seed: int,
    module: str = "forebay.verify.worker",
    *,
    brief: bool = False,
) -> tuple[Row, str]:
    """Tell the story in the new folder `folder`, then let the job run to the end and compare.

    The second of what is returned says what went wrong, other than lost and doubled events; it is
    empty if nothing did. `module` and `brief` as in `Trial`.
    """
    started_s = time.monotonic()
    trial = Trial(folder, f"{seed} {name}", module, brief)
    faults: list[str] = []
    difference = None
    with _told(faults), trial.cleanup:
        with _told(faults):
            story(trial)
            trial.ends()
            for look in trial.afterwards:
                look()
        with _told(faults):
            difference = trial.compare()
    if difference is None:
        every = sum(len(one.events) for one in trial.expected().values())
        difference = Difference(lost=every, doubled=0)
    seconds = round(time.monotonic() - started_s, 1)
    row = Row(name, trial.feed.count, trial.kills, difference.lost, difference.doubled, seconds)
    return row, faults[0] if faults else ""


@contextmanager
def _told(faults: list[str]) -> Iterator[None]:
    """Add whatever is raised to the faults, because the table must report it. (A panic of Polars is
    not an Exception.)"""
    try:
        yield
    except (Exception, pl.exceptions.PanicException) as error:  # noqa: BLE001
        faults.append(f"{type(error).__name__}: {error}")
