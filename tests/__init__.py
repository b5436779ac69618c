"""Tests: what each part promises, tried on files, processes and a real broker."""
