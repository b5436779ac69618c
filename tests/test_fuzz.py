"""Arbitrary and mutated bytes for everything that reads bytes.

What always holds: a message becomes one event or one reject, whatever stands beside it; of files
and settings only errors of ours come out. What could end the process is tried in one of its own.
HYPOTHESIS_PROFILE=long tries many more.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import forebay
from forebay.flows.settings import Settings, load
from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, ForebayError
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Catalog
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.log import Extent, LogReader, log_schema, read_log
from forebay.storage.formats.state import PartitionState
from tests import LONG, cases
from tests.decoding import DECODER, GOOD, item, nonsense, reads, risky, well_formed
from tests.lane import Lane, filled
from tests.records import RECORDS, Record

ROOT = Path(__file__).parent.parent

# -- decode -------------------------------------------------------------------------------------


def assert_aligned(messages: list[bytes]) -> None:
    """Each message is one event or one reject, and its own bytes are kept with it."""
    (frame,) = DECODER.decode([item(messages)])
    assert len(reads(frame)) == len(messages)
    kept = {row["_offset"]: row["raw"] for row in frame.events.to_pylist()}
    kept |= {row["_offset"]: row["message"] for row in frame.rejects.to_pylist()}
    assert kept == dict(enumerate(messages))


def mutated(message: bytes, seed: int) -> bytes:
    """With some bytes flipped, cut out, doubled, or replaced by what has a meaning in JSON."""
    rng = random.Random(seed)
    data = bytearray(message)
    for _ in range(rng.randint(1, 4)):
        at = rng.randint(0, len(data))
        upto = min(len(data), at + rng.randint(0, 8))
        data[at:upto] = rng.choice(
            (
                bytes(rng.randrange(1, 256) for _ in range(rng.randint(0, 3))),
                data[at:upto] * 2,
                b"",
                rng.choice((b'"', b"{", b"}", b"\n", b"\\", b"\\u", b",", b":", b"1e", b"-", b"[")),
            )
        )
    return bytes(data)


arbitrary = st.binary(max_size=80).map(lambda data: data.replace(b"\0", b"0"))
"""NULs are tried in a process of their own."""
mutations = st.builds(mutated, well_formed, st.integers(0, 2**32))


@given(st.lists(arbitrary | mutations | nonsense, min_size=1, max_size=40))
def test_arbitrary_and_mutated_messages_stay_aligned(messages: list[bytes]) -> None:
    assert_aligned([GOOD, *messages, GOOD])


@given(st.lists(arbitrary | mutations, min_size=1, max_size=12))
def test_neighbours_of_mutated_messages_change_nothing(messages: list[bytes]) -> None:
    (frame,) = DECODER.decode([item(messages)])
    alone = [reads(DECODER.decode([item([message])])[0])[0] for message in messages]
    assert reads(frame) == alone


def decode_risky() -> None:
    """Each alone, between two good ones, and all at once; prints the slowest."""
    from forebay.operators.decode import DecodeConfig, Decoder
    from tests.decoding import SCHEMA, SKEW_MS

    decoder = Decoder(DecodeConfig(SCHEMA, SKEW_MS, 10_000_000))
    slowest = (0.0, b"")
    for group in [*([GOOD, message, GOOD] for message in risky()), [GOOD, *risky(), GOOD]]:
        print(group[1][:60], flush=True)
        began = time.perf_counter()
        (frame,) = decoder.decode([item(group)])
        slowest = max(slowest, (time.perf_counter() - began, group[1][:60]))
        found = reads(frame)
        assert len(found) == len(group)
        assert found[0].reason is None
        assert found[-1].reason is None
        kept = {row["_offset"]: row["raw"] for row in frame.events.to_pylist()}
        kept |= {row["_offset"]: row["message"] for row in frame.rejects.to_pylist()}
        assert kept == dict(enumerate(group))
    print("slowest", slowest)


@pytest.mark.long
def test_risky_messages_neither_end_the_process_nor_hold_it_up() -> None:
    """Some 900 of them: bombs of depth and size, other encodings, every byte at either end."""
    done = subprocess.run(
        [sys.executable, "-c", "from tests.test_fuzz import decode_risky\ndecode_risky()"],
        cwd=ROOT,
        capture_output=True,
        timeout=120,
    )
    tail = done.stdout[-300:].decode(errors="replace"), done.stderr[-2000:].decode(errors="replace")
    assert done.returncode == 0, tail


def decode_with_nul(batches: int) -> None:
    """Batches of arbitrary bytes, mutated messages and NULs, each from its number."""
    for number in range(batches):
        rng = random.Random(number)
        messages = [rng.randbytes(rng.randint(0, 60)) for _ in range(100)]
        messages += [
            mutated(GOOD, rng.randrange(2**32)) + bytes(rng.randint(0, 2)) for _ in "x" * 50
        ]
        rng.shuffle(messages)
        assert_aligned(messages)


@pytest.mark.cases
def test_arbitrary_bytes_with_nul_are_decoded_in_a_process_of_their_own() -> None:
    batches = cases(25, 100, 5_000)
    code = f"from tests.test_fuzz import decode_with_nul\ndecode_with_nul({batches})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:].decode(errors="replace")


# -- small files and snapshots ------------------------------------------------------------------

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.sampled_from(["../x", "/etc/passwd", "a" * 300, "2024", "string", "int64"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc", max_size=3), inner),
    max_leaves=5,
)
each_record = st.sampled_from(RECORDS)


def paths_in(value: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The place of every value within JSON."""
    yield path
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from paths_in(inner, (*path, name))
    if isinstance(value, list):
        for index, inner in enumerate(value):
            yield from paths_in(inner, (*path, index))


