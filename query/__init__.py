"""The query module: events of all nodes, hot and cold, as one table; each exactly once."""

from query.receipt import PartitionReceipt, Receipt
from query.store import Store, open
from query.view import SilentPartition

__all__ = ["PartitionReceipt", "Receipt", "SilentPartition", "Store", "open"]
