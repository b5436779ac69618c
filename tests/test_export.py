"""Ways out of a data directory: the chunk files that count, and every row once in one file."""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import duckdb
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from polars.testing import assert_frame_equal

import forebay
from forebay.cli.main import main
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput, MissingFile
from forebay.storage.formats.boundary import Boundary
from tests.lane import EMPTY, IN_ORDER, Lane, Lanes, collected, events, filled, hand_off
from tests.partition import START_MS, event

ROOT = Path(__file__).parent.parent


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(one) for one in arguments])


def exported(name: str, data: Path, *options: str) -> Path:
    file = data.parent / name
    result = invoke("export", file, "--data-dir", data, *options)
    assert (result.exit_code, result.stderr) == (0, ""), result.output
    return file


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    lane = filled(Lane(tmp_path / "data").start())
    yield lane.root
    lane.files.close()


# -- files --------------------------------------------------------------------------------------


def test_files_are_the_chunks_that_count_with_their_rows_and_times(data: Path) -> None:
    store = forebay.open(data)
    found = store.files()
    chunks = {file.path: file.chunk for file in store.last_view.chunk_files}
    assert set(found["path"]) == {str(path.absolute()) for path in chunks}
    assert found["rows"].sum() == store.receipt().cold_rows
    for row in found.iter_rows(named=True):
        stored = pl.read_parquet(row["path"])["upload_time"]
        assert (row["rows"], row["bytes"]) == (len(stored), os.path.getsize(row["path"]))
        assert (row["first_upload_time"], row["last_upload_time"]) == (stored.min(), stored.max())
        assert (row["partition"], row["node"]) == ("p00", str(data))
    assert found["from_time"].null_count() == found.height


def test_files_of_runs_that_were_killed_are_not_among_them(data: Path) -> None:
    """A glob over the folder would count their rows again."""
    store = forebay.open(data)
    before = store.files()
    path = Path(before["path"][0])
    shutil.copy(path, path.with_name("0000000900-0000000901.9.parquet"))
    assert_frame_equal(store.files(), before)
    globbed = pl.scan_parquet(f"{data}/chunks/*/date=*/hour=*/*.parquet").select(pl.len())
    assert globbed.collect().item() > before["rows"].sum()


def test_files_and_their_conditions_are_the_events_that_are_not_hot(data: Path) -> None:
    """Also where the boundary goes through a chunk."""
    cut = START_MS + 450
    hand_off(data, 1, cut)
    store = forebay.open(data)
    found = store.files()
    assert 0 < found["from_time"].count() < found.height
    with duckdb.connect() as connection:
        connection.execute("set timezone = 'UTC'")
        parts = []
        for row in found.iter_rows(named=True):
            where = f"where upload_time >= '{row['from_time']}'" if row["from_time"] else ""
            parts.append(f"select _offset from read_parquet('{row['path']}') {where}")
        offsets = {one for (one,) in connection.sql(" union all ".join(parts)).fetchall()}
    expected = collected(store).filter(
        pl.col("upload_time") >= pl.lit(cut).cast(pl.Datetime("ms", "UTC"))
    )
    assert offsets < set(expected["_offset"])
    hot = store.receipt().hot_rows
    assert len(offsets) + hot >= expected.height


def test_files_of_the_late_table_are_told_apart(lane: Lanes) -> None:
    one = lane(blocks_per_chunk=1).take(*events(0, 5, 0, step_ms=100)).publish()
    sealed = Boundary().sealed(START_MS + 300)
    Disk().replace(one.layout.batch, sealed.encode(), durable=False)
    one.blocks.notice(sealed)
    one.take(event(9, 99, 50, "p00")).take(*events(10, 2, 2_000)).publish().merge()
    done = sealed.completed(0, late=False, table=None)
    Disk().replace(one.layout.batch, done.encode(), durable=False)
    store = forebay.open(one.root)
    late = store.files("events_late")
    assert late["rows"].to_list() == [1]
    assert set(late["path"]).isdisjoint(store.files()["path"])
    with pytest.raises(BadInput, match="table: expected events or events_late, got 'rejects'"):
        store.files("rejects")


