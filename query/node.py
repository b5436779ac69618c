"""Another node: a `forebay serve` whose data directories are read over HTTP.

A thread of its own fetches each answer, as fast as the node sends it, into memory and, beyond
SMALL_BYTES, into a temporary file. So a node's worker never waits for the reader, however many
answers of one node a query needs, and all nodes are asked at once.

What always holds: reading an answer that is cut short raises an error; no reader waits beyond the
deadline, whatever the node does; a token is sent only to its node, and unencrypted only on this
host.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from tempfile import SpooledTemporaryFile
from urllib.parse import urlsplit
from weakref import WeakSet

from forebay.storage.base.directory import data_directory
from forebay.storage.base.errors import (
    BadInput,
    Corruption,
    ForebayError,
    MissingFile,
    NodeError,
)
from forebay.storage.base.text import plain, shortened

TOKEN, CA = "FOREBAY_TOKEN", "FOREBAY_CA"
"""Environment variables: tokens, and the file of a certificate authority."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SECONDS = 60.0
CONNECT_S, LOOK_S = 5.0, 10.0
"""Time limits for reaching a node, and for it to say what it has."""
SMALL_BYTES, ANSWER_BYTES_MAX = 1 << 20, 16 << 30
PART_BYTES = 128 << 10
PROBLEM_BYTES_MAX = 64 << 10
SAID_CHARACTERS = 500
_URL = re.compile(r"https?://", re.IGNORECASE)
_TOKEN = re.compile(r"[\x21-\x7e]+\Z")


@dataclass(frozen=True)
class Node:
    """A node by the `url` of its `forebay serve`, such as "https://a.example:8080".

    `token` is one of that server's; `ca` a file of the authorities (PEM) that may vouch for it, in
    place of the system's. `seconds` limits each of its answers, until the last byte. Raises
    BadInput for an invalid URL, or a token that would be sent over the network unencrypted.
    """

    url: str
    token: str | None = field(default=None, repr=False)
    ca: str | PathLike[str] | None = None
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _plain_url(self.url))
        if self.token is not None and not _TOKEN.match(self.token):
            raise BadInput(
                f"{self.url}: token: expected one of forebay token add, got another text"
            )
        if not self.seconds > 0:
            raise BadInput(f"{self.url}: seconds: expected more than 0, got {self.seconds!r}")
        parts = urlsplit(self.url)
        if self.token is not None and parts.scheme == "http" and parts.hostname not in LOOPBACK:
            raise BadInput(
                f"{self.url}: expected https where a token is sent to another host, got http"
            )

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class Remote:
    """Where another node has a partition: in its data directory `root`. `identity` is the same
    wherever the partition is read."""

    node: Node
    root: str
    identity: str


def places_of(
    given: Sequence[object],
    *,
    token: str | Mapping[str, str] | None = None,
    ca: str | PathLike[str] | None = None,
    seconds: float | None = None,
) -> list[Path | Node]:
    """The data directories (as paths) and nodes that a caller named by path, URL or node.

    `token`, `ca` and `seconds` apply to URLs; `token` may be a mapping of URLs to tokens. Defaults
    come from the environment: FOREBAY_CA, and FOREBAY_TOKEN, which is one token for all nodes, or
    URL=TOKEN for each of several, separated by blanks. Raises BadInput."""
    tokens = _tokens(token)
    ca = ca if ca is not None else os.environ.get(CA) or None

    def place(one: object) -> Path | Node:
        if isinstance(one, Node):
            return one
        if isinstance(one, str) and _URL.match(one):
            url = _plain_url(one)
            mine = tokens.get(url, tokens.get(""))
            return Node(url, mine, ca, SECONDS if seconds is None else seconds)
        return data_directory(one)

    places = [place(one) for one in given]
    urls = [one.url for one in places if isinstance(one, Node)]
    if len(set(urls)) < len(urls):
        raise BadInput(f"forebay.open: expected each node once, got {', '.join(urls)}")
    return places


