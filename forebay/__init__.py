"""Forebay: the real-time layer of a lambda architecture, as it is used from Python.

    import forebay

    store = forebay.open("data")
    store.sql("select event_type, count(*) as n from events group by event_type")

What is listed in `__all__` is the public interface: `open` gives a `Store`, whose answers come with
a `Receipt`; questions about users take `Event`, `Where` and `Period`, and their answers are a
`Funnel`, a `Retention` and so on; `RejectFilter` says which rejects one means; `Handoff` is for a
batch layer of one's own; what can go wrong is in `errors`. Times are aware datetimes in UTC, or
whole milliseconds since 1970 where a name ends in `_ms`.

The rest of the package is what the `forebay` command is made of, and may change. In a checkout its
folders are links to `flows`, `operators`, `storage`, `query`, `serve`, `cli` and `verify`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from forebay.storage.base import errors

if TYPE_CHECKING:
    from forebay.query import (
        Answer,
        Copy,
        Event,
        Exclusion,
        Explanation,
        Funnel,
        Lifecycle,
        Limits,
        Node,
        NodeReceipt,
        PartitionReceipt,
        Paths,
        Period,
        Receipt,
        Retention,
        Roles,
        Sample,
        Segmentation,
        Sessions,
        SilentPartition,
        Stickiness,
        Store,
        Timeline,
        Where,
        open,
    )
    from forebay.storage.formats.boundary import Boundary
    from forebay.storage.formats.rejects import RejectFilter
    from forebay.storage.handoff import Handoff

__version__ = "0.1.0"

__all__ = [
    "Answer",
    "Boundary",
    "Copy",
    "Event",
    "Exclusion",
    "Explanation",
    "Funnel",
    "Handoff",
    "Lifecycle",
    "Limits",
    "Node",
    "NodeReceipt",
    "PartitionReceipt",
    "Paths",
    "Period",
    "Receipt",
    "RejectFilter",
    "Retention",
    "Roles",
    "Sample",
    "Segmentation",
    "Sessions",
    "SilentPartition",
    "Stickiness",
    "Store",
    "Timeline",
    "Where",
    "__version__",
    "errors",
    "open",
]

if not TYPE_CHECKING:  # else each wrong name would be an object to a static tool
    _ELSEWHERE = {
        "Boundary": "forebay.storage.formats.boundary",
        "Handoff": "forebay.storage.handoff",
        "RejectFilter": "forebay.storage.formats.rejects",
    }

    def __getattr__(name: str) -> object:
        """What reads data is imported when it is first asked for: the job never needs Polars."""
        if name not in __all__:
            raise AttributeError(f"module 'forebay' has no attribute {name!r}")
        found = getattr(import_module(_ELSEWHERE.get(name, "forebay.query")), name)
        globals()[name] = found
        return found

    def __dir__() -> list[str]:
        return sorted(__all__)