def test_whole_files_and_the_rest_are_the_events_each_once(data: Path) -> None:
    """Also where the boundary goes through a chunk."""
    hand_off(data, 1, START_MS + 450)
    store = forebay.open(data)
    files, rest = store.files_and_rest()
    assert 0 < files.height < store.files().height
    assert files["lacking"].to_list() == [[]] * files.height
    whole = pl.concat(map(pl.read_parquet, files["path"]), how="diagonal_relaxed")
    rows = pl.concat([whole, pl.DataFrame(rest.read_all())], how="diagonal_relaxed")
    expected = collected(store)
    assert sorted(rows["_offset"]) == sorted(expected["_offset"])
    with pytest.raises(BadInput, match="table: expected events or events_late, got 'rejects'"):
        store.files_and_rest("rejects")


def test_the_command_prints_what_the_store_says(data: Path) -> None:
    hand_off(data, 1, START_MS + 450)
    store = forebay.open(data)
    found = store.files()
    printed = invoke("files", "--data-dir", data).stdout
    assert all(path in printed for path in found["path"])
    assert "upload_time >= '2023-11-14 22:13:20.450'" in printed
    rows, hot = found["rows"].sum(), store.receipt().hot_rows
    told = f"{found.height} files of {rows} rows; {hot} rows still hot, in no file yet"
    assert printed.splitlines()[-1] == told
    listed = orjson.loads(invoke("files", "--json", "--data-dir", data).stdout)
    assert [one["path"] for one in listed] == found["path"].to_list()


# -- export -------------------------------------------------------------------------------------


@pytest.mark.parametrize("until_ms", [None, 450])
def test_parquet_has_every_row_once_hot_and_cold(until_ms: int | None, data: Path) -> None:
    if until_ms is not None:
        hand_off(data, 1, START_MS + until_ms)
    expected = collected(forebay.open(data))
    assert expected.height > 0
    found = pl.read_parquet(exported("out.parquet", data)).sort(IN_ORDER)
    assert_frame_equal(found, expected)


def test_ndjson_has_every_row_once_and_every_message_byte_for_byte(data: Path) -> None:
    expected = collected(forebay.open(data))
    lines = exported("out.ndjson", data).read_bytes().splitlines()
    rows = sorted(map(orjson.loads, lines), key=lambda row: row["_offset"])
    assert [row["_offset"] for row in rows] == expected["_offset"].to_list()
    assert [row["text"] for row in rows] == expected["text"].to_list()
    assert {"raw", "raw_base64"} <= {name for row in rows for name in row}
    raw = [
        base64.b64decode(row["raw_base64"]) if "raw_base64" in row else row["raw"].encode()
        for row in rows
    ]
    assert raw == expected["raw"].to_list()
    assert rows[0]["upload_time"].endswith("Z")


def test_csv_has_every_row_once(data: Path) -> None:
    expected = collected(forebay.open(data))
    found = pl.read_csv(exported("out.csv", data), schema_overrides={"id": pl.String})
    found = found.sort("_offset")
    assert found.columns == expected.columns
    for name in ("_offset", "id", "part", "text", "number", "flag"):
        assert found[name].to_list() == expected[name].to_list()
    assert found["raw"][0].startswith("\ufffd{")


def test_a_folder_gets_a_file_named_after_the_table(data: Path) -> None:
    folder = data.parent / "folder"
    folder.mkdir()
    for table in ("events", "events_all", "events_late", "rejects"):
        assert invoke("export", folder, "--table", table, "--data-dir", data).exit_code == 0
    store = forebay.open(data)
    rows = {path.stem: pq.read_metadata(path).num_rows for path in folder.iterdir()}
    assert rows == {
        "events": collected(store).height,
        "events_all": collected(store).height,
        "events_late": 0,
        "rejects": store.rejects().collect().height,
    }


@pytest.mark.parametrize("suffix", ["parquet", "ndjson", "csv"])
def test_a_table_without_rows_is_a_file_with_its_columns(suffix: str, tmp_path: Path) -> None:
    lane = Lane(tmp_path / "data").start().take(*events(0, 1, 0)).publish()
    lane.files.close()
    file = exported(f"out.{suffix}", lane.root, "--table", "events_late")
    if suffix == "parquet":
        assert pl.read_parquet(file).schema == EMPTY.schema
    elif suffix == "csv":
        assert file.read_text() == ",".join(EMPTY.columns) + "\n"
    else:
        assert file.read_text() == ""


