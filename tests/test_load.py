"""`cli.load`: its totals are what the plain oracle counts over its messages, read one by one with
the `json` module."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, note, settings
from hypothesis import strategies as st

from benchmarks.github import github
from forebay.cli.load import BROKEN_KINDS, COUNTS, Load, LoadSpec
from forebay.flows.schemas import PRESETS
from forebay.operators.decode import DecodeConfig, Decoder
from forebay.operators.sources.messages import Messages
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import Schema
from tests import cases
from tests.oracle import Oracle

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SPAN_MS = 300_000
SPEC = LoadSpec(events=2_000, partitions=3, seed=7, slice_events=300)
AMPLITUDE = PRESETS["amplitude"]
DECODER = Decoder(
    DecodeConfig(Schema(AMPLITUDE.columns, AMPLITUDE.key, AMPLITUDE.upload_time), 0, 1 << 20)
)

SPECS = st.builds(
    LoadSpec,
    events=st.integers(0, 1_000),
    partitions=st.integers(1, 5),
    seed=st.integers(0, 2**63),
    span_ms=st.sampled_from([1, 1_000, 600_000, 3_600_000, 86_400_000]),
    duplicates=st.sampled_from([0.0, 0.02, 0.4]),
    late=st.sampled_from([0.0, 0.01, 0.2]),
    broken=st.sampled_from([0.0, 0.002, 0.4]),
    disorder_ms=st.sampled_from([0, 2_000, 900_000]),
    window_ms=st.sampled_from([1_000, 600_000]),
    bytes=st.sampled_from([1, 440, 2_000]),
    redeliver_ms=st.sampled_from([0, 180_000, 10_000_000]),
    slice_events=st.sampled_from([1, 97, 50_000]),
)


def parts_of(load: Load) -> list[list[bytes]]:
    """Each partition's messages in order."""
    parts: list[list[bytes]] = [[] for _ in range(load.spec.partitions)]
    for part_slices in load.slices():
        for part, messages in zip(parts, part_slices, strict=True):
            part += messages
    return parts


def event(message: bytes) -> tuple[str, str, int] | None:
    """Device, insert id and upload time in ms; None if the message is no event."""
    try:
        found = json.loads(message.decode())
        key = found["device_id"], found["$insert_id"]
        text = found["server_upload_time"]
        at = datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f").replace(tzinfo=UTC)
    except (ValueError, TypeError, KeyError):
        return None
    return (*key, (at - EPOCH) // timedelta(milliseconds=1)) if 2000 <= at.year < 2200 else None


def judged(messages: Sequence[bytes], window_ms: int) -> Oracle:
    oracle = Oracle(SPAN_MS, window_ms)
    for offset, message in enumerate(messages):
        read = event(message)
        if read is None:
            oracle.reject(("p", offset))
        else:
            device, insert_id, upload_ms = read
            oracle.event(("p", offset), (f"{device} {insert_id}", 0), upload_ms)
    return oracle


def decoded(messages: Sequence[bytes]) -> Frame:
    count = len(messages)
    far_ms = np.full(count, 2**42, dtype=np.int64)
    return DECODER.decode([Messages("p", list(messages), np.arange(count), far_ms, count)])[0]


# -- totals -------------------------------------------------------------------------------------


@settings(max_examples=cases(10, 25, 250))
@given(SPECS)
@example(SPEC)
@example(replace(SPEC, duplicates=0.4, late=0.2, broken=0.4, window_ms=1_000))
def test_the_totals_are_those_of_the_oracle_partition_by_partition(spec: LoadSpec) -> None:
    load = Load(spec)
    parts = parts_of(load)
    note(f"totals: {load.totals}")
    for messages, told in zip(parts, load.totals["partitions"].values(), strict=True):
        oracle = judged(messages, spec.window_ms)
        assert told == {
            "messages": len(messages),
            "accepted": oracle.accepted,
            "duplicates": oracle.duplicates,
            "rejects": oracle.rejects,
            "late": oracle.late,
            "stream_time_ms": oracle.stream_time_ms,
        }
    whole = load.totals
    assert whole["accepted"] == spec.events
    assert whole["bytes"] == sum(len(message) for messages in parts for message in messages)
    for name in COUNTS:
        assert whole[name] == sum(told[name] for told in whole["partitions"].values())


@settings(max_examples=cases(2, 10, 100))
@given(SPECS)
def test_the_decoder_counts_the_same_events_and_rejects(spec: LoadSpec) -> None:
    load = Load(spec)
    frames = [decoded(messages) for messages in parts_of(load)]
    told = load.totals
    assert sum(f.events.num_rows for f in frames) == told["accepted"] + told["duplicates"]
    assert sum(f.rejects.num_rows for f in frames) == told["rejects"]
    assert sum(f.nulled for f in frames) == 0


# -- what the messages are ----------------------------------------------------------------------


@settings(max_examples=cases(2, 10, 100))
@given(SPECS)
def test_the_same_spec_gives_the_same_bytes(spec: LoadSpec) -> None:
    assert parts_of(Load(spec)) == parts_of(Load(spec))


def test_another_seed_gives_another_load() -> None:
    assert parts_of(Load(SPEC)) != parts_of(Load(replace(SPEC, seed=SPEC.seed + 1)))


@settings(max_examples=cases(2, 10, 100))
@given(SPECS)
def test_copies_are_the_same_bytes_after_the_original_in_the_same_partition(spec: LoadSpec) -> None:
    first: dict[tuple[str, str], tuple[int, bytes]] = {}
    for number, messages in enumerate(parts_of(Load(spec))):
        for message in messages:
            read = event(message)
            if read is not None:
                assert first.setdefault(read[:2], (number, message)) == (number, message)
    assert len(first) == spec.events


@settings(max_examples=cases(2, 10, 100))
@given(SPECS)
def test_every_message_can_be_a_line_of_a_file(spec: LoadSpec) -> None:
    for messages in parts_of(Load(spec)):
        assert all(
            message and b"\n" not in message and b"\r" not in message for message in messages
        )


@settings(max_examples=cases(10, 30, 300))
@given(kind=st.sampled_from(sorted(BROKEN_KINDS)), seed=st.integers(0, 2**32))
def test_a_broken_line_never_decodes_into_an_event(kind: str, seed: int) -> None:
    messages = [m for part in parts_of(Load(replace(SPEC, events=20, broken=0))) for m in part]
    dice = random.Random(seed)
    broken = [BROKEN_KINDS[kind](message, dice) for message in messages]
    frame = decoded(broken)
    assert frame.events.to_pylist() == []
    assert frame.rejects.num_rows == len(broken)
    assert [event(message) for message in broken] == [None] * len(broken)


# -- shares and sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_copies_and_broken_lines_have_the_share_of_all_messages_asked_for(share: float) -> None:
    load = Load(replace(SPEC, events=5_000, duplicates=share, broken=share))
    parts_of(load)
    told = load.totals
    assert told["duplicates"] == pytest.approx(share * told["messages"], abs=1)
    assert told["rejects"] == pytest.approx(share * told["messages"], abs=1)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.2])