@dataclass(frozen=True)
class Changed:
    """The body of a golden record with some of its values replaced or taken out."""

    made: Record
    body: dict[str, object]

    @property
    def data(self) -> bytes:
        return record.encode(self.made.kind, 2, self.body)


@st.composite
def changed_records(draw: st.DrawFn) -> Changed:
    made = draw(each_record)
    body = orjson.loads(made.data)["body"]
    for _ in range(draw(st.integers(1, 3))):
        *path, last = draw(st.sampled_from([p for p in paths_in(body) if p] or [("x",)]))
        holder: object = body
        try:
            for step in path:
                holder = holder[step]  # type: ignore[index]
            if draw(st.integers(0, 4)):
                holder[last] = draw(json_values)  # type: ignore[index]
            else:
                del holder[last]  # type: ignore[attr-defined]
        except (KeyError, IndexError, TypeError):
            continue  # an earlier change took it away
    return Changed(made, body)


DECODERS: list[Callable[[bytes, str], object]] = [
    PartitionState.decode,
    Catalog.decode,
    Boundary.decode,
]


@settings(max_examples=cases(75, 300, 20_000))
@given(changed_records())
def test_a_record_with_changed_values_is_read_or_refused(changed: Changed) -> None:
    try:
        changed.made.decode(changed.data, "DATA/x")
    except ForebayError as error:
        refusal = str(error)
    else:
        return
    assert "DATA/x" in refusal or "file name" in refusal


@settings(max_examples=cases(50, 200, 20_000))
@given(
    st.sampled_from(DECODERS),
    st.sampled_from(["manifest", "catalog", "batch"]),
    st.binary(max_size=200) | nonsense,
)
def test_arbitrary_bytes_in_a_good_envelope_are_refused(
    decode: Callable[[bytes, str], object], kind: str, body: bytes
) -> None:
    head = b'{"forebay":"%b","version":1,"crc":"%08x","body":' % (kind.encode(), zlib.crc32(body))
    for data in (head + body + b"}", body, head[: len(body)]):
        with pytest.raises(ForebayError):
            decode(data, "DATA/x")


