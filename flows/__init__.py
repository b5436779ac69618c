"""Dataflows, their settings, and the processes that run them."""
