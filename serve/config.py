"""The configuration that a server is started with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Config:
    """`roots` are data directories; the rest are options of `forebay serve`: `seconds`,
    `memory_bytes` and `rows` limit one answer, `body_bytes` a request; `workers` is how many
    questions are worked on at once, `waiting` how many more may wait, each for `waiting_seconds`;
    `streams` is how many clients may follow events. `hosts` are names by which the server may be
    called. `nodes` are URLs of other servers, each of whose answers may take `node_seconds`; with
    `partial`, answers do without missing nodes."""

    roots: tuple[Path, ...]
    host: str = "127.0.0.1"
    port: int = 8080
    hosts: tuple[str, ...] = ()
    workers: int = 2
    seconds: float = 60.0
    memory_bytes: int = 2 << 30
    rows: int = 10_000_000
    body_bytes: int = 1 << 20
    waiting: int = 32
    waiting_seconds: float = 10.0
    streams: int = 16
    tokens: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    behind_proxy: bool = False
    nodes: tuple[str, ...] = ()
    node_seconds: float = 30.0
    partial: bool = False
    catalog: Mapping[str, str] = field(default_factory=dict)
    time_zone: str = "UTC"

    @property
    def loopback(self) -> bool:
        return self.host in LOOPBACK

    @property
    def names(self) -> frozenset[str]:
        """The host names that a request may use."""
        own = LOOPBACK if self.loopback else (self.host,)
        return frozenset(name.casefold() for name in (*own, *self.hosts))

    def encode(self) -> bytes:
        """As JSON, for the server's processes."""
        return _JSON.dump_json(self)

    @classmethod
    def decode(cls, data: bytes) -> Config:
        return _JSON.validate_json(data)


_JSON = TypeAdapter(Config)
