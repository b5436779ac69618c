"""Which events of a seal are not the first with their dedup key, across partitions and the table.

DuckDB finds them within a bound of memory, on disk beyond it. All names in its SQL are ours: `t`,
`p` and `o` say where a row is, `k0`, `k1`, ... are its key. DuckDB takes names that differ by case
for one, and a declared column can have any. A row of the table comes before a sealed one; otherwise
the earlier one, by upload time, partition and offset, comes first.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa

from forebay.query.store import stream
from forebay.storage.base.errors import BadInput
from forebay.storage.formats.schema import OFFSET, PARTITION, UPLOAD_TIME

PLACE = {"t": UPLOAD_TIME, "p": PARTITION, "o": OFFSET}
SHORT_BYTES = 64
"""As long as a SHA-256 in hexadecimal."""


class Duplicates:
    """The duplicates found, for as long as this is open."""

    def __init__(self, work: duckdb.DuckDBPyConnection) -> None:
        self._work = work

    def find(self, sealed: pl.LazyFrame, known: pl.LazyFrame, key: Sequence[str]) -> int:
        """How many of the sealed rows have the key of a known one, or of a sealed one before; where
        a part of the key is null, the place as well."""
        keys = {f"k{number}": name for number, name in enumerate(key)}
        columns = [pl.col(name).alias(own) for own, name in {**PLACE, **keys}.items()]
        reader = stream(sealed.select(columns))
        self._work.register("sealed", reader)
        self._work.register("known", stream(known.select(columns)))
        texts = {own for own in keys if pa.types.is_large_string(reader.schema.field(own).type)}
        names = ", ".join([*PLACE, *(_short(own) if own in texts else own for own in keys)])
        # A part of the key is null only where version 1 stored a time that no reader takes: such
        # keys were distinct when they arrived, so each is a duplicate only of what has its place.
        lost = " or ".join(f"{own} is null" for own in keys)
        alike = [*keys, *(f"case when {lost} then {own} end" for own in ("p", "o"))]
        self._work.execute(
            f"create table duplicates as"
            f" select t, p, o from ("
            f"  select *, row_number() over (partition by {', '.join(alike)}"
            f"   order by fresh, t, p, o) as place"
            f"  from (select {names}, false as fresh from known union all"
            f"        select {names}, true as fresh from sealed))"
            f" where place > 1 and fresh order by t"
        )
        return int(self._work.sql("select count(*) from duplicates").fetchall()[0][0])

    def between(self, start: datetime, end: datetime) -> pl.DataFrame:
        """Partition and offset of those with an upload time from `start` to before `end`."""
        found = self._work.sql(
            "select p, o from duplicates where t >= ? and t < ?", params=[start, end]
        )
        return pl.DataFrame(found.to_arrow_table()).rename({"p": PARTITION, "o": OFFSET})


@contextmanager
def duplicates(folder: Path, memory_bytes: int) -> Iterator[Duplicates]:
    """A place to find them; what a killed run left in the folder is deleted. Where
    no lock keeps a second run out, that may delete what a first one has spilled, which then fails.

    The database is in memory, with what is beyond the bound on disk: a file's path may have no `?`.
    Raises BadInput if neither has room.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    bounds: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{memory_bytes}B",
        "temp_directory": str(folder / "spilled"),
        "preserve_insertion_order": "false",
    }
    try:
        with duckdb.connect(config=bounds) as work:
            work.execute("set timezone = 'UTC'")
            yield Duplicates(work)
    except (duckdb.OutOfMemoryException, duckdb.IOException) as error:
        raise BadInput(
            f"batch.memory: expected enough, or room below {folder}, to find duplicates, got"
            f" {str(error).splitlines()[0]}"
        ) from error
    shutil.rmtree(folder, ignore_errors=True)


def _short(text: str) -> str:
    """A key's text in SQL, bounded in size, because DuckDB can't spill what is larger than its
    blocks: beyond SHORT_BYTES its SHA-256, in a form that no shorter text has."""
    return (
        f"case when strlen({text}) > {SHORT_BYTES} then 'h' || sha256({text}) else {text} end"
        f" as {text}"
    )
