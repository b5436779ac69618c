"""Values as they are written: where the value at a path stands in each message, and its text.

Of two equal names the last counts, as everywhere. The readers have accepted the messages as JSON
objects; whatever else is in the bytes, nothing beyond a message's end is read. Compiled, except for
messages with an escape in a name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from json.decoder import scanstring  # type: ignore[attr-defined]
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from forebay.storage.base.compiled import compiled
from forebay.storage.decoding.mend import without_halves
from forebay.storage.formats.columns import Mask

I64 = npt.NDArray[np.int64]
NONE, BARRED, ESCAPED = -1, -2, -3
"""In place of a value's beginning: there is none; the path meets something that is no object; a
name has an escape."""
_SPACE = re.compile(r"[ \t\r\n,:]*")
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|[^"{}\[\],: \t\r\n]+', re.DOTALL)


def written(
    messages: pa.Array, path: Sequence[str], without: Sequence[int]
) -> tuple[pa.Array, Mask]:
    """The text of the value at `path` of each message (Arrow's binary), null where there is none;
    and where the path meets something that is not an object. The rows `without` are not looked at.

    Text is its content, with U+FFFD for an escaped half of a surrogate pair; a number, true, false,
    an array or an object is its JSON as it stands there.
    """
    _, offsets, data = messages.buffers()
    ends = np.frombuffer(offsets, np.int32)[messages.offset :][: len(messages) + 1].astype(np.int64)
    letters = np.frombuffer(data, np.uint8) if data is not None else np.zeros(0, np.uint8)
    names = [name.encode("utf-8", "surrogatepass") for name in path]
    bounds = np.cumsum([0, *map(len, names)]).astype(np.int64)
    spans: I64 = np.full((len(messages), 2), NONE, np.int64)
    skipped: Mask = np.zeros(len(messages), dtype=bool)
    skipped[list(without)] = True
    _find(letters, ends, np.array([*b"".join(names)], np.uint8), bounds, skipped, spans)
    for row in np.flatnonzero(spans[:, 0] == ESCAPED).tolist():
        try:
            low, high = _find_one(messages[row].as_py(), path)
        except (IndexError, ValueError):  # the most lenient reader alone takes it
            low, high = BARRED, BARRED
        spans[row] = (low + ends[row], high + ends[row]) if low >= 0 else (low, low)
    return _texts(letters, spans), spans[:, 0] == BARRED


def _texts(letters: npt.NDArray[np.uint8], spans: I64) -> pa.Array:
    there: Mask = spans[:, 0] >= 0
    begins, ends = spans[:, 0] * there, spans[:, 1] * there
    quoted: Mask = np.zeros(len(spans), dtype=bool)
    if len(letters):
        quoted = there & (letters[begins] == ord('"'))
    begins, ends = begins + quoted, ends - quoted
    bounds = np.concatenate([[0], np.cumsum(ends - begins)])
    out = np.empty(int(bounds[-1]), np.uint8)
    escaped: Mask = np.zeros(len(spans), dtype=bool)
    _copy(letters, begins, ends, bounds, out, escaped)
    buffers = [None, pa.py_buffer(bounds.astype(np.int32)), pa.py_buffer(out)]
    found = pa.Array.from_buffers(pa.binary(), len(spans), buffers).cast(pa.string())
    rows = np.flatnonzero(escaped & quoted)
    if len(rows):
        texts = (letters[begins[row] - 1 : ends[row] + 1].tobytes() for row in rows.tolist())
        plain = json.loads(b"[%b]" % without_halves(b",".join(texts)), strict=False)
        mask = pa.array(escaped & quoted)
        found = pc.replace_with_mask(found, mask, pa.array(plain, pa.string()))
    return pc.if_else(pa.array(there), found, pa.scalar(None, pa.string()))


@compiled
def _copy(data: Any, begins: Any, ends: Any, bounds: Any, out: Any, escaped: Any) -> None:
    for i in range(len(begins)):
        to = bounds[i]
        for at in range(begins[i], ends[i]):
            escaped[i] |= data[at] == 92
            out[to] = data[at]
            to += 1


@compiled
def _after_space(data: Any, at: Any, end: Any) -> Any:
    """The next place that is not a space, comma or colon: the readers have checked these."""
    while at < end and (data[at] <= 32 or data[at] == 44 or data[at] == 58):
        at += 1
    return at


@compiled
def _after_text(data: Any, at: Any, end: Any) -> Any:
    """Behind the text that begins with a quote at `at`."""
    at += 1
    while at < end and data[at] != 34:
        at += 2 if data[at] == 92 else 1
    return min(at + 1, end)


@compiled
def _after_value(data: Any, at: Any, end: Any) -> Any:
    """Behind the value that begins at `at`."""
    depth = 0
    while at < end:
        letter = data[at]
        if letter == 34:
            at = _after_text(data, at, end)
        elif letter == 123 or letter == 91:
            depth += 1
            at += 1
        elif letter == 125 or letter == 93:
            depth -= 1
            at += 1
        elif depth > 0:
            at += 1
            continue
        else:
            while at < end:
                letter = data[at]
                if letter <= 32 or letter == 34 or letter == 44 or letter == 58:
                    break
                if letter == 123 or letter == 125 or letter == 91 or letter == 93:
                    break
                at += 1
        if depth <= 0:
            return at
    return at


@compiled
def _is_null(data: Any, low: Any, high: Any) -> Any:
    return high - low == 4 and data[low] == 110


@compiled
def _member(data: Any, low: Any, high: Any, name: Any) -> Any:
    """Where the value of the last member of this name of the object at [low, high) stands."""
    found, end = NONE, NONE
    at = _after_space(data, low + 1, high)
    while at < high and data[at] == 34:
        begin = at + 1
        at = _after_text(data, at, high)
        same = at - 1 - begin == len(name)
        for i in range(begin, at - 1):
            if data[i] == 92:
                return ESCAPED, ESCAPED
            if same and data[i] != name[i - begin]:
                same = False
        at = _after_space(data, at, high)
        behind = _after_value(data, at, high)
        if same:
            found, end = at, behind
        at = _after_space(data, behind, high)
    return found, end


@compiled
def _find(data: Any, ends: Any, names: Any, bounds: Any, skipped: Any, spans: Any) -> None:
    for i in range(len(spans)):
        if skipped[i]:
            continue
        low, high = ends[i], ends[i + 1]
        if high - low >= 3 and data[low] == 239:  # a byte order mark
            low += 3
        low = _after_space(data, low, high)
        for n in range(len(bounds) - 1):
            if low >= high or data[low] != 123:
                low = NONE if _is_null(data, low, high) else BARRED
                break
            low, high = _member(data, low, high, names[bounds[n] : bounds[n + 1]])
            if low < 0:
                break
        if low >= 0 and _is_null(data, low, high):
            low = NONE
        spans[i, 0] = low
        spans[i, 1] = high


def _find_one(message: bytes, path: Sequence[str]) -> tuple[int, int]:
    """The same of one message, whose names may have escapes; in bytes of the message."""
    text = message.decode("utf-8", "surrogateescape")
    low, high = _SPACE.match(text, 1 if text[:1] == "\ufeff" else 0).end(), len(text)  # type: ignore[union-attr]
    for name in path:
        if text[low:high] == "null":
            return NONE, NONE
        if text[low] != "{":
            return BARRED, BARRED
        at, found = _SPACE.match(text, low + 1).end(), (NONE, NONE)  # type: ignore[union-attr]
        while text[at] == '"':
            key, at = scanstring(text, at + 1, False)
            at = _SPACE.match(text, at).end()  # type: ignore[union-attr]
            end = _end(text, at)
            found = (at, end) if key == name else found
            at = _SPACE.match(text, end).end()  # type: ignore[union-attr]
        low, high = found
        if low < 0:
            return found
    if text[low:high] == "null":
        return NONE, NONE
    begin = len(text[:low].encode("utf-8", "surrogateescape"))
    return begin, begin + len(text[low:high].encode("utf-8", "surrogateescape"))


def _end(text: str, at: int) -> int:
    depth = 0
    for token in _TOKEN.finditer(text, at):
        depth += (token[0] in "{[") - (token[0] in "}]")
        if depth <= 0:
            return token.end()
    return len(text)
