"""Mending: messages whose spelling the fast reader refuses, though what they say is clear.

1. a byte order mark before the document is left out;
2. an escaped half of a surrogate pair becomes U+FFFD, because our text can't hold it;
3. a whole number at the last name of an `id` column's path becomes text of its digits.

What always holds: apart from 1 and 2, a document stays one, anything else stays that, and what is
read for a column of another type stays as it was. A message is mended by itself, whatever is beside
it. Only the copy that is read is mended: `raw` and rejects keep what arrived.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.formats.columns import as_mask
from forebay.storage.formats.schema import Column

BOM = b"\xef\xbb\xbf"
HALF = re.compile("[\ud800-\udfff]")
"""Half of a surrogate pair, in text as `json` reads it."""
_SPACE = r"[ \t\r\n]*"
_ESCAPES = re.compile(
    rb"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}"
    rb"|(?P<half>u[dD][89a-fA-F][0-9a-fA-F]{2})|.)",
    re.DOTALL,
)
"""An escape: a whole surrogate pair, half of one, or another."""


@dataclass(frozen=True)
class Mended:
    """The messages as they are to be read; `halves` has, by row, the originals of those in which 2
    changed something."""

    values: list[bytes]
    halves: Mapping[int, bytes]


class Mender:
    """For the columns of one schema."""

    def __init__(self, columns: Sequence[Column]) -> None:
        names = {column.path[-1] for column in columns if column.type == "id"}
        names -= {column.path[-1] for column in columns if column.type != "id"}
        texts = [re.escape(text) for name in sorted(names) if (text := _as_json(name))]
        self._numbers = (
            f'("(?:{"|".join(texts)})"{_SPACE}:{_SPACE})(0|-?[1-9][0-9]*)({_SPACE}[,}}])'
            if texts
            else None
        )

    def mend(self, values: list[bytes]) -> Mended | None:
        """None if there is nothing to mend."""
        messages = pa.array(values, pa.binary())
        quoted = self._quoted(messages)
        mended: list[bytes] = list(values) if quoted is None else quoted.to_pylist()
        halves: dict[int, bytes] = {}
        for row in _rows(pc.starts_with(messages, pattern=BOM.decode())):
            mended[row] = mended[row].removeprefix(BOM)
        for row in _rows(pc.match_substring(messages, pattern="\\ud", ignore_case=True)):
            if (whole := without_halves(mended[row])) != mended[row]:
                halves[row], mended[row] = mended[row], whole
        return Mended(mended, halves) if mended != values else None

    def _quoted(self, messages: pa.Array) -> pa.Array | None:
        """The messages with the numbers of `id` columns in quotes.

        SUBTLE: a name in quotes before a colon is a name wherever it is found: a quote inside text
        is escaped, as is the one before such a name where a text ends in it, `\\"id":1`.
        """
        if self._numbers is None:
            return None
        return pc.replace_substring_regex(messages, pattern=self._numbers, replacement=r'\1"\2"\3')


def without_halves(message: bytes) -> bytes:
    """The message with U+FFFD for each escaped half of a surrogate pair."""
    return _ESCAPES.sub(lambda one: rb"\ufffd" if one["half"] else one[0], message)


def with_text_at(messages: pa.Array, columns: Sequence[Column]) -> list[int]:
    """The rows of a binary column in which one of these columns may have text. A name with an
    escape in it counts as that of a column."""
    texts = [text for column in columns if (text := _as_json(column.path[-1]))]
    if not len(messages) or not columns:
        return []
    pattern = f'"(?:{"|".join(map(re.escape, texts))})"{_SPACE}:{_SPACE}"'
    found = _rows(pc.match_substring_regex(messages, pattern=pattern))
    data = messages.buffers()[2]
    if data is not None and b"\\u" in data.to_pybytes():
        escaped = rf'\\u[^"]*"{_SPACE}:{_SPACE}"'
        found = sorted({*found, *_rows(pc.match_substring_regex(messages, pattern=escaped))})
    return found


def _rows(where: pa.Array) -> list[int]:
    rows: list[int] = as_mask(where).nonzero()[0].tolist()
    return rows


def _as_json(name: str) -> str:
    """A name as it stands between quotes; empty where it has no such form."""
    try:
        return orjson.dumps(name).decode()[1:-1]
    except orjson.JSONEncodeError:
        return ""
