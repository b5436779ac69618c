"""Programs that ask the same as a question of analytics: Python, and SQL if possible."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any, get_type_hints

from forebay.query.analytics.code import python
from forebay.query.analytics.select import select
from forebay.query.store import Store
from forebay.storage.base.errors import BadInput


def python_of(
    directories: Sequence[str], name: str, values: Mapping[str, Any], table: str | None
) -> str:
    """A call of the Store's method `name` with these values: its parameters, and roles by name.
    Raises BadInput for a table that its answer does not have."""
    method = getattr(Store, name)
    parameters = inspect.signature(method).parameters
    needed = [one for one in values if parameters[one].default is inspect.Parameter.empty]
    given = {
        one: value
        for one, value in values.items()
        if one not in (*needed, "roles") and value != parameters[one].default
    }
    arguments = [values[one] for one in parameters if one in needed]
    _, *tables = (field.name for field in fields(get_type_hints(method)["return"]))
    if table is not None and table not in tables:
        raise BadInput(f"table: expected one of {', '.join(tables)}; got {table!r}")
    named = values.get("roles") or {}
    return python(directories, named, name, arguments, given, table or tables[0])


def sql_of(store: Store, name: str, values: Mapping[str, Any]) -> str:
    """Raises BadInput if there is none."""
    if name != "segmentation":
        raise BadInput(f"sql: expected segmentation, got {name}: no SQL asks the same")
    roles = store.roles(**(values.get("roles") or {}))
    return select(values, roles, store.schema.names)
