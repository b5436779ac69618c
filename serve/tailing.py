"""The process that follows events: a Tail for each subscription, looked at ten times a second.

What always holds: it ends with its standard input. It never waits for a subscriber: the front takes
every frame at once.
"""

from __future__ import annotations

import io
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

import orjson
import polars as pl

from forebay.query.analytics import Event, Where, read_roles
from forebay.query.analytics.events import any_of
from forebay.query.analytics.grammar import parsed_event, parsed_filters
from forebay.query.rows import WRITERS
from forebay.query.tail import Tail
from forebay.serve.config import Config
from forebay.serve.wire import (
    CONFIG,
    LEAVE,
    PROBLEM,
    READY,
    ROWS,
    SUBSCRIBE,
    frame,
    read_frame,
)
from forebay.serve.worker import problem_of, streams

LOOK_MS = 100
"""Time between two looks: the job publishes no more often."""


@dataclass
class Subscription:
    number: bytes
    tail: Tail
    missed: int = 0


class Tailing:
    """All subscriptions; their rows are written to `pipe`."""

    def __init__(self, config: Config, pipe: BinaryIO) -> None:
        self._config = config
        self._pipe = pipe
        self._all: dict[bytes, Subscription] = {}

    def take(self, kind: bytes, payload: bytes) -> None:
        number, said = payload[:4], payload[4:]
        if kind == LEAVE:
            self._all.pop(number, None)
            return
        try:
            asked = orjson.loads(said)
            kinds = [parsed_event(one) for one in asked["event"]]
            where = [one for text in asked["where"] for one in parsed_filters(text)]
            tail = Tail(self._config.roots, self._wanted(kinds, where))
            self._tell(number, tail.last(asked["last"]), 0)
            self._all[number] = Subscription(number, tail)
        except Exception as error:  # noqa: BLE001  # the others go on
            self._end(number, error)

    def _wanted(
        self, kinds: list[Event], where: list[Where]
    ) -> Callable[[pl.DataFrame], pl.DataFrame]:
        named = any(one.name is not None for one in kinds)
        roles = read_roles(*self._config.roots) if named else None

        def wanted(rows: pl.DataFrame) -> pl.DataFrame:
            schema = rows.schema
            held = [one.expr(schema) for one in where]
            if kinds:
                held.append(any_of(kinds, schema, roles))
            return rows.filter(held) if held else rows

        return wanted

    def look(self) -> None:
        for one in list(self._all.values()):
            try:
                for rows in one.tail.look():
                    self._tell(one.number, rows, 0)
                if one.tail.missed > one.missed:
                    self._tell(one.number, pl.DataFrame(), one.tail.missed - one.missed)
                    one.missed = one.tail.missed
            except Exception as error:  # noqa: BLE001  # the others go on
                del self._all[one.number]
                self._end(one.number, error)

    def _tell(self, number: bytes, rows: pl.DataFrame, missed: int) -> None:
        """Send a subscription's rows: how many, how many were missed, and the rows as NDJSON."""
        out = io.BytesIO()
        if rows.height:
            WRITERS["ndjson"](rows.to_arrow().to_reader(), out)
        counts = rows.height.to_bytes(4, "big") + missed.to_bytes(4, "big")
        self._pipe.write(frame(ROWS, number + counts + out.getvalue()))
        self._pipe.flush()

    def _end(self, number: bytes, error: BaseException) -> None:
        self._pipe.write(frame(PROBLEM, number + problem_of(error).encode()))
        self._pipe.flush()


def main() -> None:
    given, pipe = streams()
    found = read_frame(given)
    if found is None or found[0] != CONFIG:
        raise SystemExit(f"expected to be started by forebay serve, got {found!r}")
    tailing = Tailing(Config.decode(found[1]), pipe)
    pipe.write(frame(READY))
    pipe.flush()
    # Unbuffered from here on, so that poll sees all of the input.
    channel = open(os.dup(0), "rb", buffering=0)  # noqa: SIM115
    whole = io.BufferedReader(channel, buffer_size=1)
    poll = select.poll()
    poll.register(channel.fileno(), select.POLLIN)
    while True:
        while poll.poll(LOOK_MS):
            found = read_frame(whole)
            if found is None:
                return
            if found[0] in (SUBSCRIBE, LEAVE):
                tailing.take(*found)
        tailing.look()


if __name__ == "__main__":
    main()
