"""Users and what they do: single users, and the names of events.

Amplitude knows a user by its own number, the Amplitude ID: events have it in `amplitude_id`.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, datetime, timedelta
from hashlib import blake2b
from typing import Any
from zoneinfo import ZoneInfo

from forebay.query.analytics.events import Roles, Where
from forebay.query.analytics.period import Period
from forebay.query.questions import Layers
from forebay.query.store import Store
from forebay.serve.amplitude.parameters import unsupported
from forebay.serve.amplitude.properties import Properties
from forebay.serve.amplitude.records import record
from forebay.serve.amplitude.shapes import Json, number
from forebay.storage.base.times import time_of

EVENTS_MAX = 1000
MATCHES_MAX = 1000
FIELDS = {
    "platform": "platform", "version": "version_name", "device": "device_family",
    "device_type": "device_type", "carrier": "device_carrier", "country": "country",
    "region": "region", "city": "city", "dma": "dma", "language": "language",
    "start_version": "start_version",
}  # fmt: skip
"""Fields of a user, taken from the newest event."""
TABLES: dict[Layers, str] = {"realtime": "events", "all": "events_all"}


def quoted(name: str) -> str:
    """A column name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def events(store: Store, roles: Roles, week: Period, layers: Layers) -> list[Json]:
    """The names of all events, with how often they occurred in a week, the most frequent first."""
    event, user, time = map(quoted, (roles.event, roles.user, roles.time))
    found = store.sql(
        f"select {event} as name, count(*) filter ({user} is not null and {time} >= $start"
        f" and {time} < $end) as totals from {TABLES[layers]} where {event} is not null"
        " group by all order by totals desc, name",
        {"start": time_of(week.start_ms), "end": time_of(week.end_ms)},
    )
    return [
        {
            "id": _id(name), "value": name, "name": name, "display": name, "totals": totals,
            "non_active": False, "hidden": False, "deleted": False, "flow_hidden": False,
        }
        for name, totals in found.iter_rows()
    ]  # fmt: skip


def _id(name: str) -> int:
    """A stable number that JavaScript can represent."""
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest()) >> 11


def _amplitude_id(properties: Properties) -> str:
    found = properties.column("amplitude_id")
    if found is None:
        raise unsupported("user: no column of the data has the Amplitude ID (amplitude_id)")
    return found


def search(store: Store, properties: Properties, user: str, layers: Layers) -> Json:
    """Users with this user or device ID, else this Amplitude ID, else whose user ID begins so."""
    id = quoted(_amplitude_id(properties))
    roles = store.roles()
    name, time = quoted(roles.user), quoted(roles.time)
    device = properties.column("device_id")
    same = [f"cast({name} as varchar) = $user"]
    same += [f"cast({quoted(device)} as varchar) = $user"] if device is not None else []
    kinds = {
        "match_user_or_device_id": " or ".join(same),
        "match_amplitude_id": f"cast({id} as varchar) = $user",
        "match_user_prefix": f"starts_with(cast({name} as varchar), $user)",
    }
    for kind, where in kinds.items():
        found = store.sql(
            f"select arg_max({name}, {time}) as user_id, {id} as amplitude_id"
            f" from {TABLES[layers]} where {where} group by {id}"
            f" order by max({time}) desc, {id} limit {MATCHES_MAX}",
            {"user": user},
        )
        if found.height:
            return {"matches": found.to_dicts(), "type": kind}
    return {"matches": [], "type": "nomatch"}


def activity(
    store: Store,
    properties: Properties,
    id: int,
    *,
    limit: int,
    offset: int,
    earliest: bool,
    zone: str,
    gap: timedelta | None,
    layers: Layers,
) -> Json:
    """The user with this Amplitude ID, and up to `limit` of their events, newest first; with
    `earliest`, earliest first."""
    column = _amplitude_id(properties)
    roles = store.roles(user=column)
    found = store.timeline(
        str(id), limit=limit, offset=offset, earliest=earliest, roles=roles, layers=layers
    ).events
    rows = list(found.iter_rows(named=True))
    records = [record(row, properties) for row in (rows if earliest else reversed(rows))]
    profile = _profile(store, properties, id, roles, zone, gap, layers)
    return {"userData": profile, "events": records}


def _profile(
    store: Store,
    properties: Properties,
    id: int,
    roles: Roles,
    zone: str,
    gap: timedelta | None,
    layers: Layers,
) -> Json:
    user, time = quoted(store.roles().user), quoted(roles.time)
    device = properties.column("device_id")
    devices = (
        "null" if device is None else f"list(distinct {quoted(device)} order by {quoted(device)})"
    )
    row = store.sql(
        f"select arg_max({user}, {time}) as user_id, count(*) as num_events,"
        f" min({time}) as first, max({time}) as last, {devices} as device_ids"
        f" from {TABLES[layers]} where {quoted(roles.user)} = $id and {time} is not null",
        {"id": id},
    ).row(0, named=True)
    newest: Mapping[str, Any] = {}
    sessions: tuple[int, int | float] = (0, 0)
    if row["num_events"]:
        rows = store.timeline(str(id), limit=1, roles=roles, layers=layers).events
        newest = record(rows.row(0, named=True), properties) if rows.height else {}
        sessions = _sessions(store, roles, id, row["first"], row["last"], zone, gap, layers)
    at = (newest.get("location_lat"), newest.get("location_lng"))
    system = " ".join(str(newest[key]) for key in ("os_name", "os_version") if newest.get(key))
    return {
        "user_id": row["user_id"],
        "canonical_amplitude_id": id,
        "merged_amplitude_ids": [],
        "num_events": row["num_events"],
        "num_sessions": sessions[0],
        "usage_time": sessions[1],
        "first_used": _day(row["first"], zone),
        "last_used": _day(row["last"], zone),
        "purchases": None if row["num_events"] else 0,
        "revenue": None if row["num_events"] else 0,
        "os": system or None,
        **{name: newest.get(key) for name, key in FIELDS.items()},
        "device_ids": row["device_ids"] or [],
        "last_location": None if None in at else {"lat": at[0], "lng": at[1]},
        "properties": newest.get("user_properties") or {},
    }


def _sessions(
    store: Store,
    roles: Roles,
    id: int,
    first: datetime,
    last: datetime,
    zone: str,
    gap: timedelta | None,
    layers: Layers,
) -> tuple[int, int | float]:
    """How many sessions a user had, and their total length in milliseconds."""
    days = [moment.astimezone(ZoneInfo(zone)).date() for moment in (first, last)]
    period = Period(days[0], days[1] + timedelta(days=1), zone=zone)
    mine = Where(roles.user, "is", (id,))
    answer = store.sessions(period, gap=gap, where=[mine], roles=roles, layers=layers)
    row = answer.overall.row(0, named=True)
    return row["sessions"], number(round(row["sessions"] * (row["mean_ms"] or 0)))


def _day(moment: datetime | None, zone: str) -> str | None:
    day: date | None = None if moment is None else moment.astimezone(ZoneInfo(zone)).date()
    return None if day is None else day.isoformat()
