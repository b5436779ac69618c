"""The query module: events of all nodes, hot and cold, as one table; each exactly once."""

from forebay.query.receipt import PartitionReceipt, Receipt
from forebay.query.store import Store, open
from forebay.query.tables import Limits
from forebay.query.view import SilentPartition
from forebay.query.why import Answer, Copy

__all__ = [
    "Answer",
    "Copy",
    "Limits",
    "PartitionReceipt",
    "Receipt",
    "SilentPartition",
    "Store",
    "open",
]
