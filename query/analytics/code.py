"""The Python program that asks what a command asked; it runs as printed."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from typing import Any


def python(
    directories: Sequence[str],
    named: Mapping[str, str],
    method: str,
    arguments: Sequence[object],
    options: Mapping[str, object],
    table: str,
    *,
    partial: bool = False,
) -> str:
    """The program: data directories (or nodes), named roles, the store's method with its arguments,
    and the table of the answer that is printed."""
    given = [*map(written, arguments), *(f"{name}={written(v)}" for name, v in options.items())]
    if named:
        roles = ", ".join(f"{name}={column!r}" for name, column in named.items())
        given.append(f"roles=store.roles({roles})")
    call = "".join(f"    {one},\n" for one in given)
    made = ", ".join(sorted({type(one).__name__ for one in parts([*arguments, *options.values()])}))
    opened = [*map(repr, directories), *(["partial=True"] if partial else [])]
    lines = [
        *(["import datetime", ""] if re.search(r"\bdatetime\.", call) else []),
        "import forebay",
        *([f"from forebay import {made}"] if made else []),
        "",
        f"store = forebay.open({', '.join(opened)})",
        f"answer = store.{method}(\n{call})",
        f"print(answer.{table})",
    ]
    return "\n".join(lines) + "\n"


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
    """As in a program with `import datetime`; defaults of dataclass fields are left out."""
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
