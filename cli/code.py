"""The Python that asks what a command asked: it runs as printed."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def python(
    directories: Sequence[str],
    named: Mapping[str, str],
    layers: str,
    function: Callable[..., Any],
    arguments: Sequence[object],
    options: Mapping[str, object],
    table: str,
) -> str:
    """The program: data directories and named roles, the function with what it is called with, and
    the table of the answer that is printed."""
    roots = ", ".join(map(repr, directories))
    roles = "".join(f", {name}={column!r}" for name, column in named.items())
    scan = f"forebay.open({roots}).scan({'' if layers == 'realtime' else repr(layers)})"
    given = [
        scan, f"read_roles({roots}{roles})", *map(written, arguments),
        *(f"{name}={written(value)}" for name, value in options.items()),
    ]  # fmt: skip
    call = "".join(f"    {one},\n" for one in given)
    made = {type(one).__name__ for one in parts([*arguments, *options.values()])}
    names = ", ".join(sorted({*made, function.__name__, "read_roles"}))
    body = f"answer = {function.__name__}(\n{call})\nprint(answer.{table})\n"
    modules = "import datetime\n\n" if re.search(r"\bdatetime\.", call) else ""
    return f"{modules}import forebay\nfrom forebay.query.analytics import {names}\n\n{body}"


def parts(value: object) -> Iterator[Any]:
    """Every dataclass in a value, itself included."""
    if is_dataclass(value):
        yield value
        for field in fields(value):
            yield from parts(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for one in value:
            yield from parts(one)


def written(value: object) -> str:
    """As in a program with `import datetime`; what a dataclass has by default is left out."""
    if is_dataclass(value):
        given = []
        for at, field in enumerate(fields(value)):
            held = getattr(value, field.name)
            if field.default is MISSING or at == 0:
                given.append(written(held))
            elif held != field.default:
                given.append(f"{field.name}={written(held)}")
        return f"{type(value).__name__}({', '.join(given)})"
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(written, value))}{',' if len(value) == 1 else ''})"
    return repr(value)
