"""The formats on disk, pinned by the files in tests/golden, a folder for each version.

Each golden file is read back to the values below and in `tests.records`; where the encoder is
deterministic the same values must give the same bytes. After a change of a format that is meant:

    REWRITE_GOLDEN=1 python -m pytest tests/test_formats.py

and look at the difference: what older releases wrote must still be read, or the version be raised.
`1/data.tar.gz` is a data directory of version 1 with the input of its job (see `test_version_1`).
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from siphash24 import siphash13

from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, Corruption, FormatVersion, MissingFile
from forebay.storage.base.layout import (
    BlockId,
    ChunkId,
    Layout,
    PartitionKey,
    checked,
    hash_file_name,
    incarnation_of,
)
from forebay.storage.base.record import OPTIONAL
from forebay.storage.formats.boundary import Boundary, read_boundary
from forebay.storage.formats.columns import column_types, parse_types
from forebay.storage.formats.drops import DROP_SCHEMA
from forebay.storage.formats.frame import REJECT_SCHEMA
from forebay.storage.formats.hash_file import HashWriter, read_hashes
from forebay.storage.formats.hashes import Hash, KeyHash, hash_keys
from forebay.storage.formats.log import (
    Extent,
    LogReader,
    log_schema,
    read_log,
    read_span,
)
from forebay.storage.formats.log_writer import LogWriter
from forebay.storage.formats.merge import groups_of_blocks, write_sorted
from forebay.storage.formats.state import BlockState
from tests.records import (
    BLOCK,
    CATALOG,
    DROP_LOG,
    GOLDEN,
    GOLDEN_1,
    LOG,
    NOON_MS,
    RECORDS,
    RECORDS_1,
    REJECT_LOG,
    SCHEMA,
    Record,
)

FILES = Disk()

EVENTS = [
    ("s0", 0, NOON_MS + 5, "a", 1, 0.5, True, NOON_MS * 1000 + 1, b'{"id":"a"}'),
    ("s0", 1, NOON_MS + 3, "b", None, None, None, None, b'{"id":"b"}'),
    ("s1", 0, NOON_MS + 4, "é\0", -(2**63), -0.0, False, 0, b""),
]
REJECTS = [
    ("s0", 2, NOON_MS, "bad json", "unexpected end", b"{"),
    ("s0", 3, NOON_MS, "empty", None, b""),
]
DROPS = [
    ("s0", 4, NOON_MS, "duplicate", 2**64 - 1, None),
    ("s0", 5, NOON_MS + 1, "conflict", 1, '{"n":2}'),
    ("s1", 1, NOON_MS - 1, "late", 2, None),
]
SEEDED = KeyHash("00112233445566778899aabbccddeeff")
EXTENT = Extent(LOG, 2354, 3, 0)


each_record = pytest.mark.parametrize("made", RECORDS, ids=[made.name for made in RECORDS])


def table(rows: Sequence[tuple[object, ...]], schema: pa.Schema) -> pa.RecordBatch:
    columns = list(zip(*rows, strict=True))
    return pa.RecordBatch.from_arrays(
        [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


def write_log(folder: Path, name: str, parts: list[pa.RecordBatch]) -> list[Extent]:
    """The extents of a new log after each part."""
    writer = LogWriter(FILES, folder, name, parts[0].schema)
    extents = []
    for part in parts:
        writer.append(part)
        extents.append(writer.extent)
    return extents


def write_golden_logs(folder: Path) -> tuple[Extent, ...]:
    events = table(EVENTS, SCHEMA)
    *_, block = write_log(folder, LOG, [events.slice(0, 2), events.slice(2)])
    *_, rejects = write_log(folder, REJECT_LOG, [table(REJECTS, REJECT_SCHEMA)])
    *_, drops = write_log(folder, DROP_LOG, [table(DROPS, DROP_SCHEMA)])
    return block, rejects, drops


def write_golden_hashes(folder: Path, hash: Hash) -> Path:
    """Of the keys of the golden block log, in `folder`, where that is written too."""
    events = table(EVENTS, SCHEMA)
    writer, hashes = LogWriter(FILES, folder, LOG, SCHEMA), HashWriter(FILES, folder, hash)
    for part in (events.slice(0, 2), events.slice(2)):
        hashes.append(writer.append(part), hash([part["id"]]))
    return folder / hash_file_name(LOG)


def write_golden_chunk(folder: Path) -> Path:
    """A chunk of the golden block log, in `folder`."""
    extent = golden_extent(LOG, 3)
    block = BlockState(BLOCK, NOON_MS + 5, NOON_MS + 3, NOON_MS + 5, (extent,), number=5)
    groups = groups_of_blocks(FILES, GOLDEN, [block])
    write_sorted(FILES, folder / "chunk.parquet", groups, SCHEMA, 256 << 20)
    return folder / "chunk.parquet"


def golden_extent(name: str, rows: int) -> Extent:
    data = (GOLDEN / name).read_bytes()
    return Extent(name, len(data), rows, zlib.crc32(data))


@pytest.fixture(scope="module", autouse=True)
def rewritten_if_asked() -> None:
    if os.environ.get("REWRITE_GOLDEN") != "1":
        return
    for path in GOLDEN.iterdir():
        if path.suffix != ".parquet":  # which pyarrow wrote, before Polars did
            path.unlink()
    for made in RECORDS:
        (GOLDEN / made.name).write_bytes(made.data)
    write_golden_logs(GOLDEN)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(write_golden_hashes(Path(folder), SEEDED), GOLDEN)


# -- small files --------------------------------------------------------------------------------


@each_record
def test_golden_record_reads_back(made: Record) -> None:
    assert made.decode((GOLDEN / made.name).read_bytes(), made.name) == made.value


@pytest.mark.parametrize("made", RECORDS_1, ids=[made.name for made in RECORDS_1])
def test_golden_record_of_version_1_reads_back_with_the_defaults_of_new_fields(
    made: Record,
) -> None:
    data = (GOLDEN_1 / made.name).read_bytes()
    assert b'"version":1,' in data
    assert made.decode(data, made.name) == made.value


@each_record
def test_a_record_without_its_optional_fields_has_their_defaults_and_others_do_no_harm(
    made: Record,
) -> None:
    body = orjson.loads(made.data)["body"]
    optional = [one.name for one in fields(made.value) if one.metadata == OPTIONAL]  # type: ignore[arg-type]
    for name in optional:
        del body[name]
    found = made.decode(record.encode(made.kind, 2, {**body, "of tomorrow": 1}), "DATA/x")
    for one in fields(made.value):  # type: ignore[arg-type]
        default = one.default if one.default is not MISSING else None
        if one.default_factory is not MISSING:
            default = one.default_factory()
        wanted = default if one.name in optional else getattr(made.value, one.name)
        assert getattr(found, one.name) == wanted


@each_record
def test_record_is_encoded_to_the_golden_bytes(made: Record) -> None:
    assert made.data == (GOLDEN / made.name).read_bytes()


@each_record
def test_record_of_another_version_is_refused_by_name(made: Record) -> None:
    data = made.data.replace(b'"version":2', b'"version":3')
    with pytest.raises(FormatVersion, match=rf"DATA/x: .*{made.kind} versions 1 to 2.* version 3"):
        made.decode(data, "DATA/x")


@each_record
def test_record_of_another_kind_is_corruption(made: Record) -> None:
    other = record.encode("other", 2, {})
    with pytest.raises(Corruption, match=f"DATA/x: expected a {made.kind}, got a other"):
        made.decode(other, "DATA/x")


@each_record
def test_record_without_its_fields_is_corruption(made: Record) -> None:
    for body in ({}, {"unknown": 1}):
        with pytest.raises(Corruption, match="DATA/x"):
            made.decode(record.encode(made.kind, 2, body), "DATA/x")


@given(st.sampled_from(RECORDS), st.data())
def test_flipped_byte_of_a_record_is_an_error_that_names_it(
    made: Record, data: st.DataObject
) -> None:
    broken = bytearray(made.data)
    at = data.draw(st.integers(0, len(broken) - 1))
    broken[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises((Corruption, FormatVersion), match="DATA/x"):
        made.decode(bytes(broken), "DATA/x")


@given(st.sampled_from(RECORDS), st.data())
def test_shortened_record_is_corruption(made: Record, data: st.DataObject) -> None:
    length = data.draw(st.integers(0, len(made.data) - 1))
    with pytest.raises(Corruption, match="DATA/x"):
        made.decode(made.data[:length], "DATA/x")


def test_before_any_handoff_there_is_no_batch_file(tmp_path: Path) -> None:
    assert read_boundary(FILES, Layout(tmp_path)) == Boundary(0, None)


# -- logs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "schema"),
    [
        (LOG, EVENTS, SCHEMA),
        (REJECT_LOG, REJECTS, REJECT_SCHEMA),
        (DROP_LOG, DROPS, DROP_SCHEMA),
    ],
)
def test_golden_log_reads_back(
    name: str, rows: Sequence[tuple[object, ...]], schema: pa.Schema
) -> None:
    batches = list(read_log(FILES, GOLDEN, golden_extent(name, len(rows))))
    assert pa.Table.from_batches(batches) == pa.Table.from_batches([table(rows, schema)])
    assert log_schema(FILES, GOLDEN, name) == schema


def test_log_is_written_to_the_golden_bytes(tmp_path: Path) -> None:
    for extent in write_golden_logs(tmp_path):
        assert (tmp_path / extent.file).read_bytes() == (GOLDEN / extent.file).read_bytes()
        assert extent == golden_extent(extent.file, extent.rows)


each_hash = pytest.mark.parametrize(
    ("golden", "hash"), [(GOLDEN_1, hash_keys), (GOLDEN, SEEDED)], ids=["1", "2"]
)


@each_hash
def test_golden_hash_file_tells_the_hashes_of_the_golden_log(golden: Path, hash: Hash) -> None:
    found = read_hashes(FILES, golden, golden_extent(LOG, 3), hash)
    assert found is not None
    read = [read_span(FILES, golden, span, SCHEMA, ["id"]) for span, _ in found]
    assert [batch["id"].to_pylist() for batch in read] == [["a", "b"], ["é\0"]]
    hashes = [hashes.tolist() for _, hashes in found]
    assert hashes == [hash(batch.columns).tolist() for batch in read]


@each_hash
def test_hash_file_is_written_to_the_golden_bytes(golden: Path, hash: Hash, tmp_path: Path) -> None:
    written = write_golden_hashes(tmp_path, hash)
    assert written.read_bytes() == (golden / written.name).read_bytes()


@pytest.mark.parametrize("other", [hash_keys, KeyHash("1" * 32)], ids=["none", "another"])
def test_a_hash_file_of_another_seed_is_not_believed(other: Hash) -> None:
    assert read_hashes(FILES, GOLDEN, golden_extent(LOG, 3), other) is None


@pytest.mark.parametrize(
    ("columns", "hashes"),
    [
        (
            [pa.array(["", "a", "é\0", "twelve bytes", "0123456789abcdef"])],
            [
                1,
                6134197578546502502,
                6526690345907123560,
                2468227009562241920,
                16832525617742399857,
            ],
        ),
        ([pa.array([0, 1, -(2**63)])], [1, 11286133854226296554, 10338021812380738707]),
        ([pa.array([False, True])], [1, 11286133854226296554]),
        ([pa.array([0, NOON_MS], pa.timestamp("us", tz="UTC"))], [1, 16819459058200602269]),
        ([pa.array(["a", "b"]), pa.array([1, 2])], [12906425106851430403, 5604186667249238364]),
    ],
)
def test_hashes_of_keys_never_change(columns: list[pa.Array], hashes: list[int]) -> None:
    """Hash files have them, and hash partitions are made by them."""
    assert hash_keys(columns).tolist() == hashes


@pytest.mark.parametrize(
    ("columns", "hashes"),
    [
        (
            [pa.array(["", "a", "é\0", "0123456789abcdef"])],
            [2627183982908191593, 1249002994887685143, 7464596306440513817, 6763695858694666986],
        ),
        (
            [pa.array([0, 1, -(2**63)])],
            [12074849131188446391, 2738643458272058895, 15789783976655832204],
        ),
        ([pa.array(["a", "b"]), pa.array([1, 2])], [12278845176540909876, 8526755997799392213]),
    ],
    ids=["text", "numbers", "pairs"],
)
def test_seeded_hashes_of_keys_never_change(columns: list[pa.Array], hashes: list[int]) -> None:
    """Hash files and drop logs have them."""
    assert SEEDED(columns).tolist() == hashes


def test_seeded_hashes_are_siphash() -> None:
    """Of one column by a library of its own, with the seed's halves as key."""
    key = b"".join(int(SEEDED.seed[at : at + 16], 16).to_bytes(8, "little") for at in (0, 16))
    texts = ["", "a", "0123456", "01234567", "012345678", "é" * 40]
    wanted = [int(siphash13(text.encode(), key=key).intdigest()) % 2**64 for text in texts]
    assert SEEDED([pa.array(texts)]).tolist() == wanted


