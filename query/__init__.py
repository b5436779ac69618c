"""The query module: the events of all nodes, hot and cold, as one table with no duplicates."""

from forebay.query.analytics import (
    Answer,
    Event,
    Exclusion,
    Funnel,
    Lifecycle,
    Paths,
    Period,
    Retention,
    Roles,
    Sample,
    Segmentation,
    Sessions,
    Stickiness,
    Timeline,
    Where,
)
from forebay.query.node import Node
from forebay.query.receipt import NodeReceipt, PartitionReceipt, Receipt
from forebay.query.store import Store, open
from forebay.query.tables import Limits
from forebay.query.view import SilentPartition
from forebay.query.why import Copy, Explanation

__all__ = [
    "Answer",
    "Copy",
    "Event",
    "Exclusion",
    "Explanation",
    "Funnel",
    "Lifecycle",
    "Limits",
    "Node",
    "NodeReceipt",
    "PartitionReceipt",
    "Paths",
    "Period",
    "Receipt",
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
    "open",
]
