"""Which events are duplicates: hashes, Bloom filters and keys, exact within bounded memory."""
