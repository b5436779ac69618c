"""The query module: events of all nodes, hot and cold, as one table; each exactly once."""

from query.store import PartitionReceipt, Receipt, Store, open
from query.view import SilentPartition

__all__ = ["PartitionReceipt", "Receipt", "SilentPartition", "Store", "open"]
