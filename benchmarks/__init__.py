"""Benchmarks: what Forebay costs, beside its ceiling and what a user would pick instead."""