def test_log_reads_back_chosen_columns_only() -> None:
    (first, second) = read_log(FILES, GOLDEN, golden_extent(LOG, 3), ["n", "_offset", "no such"])
    assert first.to_pydict() == {"n": [1, None], "_offset": [0, 1]}
    assert second.to_pydict() == {"n": [-(2**63)], "_offset": [0]}


PARTS = [table(EVENTS[:n], SCHEMA) for n in (1, 3, 2)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, list[Extent]]:
    folder = tmp_path_factory.mktemp("log")
    extents = write_log(folder, LOG, PARTS)
    return (folder / LOG).read_bytes(), extents


@given(data=st.data())
def test_flipped_byte_of_a_log_is_corruption_with_file_and_offset(
    log: tuple[bytes, list[Extent]], data: st.DataObject
) -> None:
    content, extents = log
    extent = data.draw(st.sampled_from(extents))
    broken = bytearray(content)
    broken[data.draw(st.integers(0, extent.bytes - 1))] ^= data.draw(st.integers(1, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LOG
        path.write_bytes(broken)
        with pytest.raises(Corruption, match=rf"{re.escape(str(path))}: .* 0\.\.{extent.bytes}"):
            list(read_log(FILES, path.parent, extent))


@given(data=st.data())
def test_bytes_past_the_extent_do_not_count(
    log: tuple[bytes, list[Extent]], data: st.DataObject
) -> None:
    content, extents = log
    parts = data.draw(st.integers(1, len(extents)))
    tail = data.draw(st.binary(max_size=20))
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / LOG).write_bytes(content[: extents[parts - 1].bytes] + tail)
        assert list(read_log(FILES, Path(folder), extents[parts - 1])) == PARTS[:parts]


@given(data=st.data())
def test_torn_log_gives_its_whole_batches_and_no_more(
    log: tuple[bytes, list[Extent]], data: st.DataObject
) -> None:
    content, extents = log
    length = data.draw(st.integers(0, len(content) - 1))
    whole = sum(extent.bytes <= length for extent in extents)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / LOG
        path.write_bytes(content[:length])
        with pytest.raises(Corruption, match=rf"{re.escape(str(path))}: .* at offset {length}"):
            list(read_log(FILES, path.parent, extents[-1]))
        reader = LogReader(FILES, path.parent, LOG)
        found = reader.follow(extents[-1], torn_ok=True)
        assert reader.decode(found, SCHEMA.names) == PARTS[:whole]


@settings(max_examples=300)
@given(data=st.data())
def test_torn_log_with_a_flipped_bit_gives_what_was_written_before_it(
    log: tuple[bytes, list[Extent]], data: st.DataObject
) -> None:
    """No checksum of the whole can tell, for the end is not there; each batch has its own."""
    content, extents = log
    length = data.draw(st.integers(1, len(content) - 1))
    at, bit = data.draw(st.integers(0, length - 1)), data.draw(st.integers(0, 7))
    broken = bytearray(content[:length])
    broken[at] ^= 1 << bit
    before = sum(extent.bytes <= at for extent in extents)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / LOG).write_bytes(broken)
        reader = LogReader(FILES, Path(folder), LOG)
        found = reader.follow(extents[-1], torn_ok=True)
        if reader.schema is not None and found:
            assert reader.decode(found, SCHEMA.names) == PARTS[:before]
        assert found or not before


