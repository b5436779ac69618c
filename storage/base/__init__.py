"""What everything rests on: the disk, names below a data directory, records, errors, times."""
