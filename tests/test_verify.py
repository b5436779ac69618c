"""What `forebay verify` is made of: deaths that come where they are told to, two oracles that
agree, a reader that notices, and a table that tells."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import cast
from unittest.mock import Mock

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result

import forebay
from forebay.cli.main import main
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.base.disk import Disk
from forebay.storage.formats.schema import UPLOAD_TIME, Column, ColumnType, Schema
from forebay.verify import values
from forebay.verify.dying import NTH_MAX, POINTS, STORING_MS, Death, DyingDisk, every_death
from forebay.verify.feed import START_MS, Feed, Traffic
from forebay.verify.harness import Failure, Row, Trial, play
from forebay.verify.hostile import BYTES_MAX, HARMLESS, PIECES, hostile
from forebay.verify.oracle import Expected, judge
from forebay.verify.reader import Seen
from forebay.verify.stories import (
    MEMORY_SLACK,
    READ_BACK_MAX,
    STORIES,
    bounded,
    read,
    tells_corruption,
)
from forebay.verify.worker import Note
from tests.oracle import Oracle
from tests.partition import Partition, event

NOW_MS = START_MS + 10**9
DATA = bytes(range(100))
SEED = 7
VERDICTS = {
    b"": (0, 0, 0),
    b"\r": (0, 0, 0),
    b" %(event)b\t\r": (1, 0, 0),
    b"%(otherwise)b": (1, 1, 0),
    b"%(longest)b": (1, 0, 0),
    **{b"%(open)b," + field + b"}": (1, 0, 0) for field in HARMLESS},
}
"""Accepted, duplicates and rejects of a piece by its last line; of others all are rejects."""


UNTYPED = [piece for piece in PIECES if piece[1:] != [b"%(event)b"]]
TYPED = Schema(
    tuple(Column(name, (name,), cast(ColumnType, kind)) for name, kind in values.COLUMNS.items()),
    values.KEY,
    Column(UPLOAD_TIME, ("at",), "time"),
)


class _Died(Exception):
    """Stands for SIGKILL."""


def _die() -> None:
    raise _Died


# -- deaths -------------------------------------------------------------------------------------


def _append(disk: Disk, folder: Path) -> Path:
    path = folder / "block.1.arrows"
    file = disk.create(path)
    file.append(DATA)
    file.sync()
    return path


def _manifest(disk: Disk, folder: Path) -> Path:
    disk.replace(folder / "manifest.json", DATA, durable=False)
    return folder / "manifest.json"


def _catalog(disk: Disk, folder: Path) -> Path:
    disk.replace(folder / "catalog.json", DATA, durable=True)
    return folder / "catalog.json"


def _chunk(disk: Disk, folder: Path) -> Path:
    with disk.write(folder / "c.parquet.tmp") as file:
        file.write(DATA)
    disk.publish(folder / "c.parquet.tmp", folder / "c.parquet")
    return folder / "c.parquet"


def _delete(disk: Disk, folder: Path) -> Path:
    path = folder / "block.1.arrows"
    path.write_bytes(DATA)
    disk.remove(path)
    return path


Act = Callable[[Disk, Path], Path]
WRITTEN: list[tuple[str, Act, dict[str, bytes]]] = [
    ("log-append:before:1", _append, {"block.1.arrows": b""}),
    ("log-append:half:1", _append, {"block.1.arrows": DATA[:50]}),
    ("log-append:after:1", _append, {"block.1.arrows": DATA}),
    ("log-fsync:before:1", _append, {"block.1.arrows": DATA}),
    ("log-fsync:after:1", _append, {"block.1.arrows": DATA}),
    ("manifest-publish:before:1", _manifest, {}),
    ("manifest-publish:half:1", _manifest, {".manifest.json.tmp": DATA[:50]}),
    ("manifest-publish:after:1", _manifest, {"manifest.json": DATA}),
    ("catalog-publish:before:1", _catalog, {}),
    ("catalog-publish:half:1", _catalog, {".catalog.json.tmp": DATA[:50]}),
    ("catalog-publish:after:1", _catalog, {"catalog.json": DATA}),
    ("chunk-write:before:1", _chunk, {}),
    ("chunk-write:half:1", _chunk, {"c.parquet.tmp": DATA[:50]}),
    ("chunk-write:after:1", _chunk, {"c.parquet.tmp": DATA}),
    ("chunk-rename:before:1", _chunk, {"c.parquet.tmp": DATA}),
    ("chunk-rename:after:1", _chunk, {"c.parquet": DATA}),
    ("log-delete:before:1", _delete, {"block.1.arrows": DATA}),
    ("log-delete:after:1", _delete, {}),
]


@pytest.mark.parametrize(("death", "act", "left"), WRITTEN, ids=[one[0] for one in WRITTEN])
def test_a_death_leaves_on_disk_what_its_step_had_written(
    death: str, act: Act, left: dict[str, bytes], tmp_path: Path
) -> None:
    with pytest.raises(_Died):
        act(DyingDisk(Death.parse(death), _die), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left


def test_every_point_but_the_snapshot_is_tried_above() -> None:
    tried = {one[0].rpartition(":")[0] for one in WRITTEN}
    assert tried == {f"{d.point}:{d.when}" for d in _deaths() if d.point != "snapshot-return"}


def test_a_snapshot_that_returns_may_be_the_last(tmp_path: Path) -> None:
    disk = DyingDisk(Death("snapshot-return", "before", 2), _die)
    disk.step("snapshot-return")
    with pytest.raises(_Died):
        disk.step("snapshot-return")


def test_only_the_nth_time_is_the_last(tmp_path: Path) -> None:
    disk = DyingDisk(Death("log-append", "after", 3), _die)
    file = disk.create(tmp_path / "block.1.arrows")
    file.append(DATA)
    file.append(DATA)
    with pytest.raises(_Died):
        file.append(DATA)


@pytest.mark.parametrize("death", [None, Death("chunk-write", "half", 1)])
def test_files_without_a_death_of_theirs_are_the_real_ones(
    death: Death | None, tmp_path: Path
) -> None:
    disk = DyingDisk(death, _die)
    assert _append(disk, tmp_path).read_bytes() == DATA
    assert _manifest(disk, tmp_path).read_bytes() == DATA


def test_a_process_dies_of_sigkill_at_a_moment_after_its_first_append(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from forebay.verify.dying import *;"
        "files = DyingDisk(Death.parse('moment:after:1'));"
        "files.create(Path(sys.argv[1])).append(b'x'); sys.stdin.read()"
    )
    path = tmp_path / "block.1.arrows"
    process = subprocess.Popen([sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE)
    assert process.wait(60) == -signal.SIGKILL
    assert path.read_bytes() == b"x"
    process.communicate()


def test_a_death_is_read_back_from_its_text() -> None:
    assert [Death.parse(str(death)) for death in _deaths()] == _deaths()


def test_a_seed_tells_how_long_after_a_snapshot_a_process_dies(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = [
        [Death.drawn(random.Random(seed), "snapshot-return", 9, "after") for seed in range(20)]
        for _ in range(2)
    ]
    assert drawn[0] == drawn[1]
    assert 5 < len({death.later_ms for death in drawn[0]}) <= STORING_MS + 1
    timer = Mock()
    monkeypatch.setattr("forebay.verify.dying.threading.Timer", timer)
    disk = DyingDisk(Death("snapshot-return", "after", 1, 12), _die)
    disk.step("snapshot-return")
    timer.assert_called_once_with(0.012, disk.end)


def test_a_note_is_read_back_from_its_text() -> None:
    assert Note.parse(str(Note(1 << 30, 2, 3))) == Note(1 << 30, 2, 3)


def test_logs_and_chunks_that_are_read_back_are_counted(tmp_path: Path) -> None:
    disk = DyingDisk(None, _die)
    for name in ("block.1.arrows", "c.parquet", "manifest.json"):
        (tmp_path / name).write_bytes(DATA)
        assert disk.read(tmp_path / name, 5, 10) == DATA[5:10]
    assert disk.read_back == 2


@pytest.mark.parametrize(("more", "fits"), [(MEMORY_SLACK, True), (2 * MEMORY_SLACK, False)])
def test_a_worker_that_takes_more_memory_than_its_bound_fails_a_bounded_story(
    more: int, fits: bool
) -> None:
    trial = Mock(settings={}, afterwards=[], feed=Mock(count=100))
    trial.read_back.return_value = 1
    trial.peak_bytes.side_effect = [1 << 28, (1 << 28) + more]
    bounded()(lambda _: None)(trial)
    with nullcontext() if fits else pytest.raises(Failure, match="bytes of memory"):
        for look in trial.afterwards:
            look()


@pytest.mark.parametrize(("more", "fits"), [(0, True), (1, False)])
def test_a_worker_that_reads_back_more_than_its_bound_fails_a_bounded_story(
    more: int, fits: bool
) -> None:
    trial = Mock(settings={}, afterwards=[], feed=Mock(count=1000))
    trial.peak_bytes.return_value = 1 << 28
    trial.read_back.return_value = int(1000 * READ_BACK_MAX) + more
    bounded()(lambda _: None)(trial)
    with nullcontext() if fits else pytest.raises(Failure, match="to be read"):
        for look in trial.afterwards:
            look()


def test_every_point_can_be_reached() -> None:
    assert set(NTH_MAX) == set(POINTS)


def _deaths() -> list[Death]:
    return every_death(random.Random(SEED), dict.fromkeys(POINTS, 1))


# -- the rules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_judge_of_a_feed_reads_and_counts_as_the_oracle(seed: int, tmp_path: Path) -> None:
    feed = Feed(tmp_path / "events", random.Random(seed), 2)
    feed.send(3000, Traffic(disorder_ms=4000, retries=0.1, late=0.1, broken=0.05))
    for name, messages in feed.messages.items():
        expected = judge(messages, 3000, 6000, NOW_MS)
        oracle = Oracle(3000, 6000)
        for offset, message in enumerate(messages):
            if message.startswith(b'{"device":"d') and not message.endswith(b'"noon"}'):
                event = json.loads(message)
                oracle.event((name, offset), (event["device"], event["id"]), event["at"])
            else:
                oracle.reject((name, offset))
        assert [(name, offset) for offset in expected.events] == oracle.places()
        del expected.counts["conflicts"]  # the other one is given no values
        counts = {name: getattr(oracle, name) for name in expected.counts}
        assert counts == expected.counts
        assert counts.pop("rejects_expired") == 0
        assert min(counts.values()) > 10
        assert expected.stream_time_ms == oracle.stream_time_ms


@pytest.mark.parametrize(
    "at", [b"0", b"-3600000", b"8000000000000", b'"noon"', b"null", b"946684799999"]
)
def test_clocks_far_off_are_rejects_and_move_nothing(at: bytes) -> None:
    off = b'{"device":"d","id":"x","at":%b}' % at
    good = b'{"device":"d","id":"y","at":%d}' % START_MS
    expected = judge([good, off], 3000, 6000, NOW_MS)
    assert (expected.counts["rejects"], expected.stream_time_ms) == (1, START_MS)
    assert expected.events == {0: ("d", "y")}


@pytest.mark.parametrize("piece", UNTYPED, ids=lambda piece: repr(piece)[:40])
def test_the_rules_tell_hostile_lines_apart(piece: list[bytes]) -> None:
    event = b'{"device":"d","id":"x","at":%d}' % START_MS
    between = [b'{"device":"d","id":"%b","at":%d}' % (id, START_MS) for id in (b"y", b"z")]
    lines = hostile(random.Random(SEED), piece, event)
    expected = judge([between[0], *lines, between[1]], 3000, 6000, NOW_MS, (BYTES_MAX,))
    ends = (expected.events.pop(0), expected.events.pop(len(lines) + 1))
    assert ends == (("d", "y"), ("d", "z"))
    counts = expected.counts
    found = (counts["accepted"] - 2, counts["duplicates"], counts["rejects"])
    assert found == VERDICTS.get(piece[-1], (0, 0, len(piece)))
    assert set(expected.events.values()) <= {("d", "x")}


JUDGED: list[tuple[str, bytes, str | int | None]] = [
    ("string", b'"\\ud7ff"', "\ud7ff"), ("string", b"1", None), ("bool", b"true", True),
    ("bool", b"1", None), ("int", b"1e3", 1000), ("int", b"9007199254740993.0", 2**53 + 1),
    ("int", b"1.5", None), ("int", b"-9223372036854775809", None), ("int", b'"12"', 12),
    ("int", b"true", None), ("int", b"1e400", None), ("float", b"1e400", None),
    ("float", b'"NaN"', None), ("float", b"-0.0", "-0x0.0p+0"), ("float", b'"1.5"', (1.5).hex()),
    ("time", b"1.5", 1000), ("time_s", b'"2024-05-01 00:00:01.999"', 1_714_521_601_000_000),
    ("time_us", b'"0001-01-01T00:00:00Z"', -62_135_596_800_000_000),
    ("time_us", b'"9999-12-31T23:59:59.9999999-08:00"', None),
    ("time_s", b'"1970-01-01T01:00:00+01:00"', 0), ("time", b"1714521600000000", None),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "text", "value"), JUDGED)
def test_the_rules_tell_what_is_a_value(kind: str, text: bytes, value: str | int | None) -> None:
    event = b'{"device":"d","id":"x","at":%d,"v":%b}' % (START_MS, text)
    columns = {"device": "string", "id": "string", "v": kind}
    expected = judge([event], 3000, 6000, NOW_MS, columns=columns)
    assert expected.events == {0: ("d", "x", value)}
    in_key = judge([event], 3000, 6000, NOW_MS, columns=columns, key_columns=tuple(columns))
    cut = text in (b"1.5", b'"2024-05-01 00:00:01.999"') and value is not None
    assert len(in_key.rejects) == (value is None or cut)


@pytest.mark.few(40)
@pytest.mark.parametrize("field", [*values.HOSTILE, *values.HOSTILE_KEYS])
def test_hostile_values_are_decoded_as_the_rules_say(field: bytes) -> None:
    """The rules share no code with what decodes; each is asked about one message."""
    own = values.fields(random.Random(SEED), "x")
    message = b'{"device":"d","id":"x","at":%d%b,%b}' % (START_MS, own, field)
    expected = judge([message], 1, 1, NOW_MS, (BYTES_MAX,), values.COLUMNS, values.KEY)
    item = Messages("p", [message], np.zeros(1, np.int64), np.full(1, NOW_MS), 1)
    (frame,) = Decoder(DecodeConfig(TYPED, 0, BYTES_MAX)).decode([item])
    rows = pl.DataFrame(pa.Table.from_batches([frame.events])).select(*values.COLUMNS)
    times = [pl.col(name).dt.epoch("us") for name, t in values.COLUMNS.items() if "time" in t]
    found = [
        tuple(value.hex() if isinstance(value, float) else value for value in row)
        for row in rows.with_columns(times).rows()
    ]
    assert found == list(expected.events.values())
    assert frame.rejects.num_rows == len(expected.rejects)


def test_a_copy_with_another_value_is_a_conflict_with_the_event_kept() -> None:
    columns = {"device": "string", "id": "string", "n": "int"}
    texts = [b"1", b"1.0", b"2", b'"1"', b"1.5", b"null"]
    messages = [b'{"device":"d","id":"x","at":%d,"n":%b}' % (START_MS, text) for text in texts]
    late = b'{"device":"d","id":"y","at":%d}' % (START_MS + 60_000)
    for middle in ([], [late]):  # the event is in an open block, or in a closed one
        lines = [messages[0], *middle, *messages[1:]]
        counts = judge(lines, 3000, 6000, NOW_MS, columns=columns).counts
        assert (counts["duplicates"], counts["conflicts"]) == (5, 3)


@pytest.mark.parametrize("id", ["1", "17", "x"])
def test_an_event_that_is_spelt_otherwise_is_the_same_event(id: str) -> None:
    own = values.fields(random.Random(SEED), id)
    event = b'{"device":"d","id":"%b","at":%d%b}' % (id.encode(), START_MS, own)
    lines = hostile(random.Random(SEED), [b"%(event)b", b"%(otherwise)b"], event)
    counts = judge(lines, 3000, 6000, NOW_MS, (BYTES_MAX,), values.COLUMNS, values.KEY).counts
    assert (counts["accepted"], counts["duplicates"], counts["conflicts"]) == (1, 1, 0)
    assert lines[0] != lines[1]


def test_what_a_replay_passes_is_judged_after_the_messages() -> None:
    long, good = (
        b'{"device":"d","id":"%b","at":%d}' % (id, START_MS + ms)
        for id, ms in ((b"l" * 100, 9000), (b"g", 0))
    )
    messages = [long, good, long, b"{"]
    first = judge(messages, 3000, 6000, NOW_MS, (100,))
    assert first.counts == Counter(accepted=1, rejects=3)
    expected = judge(messages, 3000, 6000, NOW_MS, (100, 1000))
    assert expected.counts == Counter(accepted=2, duplicates=1, rejects=1)
    assert (list(expected.events), expected.rejects) == ([1, 0], {3: b"{"})
    assert expected.stream_time_ms == START_MS + 9000
    assert judge(messages, 3000, 6000, NOW_MS, (100, 1000, 1000)) == expected


def test_a_feed_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    feeds = [Feed(tmp_path / name, random.Random(3), 3) for name in ("a", "b")]
    for feed in feeds:
        feed.send(500, Traffic())
    assert feeds[0].messages == feeds[1].messages
    assert {p.name: p.read_bytes().splitlines() for p in feeds[0].folder.iterdir()} == (
        feeds[1].messages
    )


def test_what_was_readable_and_vanished_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    trial = Mock(lost=0, doubled=0)
    trial.expected.return_value = {"p": Expected(events={0: ("a",), 1: ("b",)})}
    answer = [("p", 1), ("p", 1), ("p", 7)]
    monkeypatch.setattr(
        "forebay.query.open", Mock(**{"return_value.sql.return_value.rows": lambda: answer})
    )
    assert read(trial, {("p", 0), ("p", 1)}) == set(answer)
    assert (trial.lost, trial.doubled) == (1, 2)


# -- what a story ends with ---------------------------------------------------------------------


def _gone(chunk: Path) -> None:
    chunk.unlink()


def _damaged(chunk: Path) -> None:
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:4] + bytes(200) + whole[204:])


def _panics(chunk: Path) -> None:
    raise pl.exceptions.PanicException("out of range")


@pytest.mark.parametrize(
    ("act", "told"),
    [(_gone, "FileNotFoundError: "), (_damaged, "ComputeError: "), (_panics, "PanicException: ")],
)
def test_whatever_a_comparison_ends_with_is_told_and_all_is_lost(
    act: Callable[[Path], None], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk was there when the view was taken."""
    partition = Partition(tmp_path / "data").start()
    partition.append(*(event(number, number, 700 * number) for number in range(20)))
    partition.blocks.publish()
    partition.merge()
    partition.crash()
    (chunk, *_) = (tmp_path / "data").rglob("*.parquet")

    def story(trial: Trial) -> None:
        trial.data = tmp_path / "data"
        trial.columns, trial.key = {"id": "string"}, ("id",)
        trial.feed.send(50, Traffic(broken=0))
        monkeypatch.setattr(trial, "ends", lambda: None)

    sound = forebay.Store.scan

    def scan(self: forebay.Store) -> pl.LazyFrame:
        frame = sound(self)
        act(chunk)
        return frame

    monkeypatch.setattr(forebay.Store, "scan", scan)
    row, fault = play("story", story, tmp_path / "trial", SEED)
    assert told in fault
    assert (row.events, row.doubled) == (50, 0)
    assert row.lost > 40


