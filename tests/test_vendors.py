"""What vendors send, in each form that their documents and SDKs have, through the presets: each
message becomes what `tests.samples` says of it."""

from __future__ import annotations

import os
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

import forebay
from forebay.flows.batch import run_day
from forebay.flows.schemas import PRESETS
from forebay.flows.sections import BatchSettings
from forebay.operators.routing import hash_partitions, repartition
from forebay.storage.formats.frame import Frame
from forebay.storage.formats.schema import OFFSET, PARTITION, RAW, UPLOAD_TIME
from forebay.storage.partition.rules import Rules
from tests import reference
from tests.job import Job, taken
from tests.partition import NAME, Partition
from tests.samples import BROKER_MS, FOLDER, FORMS, Expected, Form, messages

NEVER_MS = 1_900_000_000_000
"""Much later than any sample."""
DAY = date(2024, 5, 1)


def rules(form: Form) -> Rules:
    return Rules(form.schema, 300_000, 600_000, 1000)


def shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row as the expectations have it: what is not null, times as text."""
    found = {}
    for name, value in row.items():
        if name not in (PARTITION, OFFSET, RAW) and value is not None:
            found[name] = _time(value) if isinstance(value, datetime) else value
    return found


def _time(value: datetime) -> str:
    return value.astimezone(UTC).isoformat(timespec="auto").replace("+00:00", "Z")


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, clean: None) -> Form:
    return Form(request.param)


def accepted(form: Form) -> dict[int, Expected]:
    return {n: one["event"] for n, one in enumerate(form.expected) if "event" in one}


def test_every_preset_has_samples_and_every_sample_its_settings() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {
        f"{name}.{ending}" for name in FORMS for ending in ("ndjson", "expected")
    }
    assert {Form(name).preset for name in FORMS} == set(PRESETS)


def test_each_line_is_the_event_or_reject_that_it_is_to_be(form: Form) -> None:
    frame, expected = form.frame, form.expected
    assert len(expected) == len(form.lines)
    events = {row[OFFSET]: row for row in frame.events.to_pylist()}
    rejects = {row[OFFSET]: row for row in frame.rejects.to_pylist()}
    for n, one in enumerate(expected):
        if "reject" in one:
            assert rejects[n]["reason"] == one["reject"]
            assert (rejects[n]["detail"] or "").startswith(one["detail"])
        elif "event" in one:
            assert shown(events[n]) == one["event"]
        else:
            key = form.schema.key
            first = events[one["duplicate"]]
            assert [events[n][name] for name in key] == [first[name] for name in key]
    keys = [tuple(events[n][name] for name in form.schema.key) for n in accepted(form)]
    assert len(set(keys)) == len(keys)


def test_the_reference_reads_each_line_in_the_same_way(form: Form) -> None:
    frame = form.frame
    found = {row[OFFSET] for row in frame.events.to_pylist()}
    for n, line in enumerate(form.lines):
        read = reference.read(line, form.schema, NEVER_MS, 1 << 20, BROKER_MS + 1000 * n)
        assert (read.reason is None) == (n in found)


def test_lines_are_the_same_alone_and_when_rejects_are_read_again(form: Form) -> None:
    whole, decoder = form.frame, form.decoder
    alone = [decoder.decode([messages(form.lines[: n + 1])])[0] for n in range(len(form.lines))]
    assert alone[-1].events.equals(whole.events)
    assert [frame.events.num_rows for frame in alone] == [
        sum(offset <= n for offset in whole.events.column(OFFSET).to_pylist())
        for n in range(len(form.lines))
    ]
    for frame in decoder.decode_again(whole.rejects):
        assert frame.events.num_rows == 0
        assert frame.rejects.equals(whole.rejects)


@pytest.mark.few(6)
def test_samples_are_deduplicated_merged_and_queried(form: Form, partition: Partition) -> None:
    partition.config, partition.blocks_per_chunk = rules(form), 1
    partition.start().take(form.frame)
    partition.blocks.publish()
    assert_queried(forebay.open(partition.root), form)
    counters = partition.manifest().counters
    assert counters.conflicts == 0
    assert counters.duplicates == sum("duplicate" in one for one in form.expected)
    assert counters.rejects == sum("reject" in one for one in form.expected)
    if accepted(form):
        partition.take(_later(form))
        partition.blocks.publish()
        partition.merge()
        (row,) = forebay.open(partition.root).partitions().to_dicts()
        assert row["cold_events"] == len(accepted(form))
        assert_queried(forebay.open(partition.root), form)


def _later(form: Form) -> Frame:
    """The first event a day later, under another key: it evicts all others."""
    first = next(iter(accepted(form)))
    frame = form.decoder.decode([messages([form.lines[first]])])[0]
    events = frame.events.to_pylist()
    name = next(c.name for c in form.schema.columns if c.name in form.schema.key[-1:])
    events[0] |= {
        name: "later" if isinstance(events[0][name], str) else events[0][name],
        UPLOAD_TIME: datetime(2024, 5, 2, 12, tzinfo=UTC),
        OFFSET: len(form.lines),
    }
    batch = frame.events.from_pylist(events, schema=frame.events.schema)
    return Frame(NAME, NAME, len(form.lines), len(form.lines) + 1, batch, frame.rejects.slice(0, 0))


def assert_queried(store: forebay.Store, form: Form) -> None:
    found = store.scan().filter(pl.col(OFFSET) < len(form.lines)).collect()
    assert {row[OFFSET]: shown(row) for row in found.to_dicts()} == accepted(form)
    lines = dict(enumerate(form.lines))
    assert dict(zip(found[OFFSET], found[RAW], strict=True)) == {
        n: lines[n] for n in accepted(form)
    }
    assert store.rejects().collect()["message"].to_list() == [
        lines[n] for n, one in enumerate(form.expected) if "reject" in one
    ]


@pytest.mark.few(6)
def test_copies_go_to_one_hash_partition_and_why_finds_all(
    form: Form, partition: Partition
) -> None:
    owners = hash_partitions(16)
    owner = {
        offset: part.partition
        for part in repartition(form.frame, form.schema.key, owners)
        for offset in part.events.column(OFFSET).to_pylist()
    }
    partition.config = rules(form)
    partition.start().take(form.frame)
    partition.blocks.publish()
    store = forebay.open(partition.root)
    copies: dict[int, list[int]] = {n: [n] for n in accepted(form)}
    for n, one in enumerate(form.expected):
        if "duplicate" in one:
            assert owner[n] == owner[one["duplicate"]]
            copies[one["duplicate"]].append(n)
    events = {row[OFFSET]: row for row in form.frame.events.to_pylist()}
    for n, mine in copies.items():
        answer = store.why({name: events[n][name] for name in form.schema.key})
        found = [one.offset for one in answer.copies if one.what in ("event", "duplicate")]
        assert found == mine


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in FORMS if accepted(Form(name))])
def test_a_job_hands_the_samples_of_a_day_over(name: str, clean: None, tmp_path: Path) -> None:
    form = Form(name)
    own = {key.upper(): value for key, value in FORMS[name].items()}
    job = Job(tmp_path / "job", {"SCHEMA": form.preset, **own, "FILES__PATH": str(tmp_path / "in")})
    path = tmp_path / "in" / "a.ndjson"
    path.parent.mkdir()
    path.write_bytes(b"\n".join(form.lines) + b"\n")
    os.utime(path, (BROKER_MS / 1000, BROKER_MS / 1000))
    assert job.ends(job.run()) == 0, job.told()
    assert taken(job.partitions()) == len(form.lines)
    found = forebay.open(job.data).scan().collect().to_dicts()
    with path.open("ab") as file:
        file.write(_on_the_next_day(form) + b"\n")
    os.utime(path, (BROKER_MS / 1000 + 100_000, BROKER_MS / 1000 + 100_000))
    assert job.ends(job.run()) == 0, job.told()
    wanted, rows = accepted(form), {row[OFFSET]: shown(row) for row in found}
    if form.schema.upload_time is None:  # a file's time stands for the broker's
        wanted = {n: {**one, UPLOAD_TIME: "2024-05-01T09:00:00Z"} for n, one in wanted.items()}
    assert rows == wanted
    report = run_day([job.data], BatchSettings(memory=64 << 20), DAY)
    assert (report.rows, report.duplicates) == (len(wanted), 0)
    every = forebay.open(job.data).scan("all").collect()
    assert sorted(every[OFFSET]) == sorted([*wanted, len(form.lines)])


def _on_the_next_day(form: Form) -> bytes:
    """The first event once more, another one."""
    document = orjson.loads(form.lines[next(iter(accepted(form)))])
    last = next(c for c in form.schema.columns if c.name == form.schema.key[-1])
    *outer, name = last.path
    inside = document
    for one in outer:
        inside = inside[one]
    inside[name] = "later"
    if form.schema.upload_time is not None:
        document[form.schema.upload_time.path[0]] = "2024-05-02T12:00:00Z"
    return orjson.dumps(document)
