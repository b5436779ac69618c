"""The keys of a block's logs as a key set reads them back, and the hash file beside each log, so
that a start need not read the logs.

    hash file := first line, record*: one for each record batch of the log
    first line := "hashes1\\n", or where the hash has a seed "hashes2 ", the CRC-32 of the seed's
                  text in 8 hex digits, "\\n"
    record    := CRC-32 of what follows, rows (u32), start, end (u64), start CRC, end CRC (u32),
                 hash (u64) * rows; little-endian

A hash file only repeats what the log says: it is never synced, no commit names it, and one that
can't be written is given up. It is used if its records are whole, their spans make up the requested
extent, byte by byte and with its checksums, and it was written with the same hash; otherwise the
log is read. If `hashes.hash_keys` or `KeyHash` ever changed, so would the first line.
"""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from isal.isal_zlib import crc32

from forebay.storage.base.disk import Appender, Disk
from forebay.storage.base.layout import hash_file_name
from forebay.storage.formats.hashes import U64, Hash, KeyHash, hash_keys
from forebay.storage.formats.log import Extent, Span

MAGIC = b"hashes1\n"
"""Of hashes without a seed."""
_CRC, _PLACE = struct.Struct("<I"), struct.Struct("<IQQII")
_HEADER_BYTES, _HASH = _CRC.size + _PLACE.size, np.dtype("<u8")


def first_line(hash: Hash) -> bytes:
    """What a file of such hashes begins with."""
    if isinstance(hash, KeyHash) and hash.seed:
        return b"hashes2 %08x\n" % crc32(hash.seed.encode())
    return MAGIC


class HashWriter:
    """Follows one log of this run; its file is made when there is something to write."""

    def __init__(self, disk: Disk, folder: Path, hash: Hash = hash_keys) -> None:
        self._disk = disk
        self._folder = folder
        self._first_line = first_line(hash)
        self._file: Appender | None = None
        self._given_up = False

    def append(self, span: Span, hashes: U64) -> None:
        """Note the hashes of the keys of one record batch, in the order of its rows."""
        if self._given_up:
            return
        place = (span.start, span.end, span.start_crc, span.end_crc)
        body = _PLACE.pack(len(hashes), *place) + hashes.astype(_HASH).tobytes()
        record = _CRC.pack(crc32(body)) + body
        try:
            if self._file is None:
                self._file = self._disk.create(self._folder / hash_file_name(span.file))
                record = self._first_line + record
            self._file.append(record)
        except OSError:
            self._given_up = True


def read_hashes(
    disk: Disk, folder: Path, extent: Extent, hash: Hash = hash_keys
) -> list[tuple[Span, U64]] | None:
    """The spans of one extent with the hashes of their keys by `hash`; None if they are not all
    known."""
    try:
        data = disk.read(folder / hash_file_name(extent.file))
    except OSError:
        return None
    start = first_line(hash)
    if not data.startswith(start):
        return None
    found: list[tuple[Span, U64]] = []
    at, rows = len(start), 0
    last: Span | None = None
    while rows < extent.rows and at + _HEADER_BYTES <= len(data):
        (crc,) = _CRC.unpack_from(data, at)
        count, *place = _PLACE.unpack_from(data, at + _CRC.size)
        span = Span(extent.file, *place)
        end = at + _HEADER_BYTES + count * _HASH.itemsize
        if end > len(data) or crc32(memoryview(data)[at + _CRC.size : end]) != crc:
            return None
        if last and (last.end, last.end_crc) != (span.start, span.start_crc):
            return None
        found.append((span, np.frombuffer(data, _HASH, count, at + _HEADER_BYTES)))
        at, rows, last = end, rows + count, span
    if last is None or (rows, last.end, last.end_crc) != (extent.rows, extent.bytes, extent.crc):
        return None
    return found
