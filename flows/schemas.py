"""Schema presets: the events that users bring, as typed columns, dedup key and upload time.

Sources of the fields: the vendors' documentation of their exports and, for GitHub, the REST events.
A name in SQL is the source's own in snake case, without `$`. What is not declared stays in `raw`.
Without an upload time the broker's timestamp serves; volatile are the columns in which a retry by
the sender may differ from the first copy.
"""

from typing import cast

from forebay.storage.formats.schema import UPLOAD_TIME, Column, ColumnType, Schema


def parse_path(text: str) -> tuple[str, ...]:
    """The keys of a JSON path such as `payload.action` or `$.payload.action`."""
    return tuple(text.removeprefix("$.").split("."))


def _columns(declared: str) -> tuple[Column, ...]:
    """Each `name`, `name:type`, `name=path` or `name=path:type`; the path is the name, and the type
    string, unless given."""
    columns = []
    for text in declared.split():
        place, _, type = text.partition(":")
        name, _, path = place.partition("=")
        columns.append(Column(name, parse_path(path or name), cast(ColumnType, type or "string")))
    return tuple(columns)


def _roles(user: str, event: str, time: str) -> tuple[tuple[str, str], ...]:
    return ("user", user), ("event", event), ("time", time)


def _uploaded(path: str) -> Column:
    return Column(UPLOAD_TIME, parse_path(path), "time")


PRESETS: dict[str, Schema] = {
    "amplitude": Schema(
        _columns(
            "device_id insert_id=$insert_id uuid event_type event_time:time user_id"
            " amplitude_id:int session_id:int event_id:int"
            " platform os_name version_name country city language"
        ),
        key=("device_id", "insert_id"),
        upload_time=_uploaded("server_upload_time"),
        volatile=("uuid",),
        roles=_roles("user_id", "event_type", "event_time"),
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
    "cloudevents": Schema(
        _columns("source id type subject time:time datacontenttype"),
        key=("source", "id"),
        roles=_roles("subject", "type", "time"),
    ),
    "github": Schema(
        _columns(
            "id type actor_login=actor.login actor_id=actor.id:int repo_name=repo.name"
            " repo_id=repo.id:int org_login=org.login public:bool action=payload.action"
            " ref=payload.ref created_at:time"
        ),
        key=("id",),
        upload_time=_uploaded("created_at"),
        roles=_roles("actor_login", "type", "created_at"),
    ),
}
