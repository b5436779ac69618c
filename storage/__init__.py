"""What is on disk: `partition` → `dedup`, `decoding` → `formats` → `base`. No engine."""