def test_reader_that_follows_a_growing_log_gets_each_batch_once(
    log: tuple[bytes, list[Extent]], tmp_path: Path
) -> None:
    content, extents = log
    reader = LogReader(FILES, tmp_path, LOG)
    got = []
    for extent in [extents[0], extents[0], extents[2], extents[1], extents[2]]:
        (tmp_path / LOG).write_bytes(content[: max(extent.bytes, extents[0].bytes)])
        found = reader.follow(extent)
        got.append(reader.decode(found, SCHEMA.names))
    assert got == [PARTS[:1], [], PARTS[1:], [], []]


def test_missing_log_is_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MissingFile, match=LOG):
        list(read_log(FILES, tmp_path, EXTENT))
    with pytest.raises(MissingFile, match=LOG):
        log_schema(FILES, tmp_path, LOG)


def test_log_name_is_never_used_twice(tmp_path: Path) -> None:
    write_log(tmp_path, LOG, PARTS)
    with pytest.raises(FileExistsError):
        write_log(tmp_path, LOG, PARTS)


# -- chunks -------------------------------------------------------------------------------------


def assert_is_the_chunk(path: Path) -> None:
    file = pq.ParquetFile(path)
    by_time = sorted(EVENTS, key=lambda row: row[2])
    assert file.schema_arrow.names == SCHEMA.names
    assert file.read().cast(SCHEMA) == pa.Table.from_batches([table(by_time, SCHEMA)])
    group = file.metadata.row_group(0)
    assert {group.column(at).compression for at in range(group.num_columns)} == {"ZSTD"}
    assert group.column(2).statistics.has_min_max


