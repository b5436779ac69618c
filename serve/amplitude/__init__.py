"""Amplitude's Dashboard REST API, answered from the events of a data directory.

A request is read (`parameters`, `events`), asked of a Store as /v1 would ask it (`answers`), and
the Store's answer is given Amplitude's shape (`shapes`): no figure is computed here if the Store
can compute it. What always holds: an option that can't be answered is refused, never ignored.

Where the vendor's documentation is silent, or its servers were seen to answer differently,
docs/amplitude.md says what was chosen.
"""