def test_another_kind_of_file_is_refused(data: Path) -> None:
    result = invoke("export", data.parent / "out.xlsx", "--data-dir", data)
    assert result.exit_code == 1
    assert "export: expected a folder or .parquet, .ndjson, .jsonl, .csv; got 'out.xlsx'" in (
        result.stderr
    )


def test_an_unknown_table_is_refused_with_those_that_there_are(data: Path) -> None:
    result = invoke("export", "out.csv", "--table", "event", "--data-dir", data)
    assert result.exit_code == 2
    assert "events_late" in result.stderr


def test_where_files_go_meanwhile_all_is_written_again_of_a_new_view(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = collected(forebay.open(data))
    gone_after(monkeypatch, batches=2, times=2)
    found = pl.read_parquet(exported("out.parquet", data)).sort(IN_ORDER)
    assert_frame_equal(found, expected)


def test_where_files_keep_going_there_is_an_error_and_no_file(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone_after(monkeypatch, batches=2, times=10**6)
    result = invoke("export", data.parent / "out.parquet", "--data-dir", data)
    assert result.exit_code == 1
    assert "export: expected files to stay while they are written, after 3 tries" in result.stderr
    assert list(data.parent.iterdir()) == [data]


def gone_after(monkeypatch: pytest.MonkeyPatch, batches: int, times: int) -> None:
    """A chunk goes away after some batches, so many times."""
    left = [times]
    stream = forebay.Store.stream

    def goes(store: forebay.Store, table: str = "events") -> pa.RecordBatchReader:
        whole = stream(store, table)
        if not left[0]:
            return whole
        left[0] -= 1

        def some() -> Iterator[pa.RecordBatch]:
            for _ in range(batches):
                yield whole.read_next_batch()
            raise MissingFile("chunk x: expected a file, none is there")

        return pa.RecordBatchReader.from_batches(whole.schema, some())

    monkeypatch.setattr(forebay.Store, "stream", goes)


@pytest.mark.parametrize(
    "suffix",
    ["parquet", *(pytest.param(one, marks=pytest.mark.long) for one in ("ndjson", "csv"))],
)
def test_a_disk_that_is_full_leaves_neither_the_file_nor_a_part_of_it(
    suffix: str, data: Path
) -> None:
    """The limit on the size of files stands for the end of a disk."""
    code = (
        "import resource, signal, sys, forebay.cli.main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "forebay.cli.main.main(sys.argv[1:])\n"
    )
    file = data.parent / f"out.{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", code, "export", str(file), "--data-dir", str(data)],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"Error: {file}: expected to write it, got")
    assert done.stderr.count("\n") == 1
    assert list(data.parent.iterdir()) == [data]


@pytest.mark.long
def test_memory_does_not_grow_with_the_rows_of_an_export(tmp_path: Path) -> None:
    """Rows of 20 kB: all of them would take several hundred MB."""
    lane = Lane(tmp_path / "data").start()
    for part in range(30):
        lane.take(*events(500 * part, 500, 300 * part, step_ms=0))
    lane.publish().merge()
    lane.files.close()
    used: dict[int, int] = {}
    for width in (1, 40):
        code = (
            "import sys, pyarrow as pa, pyarrow.compute as pc, resource\n"
            "import forebay.query.batches as b\n"
            "shaped = b._shaped\n"
            "def wide(batch, *others):\n"
            "    for one in shaped(batch, *others):\n"
            f"        raw = pa.array([b'x' * 500 * {width}] * one.num_rows, pa.large_binary())\n"
            "        at = one.schema.get_field_index('raw')\n"
            "        yield one.set_column(at, 'raw', raw)\n"
            "b._shaped = wide\n"
            "from forebay.cli.main import main\n"
            "main(sys.argv[1:], standalone_mode=False)\n"
            "from forebay.verify.worker import peak_bytes\n"
            "print(peak_bytes())\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, "export", str(tmp_path / f"{width}.parquet"),
             "--data-dir", str(lane.root)],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        used[width] = int(done.stdout.splitlines()[-1])
    assert pq.read_metadata(tmp_path / "40.parquet").num_rows == 15_000
    assert used[40] - used[1] < 250 << 20
