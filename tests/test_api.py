"""The public interface is what static tools see, what it says of itself, and what it does.

Each public class, function, method and property is annotated and has a docstring that names its
parameters and fields; each error that it says it raises is one that it has.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
import typing
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import altair
import pytest

import forebay
from tests.image import ROOT

INIT = ast.parse((ROOT / "forebay" / "__init__.py").read_text())
CLASSES = [name for name in forebay.__all__ if inspect.isclass(getattr(forebay, name))]
OPAQUE = {"View", "Seal", "Completed", "Placed"}
"""Classes of Forebay in signatures of the interface that are no part of it."""
BASES = {"Questions"}
"""Classes whose methods others of the interface have."""
COUNTS = {"limit", "days", "minutes", "steps", "offset", "attribution", "percentile", "week_start"}
"""Numbers without a unit: how many there are, or which of them."""


@dataclass(frozen=True)
class Member:
    """A function, method or property of the interface."""

    name: str
    function: Any
    told: str
    """Where its parameters are described."""

    @property
    def hints(self) -> dict[str, Any]:
        """The types of its parameters; `alt` is a library that may not be installed."""
        return typing.get_type_hints(self.function, localns={"alt": altair})

    @property
    def parameters(self) -> list[inspect.Parameter]:
        found = list(inspect.signature(self.function).parameters.values())
        return [one for one in found if one.name != "self"]


def of_classes(cls: type) -> Iterator[tuple[type, str, Any]]:
    """What a class has of its own, and of the bases that are part of the interface, with these."""
    for base in (cls, *(one for one in inspect.getmro(cls)[1:] if one.__name__ in BASES)):
        for key, value in vars(base).items():
            yield base, key, value


def members() -> Iterator[Member]:
    yield Member("open", forebay.open, inspect.getdoc(forebay.open) or "")
    for name in CLASSES:
        cls = getattr(forebay, name)
        for base, key, value in of_classes(cls):
            of_class = inspect.getdoc(base) or ""
            made_by_dataclass = is_dataclass(cls) and key == "__init__"
            hidden = key.startswith("_") and key not in ("__init__", "__arrow_c_stream__")
            if hidden or made_by_dataclass:
                continue
            function = value.fget if isinstance(value, property) else value
            function = getattr(function, "__func__", function)  # of a classmethod
            if not inspect.isfunction(function):
                continue
            own = inspect.getdoc(function) or ""
            with_class = key == "__init__" or base is not cls
            yield Member(f"{name}.{key}", function, of_class + own if with_class else own)


MEMBERS = {member.name: member for member in members()}


def test_static_tools_see_what_is_there() -> None:
    """The names that are imported for them, `__all__`, and what `dir` shows are the same."""
    imported = {
        alias.asname or alias.name
        for node in ast.walk(INIT)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    } - {"annotations", "import_module", "TYPE_CHECKING"}
    assigned = {
        target.id
        for node in INIT.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    } - {"__all__"}
    assert imported | assigned == set(forebay.__all__) == set(dir(forebay))
    assert forebay.__all__ == sorted(forebay.__all__)
    for name in forebay.__all__:
        assert getattr(forebay, name) is not None


def test_each_name_comes_from_where_static_tools_think_it_does() -> None:
    for node in ast.walk(INIT):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("forebay."):
            for alias in node.names:
                source = __import__(node.module or "", fromlist=[alias.name])
                assert getattr(forebay, alias.name) is getattr(source, alias.name)


def test_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'forebay' has no attribute 'oppen'"):
        getattr(forebay, "oppen")  # noqa: B009


def test_import_of_forebay_loads_nothing_that_is_large() -> None:
    code = "import sys, forebay; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"polars", "pyarrow", "numpy", "numba", "bytewax", "pydantic"} & set(loaded)


@pytest.mark.parametrize("name", CLASSES)
def test_class_says_what_it_is_and_names_each_field(name: str) -> None:
    cls = getattr(forebay, name)
    told = inspect.getdoc(cls) or ""
    assert re.match(r"[A-Z`]", told)
    assert not told.startswith(f"{name}("), "expected a docstring, got what dataclass makes"
    if is_dataclass(cls):
        text = inspect.getsource(getattr(forebay, name))
        for field in fields(cls):
            apart = re.search(rf'^    {field.name}: .*\n    """', text, re.MULTILINE)
            assert f"`{field.name}`" in told or apart, f"{name}.{field.name}"