def test_late_events_have_about_the_share_of_events_asked_for(share: float) -> None:
    events = 40_000
    load = Load(LoadSpec(events=events, late=share, seed=3))
    parts_of(load)
    deviation = (events * share * (1 - share)) ** 0.5
    assert load.totals["late"] == pytest.approx(share * events, abs=max(4 * deviation, 0.1))


@pytest.mark.parametrize("mean", [600, 3_000])
def test_messages_have_about_the_mean_size_asked_for(mean: int) -> None:
    """Less than about 460 bytes the fields alone need."""
    load = Load(LoadSpec(events=10_000, bytes=mean, broken=0))
    parts_of(load)
    assert load.totals["bytes"] / load.totals["messages"] == pytest.approx(mean, rel=0.05)


@settings(max_examples=cases(2, 10, 100))
@given(SPECS)
def test_stream_time_stays_within_the_span_asked_for(spec: LoadSpec) -> None:
    load = Load(spec)
    parts_of(load)
    for told in load.totals["partitions"].values():
        at = told["stream_time_ms"]
        assert at is None or at < spec.start_ms + spec.span_ms


def test_every_fault_of_a_spec_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="partitions: expected 1 to") as caught:
        LoadSpec(events=-1, partitions=0, duplicates=0.7, start_ms=0)
    told = str(caught.value).split("; ")
    assert [fault.split(":")[0] for fault in told] == [
        "events", "partitions", "start_ms", "duplicates",
    ]  # fmt: skip


# -- the GitHub sample --------------------------------------------------------------------------


def test_each_copy_of_the_sample_has_ids_of_its_own_and_goes_on_in_time(tmp_path: Path) -> None:
    sample: list[dict[str, Any]] = [
        {"id": str(n), "type": "PushEvent", "created_at": f"2021-07-21T06:00:0{n}Z"}
        for n in (3, 1, 2)
    ]
    path = tmp_path / "sample.ndjson"
    path.write_text("\n".join(json.dumps(one) for one in sample))
    events = [json.loads(line) for line in github(path, copies=3, seed=1)]
    times = [one["created_at"] for one in events]
    assert len({one["id"] for one in events}) == len(events) == 9
    assert times == sorted(times)
    assert all(one["type"] == "PushEvent" for one in events)
    assert list(github(path, copies=3, seed=1)) == list(github(path, copies=3, seed=1))
