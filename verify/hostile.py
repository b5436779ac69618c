"""Hostile input: what broken or malicious producers send among the messages of others.

Each piece is made from an ordinary event: with a field that changes nothing, a field or a byte that
makes it no longer an event, a copy in another spelling, or cut in two. A message is a line, so none
has a newline in it. `verify.oracle` judges them as it does all others.
"""

from __future__ import annotations

import csv
import io
import json
import random
import subprocess
import sys
from collections import Counter

from forebay.query.view import take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import Layout
from forebay.storage.formats.rejects import ALL
from forebay.storage.formats.replay_request import ask
from forebay.verify import values
from forebay.verify.dying import Death
from forebay.verify.feed import Traffic
from forebay.verify.harness import Failure, Trial
from forebay.verify.oracle import Value, moment

BYTES_MAX = 16 << 10
EVERY_RUN = ("log-append", "log-fsync", "manifest-publish", "snapshot-return")
"""Steps of every run."""
DEEP, DEEPEST = values.DEPTH, 5_000
"""What every reader of JSON follows, and what some do not."""
HARMLESS = [
    b'"x":' + b"[" * DEEP + b"]" * DEEP,
    b'"x":' + b'{"x":' * DEEP + b"1" + b"}" * DEEP,
    b'"x":1e999',
    b'"x":-' + b"9" * 300,
    b'"x":0.' + b"9" * 5_000,
    b'"x":"\\u0000"',
    b'"x":"\\ud800"',
    b'"place":"\\ud800"',
    b'"\\udc00\\ud800":1',
    b'"x":"}\\n{"',
    b'"x":"}},{\\""',
    '"x":"\u2028\x85\U0001f600"'.encode(),
    b'"":null',
    b'"n":1,"n":"one"',
    b'"n":{"device":"d"}',
    b'"n":[[]]',
]
"""An event with one of these is an event; what is not an integer in `n` is null."""
HARMFUL = [
    b'"x":' + b"[" * DEEPEST,
    b'"x":' + b'{"x":' * DEEP,
    b'"device":' + b"[" * DEEPEST + b"]" * DEEPEST,
    b'"at":' + b"[" * DEEP + b"]" * DEEP,
    b'"x":NaN',
    b'"x":-Infinity',
    b'"at":NaN',
    b'"at":1' + b"0" * 300,
    b'"at":-1',
    b'"at":true',
    b'"at":"noon"',
    b'"at":null',
    b'"id":""',
    b'"id":null',
    b'"id":5',
    b'"device":{"device":"d"}',
    b'"device":"\\ud800"',
    b'"x":"\0"',
    b'"x":"\xff"',
    b'"\xc0\xaf":1',
    b'"x":"\xed\xa0\x80"',
    b'"x":"\xc3","y":"\xa9"',
    b'"x":"\\q"',
    b'"x":nul',
    b'"x":0x1',
    b'"x":1}',
    b'"x":[1}',
    b'"x":"',
]
"""An event with one of these is none: of two equal names the last counts."""
BEHIND = [b"}", b"{}", b',"x":2', b',"x":{"y":2}', b'},{"x":1', b'\r{"x":1}', b"\0", b"]", b'"']
"""What may not stand behind an event: it ends the envelope in which a reader puts it."""
NO_OBJECTS = [
    b" ", b"}", b"{", b"null", b"5", b'"{}"', b"[{}]", b"}\r{", b'1}\t{"x":1', b"\x1f\x8b\x08\x00",
    b"[" * DEEPEST + b"]" * DEEPEST, b"\xff\xfe{\0}\0", b'\xef\xbb\xbf{"x":1}', b"'", b"\\u0000",
]  # fmt: skip
PIECES = [
    *([b"%(open)b," + field + b"}"] for field in HARMLESS + HARMFUL),
    *([b"%(event)b" + tail] for tail in BEHIND),
    *([line] for line in NO_OBJECTS),
    [b""],
    [b"\r"],
    [b" %(event)b\t\r"],
    [b"%(event)b%(event)b"],
    [b"%(event)b", b"%(otherwise)b"],
    [b"%(longest)b"],
    [b"%(too_long)b"],
    [b"%(head)b"],
    [b"%(head)b", b"%(rest)b"],
    *([b"%(open)b," + field + b"}", b"%(event)b"] for field in values.HOSTILE),
    *([b"%(open)b," + field + b"}", b"%(event)b"] for field in values.HOSTILE_KEYS),
]
"""Lines that come one behind the other, with the names of what `hostile` makes of an event."""


def hostile(rng: random.Random, piece: list[bytes], event: bytes) -> list[bytes]:
    """The lines of a piece, made from this event: it may come before or behind its hostile copy."""
    cut = rng.randrange(1, len(event))
    parts = {
        b"event": event,
        b"open": event[:-1],
        b"otherwise": _spelt_otherwise(event),
        b"longest": _padded(event, BYTES_MAX),
        b"too_long": _padded(event, BYTES_MAX + 1),
        b"head": event[:cut],
        b"rest": event[cut:],
    }
    lines = [line % parts for line in piece]
    if lines[1:] == [event] and rng.random() < 0.5:
        lines.reverse()
    return lines