def test_golden_chunk_which_pyarrow_wrote_reads_back() -> None:
    assert_is_the_chunk(GOLDEN / "chunk.parquet")


def test_chunk_written_now_has_what_the_golden_one_has(tmp_path: Path) -> None:
    assert_is_the_chunk(write_golden_chunk(tmp_path))


# -- names --------------------------------------------------------------------------------------

HOSTILE = [
    "../x",
    "a/../x",
    "/etc/passwd",
    "..",
    ".",
    "",
    ".hidden",
    "a//b",
    "a/",
    "a\\b",
    "a\n",
    "a\0",
    "C:/x",
    "date=2024/../../x",
]


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_file_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="file name"):
        checked(name)


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_hostile_file_name_in_a_manifest_or_catalog_is_an_error_that_names_it(name: str) -> None:
    quoted = re.escape(repr(name))
    for made, real in ((RECORDS[0], LOG), (RECORDS[1], CATALOG.chunks[0].file)):
        body = orjson.loads(made.data)["body"]
        data = record.encode(made.kind, 2, _replaced(body, real, name))
        with pytest.raises((BadInput, Corruption), match=quoted):
            made.decode(data, "DATA/x")


def _replaced(body: dict[str, object], old: str, new: str) -> dict[str, object]:
    def walk(value: object) -> object:
        if isinstance(value, dict):
            return {name: walk(inner) for name, inner in value.items()}
        if isinstance(value, list):
            return [walk(inner) for inner in value]
        return new if value == old else value

    return {name: walk(value) for name, value in body.items()}


