"""Nodes under test: data directories, each with a part of the events, servers of them, and lines to
these that break. The oracle is one data directory that has all parts.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from forebay.storage.formats.boundary import BoundaryWriter, read_boundary
from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.partition.rules import Rules
from tests.partition import Partition
from tests.serving import FIRST_MS, WAIT_S
from tests.shop import DAY_MS, SCHEMA, rows

HOUR_MS = 3_600_000
RULES = Rules(SCHEMA, HOUR_MS, 2 * HOUR_MS, 60_000)
NODES = 3
SCANS = b"POST /v1/node/scan "


@dataclass
class Node:
    """A data directory with some of the partitions: a few rejects, chunks, and hot blocks."""

    root: Path
    partitions: list[Partition] = field(default_factory=list)

    def begin(self, number: int) -> Partition:
        """Partition `number`, whose users other partitions have too, but not its events."""
        one = Partition(self.root, RULES, name=f"p{number:02}", blocks_per_chunk=4).start()
        self.partitions.append(one)
        for at, day in enumerate(_days(number)):
            one.take(_frame(number, at, day, rejects=at == 0))
        one.blocks.publish()
        one.merge()
        one.blocks.publish()
        return one

    def close(self) -> None:
        for one in self.partitions:
            one.files.close()

    def late(self, number: int) -> None:
        """An event that comes too late for a day that is sealed."""
        one = next(one for one in self.partitions if one.name == f"p{number:02}")
        row = {**next(iter(rows())), "who": f"late{number}", "at": 2 * HOUR_MS}
        one.take(_frame(number, 90, [row]))
        one.blocks.publish()

    def seal(self, days: int) -> None:
        with BoundaryWriter(self.partitions[0].files, self.partitions[0].layout) as writer:
            writer.seal(FIRST_MS + days * DAY_MS, [HOUR_MS])
        for one in self.partitions:
            while one.blocks.notice(read_boundary(one.files, one.layout)):
                one.blocks.snapshot()
            one.blocks.publish()

    def complete(self) -> None:
        with BoundaryWriter(self.partitions[0].files, self.partitions[0].layout) as writer:
            writer.complete(0, late=False)


def _days(number: int) -> list[list[dict[str, Any]]]:
    found: list[list[dict[str, Any]]] = [[], [], []]
    for row in rows():
        minutes = number * 60_000
        if (int(row["who"][1:]) + row["at"] // HOUR_MS) % NODES != number:
            found[row["at"] // DAY_MS].append({**row, "at": row["at"] + minutes})
    return found


def _frame(
    number: int, part: int, given: Sequence[Mapping[str, Any]], *, rejects: bool = False
) -> Frame:
    source, first = f"s{number}", part * 1000
    found = [
        {"_partition": source, "_offset": first + n, "id": f"{source}-{first + n}", **row,
         "at": FIRST_MS + row["at"], "upload_time": FIRST_MS + row["at"]}
        for n, row in enumerate(given)
    ]  # fmt: skip
    bad = [
        {"_partition": source, "_offset": first + 900 + n, "reason": "bad json", "message": b"{<"}
        for n in range(2 if rejects else 0)
    ]
    return Frame(
        f"p{number:02}", source, first, first + 1000,
        pa.RecordBatch.from_pylist(found, arrow_schema(SCHEMA)),
        pa.RecordBatch.from_pylist(bad, REJECT_SCHEMA),
    )  # fmt: skip


def nodes(folder: Path) -> tuple[list[Node], Node]:
    """Three nodes with a partition each, and one node that has the same three."""
    several = [Node(folder / f"node-{number}") for number in range(NODES)]
    one = Node(folder / "one")
    for number, node in enumerate(several):
        node.begin(number)
        one.begin(number)
    return several, one


class Line:
    """A line to a server: `url` leads there. What the server answers to scans passes up to
    `passes` bytes; then the line is cut, or with `stalls` nothing moves any more."""

    def __init__(self, port: int, *, passes: int | None = None, stalls: bool = False) -> None:
        self.passes, self.stalls = passes, stalls
        self.scans = 0
        self.scanned = threading.Event()
        """That there was a scan."""
        self.carried = 0
        """Bytes of answers to scans."""
        self._to = "127.0.0.1", port
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._ended = threading.Event()
        self._open: list[socket.socket] = [self._listening]
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                self._open.append(client)
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with suppress(OSError), client, socket.create_connection(self._to, WAIT_S) as server:
            self._open.append(server)
            request = client.recv(65536)
            while b"\r\n\r\n" not in request:
                request += client.recv(65536)
            # The server is named by its own port.
            host = f"Host: 127.0.0.1:{self._listening.getsockname()[1]}".encode()
            request = request.replace(host, f"Host: 127.0.0.1:{self._to[1]}".encode())
            server.sendall(request)
            threading.Thread(target=_pass_on, args=(client, server), daemon=True).start()
            scan = request.startswith(SCANS)
            self.scans += scan
            if scan:
                self.scanned.set()
            left = self.passes if scan else None
            while data := server.recv(65536 if left is None else max(1, min(left, 65536))):
                if left is not None and left <= 0:
                    if self.stalls:
                        self._ended.wait(WAIT_S)
                    client.shutdown(socket.SHUT_RDWR)  # another thread reads it
                    return
                client.sendall(data)
                self.carried += len(data) if scan else 0
                left = None if left is None else left - len(data)

    def close(self) -> None:
        self._ended.set()
        for one in self._open:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


def _pass_on(here: socket.socket, there: socket.socket) -> None:
    with suppress(OSError):
        while data := here.recv(65536):
            there.sendall(data)
        there.shutdown(socket.SHUT_WR)


@contextmanager
def line(port: int, **broken: Any) -> Iterator[Line]:
    made = Line(port, **broken)
    try:
        yield made
    finally:
        made.close()