def _padded(event: bytes, size: int) -> bytes:
    """The event, padded to so many bytes."""
    return event[:-1] + b',"x":"' + b"." * (size - len(event) - 7) + b'"}'


def _spelt_otherwise(event: bytes) -> bytes:
    """The same event, as another producer may write it."""
    names = dict(reversed(json.loads(event).items()))
    at_ms = names.pop("at")
    own = "".join(f',\t"{name}" :{_spelt(value)}' for name, value in names.items())
    return f'{{"at": {at_ms}{own}}}'.encode()


def _spelt(value: str | float | bool | None) -> str:
    if isinstance(value, str):
        return '"' + "".join(f"\\u{ord(letter):04x}" for letter in value) + '"'
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    return f"{value}.0" if isinstance(value, int) else f"{value!r}0"


def hostile_input(trial: Trial) -> None:
    """Hostile lines and values at random among ordinary ones, with kills in between: whatever
    arrives, its neighbours are read as if it were not there, and every answer can be printed."""
    trial.typed()
    trial.limits = [BYTES_MAX]
    for turn in trial.rounds(3):
        death = trial.death(*EVERY_RUN) if turn else trial.moment(200)
        for name in trial.feed.names:
            for piece in trial.rng.sample(PIECES, len(PIECES)):
                trial.feed.send(trial.rng.randrange(12), Traffic(broken=0), [name])
                event = trial.feed.event(trial.feed.now_ms)
                trial.feed.append(name, hostile(trial.rng, piece, event))
        trial.may_die(death, 1)
    trial.afterwards.append(lambda: _require_printable(trial))


def _require_printable(trial: Trial) -> None:
    """The command prints every event in each format, with its values."""
    names = ("_offset", *values.COLUMNS)
    text = ", ".join(f'"{name}"' for name in names)
    kinds = ("json", "csv", "table")
    as_json, as_csv, table = (_printed(trial, kind, f"select {text} from events") for kind in kinds)
    wanted = Counter(
        (offset, *row) for one in trial.expected().values() for offset, row in one.events.items()
    )
    found = Counter(
        (row["_offset"], *(_shown(row[name], kind) for name, kind in values.COLUMNS.items()))
        for row in json.loads(as_json)
    )
    lines = list(csv.reader(io.StringIO(as_csv, newline="")))
    if found != wanted:
        others = list((found - wanted).elements())[:3]
        raise Failure(f"expected the events in JSON, got others: {others}")
    if lines[0] != list(names) or len(lines) != wanted.total() + 1:
        raise Failure(f"expected {wanted.total()} rows of CSV and their names, got {len(lines)}")
    if not all(name in table for name in names):
        raise Failure("expected a table with every column, got:\n" + table[:1000])


def _shown(value: str | float | bool | None, kind: str) -> Value:
    """A value in JSON, as the oracle has it."""
    if isinstance(value, float):
        return value.hex()
    if isinstance(value, str) and kind.startswith("time"):
        return moment(value, 6, False)
    return value


def _printed(trial: Trial, kind: str, text: str) -> str:
    """What `forebay sql` prints."""
    sql = [sys.executable, "-m", "forebay", "sql", "--data-dir", str(trial.data)]
    sql += ["--format", kind, text]
    done = subprocess.run(sql, env=trial.environment, capture_output=True, check=False)
    if done.returncode:
        raise Failure(f"expected answers, {kind} failed:\n{done.stderr.decode()[-2000:]}")
    return done.stdout.decode()


SMALL, LARGE = 200, 600


def rejects_replayed(trial: Trial) -> None:
    """Messages above the size limit are replayed under a larger one, across kills: each is then one
    event, one duplicate or still one reject, and another replay changes nothing."""
    trial.limits = [SMALL]
    _send_bulky(trial)
    trial.may_die(trial.moment(200), 1)
    trial.ends(1)
    before = _rejects(trial)
    trial.limits.append(LARGE)
    if not 0 < _rejects(trial) < before:
        raise AssertionError("bug: expected some rejects to pass under the larger limit")
    replay(trial)
    trial.dies(Death.drawn(trial.rng, "log-append", 4), 1)
    trial.may_die(trial.death(*EVERY_RUN), 1)
    trial.ends(1)
    once = trial.compare()
    if once.lost or once.doubled:
        raise Failure(f"expected each reject once, as one thing: got {once}")
    replay(trial)


def _send_bulky(trial: Trial) -> None:
    """Ordinary messages, and events of up to twice LARGE: new ones, and known ones made longer."""
    for name in trial.feed.names:
        for _ in range(40):
            trial.feed.send(15, Traffic(), [name])
            size = trial.rng.randrange(SMALL, 2 * LARGE)
            event = trial.feed.event(trial.feed.now_ms)
            again = [event, _padded(event, size)] if trial.rng.random() < 0.3 else [event]
            trial.feed.append(name, [_padded(event, size), *again][: trial.rng.randint(1, 3)])


def replay(trial: Trial) -> None:
    """Ask for a replay of all rejects, as `forebay rejects replay` does."""
    disk = Disk()
    states = [partition.state for partition in take_view(disk, [trial.data]).partitions]
    ask(disk, Layout(trial.data), ALL, {state.partition: state.incarnation for state in states})


def _rejects(trial: Trial) -> int:
    return sum(len(one.rejects) for one in trial.expected().values())