def test_a_story_that_panics_is_told_with_what_was_found(tmp_path: Path) -> None:
    def story(trial: Trial) -> None:
        raise pl.exceptions.PanicException("out of range")

    row, fault = play("story", story, tmp_path / "trial", SEED)
    assert fault == "PanicException: out of range"
    assert (row.lost, row.doubled) == (0, 0)


LOG = Path("/data/hot/part-0/20240501T0000-000002.1.arrows")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"Corruption: log {LOG}: expected checksum 0x1 for bytes 0..9, got 0x2", True),
        (f"Corruption: log {LOG}: no schema at offset 0: unexpected null field", True),
        (f"Corruption: log {LOG}: the schema at offset 0 and the record batch at offset 9", True),
        (f"Corruption: log {LOG}: the record batch at offset 9 can't be read: lz4", True),
        (f"Corruption: log {LOG.with_name('other.arrows')}: expected 9 bytes, got 8", False),
        (f"MissingFile: log {LOG}: expected 9 bytes, no file", False),
        ("Corruption: recovery store: malformed", False),
    ],
)
def test_corruption_is_told_by_whoever_read_the_file_first_in_words_of_its_own(
    line: str, told: bool
) -> None:
    log = f"worker 1 INFO reads {LOG}\nworker 0 ERROR {line}\nworker 1 ERROR lost a peer\n"
    assert tells_corruption(log, LOG) == told


