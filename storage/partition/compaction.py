"""Compaction: which small chunks become one, so that sparse or scattered times don't leave many.

Chunks are compacted with their neighbours: those of the same span of time, of the same kind (on
time or late, backfill or not), and of about the same size, so that the number of times a row is
rewritten is the logarithm of the number of chunks, not that number. A chunk is left alone until no
crash can undo any of its evictions: so what is made of several is as sure as each of them was, and
never has to be taken apart. A span is a UTC day at most; where data expires, it is a quarter of
what is kept at most, because a chunk goes when all of it may. Backfill has days only, as its blocks
have. Pure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from forebay.storage.base.layout import ChunkId
from forebay.storage.base.times import DAY_MS
from forebay.storage.formats.catalog import Chunk
from forebay.storage.partition.expiry import LAST_DAY_MS

SMALL_BYTES, TIER = 32 << 20, 4
"""A chunk of that size is large enough; chunks of one tier differ by less than that factor."""
SMALLEST_BYTES = 32 << 10
CHUNKS_MIN, CHUNKS_MAX, BYTES_MAX = 4, 64, 64 << 20
"""How many are compacted at once, and how large the result may be, about."""
PARTS = 4
"""Of what is kept: so many chunks it is in at least, if its blocks are not longer."""


def span_ms(retention_ms: int, bytes_max: int) -> int:
    """The span within which chunks are compacted, under this retention and this bound in bytes, of
    which 0 is none. The bound keeps the last day."""
    bounds = [ms for ms in (retention_ms, LAST_DAY_MS if bytes_max else 0) if ms]
    return max(1, min([DAY_MS, *(ms // PARTS for ms in bounds)]))


def neighbours(
    chunks: Iterable[Chunk], incarnation: int, committed: int, span_ms: int = DAY_MS
) -> list[Chunk]:
    """Chunks to make one of, in order of time; none if there are too few. `committed` is the last
    eviction of this run, `incarnation`, that no crash can undo."""
    tiers: dict[tuple[object, ...], list[Chunk]] = defaultdict(list)
    for chunk in sorted(chunks, key=lambda chunk: (chunk.first_ms, chunk.id)):
        sure = chunk.id.incarnation < incarnation or chunk.id.last <= committed
        size = chunk.checksum.bytes
        # A chunk of version 1 may have times that no reader takes.
        if sure and size < SMALL_BYTES and chunk.checksum.pieces:
            ends = chunk.first_ms, chunk.last_ms
            days = tuple(ms // DAY_MS for ms in ends)
            spans = days if chunk.backfill else tuple(ms // span_ms for ms in ends)
            found = tiers[days, spans, chunk.late, chunk.backfill, _tier(size)]
            if sum(one.checksum.bytes for one in found) + size <= BYTES_MAX:
                found.append(chunk)
    full = [found for found in tiers.values() if len(found) >= CHUNKS_MIN]
    return full[0][:CHUNKS_MAX] if full else []


def _tier(size: int) -> int:
    tier, bound = 0, SMALLEST_BYTES
    while size >= bound:
        tier, bound = tier + 1, bound * TIER
    return tier


def compacted_id(chunks: Iterable[Chunk]) -> ChunkId:
    """The id of the chunk made of them: it counts wherever the newest of them does
    (`Catalog.committed`), and they are all sure."""
    ids = [chunk.id for chunk in chunks]
    newest = max(ids, key=lambda id: (id.incarnation, id.last))
    return ChunkId(min(id.first for id in ids), newest.last, newest.incarnation)
