"""Crash stories: the real job killed at every dangerous step, judged by rules of its own."""