@pytest.mark.parametrize("name", MEMBERS)
def test_member_is_annotated_and_its_docstring_names_each_parameter(name: str) -> None:
    member = MEMBERS[name]
    hints = member.hints
    assert "return" in hints
    if not name.endswith("__init__"):
        assert inspect.getdoc(member.function), f"{name}: expected a docstring"
    for parameter in member.parameters:
        assert parameter.name in hints or parameter.name == "cls", f"{name}: {parameter.name}"
        if parameter.name not in ("cls", "kind", "error", "trace"):
            assert f"`{parameter.name}`" in member.told, f"{name}: {parameter.name}"


@pytest.mark.parametrize("name", MEMBERS)
def test_classes_of_forebay_in_a_signature_are_in_the_interface(name: str) -> None:
    hints = MEMBERS[name].hints
    ours = {cls.__name__ for hint in hints.values() for cls in _classes(hint)}
    assert ours <= set(forebay.__all__) | OPAQUE


def _classes(hint: object) -> Iterator[type]:
    """Those of Forebay that a type is made of."""
    if inspect.isclass(hint) and hint.__module__.startswith("forebay"):
        yield hint
    for inner in typing.get_args(hint):
        if isinstance(inner, list):  # a callable's parameters
            for one in inner:
                yield from _classes(one)
        else:
            yield from _classes(inner)


def test_times_in_ms_and_seconds_say_so_in_their_names_and_numbers_are_whole() -> None:
    """Each number of the interface is a count, an offset, or has its unit in its name."""
    for member in MEMBERS.values():
        for name, hint in member.hints.items():
            if name in COUNTS:
                continue
            if hint is float:
                assert name.endswith("_s"), f"{member.name}: {name}"
            if hint is int and name != "return":
                assert name.endswith("_ms"), f"{member.name}: {name}"


def test_errors_that_docstrings_name_are_those_of_the_interface() -> None:
    ours = {name for name, cls in vars(forebay.errors).items() if inspect.isclass(cls)}
    told = [member.told for member in MEMBERS.values()]
    told += [inspect.getdoc(getattr(forebay, name)) or "" for name in CLASSES]
    named = {
        word
        for text in told
        for found in re.findall(r"[Rr]aises? ([^.:]*)", text)
        for word in re.findall(r"\b[A-Z][a-z]+[A-Za-z]*\b", found)
    }
    assert {"BadInput", "Corruption", "MissingFile", "FormatVersion"} <= named
    assert named - set(CLASSES) <= ours


def test_each_error_is_in_errors_has_a_docstring_and_one_base() -> None:
    """Others are private to their module, or only the job raises them, and only says them."""
    errors = forebay.errors
    found = {cls for cls in vars(errors).values() if inspect.isclass(cls)}
    assert set(errors.__all__) == {cls.__name__ for cls in found} | {"INCOMPLETE", "PERMANENT"}
    assert all(issubclass(cls, errors.ForebayError) and inspect.getdoc(cls) for cls in found)
    assert issubclass(errors.BadInput, ValueError)
    names = {cls.__name__ for cls in found}
    for path in (ROOT / "forebay").glob("*/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and path.name != "errors.py":
                bases = {base.id for base in node.bases if isinstance(base, ast.Name)}
                own = node.name.startswith("_") or "operators" in path.parts
                assert own or not bases & names, f"{path}: {node.name}"


def test_what_the_guide_uses_of_forebay_is_in_the_interface() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    guide = "\n".join(page.read_text() for page in pages)
    used = set(re.findall(r"\bforebay\.([A-Za-z_]\w*)\(", guide))
    assert "open" in used
    assert used <= set(forebay.__all__)
