"""What is on disk, in four rooms: `partition` → `dedup` → `formats` → `base`. No engine."""
