"""A job whose consumer keeps the place in the topic: `python -m tests.trusting`."""

from __future__ import annotations

import os
from pathlib import Path

from forebay.flows.cluster import Cluster

if __name__ == "__main__":
    os.environ["BROKEN"] = "trusting"
    data = Path(os.environ["FOREBAY_DATA_DIR"])
    raise SystemExit(Cluster(data, 1, module="tests.broken_worker").run())
