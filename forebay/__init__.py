"""Forebay: the real-time layer of a lambda architecture, as it is used from Python.

    import forebay

    store = forebay.open("data")
    store.sql("select event_type, count(*) as n from events group by event_type")

The rest of the package is what the `forebay` command is made of. It is found in the folders of a
checkout, which this one links to: `flows`, `operators`, `storage`, `query`, `cli`, `verify`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from forebay.storage.base import errors

if TYPE_CHECKING:
    from forebay.query import PartitionReceipt, Receipt, SilentPartition, Store, open

__version__ = "0.1.0"

__all__ = [
    "PartitionReceipt",
    "Receipt",
    "SilentPartition",
    "Store",
    "__version__",
    "errors",
    "open",
]


def __getattr__(name: str) -> object:
    """What reads data is imported when it is first asked for: the job never needs Polars."""
    if name in __all__:
        return getattr(import_module("forebay.query"), name)
    raise AttributeError(f"module 'forebay' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
