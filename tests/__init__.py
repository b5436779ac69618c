"""Tests: what each part promises, tried on files, processes and a real broker.

How many cases they try is up to HYPOTHESIS_PROFILE: `quick` (`make test`), `full`
(`make test-long`), or `long` (`make fuzz`), which may take an hour.
"""

import os

PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "quick")
LONG = PROFILE == "long"
FULL = PROFILE != "quick"


def cases(quick: int, full: int, long: int) -> int:
    """The number of the profile in use."""
    return long if LONG else full if FULL else quick
