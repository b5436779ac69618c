"""Reads hot blocks and cold chunks as one table. Files only; knows nothing of the job."""
