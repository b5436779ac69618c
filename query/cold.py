"""Chunks as Polars sources: Polars reads the files; declared columns that they lack are decoded
from their raw.

What always holds: Polars reads a chunk as it is unless it lacks a declared column that can be
decoded from its raw; even then, raw is read only if such a column is used.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial

import polars as pl

from forebay.query.frames import (
    PolarsSchema,
    scan_chunks,
    scan_frames,
    with_decoded,
    within_years,
)
from forebay.query.partition import ChunkFile, VerifiedChunks
from forebay.storage.decoding.from_raw import FromRaw
from forebay.storage.formats.schema import OFFSET, RAW

FRAME_ROWS = 1_000_000


def scan_cold(
    files: Iterable[ChunkFile], schema: PolarsSchema, chunks: VerifiedChunks
) -> list[pl.LazyFrame]:
    """The rows of these verified files, with the columns of `schema`, in several frames."""
    groups: dict[tuple[frozenset[str], FromRaw | None], list[ChunkFile]] = {}
    for file in files:
        of = chunks.outside_years(file.path), file.from_raw if file.lacking else None
        groups.setdefault(of, []).append(file)
    return [
        _within(some, schema, outside)
        if from_raw is None
        else scan_frames(partial(_completed, some, from_raw, outside), schema, "chunks")
        for (outside, from_raw), some in groups.items()
    ]


def _within(
    files: Sequence[ChunkFile], schema: PolarsSchema, outside: Collection[str]
) -> pl.LazyFrame:
    """The rows of chunks, whose columns `outside` may have times beyond the years 1 to 9999."""
    within = [within_years(name, schema[name]) for name in sorted(outside & schema.keys())]
    return scan_chunks([file.path for file in files], schema).with_columns(within)


def _completed(
    files: Sequence[ChunkFile],
    from_raw: FromRaw,
    outside: Collection[str],
    used: PolarsSchema,
    _: pl.Expr | None,
) -> Iterator[pl.LazyFrame]:
    """The same for chunks that lack declared columns, which are decoded from their raw: about
    FRAME_ROWS at a time."""
    alike: dict[tuple[str, ...], list[ChunkFile]] = {}
    for file in files:
        alike.setdefault(tuple(from_raw.lacking(file.chunk.schema, used)), []).append(file)
    for added, some in alike.items():
        own = {name: dtype for name, dtype in used.items() if name not in added}
        own |= {RAW: pl.Binary()} if added else {}
        for part in _parted(some):
            rows = _within(part, own or {OFFSET: pl.Int64()}, outside)
            rows = with_decoded(rows, from_raw, {name: used[name] for name in added})
            yield rows.select(list(used) or OFFSET)


def _parted(files: Iterable[ChunkFile]) -> Iterator[list[ChunkFile]]:
    held: list[ChunkFile] = []
    for file in files:
        held.append(file)
        if sum(one.chunk.rows for one in held) >= FRAME_ROWS:
            yield held
            held = []
    if held:
        yield held
