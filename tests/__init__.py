"""Tests: what each part promises, tried on files, processes and a real broker.

How many cases they try is up to HYPOTHESIS_PROFILE: `quick` (`make test`), `full`
(`make test-long`), `long` (`make fuzz`), which may take an hour, or `first`, a few to see that they
run (on another Python).
"""

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
LONG = PROFILE == "long"
FULL = PROFILE == "full"
FIRST = PROFILE == "first"


def cases(quick: int, full: int, long: int) -> int:
    """The number of the profile in use."""
    if FIRST:
        return max(1, quick // 4)
    return long if LONG else full if FULL else quick
