"""Decompression of what a file holds: plain, gzip (RFC 1952) or zstd (RFC 8878), a piece at a time.

What always holds:

- All that can be decompressed before damage is returned before the damage is reported, as
  Corruption with the offset in the file.
- No piece is much larger than PIECE_BYTES_MAX, whatever a few bytes unpack to.
- What counts as whole is what gzip(1) and zstd(1) take: members and frames that follow one another,
  zeros behind a gzip member, skippable zstd frames. An empty file is cut short.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator
from typing import BinaryIO, NoReturn

import zstandard

from forebay.storage.base.errors import Corruption

PIECE_BYTES_MAX = 1 << 20
PACKED_BYTES = 256 << 10
WINDOW_BYTES_MAX = 128 << 20
"""Of a zstd frame, which says how much memory it takes to decompress: zstd's own limit."""
_ZSTD, _SKIPPABLE, _SKIPPABLE_MASK = 0xFD2FB528, 0x184D2A50, 0xFFFFFFF0
_FRAME_HEAD_BYTES = 5
"""As much as says how long the head of a frame is."""
_RLE = 1
_MAGIC = {
    b"\x1f\x8b": "gzip data",
    b"\x28\xb5\x2f\xfd": "zstd data",
    b"BZh": "bzip2 data",
    b"\xfd7zXZ\0": "xz data",
    b"\x04\x22\x4d\x18": "lz4 data",
    b"PK\x03\x04": "zip data",
}


def unpack(file: BinaryIO, name: str) -> Iterator[bytes]:
    """The content of `file`, decompressed according to its name's ending; no piece is empty.

    Raises Corruption for what is not whole; the message does not name the file.
    """
    return next((how(file) for end, how in _ENDINGS.items() if name.endswith(end)), _plain(file))


def packed(name: str) -> bool:
    """Whether the name says that the content is compressed."""
    return name.endswith(tuple(_ENDINGS))


def _plain(file: BinaryIO) -> Iterator[bytes]:
    while data := file.read(PIECE_BYTES_MAX):
        yield data


def _gzip(file: BinaryIO) -> Iterator[bytes]:
    data = file.read(PACKED_BYTES)
    _require_kind("gzip", data, data.startswith(b"\x1f\x8b"[: len(data)]))
    while data:
        data = yield from _member(file, data)
        data = data or file.read(PACKED_BYTES)
        start = file.tell() - len(data)
        if data.startswith(b"\0"):
            while data and not data.strip(b"\0"):
                data = file.read(PACKED_BYTES)
            if data:
                _fail("expected zeros or nothing behind the gzip data, got other bytes", start)
        elif not data.startswith(b"\x1f\x8b"[: len(data)]):
            _fail("expected a gzip member or nothing, got other bytes behind the last", start)


def _member(file: BinaryIO, data: bytes) -> Generator[bytes, None, bytes]:
    """The content of the gzip member at which `data` begins; returns what stands behind it."""
    member = zlib.decompressobj(16 + zlib.MAX_WBITS)
    while not member.eof:
        data = data or file.read(PACKED_BYTES)
        before = member.copy()
        try:
            piece = member.decompress(data, PIECE_BYTES_MAX)
        except zlib.error as error:
            piece, good = _up_to_damage(before, data)
            if piece:
                yield piece
            _fail(f"expected gzip data, got damage ({error})", file.tell() - len(data) + good)
        if piece:
            yield piece
        elif not data and not member.eof:
            _fail("expected the end of a gzip member, got the end of the file", file.tell())
        data = member.unused_data if member.eof else member.unconsumed_tail
    return data


def _up_to_damage(member: zlib._Decompress, data: bytes) -> tuple[bytes, int]:
    """What `data` unpacks to before it is damaged, and how many of its bytes are good."""
    parts: list[bytes] = []
    for at in range(len(data)):
        try:
            parts.append(member.decompress(data[at : at + 1]))
        except zlib.error:
            break
    return b"".join(parts), len(parts)


def _zstd(file: BinaryIO) -> Iterator[bytes]:
    head = file.read(4)
    _require_kind("zstd", head, _is_zstd(head))
    while head:
        if not _is_zstd(head):
            start = file.tell() - len(head)
            _fail("expected a zstd frame or nothing, got other bytes behind the last", start)
        if int.from_bytes(head, "little") == _ZSTD:
            yield from _frame(file, head)
        else:
            size = int.from_bytes(_read(file, 4), "little")
            while size:
                size -= len(_read(file, min(size, PACKED_BYTES)))
        head = file.read(4)


def _frame(file: BinaryIO, magic: bytes) -> Iterator[bytes]:
    """The content of a zstd frame, block by block, so that no good block is lost to a bad one."""
    start = file.tell() - len(magic)
    frame = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX).decompressobj()
    try:
        head = magic + _read(file, _FRAME_HEAD_BYTES - len(magic))
        head += _read(file, zstandard.frame_header_size(head) - len(head))
        about = zstandard.get_frame_parameters(head)
        if about.window_size > WINDOW_BYTES_MAX:
            _fail(
                f"expected a zstd frame with a window of at most {WINDOW_BYTES_MAX >> 20} MiB, got"
                f" {about.window_size >> 20} MiB (compressed with --long or --ultra)",
                start,
            )
        frame.decompress(head)
        last = False
        while not last:
            start = file.tell()
            block = _read(file, 3)
            about_block = int.from_bytes(block, "little")
            last, kind, size = about_block & 1 == 1, about_block >> 1 & 3, about_block >> 3
            piece = frame.decompress(block + _read(file, 1 if kind == _RLE else size))
            if piece:
                yield piece
        if about.has_checksum:
            start = file.tell()
            frame.decompress(_read(file, 4))
    except zstandard.ZstdError as error:
        _fail(f"expected zstd data, got damage ({error})", start)


def _read(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        _fail("expected the end of a zstd frame, got the end of the file", file.tell())
    return data


def _is_zstd(head: bytes) -> bool:
    """Whether a frame begins like this, as far as it goes."""
    magic = int.from_bytes(head, "little")
    return head == _ZSTD.to_bytes(4, "little")[: len(head)] or (
        len(head) == 4 and magic & _SKIPPABLE_MASK == _SKIPPABLE
    )


def _require_kind(kind: str, head: bytes, right: bool) -> None:
    """Raise Corruption unless the file begins as its name says."""
    if not head:
        _fail(f"expected {kind} data, as its name says, got an empty file", 0)
    if not right:
        got = next((m for magic, m in _MAGIC.items() if head.startswith(magic)), "something else")
        if head.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"{", b"[", b'"'):
            got = "a file that is not compressed"
        _fail(f"expected {kind} data, as its name says, got {got}", 0)


def _fail(what: str, offset: int) -> NoReturn:
    raise Corruption(f"{what} at offset {offset}", offset)


_ENDINGS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {".gz": _gzip, ".zst": _zstd}
