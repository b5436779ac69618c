"""Tests: what each part promises, tried on files, processes and a real broker."""

import os

LONG = os.environ.get("HYPOTHESIS_PROFILE") == "long"
"""Whether tests may take an hour (`make fuzz`)."""
