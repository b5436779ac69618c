"""A hostile data directory, and secrets.

What a query reads may have been written by someone else. It can be wrong, and refused; it can't run
code, show what is outside of the directory, or take the reader's memory. Each case is read by a
process of its own with a limit on memory. Secrets are in no log and no error.
"""

from __future__ import annotations

import ast
import os
import pickle
import select
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.ipc as ipc
import pyarrow.parquet as pq
import pytest

import forebay
from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, ForebayError
from forebay.storage.base.layout import Layout
from forebay.storage.formats.boundary import Boundary
from forebay.storage.formats.catalog import Catalog, read_catalog
from forebay.storage.formats.checksum import Checksum
from forebay.storage.formats.state import PartitionState
from tests.job import Job
from tests.lane import Lane, filled

ROOT = Path(__file__).parent.parent
READ_S = 60.0
MEMORY = 1 << 30
SECRET = "hunter2-very-secret"
MakeJob = Callable[..., Job]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    lane = filled(Lane(tmp_path / "data").start())
    yield lane.root
    lane.files.close()


class Reader:
    """A process that reads whatever it is given; a new one if it died."""

    def __init__(self, harmless: Path) -> None:
        self._harmless = harmless
        self._process: subprocess.Popen[str] | None = None

    def __call__(self, data: Path) -> str:
        """What a scan makes of the directory: rows, or a refusal."""
        return self.tell(data)[0]

    def tell(self, data: Path) -> list[str]:
        """What each way to read makes of it; none may show anything from outside."""
        process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{data}\n")
        process.stdin.flush()
        ready, _, _ = select.select([process.stdout], [], [], READ_S)
        line = process.stdout.readline() if ready else ""
        if not line:
            self.close()
        assert line, f"no answer in {READ_S} s" if not ready else f"died: {process.returncode}"
        told: list[str] = orjson.loads(line)
        assert not [one for one in told if SECRET in one]
        return told

    def _start(self) -> subprocess.Popen[str]:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.hostile_reader", str(self._harmless), str(MEMORY)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self._process

    def close(self) -> None:
        if self._process:
            self._process.kill()
            self._process.communicate()
            self._process = None


@pytest.fixture(scope="module")
def read_by_another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Reader]:
    lane = filled(Lane(tmp_path_factory.mktemp("harmless") / "data").start())
    lane.files.close()
    reader = Reader(lane.root)
    yield reader
    reader.close()


def change(data: Path, **fields: object) -> None:
    """Other values in the manifest, and the checksum that fits them."""
    body = {**manifest_of(data), **fields}
    Layout(data).manifest("p00").write_bytes(record.encode("manifest", 2, body))


def manifest_of(data: Path) -> dict[str, Any]:
    body: dict[str, Any] = orjson.loads(Layout(data).manifest("p00").read_bytes())["body"]
    return body


def one_block(data: Path, kind: str = "hot", **extent: object) -> None:
    """A manifest with one block, that of the live log, and other values in its extent."""
    name = live_log(data).name
    body = manifest_of(data)
    blocks = [*body["hot"], *body["evicted"]]
    (block,) = (b for b in blocks if name in [e["file"] for e in b["extents"]])
    (mine,) = (e for e in block["extents"] if e["file"] == name)
    number = None if kind == "hot" else 10**6
    one = {**block, "number": number, "extents": [{**mine, **extent}]}
    change(data, **{"hot": [], "evicted": [], kind: [one]})


def change_chunk(data: Path, **fields: object) -> None:
    """Other values for the first chunk in the catalog, and the checksum that fits them."""
    file = Layout(data).catalog("p00")
    body = orjson.loads(file.read_bytes())["body"]
    first, *others = body["chunks"]
    file.write_bytes(
        record.encode("catalog", 2, {**body, "chunks": [{**first, **fields}, *others]})
    )


def replace_chunk(data: Path, table: pa.Table) -> None:
    """Another file for the first chunk, with the checksum in the catalog that fits it."""
    chunk = Layout(data).chunks("p00") / catalog_of(data).chunks[0].file
    pq.write_table(table, chunk, compression="zstd")
    content = chunk.read_bytes()
    footer = 8 + int.from_bytes(content[-8:-4], "little")
    sums = zlib.crc32(content), footer, zlib.crc32(content[-footer:])
    change_chunk(data, checksum=asdict(Checksum(len(content), *sums)))


def catalog_of(data: Path) -> Catalog:
    return read_catalog(Disk(), Layout(data).catalog("p00"), "p00")


