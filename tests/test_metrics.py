"""Metrics of a real job, scraped as Prometheus scrapes them and read by prometheus-client's parser:
they are the oracle's, in base units, over SIGKILL, with a partition that stands still and one to
which nothing comes.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import time
import urllib.request
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from forebay.cli.load import LoadSpec
from forebay.flows.hosts import Address
from forebay.flows.metrics import Published
from forebay.flows.settings import load as load_settings
from forebay.storage.base.errors import PERMANENT, BadInput
from forebay.storage.base.layout import Layout
from tests import engine
from tests.broker import Broker, _free_port, produce
from tests.job import STALL_S, Job, children, generated, taken

engine.need()

MakeJob = Callable[..., Job]
NOW_MS = time.time_ns() // 1_000_000
SPEC = LoadSpec(
    events=6_000,
    partitions=2,
    seed=17,
    start_ms=NOW_MS - 3_600_000,
    span_ms=45 * 60_000,
    late=0.01,
    broken=0.02,
    duplicates=0.05,
)
UNITS = ("_total", "_seconds", "_bytes", "_messages", "_events", "_blocks", "_chunks", "_records")


class Scrape:
    """What one scrape found."""

    def __init__(self, port: int) -> None:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=STALL_S) as answer:
            text = answer.read().decode()
        self.families: list[Metric] = [*text_string_to_metric_families(text)]
        self._samples = [one for family in self.families for one in family.samples]

    def value(self, name: str, **labels: str) -> float:
        found = [one for one in self._samples if one.name == name and one.labels == labels]
        if not found:
            raise LookupError(f"{name} {labels}")
        [sample] = found
        return sample.value

    def sum(self, name: str) -> float:
        return sum(one.value for one in self._samples if one.name == name)


def scraped(
    process: subprocess.Popen[bytes], job: Job, port: int, reached: Callable[[Scrape], bool]
) -> Scrape:
    """The first scrape of which `reached` says so."""
    deadline = time.monotonic() + STALL_S
    while True:
        try:
            found = Scrape(port)
            if reached(found):
                return found
        except (OSError, LookupError):  # no port yet, or no worker yet
            pass
        assert time.monotonic() < deadline, job.told()
        assert process.poll() is None, job.told()
        time.sleep(0.05)


@pytest.mark.long
@pytest.mark.kafka
@pytest.mark.executed
def test_metrics_of_a_job_are_the_oracles_over_sigkill_and_tell_stalled_from_idle(
    broker: Broker, make_job: MakeJob
) -> None:
    topic = f"t{uuid.uuid4().hex[:8]}"
    load = generated(SPEC, f"{topic}-{{:05d}}", NOW_MS)
    (first, messages), (second, others) = load.messages.items()
    broker.create_topic(topic, SPEC.partitions)
    produce(broker, topic, 0, messages[:-100])
    produce(broker, topic, 1, others)
    port = _free_port()
    job = make_job(
        SOURCE="kafka", KAFKA__BOOTSTRAP=broker.address, KAFKA__TOPIC=topic,
        METRICS=f"127.0.0.1:{port}", EPOCH_INTERVAL="100ms", BLOCKS_PER_CHUNK="1",
    )  # fmt: skip
    process = job.run()
    job.until(process, lambda found: taken(found) == load.count - 100)
    merged = scraped(
        process, job, port,
        lambda found: found.sum("forebay_merges_total") > 0
        and found.sum("forebay_lag_messages") == 0,
    )  # fmt: skip
    assert merged.value("forebay_source_up") == 1
    assert merged.sum("forebay_sync_seconds_count") > 0
    assert merged.sum("forebay_snapshot_seconds_count") >= merged.sum("forebay_sync_seconds_count")
    _assert_conventional(merged)
    _assert_documented(merged)

    [worker] = children(process.pid)
    os.kill(worker, signal.SIGSTOP)
    produce(broker, topic, 0, messages[-100:])
    stalled = scraped(
        process, job, port,
        lambda found: found.value("forebay_stalled_seconds", partition=first) > 0.2,
    )  # fmt: skip
    assert stalled.value("forebay_lag_messages", partition=first) == 100
    assert stalled.value("forebay_lag_seconds", partition=first) > 0
    for name in ("lag_messages", "lag_seconds", "stalled_seconds"):
        assert stalled.value(f"forebay_{name}", partition=second) == 0

    os.kill(worker, signal.SIGKILL)
    after = scraped(
        process, job, port,
        lambda found: found.value("forebay_starts_total") == 2
        and found.sum("forebay_lag_messages") == 0
        and found.sum("forebay_sync_seconds_count") > 0,
    )  # fmt: skip
    for name, oracle in load.oracles.items():
        expected = {
            "forebay_events_accepted_total": oracle.accepted,
            "forebay_events_duplicate_total": oracle.duplicates,
            "forebay_events_late_total": oracle.late,
        }
        assert expected == {one: after.value(one, partition=name) for one in expected}
        assert after.value("forebay_stalled_seconds", partition=name) == 0
        cold = after.value("forebay_cold_events", partition=name)
        assert cold + after.value("forebay_hot_events", partition=name) == oracle.accepted
    assert after.sum("forebay_rejects") == sum(one.rejects for one in load.oracles.values())
    assert after.value("forebay_epoch_age_seconds") < STALL_S
    assert 0 < after.value("forebay_disk_free_bytes") <= after.value("forebay_disk_size_bytes")
    assert after.sum("forebay_waiting_bytes") > 0
    assert after.sum("forebay_stream_time_behind_seconds") > 0
    assert job.stop(process) == 0, job.told()


def _assert_conventional(found: Scrape) -> None:
    """Names have a prefix, base units, and a help text."""
    for family in found.families:
        assert family.name.startswith("forebay_")
        assert family.documentation
        counted = "_total" if family.type == "counter" else ""
        known = ("forebay_rejects", "forebay_next_offset", "forebay_batch_number",
                 "forebay_source_up")  # fmt: skip
        assert f"{family.name}{counted}".endswith((*UNITS, *known)), family.name


def _assert_documented(found: Scrape) -> None:
    """Their page has each of them, and no other. (No day was handed over.)"""
    page = (Path(__file__).parent.parent / "docs" / "metrics.md").read_text()
    told = set(re.findall(r"forebay_(?!serve_)[a-z_]+", page))
    ours = {f"{one.name}{'_total' if one.type == 'counter' else ''}" for one in found.families}
    assert told == ours | {"forebay_handoff_age_seconds"}


@pytest.fixture
def done(make_job: MakeJob, tmp_path: Path) -> Job:
    """A job that has read two files to their ends."""
    load = generated(SPEC, "p{}.ndjson", NOW_MS)
    events = tmp_path / "events"
    events.mkdir()
    for name, messages in load.messages.items():
        (events / name).write_bytes(b"\n".join(messages) + b"\n")
    job = make_job(FILES__PATH=str(events))
    assert job.ends(job.run()) == 0, job.told()
    return job


def test_ends_that_the_source_does_not_tell_are_those_last_known_and_time_is_as_scrapes_saw_it(
    done: Job,
) -> None:
    count = done.partitions()["next_offset"].to_list()
    ends: dict[str, int] = {}
    now_s = 100.0
    published = Published(
        Layout(done.data), lambda _: ends, steady=lambda: now_s, wall=lambda: 1e10
    )

    def lags() -> dict[str, list[float]]:
        found = {family.name: family for family in published.collect()}
        names = ("lag_messages", "lag_seconds", "stalled_seconds")
        assert found["forebay_source_up"].samples[0].value == float(bool(ends))
        return {one: [s.value for s in found[f"forebay_{one}"].samples] for one in names}

    assert lags() == {"lag_messages": [0, 0], "lag_seconds": [0, 0], "stalled_seconds": [0, 0]}
    ends |= {"p0.ndjson": count[0] + 5, "p1.ndjson": count[1]}
    assert lags() == {"lag_messages": [5, 0], "lag_seconds": [0, 0], "stalled_seconds": [0, 0]}
    now_s = 130.0
    ends["p0.ndjson"] += 2
    assert lags() == {"lag_messages": [7, 0], "lag_seconds": [30, 0], "stalled_seconds": [30, 0]}
    ends["p0.ndjson"] = count[0]
    assert lags() == {"lag_messages": [0, 0], "lag_seconds": [0, 0], "stalled_seconds": [0, 0]}


def test_a_manifest_that_cannot_be_read_is_counted_and_hides_no_other(done: Job) -> None:
    layout = Layout(done.data)
    published = Published(layout, None)
    path = layout.manifest("p0.ndjson")
    path.write_bytes(path.read_bytes()[:-30])
    found = {family.name: family for family in published.collect()}
    assert found["forebay_unreadable_records"].samples[0].value == 1
    accepted = {one.labels["partition"] for one in found["forebay_events_accepted"].samples}
    assert accepted == {"p1.ndjson"}
    assert "forebay_source_up" not in found


def test_a_taken_port_is_an_error_in_a_line(make_job: MakeJob, tmp_path: Path) -> None:
    (tmp_path / "a.ndjson").write_bytes(b"{}\n")
    with socket.socket() as taking:
        taking.bind(("127.0.0.1", 0))
        taking.listen()
        port = taking.getsockname()[1]
        job = make_job(FILES__PATH=str(tmp_path / "a.ndjson"), METRICS=f"127.0.0.1:{port}")
        assert job.ends(job.run()) == PERMANENT
    assert re.search(rf"Error: metrics: expected 127.0.0.1:{port} to be a free port", job.told())


def test_where_to_ask_is_an_address_with_a_port(alone: None) -> None:
    with pytest.raises(BadInput, match=r"metrics: expected NAME:PORT, such as a:2101, got '9464'"):
        load_settings(metrics="9464")
    assert load_settings(metrics="[::1]:9464").metrics == str(Address("::1", 9464))