@pytest.mark.parametrize("name", ["", "../x", "a/b", "/a", ".a", "a b", "é", "a\n", "a" * 201])
def test_hostile_partition_name_is_refused(name: str) -> None:
    with pytest.raises(BadInput, match="partition name"):
        PartitionKey(name, 0)


def test_names_say_what_they_are() -> None:
    assert LOG == "20240501T1200-000017.3.arrows"
    assert REJECT_LOG == "rejects-000002.3.arrows"
    assert DROP_LOG == "drops-000001.3.arrows"
    assert hash_file_name(LOG) == "20240501T1200-000017.3.hashes"
    assert CATALOG.chunks[0].file == ("date=2024-05-01/hour=12/0000000004-0000000005.3.parquet")
    assert [
        incarnation_of(name)
        for name in (LOG, hash_file_name(LOG), REJECT_LOG, CATALOG.chunks[0].file)
    ] == [3] * 4
    assert [incarnation_of(name) for name in ("x.arrows", "a.b.parquet", "3.arrows.tmp")] == [
        None
    ] * 3


@given(st.builds(ChunkId, *[st.integers(0, 10**12)] * 3))
def test_chunk_id_survives_its_text(id: ChunkId) -> None:
    assert ChunkId.parse(str(id)) == id


@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=2), st.integers(0, 10**5))
def test_block_names_sort_as_their_intervals(minutes: list[int], sequence: int) -> None:
    first, second = (BlockId(minute % 10**7 * 60_000, sequence) for minute in sorted(minutes))
    assert (str(first) < str(second)) == (first < second)


def test_column_types_survive_their_text() -> None:
    assert parse_types(column_types(SCHEMA)) == SCHEMA
    with pytest.raises(ValueError, match="column 'x'"):
        parse_types({"x": "int32"})
