"""Tokens: who may ask a server, in a file of its own.

    {"tokens": [{"name": "…", "scope": "read", "sha256": "…", "created": "…"}]}

A token is 256 random bits, shown once; the file has its hash, and only its owner may read the file.
A change of the file takes effect with the next request.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import orjson

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean
from forebay.storage.base.times import now_ms, utc_text

Scope = Literal["read", "admin"]
FILE = "forebay-tokens.json"
"""Default file name, in the current folder."""
PREFIX = "forebay_"
RANDOM_BYTES = 32
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}\Z")


@dataclass(frozen=True)
class Token:
    """A stored token: `scope` "read" asks questions, "admin" also replays rejects, seals and
    completes."""

    name: str
    scope: Scope
    sha256: str
    created: str


def read_tokens(path: Path) -> tuple[Token, ...]:
    """All tokens of a file. Raises BadInput if it can't be read, or if others can read it."""
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            found = orjson.loads(file.read())
        tokens = tuple(Token(**one) for one in found["tokens"])
    except FileNotFoundError:
        raise BadInput(
            f"{path}: expected a file of tokens, got none; forebay token add NAME makes it"
        ) from None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise BadInput(f"{path}: expected a file of tokens, got {error}") from error
    if mode & 0o077:
        raise BadInput(
            f"{path}: expected a file that its owner alone can read (mode 600), got mode {mode:o}"
        )
    return tokens


def add_token(path: Path, name: str, scope: Scope) -> str:
    """Add a token and return it; it is stored nowhere else. Raises BadInput for a name in use."""
    if not NAME.match(name):
        raise BadInput(f"token: expected a name of letters, digits, . _ @ -; got {name!r}")
    known = read_tokens(path) if path.exists() else ()
    if any(one.name == name for one in known):
        raise BadInput(f"token: expected a new name, got {name!r} again; remove it first")
    text = PREFIX + secrets.token_urlsafe(RANDOM_BYTES)
    _write(path, [*known, Token(name, scope, _hash(text), utc_text(now_ms() // 1000 * 1000))])
    return text


def remove_token(path: Path, name: str) -> None:
    """Raises BadInput if there is no token with this name."""
    known = read_tokens(path)
    left = [one for one in known if one.name != name]
    if len(left) == len(known):
        near = did_you_mean(name, [one.name for one in known])
        raise BadInput(f"token: expected the name of one, got {name!r}{near}")
    _write(path, left)


def _write(path: Path, tokens: Sequence[Token]) -> None:
    data = orjson.dumps({"tokens": [asdict(one) for one in tokens]}, option=orjson.OPT_INDENT_2)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        file = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(file, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BadInput(f"{path}: expected a file that can be written, got {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class Tokens:
    """The current tokens of a file. Raises BadInput if it can't be read at first; later, nobody is
    admitted while it can't be."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._disk = Disk()
        self._seen = self._disk.state(path)
        self._tokens = read_tokens(path)

    def scope_of(self, text: str) -> Scope | None:
        """The scope of a token; None if there is no such token. Takes the same time for each."""
        seen = self._disk.state(self._path)
        if seen != self._seen:
            try:
                self._tokens = read_tokens(self._path)
            except BadInput:
                self._tokens = ()
            self._seen = seen
        given, found = _hash(text), None
        for token in self._tokens:
            if hmac.compare_digest(given, token.sha256):
                found = token.scope
        return found if found in get_args(Scope) else None
