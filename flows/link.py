"""A connection between the supervisors of two hosts: messages, and its end.

A message is a JSON object on a line of its own. An empty line every BEAT_S says that the other side
is there: a link that is silent for SILENT_S has ended, whatever became of the other host. The end
of a link is heard like a message, once, and is the last thing heard of it.

There is no encryption and no password, as there are none between the engine's workers: the network
between hosts must be private. What a stranger sends is bounded, and is never executed.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import orjson

from forebay.flows.hosts import Address

BEAT_S, SILENT_S = 2.0, 10.0
CONNECT_S = 5.0
MESSAGE_BYTES_MAX = 4 << 20
LINKS_MAX = 128
"""Of a listener at once."""

log = logging.getLogger("forebay.hosts")


@dataclass(frozen=True)
class Heard:
    """What came over a link; at its end, the reason. For one that was asked for (`reach`), first
    that it is there, or why not."""

    link: Link | None
    message: Mapping[str, Any] | None = None
    reason: str = ""
    reached: bool = False


class Link:
    """One connection. What is heard on it goes to `hear`, on a thread. Thread-safe."""

    def __init__(self, connection: socket.socket, hear: Callable[[Heard], None]) -> None:
        self._connection = connection
        self._hear = hear
        self._sending = threading.Lock()
        self._ended = threading.Event()
        self._left = False
        connection.settimeout(SILENT_S)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.peer = str(connection.getpeername()[0])
        except OSError:
            self.peer = "someone who has gone"
        for work in (self._read, self._beat):
            threading.Thread(target=work, name="link", daemon=True).start()

    def send(self, word: str, **more: object) -> None:
        """If it can't be sent, that is heard as the end of the link."""
        self._write(orjson.dumps({"word": word, **more}) + b"\n")

    def take_leave(self) -> None:
        """Nothing more will be sent, or heard except the end. The other side reads all that was
        sent, and closes the connection."""
        self._left = True
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_WR)

    def finish(self) -> None:
        """The same, and wait until the other side has, or is silent."""
        self.take_leave()
        self._ended.wait(SILENT_S)
        self.close()

    def close(self) -> None:
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    @property
    def ended(self) -> bool:
        return self._ended.is_set()

    def _write(self, data: bytes) -> None:
        with self._sending, suppress(OSError):
            self._connection.sendall(data)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._write(b"\n")

    def _read(self) -> None:
        reason = "the connection was closed"
        try:
            with self._connection, self._connection.makefile("rb") as lines:
                while line := lines.readline(MESSAGE_BYTES_MAX):
                    if line == b"\n" or self._left:
                        continue
                    message = orjson.loads(line)
                    if not isinstance(message, dict) or not isinstance(message.get("word"), str):
                        raise ValueError(line)
                    self._hear(Heard(self, message))
        except TimeoutError:
            reason = f"nothing was heard of it for {SILENT_S:g} s"
        except ValueError:
            reason = "expected messages of a forebay supervisor, got something else"
        except OSError as error:
            reason = error.strerror or str(error)
        self._ended.set()
        self._hear(Heard(self, None, reason))


class Listener:
    """Accepts connections at an address, until it is closed."""

    def __init__(self, address: Address, hear: Callable[[Heard], None]) -> None:
        """Raises OSError if the address is taken, or is not this host's."""
        self._hear = hear
        self._links: list[Link] = []
        self._socket = listening(address)
        threading.Thread(target=self._accept, name="listener", daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                connection, _ = self._socket.accept()
                self._links = [link for link in self._links if not link.ended]
                if len(self._links) < LINKS_MAX:
                    self._links.append(Link(connection, self._hear))
                else:
                    connection.close()


def listening(address: Address) -> socket.socket:
    """A socket that listens there. Raises OSError that names the address."""
    try:
        found = socket.getaddrinfo(
            address.name, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, where = found[0]
        one = socket.socket(family, kind, protocol)
        try:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(where)
            one.listen()
        except BaseException:
            one.close()
            raise
    except OSError as error:
        raise OSError(
            error.errno,
            f"hosts: expected {address} to be a free port of this host, got: {error.strerror}",
        ) from error
    return one


def reach(address: Address, hear: Callable[[Heard], None]) -> None:
    """Connect to whoever listens there, on a thread; `hear` gets the link, or why there is none."""

    def work() -> None:
        try:
            connection = socket.create_connection((address.name, address.port), CONNECT_S)
        except OSError as error:
            hear(Heard(None, reason=error.strerror or str(error)))
        else:
            hear(Heard(Link(connection, hear), reached=True))

    threading.Thread(target=work, name="reach", daemon=True).start()
