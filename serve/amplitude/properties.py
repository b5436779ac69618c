"""Amplitude's names of properties, converted to ours.

    user property   version, country, …    the field of an exported event, such as version_name
                    gp:NAME                user_properties.NAME
    event property  NAME                   event_properties.NAME

If a declared column is taken from that place, it is used instead. All this applies to data in
Amplitude's form, which has the event's name in `event_type`; in other data, a name is a column or a
path as in /v1, with or without `gp:`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pyarrow as pa

from forebay.query.analytics.events import Roles
from forebay.query.view import View
from forebay.serve.amplitude.parameters import invalid, unsupported
from forebay.storage.base.text import did_you_mean
from forebay.storage.formats.schema import RAW

CUSTOM = "gp:"
NONE = "(none)"
"""How Amplitude writes a missing value."""
BUILT_IN = {
    "version": "version_name", "country": "country", "city": "city", "region": "region",
    "DMA": "dma", "language": "language", "platform": "platform", "device": "device_family",
    "device_type": "device_type", "start_version": "start_version", "paying": "paying",
    "carrier": "device_carrier", "library": "library", "user_id": "user_id",
    "device_id": "device_id",
}  # fmt: skip
"""Fields of an exported event."""
REFUSED = {
    "os": "os: a name and a version in one, which events have apart",
    "userdata_cohort": "userdata_cohort: no cohorts are kept here",
}
Path = tuple[str, ...]


@dataclass(frozen=True)
class Properties:
    """The columns of the data: `texts` says for each whether it has text, `places` at which path of
    a message (the first of several) it is found."""

    roles: Roles
    texts: Mapping[str, bool]
    places: Mapping[Path, str]

    @classmethod
    def of(cls, view: View, roles: Roles) -> Properties:
        """The properties of a view's data."""
        schema = view.schema
        texts = {field.name: pa.types.is_string(field.type) for field in schema}
        places: dict[Path, str] = {}
        for partition in view.partitions:
            for name, paths in partition.state.paths.items():
                if paths and name in texts:
                    places.setdefault(tuple(paths[0]), name)
        return cls(roles, texts, places)

    @property
    def vendor(self) -> bool:
        """Whether the data is in Amplitude's form."""
        return self.roles.event == self.places.get(("event_type",), "event_type")

    def user(self, name: str) -> str:
        """Raises Problem."""
        if name in REFUSED:
            raise unsupported(REFUSED[name])
        plain = name.removeprefix(CUSTOM)
        if not plain:
            raise invalid(f"Invalid user property {name}: expected a name after {CUSTOM}")
        if not self.vendor:
            return plain
        if name != plain:
            return self.at("user_properties", *plain.split("."))
        if name not in BUILT_IN:
            near = did_you_mean(name, [*BUILT_IN])
            raise invalid(
                f"Invalid user property {name}: expected {CUSTOM}NAME, or one of"
                f" {', '.join(BUILT_IN)}{near}"
            )
        return self.at(BUILT_IN[name])

    def event(self, name: str) -> str:
        return self.at("event_properties", *name.split(".")) if self.vendor else name

    def at(self, *path: str) -> str:
        """The property at a path of messages. Raises Problem if nothing has it."""
        if path in self.places:
            return self.places[path]
        name = ".".join(path)
        if RAW not in self.texts:
            raise unsupported(f"{name}: no column is declared for it, and messages are not kept")
        return f"$.{name}" if name in self.texts else name

    def column(self, *path: str) -> str | None:
        """The declared column at a path of messages; if no paths are known, the one with its last
        name. None if there is none."""
        found = self.places.get(path)
        if found is None and not self.places and path[-1] in self.texts:
            return path[-1]
        return found

    def is_text(self, name: str) -> bool:
        """Whether it is a column of text, which is not ordered by size."""
        return self.texts.get(name, False)
