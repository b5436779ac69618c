"""Frames over the pipes between the front and its processes.

    frame   kind (1 byte), length (4 bytes, big-endian), payload

    to a worker     CONFIG (a `Config`, once), QUESTION (a `Question`)
    from a worker   READY or PROBLEM (once), and for each question one of
                      HEAD (of the answer, JSON), DATA…, END
                      HEAD, DATA…, CUT (what went wrong, JSON)
                      SAME (the head: the asker has this answer)
                      PROBLEM (JSON)

To the feed go SUBSCRIBE and LEAVE, from it come ROWS and PROBLEM, each with the number of a
subscription in 4 bytes before the payload. A process ends when its pipe does.
"""

from __future__ import annotations

import asyncio
from typing import BinaryIO

CONFIG, QUESTION, SUBSCRIBE, LEAVE = b"C", b"Q", b"S", b"L"
READY, HEAD, DATA, END, CUT, SAME, PROBLEM, ROWS = (
    b"R", b"H", b"D", b"E", b"X", b"U", b"P", b"W",
)  # fmt: skip
DATA_BYTES = 65_536
"""Maximum size of an answer's part in one frame."""
FRAME_BYTES_MAX = 64 << 20
Frame = tuple[bytes, bytes]


def frame(kind: bytes, payload: bytes | memoryview = b"") -> bytes:
    return b"".join((kind, len(payload).to_bytes(4, "big"), payload))


def read_frame(file: BinaryIO) -> Frame | None:
    """The next frame, or None at the end of the pipe."""
    head = file.read(5)
    size = int.from_bytes(head[1:], "big")
    payload = file.read(size) if len(head) == 5 else b""
    return (head[:1], payload) if len(head) == 5 and len(payload) == size else None


async def next_frame(reader: asyncio.StreamReader) -> Frame:
    """The next frame. Raises IncompleteReadError at the end of the pipe."""
    head = await reader.readexactly(5)
    size = int.from_bytes(head[1:], "big")
    if size > FRAME_BYTES_MAX:  # not a frame: something else wrote into the pipe
        raise asyncio.IncompleteReadError(head, size)
    return head[:1], await reader.readexactly(size)
