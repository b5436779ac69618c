"""The checksum of a chunk: what tells that its file is, byte for byte, as it was written.

    file   := … footer
    footer := metadata, its length (4 bytes, little-endian), "PAR1"        (as in any Parquet)

What always holds: checksums are taken of the bytes as they are written, never of what a disk gives
back. The footer has its own, for a reader can afford to check that always: it is a few kB, and
broken metadata is what an engine stumbles over. Each piece of PIECE_BYTES has one as well, and the
pages have Parquet's own: they locate the damage.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, MissingFile
from forebay.storage.base.record import Count, Crc

PIECE_BYTES = 256 << 10
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
        if zlib.crc32(footer) != self.footer_crc:
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

    def require_whole(self, disk: Disk, path: Path) -> None:
        """Raise MissingFile, or Corruption unless every byte is as written."""
        crc, pieces = 0, self.piece_crcs if self.pieces else []
        for number, start in enumerate(range(0, self.bytes, PIECE_BYTES)):
            end = min(start + PIECE_BYTES, self.bytes)
            data = _read(disk, path, start, end)
            if pieces and zlib.crc32(data) != pieces[number]:
                raise Corruption(
                    f"chunk {path}: checksum of bytes {start}..{end} does not match", start
                )
            crc = zlib.crc32(data, crc)
        if crc != self.crc:
            raise Corruption(f"chunk {path}: checksum of bytes 0..{self.bytes} does not match", 0)


class SummedFile:
    """A file for a Parquet writer, which is summed up while it is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._bytes = self._crc = self._footer_crc = 0
        self._footer_start: int | None = None
        self._pieces: list[int] = []

    @property
    def closed(self) -> bool:
        return self._file.closed

    def write(self, data: bytes) -> int:
        self._crc = zlib.crc32(data, self._crc)
        if self._footer_start is not None:
            self._footer_crc = zlib.crc32(data, self._footer_crc)
        self._sum_pieces(memoryview(data))
        self._bytes += len(data)
        return self._file.write(data)

    def _sum_pieces(self, data: memoryview) -> None:
        at = self._bytes
        while data:
            number, within = divmod(at, PIECE_BYTES)
            part = data[: PIECE_BYTES - within]
            if number == len(self._pieces):
                self._pieces.append(0)
            self._pieces[number] = zlib.crc32(part, self._pieces[number])
            data, at = data[len(part) :], at + len(part)

    def flush(self) -> None:
        self._file.flush()

    def begin_footer(self) -> None:
        """What is written from now on is the footer."""
        self._footer_start = self._bytes

    def checksum(self) -> Checksum:
        """Of all that was written."""
        footer_bytes = self._bytes - (self._footer_start or 0)
        packed = base64.b64encode(np.array(self._pieces, _CRC).tobytes()).decode()
        return Checksum(self._bytes, self._crc, footer_bytes, self._footer_crc, packed)


def damaged_columns(path: Path, metadata: pq.FileMetaData) -> Iterator[Corruption]:
    """Those parts of a chunk of which a page does not match its checksum or can't be read."""
    with pq.ParquetFile(path, metadata=metadata, page_checksum_verification=True) as file:
        for group in range(metadata.num_row_groups):
            for index in range(metadata.num_columns):
                column = metadata.row_group(group).column(index)
                try:
                    file.read_row_group(group, columns=[column.path_in_schema], use_threads=False)
                except (pa.ArrowException, OSError) as error:
                    start = column.dictionary_page_offset or column.data_page_offset
                    end = start + column.total_compressed_size
                    yield Corruption(
                        f"chunk {path}: column {column.path_in_schema!r} in bytes {start}..{end}"
                        f" is damaged: {error}",
                        start,
                    )


def _read(disk: Disk, path: Path, start: int, end: int) -> bytes:
    try:
        return disk.read(path, start, end)
    except FileNotFoundError as error:
        raise _missing(path) from error


def _missing(path: Path) -> MissingFile:
    return MissingFile(f"chunk {path}: expected a file, none is there")
