"""The presets of `flows.schemas`: a message as each source documents it, and the event it becomes.

The GitHub message is the first of the sample in tests/data.
"""

from __future__ import annotations

import gzip
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forebay.flows.schemas import PRESETS
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, RESERVED, UPLOAD_TIME, Schema

SAMPLE = Path(__file__).parent / "data" / "github-events-2021-07-21.ndjson.gz"
BROKER_MS = 1_714_564_803_000
"""2024-05-01 12:00:03 UTC"""


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@dataclass(frozen=True)
class Sample:
    """A message, and the columns that are not null in its event."""

    message: dict[str, Any]
    key: tuple[str, ...]
    upload_time: datetime
    columns: dict[str, object]


AMPLITUDE = Sample(
    {
        "$insert_id": "f0a5d5d4-3c1e-4b0e-a6ef-6a0f3a4f4c11",
        "$insert_key": None,
        "$schema": None,
        "adid": None,
        "amplitude_id": 704118923561,
        "app": 240114,
        "city": "Zürich",
        "client_event_time": "2024-05-01 11:59:58.114000",
        "client_upload_time": "2024-05-01 12:00:01.006000",
        "country": "Switzerland",
        "data": {"path": "/2/httpapi", "group_first_event": {}},
        "device_id": "2b9fb0ae-8b0e-4cf1-9f1b-5f1a2f2b9c2eR",
        "device_type": "Apple iPhone",
        "event_id": 417,
        "event_properties": {"[Amplitude] Page Path": "/cart", "items": [{"sku": "A1", "n": 2}]},
        "event_time": "2024-05-01 11:59:58.114999",
        "event_type": "add to cart",
        "groups": {},
        "ip_address": "203.0.113.7",
        "language": "German",
        "library": "amplitude-ts/2.7.2",
        "os_name": "ios",
        "os_version": "17.4",
        "paying": None,
        "platform": "iOS",
        "processed_time": "2024-05-01 12:00:03.552000",
        "server_received_time": "2024-05-01 12:00:01.871000",
        "server_upload_time": "2024-05-01 12:00:01.876543",
        "session_id": 1714564700123,
        "user_id": "u-17",
        "user_properties": {"plan": "pro", "initial_referrer": "EMPTY"},
        "uuid": "4ab51e8c-07b2-11ef-9a5c-0242ac120002",
        "version_name": "5.1.0",
    },
    key=("2b9fb0ae-8b0e-4cf1-9f1b-5f1a2f2b9c2eR", "f0a5d5d4-3c1e-4b0e-a6ef-6a0f3a4f4c11"),
    upload_time=utc("2024-05-01 12:00:01.876"),
    columns={
        "device_id": "2b9fb0ae-8b0e-4cf1-9f1b-5f1a2f2b9c2eR",
        "insert_id": "f0a5d5d4-3c1e-4b0e-a6ef-6a0f3a4f4c11",
        "uuid": "4ab51e8c-07b2-11ef-9a5c-0242ac120002",
        "event_type": "add to cart",
        "event_time": utc("2024-05-01 11:59:58.114"),
        "user_id": "u-17",
        "amplitude_id": 704118923561,
        "session_id": 1714564700123,
        "event_id": 417,
        "platform": "iOS",
        "os_name": "ios",
        "version_name": "5.1.0",
        "country": "Switzerland",
        "city": "Zürich",
        "language": "German",
    },
)

SEGMENT = Sample(
    {
        "anonymousId": "23adfd82-aa0f-45a7-a756-24f2a7a4c895",
        "channel": "browser",
        "context": {
            "ip": "203.0.113.7",
            "library": {"name": "analytics.js", "version": "next-1.70.0"},
            "page": {"path": "/academy/", "title": "Academy", "url": "https://example.com/academy"},
            "userAgent": "Mozilla/5.0",
        },
        "event": "Course Clicked",
        "integrations": {"All": True},
        "messageId": "ajs-next-f8ca1e4de5024d9430b3928bd8ac6b96",
        "originalTimestamp": "2024-05-01T11:59:59.001Z",
        "properties": {"title": "Intro to Analytics"},
        "receivedAt": "2024-05-01T12:00:01.250Z",
        "sentAt": "2024-05-01T12:00:00.100Z",
        "timestamp": "2024-05-01T12:00:00.151Z",
        "type": "track",
        "userId": "AiUGstSDIg",
        "version": 2,
    },
    key=("ajs-next-f8ca1e4de5024d9430b3928bd8ac6b96",),
    upload_time=utc("2024-05-01 12:00:01.250"),
    columns={
        "message_id": "ajs-next-f8ca1e4de5024d9430b3928bd8ac6b96",
        "type": "track",
        "event": "Course Clicked",
        "timestamp": utc("2024-05-01 12:00:00.151"),
        "sent_at": utc("2024-05-01 12:00:00.100"),
        "user_id": "AiUGstSDIg",
        "anonymous_id": "23adfd82-aa0f-45a7-a756-24f2a7a4c895",
        "channel": "browser",
        "page_path": "/academy/",
        "ip": "203.0.113.7",
    },
)