def live_log(data: Path) -> Path:
    """A log that a query reads."""
    (view,) = forebay.open(data).view().partitions
    return view.block_logs[0].path


# -- outside ------------------------------------------------------------------------------------


@pytest.mark.few(3)
@pytest.mark.parametrize(
    "kind",
    ["log", "chunk", "reject log", "drop log", "hot folder", "chunks folder", "date folder"],
)
def test_a_link_out_of_the_directory_shows_nothing_from_outside(
    kind: str, data: Path, read_by_another: Reader, tmp_path: Path
) -> None:
    """The other directory is one that only the reader may read, with events of its own."""
    other = filled(Lane(tmp_path / "secret" / "data").start())
    layout, theirs = Layout(data), Layout(other.root)
    if kind == "log":
        log = live_log(data)
        outside = theirs.hot("p00") / log.name
    elif kind in ("reject log", "drop log"):
        log = next((data / f"{kind.split()[0]}s" / "p00").glob("*.arrows"))
        outside = theirs.root / log.relative_to(data)
    elif kind == "chunk":
        log = next(layout.chunks("p00").rglob("*.parquet"))
        outside = theirs.root / log.relative_to(data)
    else:
        folders = {"hot folder": "hot/p00", "chunks folder": "chunks/p00"}
        log = data / folders.get(kind, "") if kind in folders else next(data.glob("chunks/p00/d*"))
        outside = theirs.root / log.relative_to(data)
    log.rename(tmp_path / "moved")
    log.symlink_to(outside)
    found = read_by_another(data)
    other.files.close()
    assert found.startswith("refused"), "followed the link"


def test_a_partition_named_out_of_the_directory_is_refused(
    data: Path, read_by_another: Reader
) -> None:
    for partition in ("../../secret", "/etc", "..", "a/b", ""):
        change(data, partition=partition)
        assert read_by_another(data).startswith("refused")


@pytest.mark.few(8)
@pytest.mark.parametrize("kind", ["hot", "evicted", "rejects", "drops", "chunk"])
@pytest.mark.parametrize(
    "file", ["../p00/x.1.arrows", "/etc/passwd", "..", "a\0b", "x/../../y.arrows", "", "."]
)
def test_a_file_named_out_of_its_folder_is_refused(
    file: str, kind: str, data: Path, read_by_another: Reader
) -> None:
    if kind == "chunk":
        change_chunk(data, file=file)
    elif kind in ("rejects", "drops"):
        (extent, *_) = manifest_of(data)[kind]
        change(data, **{kind: [{**extent, "file": file}]})
    else:
        one_block(data, kind, file=file)
    assert read_by_another(data).startswith("refused")


@pytest.mark.few(3)
@pytest.mark.parametrize("kind", ["log", "manifest", "batch"])
@pytest.mark.parametrize("made", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_and_not_waited_for(
    kind: str, made: str, data: Path, read_by_another: Reader
) -> None:
    """A pipe would hold a reader for ever, a device fill its memory."""
    layout, log = Layout(data), live_log(data)
    makers: dict[str, Callable[[Path], None]] = {
        "pipe": os.mkfifo,
        "device": lambda path: path.symlink_to("/dev/zero"),
        "folder": Path.mkdir,
    }
    file = {"log": log, "manifest": layout.manifest("p00"), "batch": layout.batch}[kind]
    file.unlink(missing_ok=True)
    makers[made](file)
    assert read_by_another(data).startswith("refused")


# -- code ---------------------------------------------------------------------------------------


class Bomb:
    """Unpickled, it leaves a file."""

    def __init__(self, at: Path) -> None:
        self.at = at

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.at}",)