@settings(max_examples=cases(50, 200, 20_000))
@given(each_record, st.integers(0, 2**32))
def test_mutated_records_are_refused(made: Record, seed: int) -> None:
    data = mutated(made.data, seed)
    if data != made.data:
        with pytest.raises(ForebayError):
            made.decode(data, "DATA/x")


# -- a data directory ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    lane = filled(Lane(tmp_path_factory.mktemp("stored") / "data").start())
    yield lane.root
    lane.files.close()


ODD: list[object] = [
    *(None, True, 0, -1, 1, 2**53, 2**63 - 1, -(2**63), 2**64 - 1, 1.5, 1e308, 253402300800000),
    *("", "x", "../x", "/etc/passwd", "string", [], [1], [[]], ["x"], {}, {"a": 1}, {"": "string"}),
]


@pytest.mark.long
@pytest.mark.cases
@pytest.mark.parametrize("kind", ["manifest", "catalog"])
def test_a_manifest_or_catalog_with_an_odd_value_is_answered_or_refused_by_a_query(
    kind: str, stored: Path
) -> None:
    """Its checksum is right, so nothing but the value can give it away."""
    layout, rng = Layout(stored), random.Random(kind)
    file = layout.manifest("p00") if kind == "manifest" else layout.catalog("p00")
    good = file.read_bytes()
    places = [path for path in paths_in(orjson.loads(good)["body"]) if path]
    pairs = [(path, odd) for path in places for odd in ODD]
    crashes: dict[str, str] = {}
    for path, odd in pairs if LONG else rng.sample(pairs, cases(100, 500, 0)):
        body: object = orjson.loads(good)["body"]
        holder = body
        for step in path[:-1]:
            holder = holder[step]  # type: ignore[index]
        holder[path[-1]] = odd  # type: ignore[index]
        assert isinstance(body, dict)
        file.write_bytes(record.encode(kind, 2, body))
        try:
            store = forebay.open(stored)
            store.partitions()
            store.receipt()
            store.sql("select count(*), max(_offset), min(upload_time) from events")
            store.scan().collect()
        except ForebayError:
            pass
        except Exception as error:  # noqa: BLE001
            place = traceback.extract_tb(error.__traceback__)[-1]
            crashes[f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"] = (
                f"{path} = {odd!r}"
            )
        finally:
            file.write_bytes(good)
    assert not crashes, "\n".join(f"{where}: {what}" for where, what in crashes.items())


@settings(max_examples=cases(37, 150, 5_000))
@given(seed=st.integers(0, 2**32), whole=st.booleans())
def test_a_mutated_log_is_refused_though_its_extent_fits(
    seed: int, whole: bool, stored: Path
) -> None:
    """With the checksum of the mutated bytes, as a hostile manifest could have it."""
    log = next(stored.glob("hot/*/*.arrows"))
    data = mutated(log.read_bytes(), seed)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.1.arrows").write_bytes(data)
        extent = Extent("x.1.arrows", len(data), 5, zlib.crc32(data))
        told = f"{extent.file} is read"
        try:
            if whole:
                list(read_log(Disk(), Path(folder), extent))
            else:
                log_schema(Disk(), Path(folder), extent.file)
                reader = LogReader(Disk(), Path(folder), extent.file)
                found = reader.follow(extent, torn_ok=True)
                if reader.schema is not None:
                    reader.decode(found, reader.schema.names)
        except ForebayError as error:
            told = str(error)
        assert extent.file in told


@settings(max_examples=cases(25, 100, 5_000))
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_no_log(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "x.1.arrows").write_bytes(data)
        extent = Extent("x.1.arrows", len(data), 5, zlib.crc32(data))
        try:
            found = list(read_log(Disk(), Path(folder), extent))
        except ForebayError:
            return
        assert not found


# -- settings -----------------------------------------------------------------------------------