POSTHOG = Sample(
    {
        "uuid": "018f341a-5b2e-0000-b1d4-2f0a3c9f7a11",
        "event": "$autocapture",
        "properties": '{"$current_url":"https://example.com/","$event_type":"click"}',
        "timestamp": "2024-05-01 12:00:00.123000",
        "team_id": 2,
        "project_id": 2,
        "distinct_id": "user_17",
        "elements_chain": 'button.primary:text="Buy"nth-child="1"',
        "created_at": "2024-05-01 12:00:01.456000",
        "person_id": "018f3419-9f0c-0000-8d0b-0c2f4b7e6a55",
        "person_mode": "full",
    },
    key=(
        "2",
        "2024-05-01 12:00:00.123000+00:00",
        "user_17",
        "$autocapture",
        "018f341a-5b2e-0000-b1d4-2f0a3c9f7a11",
    ),
    upload_time=utc("2024-05-01 12:00:01.456"),
    columns={
        "uuid": "018f341a-5b2e-0000-b1d4-2f0a3c9f7a11",
        "event": "$autocapture",
        "timestamp": utc("2024-05-01 12:00:00.123"),
        "team_id": "2",
        "distinct_id": "user_17",
        "elements_chain": 'button.primary:text="Buy"nth-child="1"',
    },
)

SNOWPLOW = Sample(
    {
        "app_id": "shop",
        "platform": "web",
        "etl_tstamp": "2024-05-01T12:00:02.300Z",
        "collector_tstamp": "2024-05-01T12:00:01.100Z",
        "dvce_created_tstamp": "2024-05-01T11:59:59.900Z",
        "event": "page_view",
        "event_id": "c6ef3124-b53a-4b13-a233-0088f79dcbcb",
        "v_collector": "ssc-2.9.2-kinesis",
        "user_id": None,
        "domain_userid": "bc2e92ec6c204a14",
        "domain_sessionidx": 3,
        "page_urlpath": "/product/42",
        "contexts_com_snowplowanalytics_snowplow_web_page_1": [{"id": "024629f0"}],
        "derived_tstamp": "2024-05-01T12:00:01.050Z",
        "event_name": "page_view",
        "event_fingerprint": "8b9e6a1f3a3d4f9d90ae1dfc5bb2be38",
    },
    key=("c6ef3124-b53a-4b13-a233-0088f79dcbcb", "8b9e6a1f3a3d4f9d90ae1dfc5bb2be38"),
    upload_time=utc("2024-05-01 12:00:01.100"),
    columns={
        "event_id": "c6ef3124-b53a-4b13-a233-0088f79dcbcb",
        "event_fingerprint": "8b9e6a1f3a3d4f9d90ae1dfc5bb2be38",
        "event_name": "page_view",
        "derived_tstamp": utc("2024-05-01 12:00:01.050"),
        "dvce_created_tstamp": utc("2024-05-01 11:59:59.900"),
        "app_id": "shop",
        "platform": "web",
        "domain_userid": "bc2e92ec6c204a14",
        "page_urlpath": "/product/42",
    },
)

MIXPANEL = Sample(
    {
        "event": "Signed up",
        "properties": {
            "time": 1714564799,
            "distinct_id": "13793",
            "$insert_id": "hpuDqcvpltpCjBsebtxwadtEBDnFAdycabFb",
            "$user_id": "13793",
            "$os": "Mac OS X",
            "$city": "Lagos",
            "mp_country_code": "NG",
            "mp_processing_time_ms": 1714564801874,
            "Referred By": "Friend",
        },
    },
    key=("Signed up", "13793", "2024-05-01 11:59:59+00:00", "hpuDqcvpltpCjBsebtxwadtEBDnFAdycabFb"),
    upload_time=utc("2024-05-01 12:00:03"),
    columns={
        "event": "Signed up",
        "distinct_id": "13793",
        "time": utc("2024-05-01 11:59:59"),
        "insert_id": "hpuDqcvpltpCjBsebtxwadtEBDnFAdycabFb",
        "user_id": "13793",
        "os": "Mac OS X",
        "city": "Lagos",
        "country": "NG",
    },
)

