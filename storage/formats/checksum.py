"""The checksum of a chunk: it shows that its file is, byte for byte, as it was written.

    file   := … footer
    footer := metadata, its length (4 bytes, little-endian), "PAR1"        (as in any Parquet)

What always holds: checksums are taken of the bytes as they are written, never of what a disk gives
back. The footer has its own, which a reader can afford to check every time: it is a few kB, and
broken metadata is what an engine stumbles over. Each piece of PIECE_BYTES has one as well, so that
a reader can check what it reads, and damage can be located.
"""

from __future__ import annotations

import base64
import binascii
import builtins
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from isal.isal_zlib import crc32

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.record import Count, Crc

PIECE_BYTES = 256 << 10
TAIL_BYTES = 8
"""What a Parquet file ends with: the length of its metadata, and "PAR1"."""
_CRC = np.dtype("<u4")


@dataclass(frozen=True)
class Checksum:
    """Sizes in bytes; checksums are CRC-32 (zlib). The footer is the last `footer_bytes`.

    `pieces` has the checksum of each PIECE_BYTES of the file, the last of which may be shorter:
    four bytes each, little-endian, in base64. Empty for chunks of version 1, of which only the
    whole can be checked.
    """

    bytes: Count
    crc: Crc
    footer_bytes: Count
    footer_crc: Crc
    pieces: str = ""

    def __post_init__(self) -> None:
        if self.footer_bytes > self.bytes:
            raise ValueError(f"expected a footer of {self.bytes} bytes at most, got {self}")
        if self.pieces and len(self.piece_crcs) != -(-self.bytes // PIECE_BYTES):
            raise ValueError(f"expected a checksum for each piece of {self.bytes} bytes")

    @property
    def piece_crcs(self) -> list[int]:
        """The checksum of each piece, in order. Raises ValueError if that is not their form."""
        try:
            packed = base64.b64decode(self.pieces, validate=True)
            return [int(crc) for crc in np.frombuffer(packed, _CRC)]
        except (binascii.Error, ValueError) as error:
            raise ValueError(f"expected checksums of pieces in base64, got {error}") from error

    @property
    def footer_start(self) -> int:
        return self.bytes - self.footer_bytes

    def metadata(self, disk: Disk, path: Path) -> pq.FileMetaData:
        """What the footer says. Raises MissingFile, or Corruption if the file's size or its footer
        is not as written."""
        start = self.footer_start
        self.require_size(disk, path)
        footer = _read(disk, path, start, self.bytes)
        if crc32(footer) != self.footer_crc:
            raise Corruption(
                f"chunk {path}: checksum of the footer, bytes {start}..{self.bytes}, does not"
                " match",
                start,
            )
        try:
            return pq.read_metadata(pa.BufferReader(footer))
        except (pa.ArrowException, OSError) as error:
            raise Corruption(
                f"chunk {path}: expected a Parquet footer at offset {start}, got {error}", start
            ) from error

    def require_size(self, disk: Disk, path: Path) -> None:
        """Raise MissingFile, or Corruption if the file has another size."""
        try:
            size = disk.size(path)
        except FileNotFoundError as error:
            raise _missing(path) from error
        if size != self.bytes:
            raise Corruption(f"chunk {path}: expected {self.bytes} bytes, got {size}", size)

    def require(self, disk: Disk, path: Path, ranges: Iterable[tuple[int, int]]) -> None:
        """Raise MissingFile, or Corruption unless all pieces that have a byte in these ranges are
        as written."""
        crcs = self.piece_crcs
        for number in sorted({n for low, high in ranges for n in _pieces(low, high)}):
            if crc32(self._piece(disk, path, number)) != crcs[number]:
                low, high = self._range(number)
                raise Corruption(
                    f"chunk {path}: checksum of bytes {low}..{high} does not match", low
                )

    def damaged(self, disk: Disk, path: Path) -> list[tuple[int, int]]:
        """The pieces that are not as written. Raises MissingFile."""
        crcs = enumerate(self.piece_crcs) if self.pieces else ()
        wrong = [n for n, crc in crcs if crc32(self._piece(disk, path, n)) != crc]
        return [self._range(number) for number in wrong]

    def footer_of(self, disk: Disk, path: Path) -> builtins.bytes:
        """The footer of a file that was just written, whose writer does not say where the footer
        begins: it is read back, and trusted only if its pieces are as they were written."""
        start = self.bytes - TAIL_BYTES
        length = int.from_bytes(_read(disk, path, start, self.bytes)[:4], "little")
        start = max(0, start - length)
        self.require(disk, path, [(start, self.bytes)])
        return _read(disk, path, start, self.bytes)

    def _range(self, piece: int) -> tuple[int, int]:
        return piece * PIECE_BYTES, min((piece + 1) * PIECE_BYTES, self.bytes)

    def _piece(self, disk: Disk, path: Path, piece: int) -> builtins.bytes:
        return _read(disk, path, *self._range(piece))

    def require_whole(self, disk: Disk, path: Path) -> None:
        """Raise MissingFile, or Corruption unless every byte is as written."""
        crc, pieces = 0, self.piece_crcs if self.pieces else []
        for number, start in enumerate(range(0, self.bytes, PIECE_BYTES)):
            end = min(start + PIECE_BYTES, self.bytes)
            data = _read(disk, path, start, end)
            if pieces and crc32(data) != pieces[number]:
                raise Corruption(
                    f"chunk {path}: checksum of bytes {start}..{end} does not match", start
                )
            crc = crc32(data, crc)
        if crc != self.crc:
            raise Corruption(f"chunk {path}: checksum of bytes 0..{self.bytes} does not match", 0)


class SummedFile:
    """A file for a Parquet writer, checksummed while it is written. `error` is what the file raised
    last."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = 0
        self._pieces: list[int] = []
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self._sum_pieces(memoryview(data))
        self._bytes += len(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def _sum_pieces(self, data: memoryview) -> None:
        at = self._bytes
        while data:
            number, within = divmod(at, PIECE_BYTES)
            part = data[: PIECE_BYTES - within]
            if number == len(self._pieces):
                self._pieces.append(0)
            self._pieces[number] = crc32(part, self._pieces[number])
            data, at = data[len(part) :], at + len(part)

    def flush(self) -> None:
        self._file.flush()

    def checksum(self, disk: Disk, path: Path) -> Checksum:
        """The checksum of all that was written, to `path`."""
        packed = base64.b64encode(np.array(self._pieces, _CRC).tobytes()).decode()
        whole = Checksum(self._bytes, whole_crc(self._pieces, self._bytes), 0, 0, packed)
        footer = whole.footer_of(disk, path)
        return replace(whole, footer_bytes=len(footer), footer_crc=crc32(footer))


def whole_crc(crcs: Sequence[int], size: int) -> int:
    """The CRC-32 of a file of `size` bytes from those of its pieces, without summing it twice.

    A CRC is a polynomial over bits, modulo a fixed one: bytes that follow multiply what was before
    by x to their bits, and add their own (as in zlib's crc32_combine, by Mark Adler)."""
    whole = 0
    for number, crc in enumerate(crcs):
        following = min(PIECE_BYTES, size - number * PIECE_BYTES)
        whole = _product(whole, _power(8 * following)) ^ crc
    return whole


@lru_cache(256)
def _power(exponent: int) -> int:
    """x to the `exponent`, modulo the polynomial of CRC-32; the highest bit stands for 1."""
    if exponent == 0:
        return 1 << 31
    half = _power(exponent // 2)
    whole = _product(half, half)
    return _product(whole, 1 << 30) if exponent % 2 else whole


def _product(a: int, b: int) -> int:
    """The product of two polynomials, modulo that of CRC-32."""
    found = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            found ^= b
        b = b >> 1 ^ (0xEDB88320 if b & 1 else 0)
    return found


def _pieces(low: int, high: int) -> range:
    """Those that have a byte of [low, high)."""
    return range(low // PIECE_BYTES, -(-high // PIECE_BYTES))


def _read(disk: Disk, path: Path, start: int, end: int) -> bytes:
    try:
        return disk.read(path, start, end)
    except FileNotFoundError as error:
        raise _missing(path) from error


def _missing(path: Path) -> MissingFile:
    return MissingFile(f"chunk {path}: expected a file, none is there")