def _plain_url(url: object) -> str:
    """The URL in canonical form. Raises BadInput."""
    try:
        parts = urlsplit(url if isinstance(url, str) else "")
        port = parts.port
    except ValueError as error:
        raise BadInput(f"node: expected a URL such as https://a:8080, got {error}") from error
    host = parts.hostname
    if parts.username is not None or parts.password is not None:
        raise BadInput(
            f"node: expected a URL without a user, got one for {host}: a token is given apart, or"
            f" in {TOKEN}"
        )
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        shown = plain(shortened(repr(url), SAID_CHARACTERS))
        raise BadInput(f"node: expected a URL such as https://a:8080, got {shown}")
    named = f"[{host}]" if ":" in host else host
    at = "" if port is None else f":{port}"
    return f"{parts.scheme}://{named}{at}{parts.path.rstrip('/')}"


def _tokens(given: str | Mapping[str, str] | None) -> dict[str, str]:
    """Tokens by URL; under "" the one for all others."""
    if given is None:
        words = os.environ.get(TOKEN, "").split()
        pairs = [one.rpartition("=") if _URL.match(one) else ("", "", one) for one in words]
        return {url and _plain_url(url): token for url, _, token in pairs}
    if isinstance(given, str):
        return {"": given}
    return {_plain_url(url): token for url, token in given.items()}


