"""A server under test: `forebay serve` as a process of its own, and clients of it over sockets."""

from __future__ import annotations

import http.client
import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import orjson
import pyarrow as pa

from forebay.storage.formats.columns import arrow_schema
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.partition.rules import Rules
from tests.partition import NAME, Partition
from tests.shop import DAY_MS, FIRST, SCHEMA, rows

WAIT_S = 60.0
HOSTILE = "</script><script>alert(1)</script>\x1b[31m"
"""The name of an event that is hostile to pages and to terminals."""
LONG = "select count(*) from range(1000000000000) where range % 7 = 3"
"""A query that takes longer than any test."""
SEAL, COMPLETE = "/v1/batch/seal", "/v1/batch/complete"
FIRST_MS = round(FIRST.timestamp() * 1000)


def filled(root: Path) -> Partition:
    """A partition with the events of `rows`, one of a hostile name, and two rejects."""
    given = [*rows(), {"kind": HOSTILE, "who": "u7", "at": 3 * DAY_MS}]
    partition = Partition(root, Rules(SCHEMA, DAY_MS, DAY_MS, 60_000)).start()
    partition.take(frame_of(given, 0, broken=2))
    partition.blocks.publish()
    return partition


def frame_of(given: Sequence[Mapping[str, Any]], first: int, broken: int = 0) -> Frame:
    """Events with these values, and after them so many rejects."""
    found = [
        {"_partition": "s0", "_offset": first + n, "id": f"{first + n}", **row,
         "at": FIRST_MS + row["at"], "upload_time": FIRST_MS + row["at"]}
        for n, row in enumerate(given)
    ]  # fmt: skip
    end = first + len(found)
    rejects = [
        {"_partition": "s0", "_offset": end + n, "reason": "bad json", "message": b"{<\xff"}
        for n in range(broken)
    ]
    return Frame(
        NAME, "s0", first, end + broken,
        pa.RecordBatch.from_pylist(found, arrow_schema(SCHEMA)),
        pa.RecordBatch.from_pylist(rejects, REJECT_SCHEMA),
    )  # fmt: skip


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)


class Server:
    """`forebay serve` on a port of its own choice. `prefix` is a program that starts it."""

    def __init__(self, root: Path, *options: str, prefix: Sequence[str] = ()) -> None:
        arguments = ["-m", "forebay", "serve", "--port", "0", "--data-dir", str(root), *options]
        self.process = subprocess.Popen(
            [*prefix, sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert self.process.stdout is not None
        told = self.process.stdout.readline().decode()
        found = re.search(r"served at \w+://\S+:(\d+)\n", told)
        assert found, (told, self.process.communicate())
        self.port = int(found[1])

    def connection(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=WAIT_S)

    def ask(
        self,
        path: str,
        query: Mapping[str, Any] | None = None,
        *,
        method: str | None = None,
        body: object = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """The answer; `query` are the parameters of a GET, `body` those of a POST."""
        address = quote(path, safe="/%?=&") + (f"?{urlencode(query, doseq=True)}" if query else "")
        data = None if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        kind = {} if data is None else {"Content-Type": "application/json"}
        method = method or ("GET" if data is None else "POST")
        connection = self.connection()
        try:
            connection.request(method, address, data, {**kind, **(headers or {})})
            got = connection.getresponse()
            headers = {name.lower(): value for name, value in got.getheaders()}
            return Reply(got.status, headers, got.read())
        finally:
            connection.close()

    def sql(self, text: str, **headers: str) -> Reply:
        return self.ask("/v1/sql", {"text": text}, headers=headers)

    @contextmanager
    def asked(
        self, path: str, query: Mapping[str, Any], headers: Mapping[str, str] | None = None
    ) -> Iterator[socket.socket]:
        """A client that has asked, and reads when it wants to."""
        client = socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)
        with client:
            address = f"{path}?{urlencode(query, doseq=True)}"
            lines = [f"GET {address} HTTP/1.1", "Host: localhost"]
            lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
            client.sendall("\r\n".join([*lines, "", ""]).encode())
            yield client

    def metric(self, name: str) -> float:
        """The value of a metric, 0 if it has none yet."""
        text = self.ask("/metrics").body.decode()
        found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def until(self, name: str, value: float) -> None:
        """Wait for a metric to reach a value."""
        for _ in range(600):
            if self.metric(name) >= value:
                return
            select.select([], [], [], 0.05)
        raise AssertionError(f"{name}: expected {value}, got {self.metric(name)}")

    @property
    def children(self) -> list[int]:
        """Its processes."""
        text = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(one) for one in text.split()]

    def busiest(self) -> int:
        """The one of its workers that works, once it is plain which it is."""
        self.until("forebay_serve_busy", 1)
        self.until("forebay_serve_workers", 1)
        for _ in range(600):  # until all are there, and the one that compiles has ended
            if self.metric("forebay_serve_workers") == len(self.children):
                break
            select.select([], [], [], 0.05)
        before = {pid: _ticks(pid) for pid in self.children}
        for _ in range(1200):
            spent = {pid: _ticks(pid) - ticks for pid, ticks in before.items()}
            pid = max(spent, key=spent.__getitem__)
            if spent[pid] > 5 + 3 * sum(n for one, n in spent.items() if one != pid):
                return pid
            select.select([], [], [], 0.05)
        raise AssertionError("expected a process that works, got none")

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(WAIT_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()


def _ticks(pid: int) -> int:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return int(fields[11]) + int(fields[12])


def ended(pids: Sequence[int]) -> bool:
    """Whether all these processes end, or have ended."""
    for pid in pids:
        try:
            found = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            if not select.select([found], [], [], WAIT_S)[0]:
                return False
        finally:
            os.close(found)
    return True