# -- the reader ---------------------------------------------------------------------------------


def test_a_reader_misses_what_was_surely_committed() -> None:
    seen = Seen()
    assert seen.missing({1, 2}, (1, 0), (1, 0)) == 0
    assert seen.missing({1, 2, 3}, (1, 3), (1, 3)) == 0
    assert seen.missing({3}, (2, 4), (2, 4)) == 2


def test_a_reader_forgives_a_crash_what_was_not_committed() -> None:
    seen = Seen()
    assert seen.missing({1, 2}, (1, 0), (1, 2)) == 0
    assert seen.missing({1}, (1, 2), (2, 2)) == 0
    assert seen.missing({1, 2}, (2, 3), (2, 3)) == 0


def test_a_state_that_drops_what_it_has_already_is_counted() -> None:
    disk = DyingDisk(None, _die)
    disk.step("snapshot-return")
    disk.step("orphan-snapshot")
    assert disk.orphans == 1


def test_a_reader_forgives_nothing_without_a_crash() -> None:
    seen = Seen()
    assert seen.missing({1, 2}, (1, 0), (1, 0)) == 0
    assert seen.missing({2}, (1, 0), (1, 0)) == 1


# -- the command --------------------------------------------------------------------------------


def _verify(monkeypatch: pytest.MonkeyPatch, answer: tuple[Row, str], *options: str) -> Result:
    """`forebay verify` with a story that always ends so."""

    def play(name: str, _: object, folder: Path, seed: int) -> tuple[Row, str]:
        folder.mkdir(parents=True)
        return answer

    monkeypatch.setattr("forebay.cli.verify.play", play)
    return CliRunner().invoke(main, ["verify", *options])