@lru_cache(16)
def _context(ca: str | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise BadInput(f"ca: expected a file of certificates, got {ca}: {error}") from error


def ask(node: Node, path: str, body: bytes | None = None, *, seconds: float | None = None) -> Asked:
    """Send a request for the path, a POST if there is a `body` of JSON; the caller reads and closes
    the answer."""
    return Asked(node, path, body, node.seconds if seconds is None else seconds)


class Asked(io.RawIOBase):
    """An answer in transit, as a file: what has arrived can be read before the rest has.

    Raises NodeError; MissingFile if what was asked for is gone on the node; BadInput if the node
    refuses the question; Corruption if it can't read its data. Thread safety: one reader.
    """

    def __init__(self, node: Node, path: str, body: bytes | None, seconds: float) -> None:
        super().__init__()
        self._node = node
        self._seconds = seconds
        self._until = time.monotonic() + seconds
        self._held = SpooledTemporaryFile(SMALL_BYTES)  # noqa: SIM115  # closed by `close`
        self._came = self._taken = 0
        self._whole = False
        self._failure: Exception | None = None
        self._changed = threading.Condition()
        self._socket: socket.socket | None = None
        _open.add(self)
        threading.Thread(
            target=self._fetch, args=(path, body), name=f"forebay-node {node}", daemon=True
        ).start()

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1, /) -> bytes:
        """Up to `size` bytes, fewer only at the end; all, if it is negative."""
        wanted = None if size is None or size < 0 else size
        with self._changed:
            while not self._whole and (wanted is None or self._came - self._taken < wanted):
                if self._failure is not None:
                    raise self._failure
                left = self._until - time.monotonic()
                if left <= 0:
                    self._fail(NodeError(self._node.url, self._late))
                else:
                    self._changed.wait(left)
            self._held.seek(self._taken)
            data = self._held.read(-1 if wanted is None else wanted)
            self._taken += len(data)
            return data

    def readinto(self, buffer: object, /) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self.read(len(view))
        view[: len(data)] = data
        return len(data)

    @property
    def _late(self) -> str:
        return f"expected an answer within {self._seconds:g} s, got {self._came:,} bytes of one"

    def close(self) -> None:
        """Receive no more of it, however much is still to come."""
        if not self.closed:
            with self._changed:
                self._fail(NodeError(self._node.url, "expected to be read, got closed"))
                self._held.close()
            _open.discard(self)
        super().close()

    def give_up(self) -> None:
        """Stop all waiting for it."""
        with self._changed:
            self._fail(NodeError(self._node.url, "expected a process that goes on, got its end"))

    def _fail(self, failure: Exception) -> None:
        """With the lock held: the first failure counts, and none after the end."""
        if not self._whole and self._failure is None:
            self._failure = failure
        if self._socket is not None:
            try:  # the socket below TLS, as the thread may be reading
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)
            except OSError:
                self._socket = None  # it has ended by itself
        self._changed.notify_all()

    def _fetch(self, path: str, body: bytes | None) -> None:
        """The body of the thread."""
        try:
            connection = self._connected()
            try:
                self._ask(connection, path, body)
                self._take(connection)
            finally:
                connection.close()
        except ForebayError as error:
            failure: Exception = error
        except TimeoutError:
            failure = NodeError(self._node.url, self._late)
        except Exception as error:  # noqa: BLE001  # who reads has it raised
            came = f"{type(error).__name__}: {plain(str(error))}".removesuffix(": ")
            failure = NodeError(
                self._node.url, f"expected a whole answer, got {came} after {self._came:,} bytes"
            )
        else:
            return
        with self._changed:
            self._fail(failure)

    def _connected(self) -> http.client.HTTPConnection:
        parts = urlsplit(self._node.url)
        host, timeout = parts.hostname or "", min(CONNECT_S, self._seconds)
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = _context(None if self._node.ca is None else os.fspath(self._node.ca))
            connection = http.client.HTTPSConnection(
                host, parts.port, timeout=timeout, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=timeout)
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:
            connection.close()
            raise NodeError(
                self._node.url, f"expected a server that can be reached, got {plain(str(error))}"
            ) from error
        with self._changed:
            self._socket = connection.sock
            # The reader checks the deadline; this ends a thread that nobody waits for any more.
            connection.sock.settimeout(self._seconds)
            if self._failure is not None:
                connection.close()
                raise self._failure
        return connection

    def _ask(self, connection: http.client.HTTPConnection, path: str, body: bytes | None) -> None:
        headers = {"Accept": "application/vnd.apache.arrow.stream, application/json;q=0.9"}
        if self._node.token is not None:
            headers["Authorization"] = f"Bearer {self._node.token}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        prefix = urlsplit(self._node.url).path
        connection.request("GET" if body is None else "POST", prefix + path, body, headers)

    def _take(self, connection: http.client.HTTPConnection) -> None:
        response = connection.getresponse()
        if response.status != 200:
            said = response.read(PROBLEM_BYTES_MAX)
            raise _refused(self._node.url, response.status, said)
        if not response.chunked and response.length is None:
            raise NodeError(self._node.url, "expected an answer that says where it ends, got none")
        while data := response.read(PART_BYTES):
            with self._changed:
                if self._failure is not None:
                    raise self._failure
                self._came += len(data)
                if self._came > ANSWER_BYTES_MAX:
                    raise NodeError(
                        self._node.url,
                        f"expected at most {ANSWER_BYTES_MAX:,} bytes of an answer, got more",
                    )
                self._held.seek(0, io.SEEK_END)
                self._held.write(data)
                self._changed.notify_all()
        if response.length:  # bytes still missing by Content-Length
            raise NodeError(
                self._node.url,
                f"expected a whole answer, got its end {response.length:,} bytes too early",
            )
        with self._changed:
            self._whole = True
            self._socket = None
            self._changed.notify_all()


def _refused(url: str, status: int, said: bytes) -> Exception:
    """The error that a node answered with."""
    try:
        detail = json.loads(said)["detail"]
    except (ValueError, TypeError, KeyError):
        detail = said.decode(errors="replace")
    detail = shortened(plain(str(detail).strip()), SAID_CHARACTERS) or "nothing"
    if status == 410:
        return MissingFile(f"{url}: {detail}")
    if status == 422:
        return BadInput(f"{url}: {detail}")
    if status == 500:
        return Corruption(f"{url}: {detail}")
    if status in (401, 403):
        return NodeError(url, f"expected access, got {status}: {detail} ({TOKEN} has tokens)")
    if status == 404:
        return NodeError(
            url, f"expected a forebay serve that other nodes can ask, got {status}: {detail}"
        )
    return NodeError(url, f"expected an answer, got {status}: {detail}")


_open: WeakSet[Asked] = WeakSet()


def give_up_all() -> None:
    """Stop all waiting for answers, as the process is ending."""
    for one in list(_open):
        one.give_up()
