"""forebay.toml as a mapping, or one line that says where it is not TOML."""

import re
import tomllib
from pathlib import Path
from typing import Any

from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import plain

BOM = b"\xef\xbb\xbf"
_WORDS = {
    "Cannot overwrite a value": "expected each name once, got one again",
    "Expected '=' after a key in a key/value pair": "expected NAME = VALUE, got no =",
    "Invalid value": "expected a value: text in quotes, a number, true or false, a list; got other",
    "Unclosed value": "expected a value, or the end of a list or table, got the end of the file",
    "Unclosed array": "expected ] at the end of a list, got none",
    "Unclosed inline table": "expected } at the end of a table, got none",
    'Expected "\'"': "expected a quote at the end of the text, got none",
    "Unterminated string": "expected a quote at the end of the text, got none",
    "Illegal character '\\n'": "expected a quote at the end of the text, got the end of the line",
    "Invalid statement": "expected NAME = VALUE or [SECTION], got neither",
}
"""What the parser says, in the form that our other faults have."""
_UNQUOTED = re.compile(
    r"[=\[,]\s*[\d._]+\s*(?:[kmgtp]i?b?|b|ms|[smhd])\s*(?:[],}#]|$)", re.IGNORECASE
)
"""A size or a time that would be right in quotes."""


def read_toml(path: Path) -> dict[str, Any]:
    """The file's content, empty if there is no file.

    Raises BadInput that names the file and, as far as it is known, the line. No value is quoted: it
    may be a secret.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise BadInput(f"{path}: expected a file that can be read, got {error.strerror}") from error
    if data.startswith(BOM):
        raise BadInput(
            f"{path}: line 1: expected UTF-8 text without a byte order mark, got one: save the file"
            " without it"
        )
    try:
        text = data.decode()
        found: dict[str, Any] = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BadInput(
            f"{path}: line {line}: expected UTF-8 text, got byte 0x{data[error.start]:02x}"
        ) from None
    except RecursionError:
        raise BadInput(f"{path}: expected TOML, got lists or tables nested too deep") from None
    except ValueError as error:
        raise BadInput(f"{path}: {_told(str(error), text)}") from None
    return found


def _told(message: str, text: str) -> str:
    """`line 3: what was expected`, from the parser's words."""
    found = re.fullmatch(
        r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", message, re.DOTALL
    )
    if found is None:
        return f"expected TOML, got other: {plain(message)}"
    what, line = found[1], found[2]
    if line is None:
        line = str(text.count("\n") + (not text.endswith("\n")))
        if what == "Invalid value":
            what = "Unclosed value"
    if match := re.fullmatch(r"Cannot (?:declare|mutate immutable namespace) (\(.*\)).*", what):
        section = ".".join(re.findall(r"'([^']*)'", match[1]))
        return f"line {line}: {plain(f'expected [{section}] once, got it again')}"
    if _UNQUOTED.search(text.splitlines()[int(line) - 1]):
        return (
            f'line {line}: expected quotes around a size or a time, as in "64MiB" or "7d", got none'
        )
    other = f"expected TOML, got other: {what[:1].lower()}{what[1:]}"
    return f"line {line}: {plain(_WORDS.get(what, other))}"
