"""The roles of a data directory: its columns for the user, the event, its time and the session.

The job publishes them in the manifest of each partition, from its schema preset or its settings, so
a reader needs no configuration.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from os import PathLike

from forebay.query.analytics.events import Roles
from forebay.query.partition import Directory
from forebay.storage.base.directory import data_directory, require_data_directory
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput

NEEDED = ("user", "event", "time")


def read_roles(*data: str | PathLike[str], **named: str) -> Roles:
    """The roles that all data directories have in common; `named` ones (user, event, time, session)
    take precedence. Raises BadInput if a role is unknown or differs, Corruption or FormatVersion if
    a manifest can't be read."""
    return roles_of(published_roles(*data), **named)


def published_roles(*data: str | PathLike[str]) -> list[Mapping[str, str]]:
    """The roles of each partition with events. Raises Corruption or FormatVersion."""
    disk, found = Disk(), list[Mapping[str, str]]()
    for root in map(data_directory, data):
        require_data_directory(root)
        directory = Directory(disk, root)
        states = map(directory.state, directory.layout.partitions())
        found += [state.roles for state in states if state is not None and state.counters.accepted]
    return found


def roles_of(found: Sequence[Mapping[str, str]], **named: str) -> Roles:
    """The roles that all of these have in common; `named` ones take precedence. Raises BadInput if
    a role is unknown or differs."""
    known = {field.name for field in fields(Roles)}
    if unknown := sorted(named.keys() - known):
        raise BadInput(f"roles: expected names among {', '.join(sorted(known))}; got {unknown}")
    roles = {}
    for name in known:
        columns = {named[name]} if name in named else {one[name] for one in found if name in one}
        if len(columns) > 1:
            raise BadInput(f"roles: expected one column as {name}, got {sorted(columns)}")
        if columns:
            (roles[name],) = columns
    if missing := [name for name in NEEDED if name not in roles]:
        raise BadInput(
            f"roles: expected columns as {', '.join(missing)}, got none from the data: name them in"
            " the settings under [roles] and start the job once, or here (--user, --event, --time)"
        )
    return Roles(**roles)
