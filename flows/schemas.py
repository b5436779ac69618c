"""Schema presets: the events that users bring, as typed columns, dedup key and upload time.

Sources of the fields: the vendors' documentation of their exports, what their SDKs were seen to
send and, for GitHub, the REST events. A name in SQL is the source's own in snake case, without `$`.
What is not declared stays in `raw`. Without an upload time the broker's timestamp is used; the
columns in which a sender's retry may differ from the first copy are volatile.

A preset that has changed is kept as it was: data that was begun under it goes on under it, with its
columns and its key (`flows.in_force`).
"""

from dataclasses import dataclass, replace
from typing import cast

from forebay.storage.formats.schema import UPLOAD_TIME, Column, ColumnType, Schema


@dataclass(frozen=True)
class Preset(Schema):
    """`hints` are for a message without a value in a column of the key; `former` is what this
    preset was before."""

    hints: tuple[tuple[str, str], ...] = ()
    former: Schema | None = None


def parse_path(text: str) -> tuple[str, ...]:
    """The keys of a JSON path such as `payload.action` or `$.payload.action`."""
    return tuple(text.removeprefix("$.").split("."))


def parse_key(names: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The columns of a dedup key, and those of them that are optional, marked by a `?`."""
    plain = tuple(name.removesuffix("?") for name in names)
    return plain, tuple(name[:-1] for name in names if name.endswith("?"))


def _columns(declared: str) -> tuple[Column, ...]:
    """Each `name`, `name:type`, `name=path` or `name=path|path:type`; the path is the name, and the
    type string, unless given."""
    columns = []
    for text in declared.split():
        place, _, type = text.partition(":")
        name, _, paths = place.partition("=")
        first, *others = (parse_path(path) for path in (paths or name).split("|"))
        columns.append(Column(name, first, cast(ColumnType, type or "string"), tuple(others)))
    return tuple(columns)


def _roles(user: str, event: str, time: str, **more: str) -> tuple[tuple[str, str], ...]:
    return ("user", user), ("event", event), ("time", time), *more.items()


def _uploaded(path: str) -> Column:
    return Column(UPLOAD_TIME, parse_path(path), "time")


_FORMER = {
    "amplitude": Schema(
        _columns(
            "device_id insert_id=$insert_id uuid event_type event_time:time user_id"
            " amplitude_id:int session_id:int event_id:int"
            " platform os_name version_name country city language"
        ),
        key=("device_id", "insert_id"),
        upload_time=_uploaded("server_upload_time"),
        volatile=("uuid",),
        roles=_roles("user_id", "event_type", "event_time", session="session_id"),
    ),
    "segment": Schema(
        _columns(
            "message_id=messageId type event timestamp:time sent_at=sentAt:time user_id=userId"
            " anonymous_id=anonymousId channel page_path=context.page.path ip=context.ip"
        ),
        key=("message_id",),
        upload_time=_uploaded("receivedAt"),
        volatile=("timestamp", "sent_at", "ip"),
        roles=_roles("user_id", "event", "timestamp"),
    ),
    "posthog": Schema(
        _columns("uuid event timestamp:time team_id:int distinct_id elements_chain"),
        key=("uuid",),
        upload_time=_uploaded("created_at"),
        roles=_roles("distinct_id", "event", "timestamp"),
    ),
    "snowplow": Schema(
        _columns(
            "event_id event_fingerprint event_name derived_tstamp:time dvce_created_tstamp:time"
            " app_id platform user_id domain_userid page_urlpath"
        ),
        key=("event_id", "event_fingerprint"),
        upload_time=_uploaded("collector_tstamp"),
        roles=_roles("user_id", "event_name", "derived_tstamp"),
    ),
    "mixpanel": Schema(
        _columns(
            "event distinct_id=properties.distinct_id time=properties.time:time_s"
            " insert_id=properties.$insert_id user_id=properties.$user_id os=properties.$os"
            " city=properties.$city country=properties.mp_country_code"
        ),
        key=("event", "distinct_id", "time", "insert_id"),
        roles=_roles("distinct_id", "event", "time"),
    ),
}

_SEGMENT = Preset(
    _columns(
        "message_id=messageId:id type event timestamp=timestamp|originalTimestamp:time"
        " sent_at=sentAt:time user_id=userId:id anonymous_id=anonymousId:id channel"
        " page_path=context.page.path ip=context.ip"
    ),
    key=("message_id",),
    upload_time=_uploaded("receivedAt"),
    volatile=("timestamp", "sent_at", "ip"),
    roles=_roles("user_id", "event", "timestamp"),
    former=_FORMER["segment"],
)

PRESETS: dict[str, Preset] = {
    "amplitude": Preset(
        _columns(
            "device_id=device_id|user_id:id insert_id=$insert_id|insert_id|uuid:id uuid:id"
            " event_type event_time=event_time|time:time user_id:id"
            " amplitude_id:int session_id:int event_id:int"
            " platform os_name version_name country city language"
        ),
        key=("device_id", "insert_id"),
        upload_time=_uploaded("server_upload_time"),
        volatile=("uuid",),
        roles=_roles("user_id", "event_type", "event_time", session="session_id"),
        former=_FORMER["amplitude"],
    ),
    "segment": _SEGMENT,
    "rudderstack": replace(_SEGMENT, former=None),
    "posthog": Preset(
        _columns(
            "uuid:id event timestamp:time_us team_id=team_id|api_key|token:id distinct_id:id"
            " elements_chain"
        ),
        key=("team_id", "timestamp", "distinct_id", "event", "uuid"),
        upload_time=_uploaded("created_at"),
        roles=_roles("distinct_id", "event", "timestamp"),
        optional=("team_id",),
        former=_FORMER["posthog"],
    ),
    "snowplow": Preset(
        _columns(
            "event_id=event_id|eid:id event_fingerprint:id event_name=event_name|e"
            " derived_tstamp:time dvce_created_tstamp:time dtm:int app_id=app_id|aid:id"
            " platform=platform|p user_id=user_id|uid:id domain_userid=domain_userid|duid:id"
            " page_urlpath"
        ),
        key=("event_id", "event_fingerprint"),
        upload_time=_uploaded("collector_tstamp"),
        roles=_roles("user_id", "event_name", "derived_tstamp"),
        optional=("event_fingerprint",),
        former=_FORMER["snowplow"],
    ),
    "mixpanel": Preset(
        _columns(
            "event distinct_id=properties.distinct_id:id time=properties.time:time_auto"
            " insert_id=properties.$insert_id:id user_id=properties.$user_id:id os=properties.$os"
            " city=properties.$city country=properties.mp_country_code"
        ),
        key=("event", "distinct_id", "time", "insert_id"),
        roles=_roles("distinct_id", "event", "time"),
        optional=("distinct_id",),
        hints=(
            ("event", "a change of a profile, such as $set, is not an event"),
            ("time", "without it, Mixpanel's events can't be told from their copies"),
            ("insert_id", "without $insert_id, Mixpanel's events can't be told from their copies"),
        ),
        former=_FORMER["mixpanel"],
    ),
    "cloudevents": Preset(
        _columns("source id:id type subject time:time datacontenttype"),
        key=("source", "id"),
        hints=(
            (
                "source",
                "in Kafka's binary mode, attributes are in headers, which are not read: send"
                " CloudEvents in the structured mode",
            ),
        ),
        roles=_roles("subject", "type", "time"),
    ),
    "github": Preset(
        _columns(
            "id:id type actor_login=actor.login actor_id=actor.id:int repo_name=repo.name"
            " repo_id=repo.id:int org_login=org.login public:bool action=payload.action"
            " ref=payload.ref created_at:time"
        ),
        key=("id",),
        upload_time=_uploaded("created_at"),
        roles=_roles("actor_login", "type", "created_at"),
    ),
}