CLOUDEVENTS = Sample(
    {
        "specversion": "1.0",
        "type": "com.github.pull_request.opened",
        "source": "https://github.com/cloudevents/spec/pull",
        "subject": "123",
        "id": "A234-1234-1234",
        "time": "2018-04-05T17:31:00Z",
        "comexampleextension1": "value",
        "datacontenttype": "text/xml",
        "data": '<much wow="xml"/>',
    },
    key=("https://github.com/cloudevents/spec/pull", "A234-1234-1234"),
    upload_time=utc("2024-05-01 12:00:03"),
    columns={
        "source": "https://github.com/cloudevents/spec/pull",
        "id": "A234-1234-1234",
        "type": "com.github.pull_request.opened",
        "subject": "123",
        "time": utc("2018-04-05 17:31:00"),
        "datacontenttype": "text/xml",
    },
)

GITHUB = Sample(
    json.loads(gzip.decompress(SAMPLE.read_bytes()).partition(b"\n")[0]),
    key=("17244207336",),
    upload_time=utc("2021-07-21 06:00:00"),
    columns={
        "id": "17244207336",
        "type": "DeleteEvent",
        "actor_login": "aws-connector-for-github[bot]",
        "actor_id": 71354125,
        "repo_name": "bullet-dev-team/python-pyramid-public",
        "repo_id": 318651349,
        "public": True,
        "ref": "cicd-e2e-g1szrn",
        "created_at": utc("2021-07-21 06:00:00"),
    },
)

SAMPLES = {
    "amplitude": AMPLITUDE,
    "segment": SEGMENT,
    "rudderstack": SEGMENT,
    "posthog": POSTHOG,
    "snowplow": SNOWPLOW,
    "mixpanel": MIXPANEL,
    "cloudevents": CLOUDEVENTS,
    "github": GITHUB,
}


def schema_of(name: str) -> Schema:
    preset = PRESETS[name]
    return Schema(preset.columns, preset.key, preset.upload_time, optional=preset.optional)


def decoded(name: str, *messages: bytes) -> Frame:
    decoder = Decoder(DecodeConfig(schema_of(name), 60_000, 1 << 20))
    count = len(messages)
    times_ms = np.full(count, BROKER_MS, dtype=np.int64)
    item = Messages("p", list(messages), np.arange(count), times_ms, count)
    return decoder.decode([item])[0]


def test_every_preset_has_a_sample() -> None:
    assert set(SAMPLES) == set(PRESETS)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_message_as_documented_becomes_an_event_with_key_upload_time_and_columns(
    name: str,
) -> None:
    sample = SAMPLES[name]
    message = json.dumps(sample.message, ensure_ascii=False).encode()
    frame = decoded(name, message)
    assert frame.rejects.to_pylist() == []
    assert frame.nulled == 0
    (event,) = frame.events.to_pylist()
    assert tuple(str(event[column]) for column in PRESETS[name].key) == sample.key
    assert event.pop(UPLOAD_TIME) == sample.upload_time
    assert (event.pop(PARTITION), event.pop(OFFSET), event.pop(RAW)) == ("p", 0, message)
    assert {column: value for column, value in event.items() if value is not None} == sample.columns


@pytest.mark.parametrize("name", SAMPLES)
def test_a_message_without_any_one_part_of_its_key_is_a_reject(name: str) -> None:
    schema = schema_of(name)
    parts = [c for c in schema.columns if c.name in schema.key and c.name not in schema.optional]
    messages = []
    for column in parts:
        message = json.loads(json.dumps(SAMPLES[name].message))
        for path in column.paths:
            parent = message
            for key in path[:-1]:
                parent = parent[key]
            parent.pop(path[-1], None)
        messages.append(json.dumps(message).encode())
    frame = decoded(name, *messages)
    assert frame.events.num_rows == 0
    assert frame.rejects.column("reason").to_pylist() == ["no key"] * len(parts)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_presets_columns_have_names_of_their_own_and_include_its_key(name: str) -> None:
    names = [column.name for column in PRESETS[name].columns]
    assert len(set(names)) == len(names)
    assert set(PRESETS[name].key) <= set(names)
    assert not RESERVED & set(names)
    assert all(column.isidentifier() and column.islower() for column in names)


def test_the_whole_github_sample_becomes_events() -> None:
    messages = gzip.decompress(SAMPLE.read_bytes()).splitlines()
    frame = decoded("github", *messages)
    assert (frame.events.num_rows, frame.rejects.num_rows, frame.nulled) == (len(messages), 0, 0)