def test_pickles_in_any_place_are_refused_and_not_run(
    data: Path, read_by_another: Reader, tmp_path: Path
) -> None:
    mark = tmp_path / "it ran"
    bomb = pickle.dumps(Bomb(mark))
    layout = Layout(data)
    files = [layout.manifest("p00"), layout.catalog("p00"), layout.batch]
    files += [live_log(data), next(data.rglob("*.parquet"))]
    for file in files:
        kept = file.read_bytes() if file.exists() else None
        file.write_bytes(bomb.ljust(len(kept or b""), b"\0"))  # a shorter log is a torn one
        try:
            assert read_by_another(data).startswith("refused"), file
        finally:
            if kept is None:
                file.unlink()
            else:
                file.write_bytes(kept)
    with pytest.raises(ForebayError):
        PartitionState.decode(bomb, "recovery snapshot of a partition")
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["log", "chunk"])
def test_an_arrow_extension_type_is_not_made(
    kind: str, data: Path, read_by_another: Reader, tmp_path: Path
) -> None:
    """Arrow can carry a pickled Python type in a schema; the type here would leave a file."""
    mark = tmp_path / "it ran"
    meta = {
        b"ARROW:extension:name": b"arrow.py_extension_type",
        b"ARROW:extension:metadata": pickle.dumps(Bomb(mark)),
    }
    fields = [
        pa.field("_partition", pa.string()),
        pa.field("_offset", pa.int64(), metadata=meta),
        pa.field("upload_time", pa.timestamp("ms", tz="UTC")),
    ]
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["p00"]), pa.array([1]), pa.array([0], fields[2].type)], schema=pa.schema(fields)
    )
    sink = pa.BufferOutputStream()
    with ipc.new_stream(sink, batch.schema) as stream:
        stream.write_batch(batch)
    content = sink.getvalue().to_pybytes()[:-8]
    if kind == "log":
        (Layout(data).hot("p00") / "x.1.arrows").write_bytes(content)
        whole: dict[str, Any] = {"bytes": len(content), "rows": 1, "crc": zlib.crc32(content)}
        one_block(data, file="x.1.arrows", **whole)
    else:
        types = {"_partition": "string", "_offset": "int64", "upload_time": "timestamp[ms, UTC]"}
        replace_chunk(data, pa.Table.from_batches([batch]))
        change_chunk(data, rows=1, schema=types)
    read_by_another(data)
    assert not mark.exists()


def test_nothing_of_ours_unpickles_or_evaluates() -> None:
    """Imports and calls by name, in every module that reads data."""
    forbidden = {"pickle", "marshal", "shelve", "dill", "joblib", "eval", "exec", "compile"}
    found = []
    for folder in ("storage", "query", "operators", "flows", "cli", "serve", "verify"):
        for file in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = []
                if isinstance(node, ast.Import):
                    names = [alias.name.split(".")[0] for alias in node.names]
                elif isinstance(node, ast.ImportFrom):
                    names = [(node.module or "").split(".")[0]]
                elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    names = [node.func.id]
                found += [f"{file.name}: {name}" for name in names if name in forbidden]
    assert not found


# -- memory -------------------------------------------------------------------------------------


@pytest.mark.few(4)
@pytest.mark.parametrize("size", [2**31, 2**40, 2**60, 2**63 - 1, -1, -(2**60)])
@pytest.mark.parametrize("field", ["bytes", "rows"])
def test_a_huge_declared_size_is_refused_or_read_as_what_is_there(
    field: str, size: int, data: Path, read_by_another: Reader
) -> None:
    declared: dict[str, Any] = {field: size}
    one_block(data, **declared)
    assert read_by_another(data)


def test_a_record_batch_that_declares_a_huge_buffer_is_refused(
    data: Path, read_by_another: Reader
) -> None:
    """The uncompressed length stands before each buffer, as a number that anyone can write."""
    log = live_log(data)
    good = log.read_bytes()
    magic = b"\x28\xb5\x2f\xfd"  # of a zstd frame; the length is the 8 bytes before it
    at = good.index(magic) - 8
    content = good[:at] + (2**40).to_bytes(8, "little") + good[at + 8 :]
    log.write_bytes(content)
    one_block(data, bytes=len(content), crc=zlib.crc32(content))
    assert read_by_another(data).startswith("refused")


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_deeply_nested_json_is_refused(opening: bytes, data: Path, read_by_another: Reader) -> None:
    body = opening * 1_000_000
    for kind, file in (
        ("manifest", Layout(data).manifest("p00")),
        ("catalog", Layout(data).catalog("p00")),
        ("batch", Layout(data).batch),
    ):
        kept = file.read_bytes() if file.exists() else None
        head = b'{"forebay":"%b","version":1,"crc":"%08x","body":' % (
            kind.encode(),
            zlib.crc32(body),
        )
        file.write_bytes(head + body + b"}")
        assert read_by_another(data).startswith("refused")
        if kept is not None:
            file.write_bytes(kept)
        else:
            file.unlink()


@pytest.mark.parametrize("number", [2**62, -(2**62), 253402300800000])
def test_times_beyond_the_calendar_are_refused_or_answered(
    number: int, data: Path, read_by_another: Reader
) -> None:
    change(data, stream_time_ms=number)
    assert read_by_another(data)
    change(data, stream_time_ms=None)
    Layout(data).batch.write_bytes(Boundary(2**63 - 1, number).encode())
    assert read_by_another(data)


