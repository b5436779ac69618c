"""Amplitude's Dashboard REST API, answered from the events of a data directory.

A request is read (`parameters`, `events`), asked of a Store as /v1 would ask it (`answers`), and
what it answers is given Amplitude's shape (`shapes`): no figure is computed here that the Store has
a question for. What always holds: an option that can't be answered is refused, and never ignored.

Where the vendor's documentation is silent or differs from what its servers were seen to answer,
docs/amplitude.md says what was chosen.
"""
