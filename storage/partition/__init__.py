"""One partition as it changes: admission, journal, garbage collection; and its chunks."""