def test_a_chunk_with_other_rows_than_its_catalog_says_is_refused(
    data: Path, read_by_another: Reader
) -> None:
    """A few kB of Parquet can say the same a million times."""
    chunk = Layout(data).chunks("p00") / catalog_of(data).chunks[0].file
    replace_chunk(data, pq.ParquetFile(chunk).read().slice(0, 1).take([0] * 1_000_000))
    assert read_by_another(data).startswith("refused")


# -- secrets ------------------------------------------------------------------------------------

CONFIGS = {
    "wrong mechanism": {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "NOPE"},
    "no broker": {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"},
    "no such property": {"no.such.property": "x"},
    "value that can't be": {"security.protocol": "NOPE"},
    "debug": {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "debug": "all"},
    "key": {"security.protocol": "SSL", "ssl.key.pem": SECRET, "ssl.key.password": SECRET},
}


@pytest.mark.few(2)
@pytest.mark.parametrize("config", CONFIGS)
def test_a_password_is_never_in_the_workers_log(config: str, make_job: MakeJob) -> None:
    secrets = {"sasl.username": "someone", "sasl.password": SECRET, "ssl.keystore.password": SECRET}
    job = make_job(
        SOURCE="kafka",
        KAFKA__BOOTSTRAP="127.0.0.1:1",
        KAFKA__LIBRDKAFKA=orjson.dumps({**secrets, **CONFIGS[config]}).decode(),
    )
    process = job.run()
    job.until(process, lambda _: "waiting for topic" in job.told() or _ended(process))
    if not _ended(process):
        job.stop(process)
    assert job.log.read_text().strip()
    assert SECRET not in job.log.read_text()


@pytest.mark.parametrize(
    "value",
    [
        f'{{"sasl.password":{{"a":"{SECRET}"}}}}',
        f'{{"sasl.password":"{SECRET}"',
        f'["{SECRET}"]',
        f'{{"sasl.password":"{SECRET}","group.id":"x"}}',
        f'{{"sasl.password":["{SECRET}"]}}',
    ],
)
def test_a_password_is_never_in_a_fault_of_the_settings(value: str, make_job: MakeJob) -> None:
    job = make_job(SOURCE="kafka", KAFKA__LIBRDKAFKA=value)
    assert job.ends(job.run()) != 0
    assert "librdkafka" in job.log.read_text().lower()
    assert SECRET not in job.log.read_text()


@pytest.mark.parametrize(
    "text",
    [
        f'[kafka.librdkafka]\n"sasl.password" = "{SECRET}',
        f'[kafka]\nlibrdkafka = ["{SECRET}"]',
        f'[kafka.librdkafka]\n"sasl.password" = ["{SECRET}"]',
        f'[kafka]\npassword = "{SECRET}"',
        f'[kafka]\n"sasl.password" = "{SECRET}"',
        f'sasl_password = "{SECRET}"',
        f'[kafka]\nlibrdkafka = "sasl.password={SECRET}"',
    ],
)
def test_a_password_is_never_in_a_fault_of_the_file(
    text: str, make_job: MakeJob, tmp_path: Path
) -> None:
    (tmp_path / "forebay.toml").write_text(text)
    job = make_job(SOURCE="kafka", CONFIG=str(tmp_path / "forebay.toml"))
    assert job.ends(job.run()) != 0
    assert job.log.read_text().strip()
    assert SECRET not in job.log.read_text()


def _ended(process: subprocess.Popen[bytes]) -> bool:
    return process.poll() is not None


def test_an_error_shows_nothing_of_what_a_link_leads_to(
    data: Path, read_by_another: Reader, tmp_path: Path
) -> None:
    secret = tmp_path / "shadow"
    secret.write_text(f"root:{SECRET}:19000:0:99999:7:::")
    for file in (Layout(data).batch, Layout(data).manifest("p00")):
        file.unlink(missing_ok=True)
        file.symlink_to(secret)
        assert SECRET not in read_by_another(data)
        file.unlink()


def test_a_reader_opens_nothing_for_writing(data: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in data.rglob("*")}
    forebay.open(data).scan().collect()
    assert {path: path.stat().st_mtime_ns for path in data.rglob("*")} == before


# -- the batch layer's table --------------------------------------------------------------------


def described(
    folder: Path, location: Path, properties: dict[str, str], manifests: Path | None = None
) -> Path:
    """The metadata of a table without rows, as anyone could write it; `manifests` is the list that
    its one snapshot names."""
    column = {"id": 1, "name": "upload_time", "required": False, "type": "timestamptz"}
    schema = {"type": "struct", "schema-id": 0, "fields": [column]}
    body = {
        "format-version": 2,
        "table-uuid": "9c12d441-03fe-4693-9a96-a0705ddf69c1",
        "location": str(location),
        "last-sequence-number": 0,
        "last-updated-ms": 1,
        "last-column-id": 1,
        "schemas": [schema],
        "current-schema-id": 0,
        "partition-specs": [{"spec-id": 0, "fields": []}],
        "default-spec-id": 0,
        "last-partition-id": 999,
        "sort-orders": [{"order-id": 0, "fields": []}],
        "default-sort-order-id": 0,
        "properties": properties,
    }
    if manifests:
        snapshot: dict[str, Any] = {
            "snapshot-id": 1,
            "sequence-number": 1,
            "timestamp-ms": 1,
            "schema-id": 0,
        }
        snapshot |= {"manifest-list": str(manifests), "summary": {"operation": "append"}}
        body |= {"snapshots": [snapshot], "current-snapshot-id": 1}
    path = folder / "1.metadata.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(orjson.dumps(body))
    return path


def hand_over(data: Path, table: Path | str) -> None:
    done = Boundary().sealed(0).completed(0, late=True, table=str(table))
    Layout(data).batch.write_bytes(done.encode())


@pytest.mark.parametrize("what", ["metadata", "location"])
def test_a_table_out_of_the_directory_is_refused(what: str, data: Path, tmp_path: Path) -> None:
    inside, outside = data / "batch", tmp_path / "elsewhere"
    folders = (outside, inside) if what == "metadata" else (inside, outside)
    hand_over(data, described(*folders, {}))
    with pytest.raises(Corruption, match="expected a file below"):
        forebay.open(data).scan(layers="all")


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "place",
    [
        "FILE://{outside}/1.metadata.json",
        "file:{outside}/1.metadata.json",
        "file://{inside}/%2e%2e/%2e%2e/elsewhere/1.metadata.json",
        "s3://somewhere/1.metadata.json",
        "http://127.0.0.1:1/1.metadata.json",
    ],
)
def test_a_table_elsewhere_is_not_opened_however_it_is_named(
    place: str, data: Path, tmp_path: Path, read_by_another: Reader
) -> None:
    inside, outside = data / "batch", tmp_path / "elsewhere"
    described(outside, inside, {})
    hand_over(data, place.format(inside=inside, outside=outside))
    with pytest.raises(Corruption, match="expected a file below"):
        forebay.open(data).scan(layers="all")
    assert read_by_another.tell(data)


