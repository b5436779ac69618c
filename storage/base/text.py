"""Text that people read. What comes from outside can't steer their terminal."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def plain(text: str) -> str:
    """One line: control characters, escape sequences, direction marks and lone surrogates become
    escapes such as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def plain_lines(text: str) -> str:
    """The same, line by line."""
    return "\n".join(map(plain, text.split("\n")))


def shortened(text: str, characters_max: int) -> str:
    """The beginning of a text that is too long, with an ellipsis."""
    return text if len(text) <= characters_max else f"{text[: characters_max - 1]}…"


def count_text(count: int, noun: str) -> str:
    """Such as 1 event, 2,000 events."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def size_text(count: int) -> str:
    """Bytes in the largest unit of which there is one, to a tenth where it is not whole: 64 MiB."""
    unit, units = 1, iter(("KiB", "MiB", "GiB", "TiB"))
    name = "bytes"
    while count >= 1024 * unit and (larger := next(units, None)):
        unit, name = 1024 * unit, larger
    whole, rest = divmod(count, unit)
    return f"{count / unit:.1f} {name}" if rest else f"{whole:,} {name}"


def length_text(ms: int) -> str:
    """A length of time in its two largest units."""
    if ms < 10_000:
        return f"{ms / 1000:g}s"
    rest, found = ms // 1000, list[str]()
    for unit, seconds in (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, seconds)
        if count or found:
            found.append(f"{count}{unit}")
    return " ".join(one for one in found[:2] if not one.startswith("0"))


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that it is most like, if any."""
    found = nearest(name, known)
    return f"; did you mean {found!r}?" if found else ""


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that this is most like, if it is like any."""
    folded = {one.casefold(): one for one in known}
    found = get_close_matches(name.casefold(), list(folded), n=1, cutoff=0.7)
    return folded[found[0]] if found else None