NAMES = [*(name for name in Settings.model_fields), "schema", "nope", "kafka.topic"]
toml_values = st.sampled_from(
    [
        *("1", "-1", "0", "1e400", "nan", "inf", "9" * 30, "true", '""', '"x"', '"10m"', '"1e9d"'),
        *('"\\u0000"', "[]", "[1]", '["a","a"]', "{}", "{a=1}", "[[]]", "2024-01-01", "'\x7f'"),
        *('"9' + "9" * 400 + 'd"', '"٣s"', '"1 s"', '"NaN"', '"../.."', '"/dev/null"', '"é"'),
        '{bootstrap="x",topic=1}',
        '{librdkafka={"sasl.password"="x"}}',
        '{librdkafka={"group.id"="x"}}',
        '[{name="a",path="b"},{name="a",path="c"}]',
        '[{name="upload_time",path=""}]',
        '[{name="a",path=["",""],type="int"}]',
        '[{name="a",path="a"},{name="b",path="a.b"}]',
        "",
    ]
)
toml = st.lists(st.tuples(st.sampled_from(NAMES), toml_values), max_size=5).map(
    lambda pairs: "".join(f"{name} = {value}\n" for name, value in dict(pairs).items())
)


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in [name for name in os.environ if name.startswith("FOREBAY_")]:
        monkeypatch.delenv(name)
    return monkeypatch


def assert_valid_or_listed() -> None:
    """Settings that serve, or a fault a line of which each names what it is about."""
    try:
        found = load()
    except BadInput:
        return
    schema = found.schema_of_events
    assert set(schema.key) <= set(arrow_schema(schema).names)
    assert len(set(arrow_schema(schema).names)) == len(arrow_schema(schema).names)
    decoder_of(found)


def decoder_of(found: Settings) -> object:
    """Every valid schema can be decoded."""
    from forebay.operators.decode import DecodeConfig, Decoder

    decoder = Decoder(DecodeConfig(found.schema_of_events, found.future_skew, 1_000))
    return decoder.decode([item([GOOD, b"{", b"{}"])])


@settings(max_examples=cases(62, 250, 10_000))
@example(text='upload_time = "\\u0000"')
@given(text=toml | st.text(max_size=60))
def test_any_toml_is_valid_settings_or_a_list_of_faults(text: str) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("FOREBAY_")]:
            patch.delenv(name)
        file = Path(folder) / "forebay.toml"
        file.write_bytes(text.encode("utf-8", "surrogatepass"))
        patch.setenv("FOREBAY_CONFIG", str(file))
        assert_valid_or_listed()


@settings(max_examples=cases(20, 60, 5_000))
@given(data=st.binary(max_size=60))
def test_any_bytes_as_a_file_are_valid_settings_or_a_list_of_faults(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        file = Path(folder) / "forebay.toml"
        file.write_bytes(data)
        patch.setenv("FOREBAY_CONFIG", str(file))
        assert_valid_or_listed()


env_values = st.one_of(
    st.sampled_from(
        [
            *("", "1", "-1", "nan", "inf", "1e400", "[]", "{}", "null", "true", "[1", '{"a":', "x"),
            *('["id"]', '[{"name":"a"}]', '[{"name":"a","path":"b"}]', '{"topic":{}}', "9" * 400),
            *("9" * 400 + "d", "1e5s", "٣s", "[" * 5_000, '{"librdkafka":{"a":null}}'),
        ]
    ),
    st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12),
)
ENV_NAMES = [
    *(name.upper() for name in Settings.model_fields if name != "event_schema"),
    *("SCHEMA", "KAFKA__TOPIC", "KAFKA__LINGER", "KAFKA__LIBRDKAFKA", "FILES__PATH", "NOPE"),
    *("KAFKA__", "KAFKA__NOPE", "KAFKA__TOPIC__X", "__", "COLUMNS__0__NAME", "DEDUP_KEY__0"),
]


@settings(max_examples=cases(62, 250, 10_000))
@given(st.dictionaries(st.sampled_from(ENV_NAMES), env_values, max_size=4))
def test_any_environment_is_valid_settings_or_a_list_of_faults(environment: dict[str, str]) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, value in environment.items():
            patch.setenv(f"FOREBAY_{name}", value)
        assert_valid_or_listed()