GOOD = Row("torn log", 100, 7, 0, 0, 1.5)


def test_json_has_exactly_six_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = _verify(monkeypatch, (GOOD, ""), "--json", "--dir", str(tmp_path))
    assert found.exit_code == 0
    assert json.loads(found.stdout) == [
        {
            "story": "torn log",
            "events": 100 * len(STORIES),
            "kills": 7 * len(STORIES),
            "lost": 0,
            "doubled": 0,
            "seconds": 1.5 * len(STORIES),
        }
    ]


@pytest.mark.parametrize(
    "answer",
    [
        (Row("torn log", 100, 7, 1, 0, 1.5), ""),
        (Row("torn log", 100, 7, 0, 1, 1.5), ""),
        (GOOD, "a reader failed"),
    ],
)
def test_any_difference_is_an_exit_code_and_is_kept(
    answer: tuple[Row, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = _verify(monkeypatch, answer, "--story", "torn log", "--dir", str(tmp_path))
    assert found.exit_code == 1
    assert "torn log went wrong" in found.stderr
    assert answer[1] in found.stderr
    assert (tmp_path / "0" / "torn-log").is_dir()


@pytest.mark.parametrize(("long", "taken"), [(False, 0), (True, 3)])
def test_a_place_that_is_taken_is_told_before_any_story(
    long: bool, taken: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    place = tmp_path / str(taken) / "rejects-replayed"
    place.mkdir(parents=True)
    (tmp_path / "1" / "torn-log").mkdir(parents=True)
    options = ["--long"] if long else []
    found = _verify(
        monkeypatch, (GOOD, ""), "--dir", str(tmp_path), "--seed", str(2 * long), *options
    )
    assert found.exit_code == 2
    assert f"expected a folder without {place}" in " ".join(found.stderr.split())
    assert "..." not in found.stderr


def test_long_goes_on_until_so_many_kills(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    most = str(7 * (len(STORIES) + 1))
    options = ("--long", "--kills", most, "--seed", "5", "--dir", str(tmp_path))
    found = _verify(monkeypatch, (GOOD, ""), *options)
    assert found.exit_code == 0
    assert "seed 5: random moments" in found.stderr
    assert "seed 6: each named point" in found.stderr
    assert most in found.stdout


def test_ctrl_c_prints_the_table_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    played: list[str] = []

    def play(name: str, *_: object) -> tuple[Row, str]:
        if played:
            raise KeyboardInterrupt
        played.append(name)
        return GOOD, ""

    monkeypatch.setattr("forebay.cli.verify.play", play)
    found = CliRunner().invoke(main, ["verify", "--long", "--dir", str(tmp_path)])
    assert found.exit_code == 0
    assert "torn log" in found.stdout


def test_minutes_and_kills_are_for_long_only(monkeypatch: pytest.MonkeyPatch) -> None:
    found = _verify(monkeypatch, (GOOD, ""), "--kills", "3")
    assert found.exit_code == 2
    assert "expected --long" in found.stderr