def test_a_list_of_manifests_out_of_the_directory_is_not_opened(data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "shadow"
    secret.write_text(f"root:{SECRET}:19000:0:99999:7:::")
    hand_over(data, described(data / "batch", data / "batch", {}, secret))
    with pytest.raises(Corruption, match=rf"table {secret}: expected a file below"):
        forebay.open(data).sql("select * from events_all")


@pytest.mark.few(2)
@pytest.mark.parametrize("content", [b"", b"\xff{", b"[]", b'{"format-version":2}', b"{" * 100_000])
def test_a_damaged_table_is_told_by_its_name(
    content: bytes, data: Path, read_by_another: Reader
) -> None:
    table = described(data / "batch", data / "batch", {})
    hand_over(data, table)
    table.write_bytes(content)
    with pytest.raises(Corruption, match=str(table)):
        forebay.open(data).scan(layers="all")
    with pytest.raises(Corruption, match=str(table)):
        forebay.open(data).sql("select * from events_all")
    assert read_by_another.tell(data)


def test_a_damaged_list_of_manifests_is_told(data: Path, read_by_another: Reader) -> None:
    manifests = data / "batch" / "manifests.avro"
    hand_over(data, described(data / "batch", data / "batch", {}, manifests))
    manifests.write_bytes(b"Obj\x01" + bytes(range(256)))
    with pytest.raises(Corruption, match="can't be read"):
        forebay.open(data).scan(layers="all")
    assert read_by_another.tell(data)


def test_code_that_a_table_names_is_not_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hostile_io.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    named = {"py-io-impl": "hostile_io.Any"}
    hand_over(data, described(data / "batch", data / "batch", named))
    assert "ran" not in {path.name for path in tmp_path.iterdir()}
    forebay.open(data).scan(layers="all")
    assert "ran" not in {path.name for path in tmp_path.iterdir()}
