"""What a job says of rejects: while it runs, and when it ends."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import orjson
import pyarrow as pa
import pytest

from forebay.cli.summary import summary
from forebay.operators.reject_watch import EVERY_S, FIRST_S, RejectWatch
from forebay.storage.formats.frame import REJECT_SCHEMA, Frame
from forebay.storage.formats.outcome import Outcome
from tests.job import Job
from tests.lane import Lane, filled

MakeJob = Callable[..., Job]
EVENT = {"device_id": "d", "$insert_id": "i", "server_upload_time": "2024-05-01 00:00:00"}


def messages(count: int) -> bytes:
    lines = [
        orjson.dumps({**EVENT, "$insert_id": f"i{n}", "note": "\x1b[31m"}) for n in range(count)
    ]
    return b"\n".join(lines) + b"\n"


@pytest.fixture
def job(make_job: MakeJob, tmp_path: Path) -> Job:
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / "a.ndjson").write_bytes(messages(50) + b"{\n")
    return make_job(FILES__PATH=str(tmp_path / "events"))


def test_a_job_with_a_schema_of_other_messages_says_so_in_its_last_line(job: Job) -> None:
    job.settings["SCHEMA"] = "segment"
    assert job.ends(job.run()) == 0, job.told()
    told = job.told().splitlines()
    at = told.index(f"in {job.data} now: accepted 0  duplicates 0  rejects 51")
    assert told[at + 1 :][:2] == ["  50 no key: message_id", "  1 bad json"]
    assert told[at + 3].startswith("  such as a.ndjson 50: bad json")
    assert told[-1].startswith("no message became an event: is schema the right one")
    assert "\x1b" not in job.told()


def test_a_job_whose_messages_are_events_says_how_many(job: Job) -> None:
    assert job.ends(job.run(2)) == 0, job.told()
    *_, counts, reason, sample = job.told().splitlines()
    assert counts == f"in {job.data} now: accepted 50  duplicates 0  rejects 1"
    assert (reason, sample[:30]) == ("  1 bad json", "  such as a.ndjson 50: bad jso")


def test_a_job_that_is_stopped_says_it_too(make_job: MakeJob, tmp_path: Path) -> None:
    """Waiting for a broker, it has read nothing yet."""
    job = make_job(SOURCE="kafka", KAFKA__BOOTSTRAP="127.0.0.1:1")
    assert job.stop(job.run()) == 0
    assert job.told().splitlines()[-2:] == [
        f"{job.data}: no message was read yet",
        "stopped as asked; the next run continues there",
    ]


def test_a_job_that_cannot_work_gives_no_summary(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job(FILES__PATH=str(tmp_path / "nowhere"))
    assert job.ends(job.run()) != 0
    assert "accepted" not in job.told()


def test_a_summary_of_damaged_data_fails_nothing(tmp_path: Path) -> None:
    lane = filled(Lane(tmp_path / "data").start())
    lane.files.close()
    for log in (lane.root / "rejects" / "p00").glob("*.arrows"):
        log.write_bytes(bytes(log.stat().st_size))
    (line,) = summary(lane.root)
    assert line.startswith(f"{lane.root}: no summary: log ")


def test_a_supervisor_imports_nothing_for_the_summary_before_the_end() -> None:
    import subprocess

    code = (
        "import sys, forebay.cli.run, forebay.flows.cluster, forebay.flows.settings\n"
        "print([name for name in ('pyarrow', 'polars', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


# -- while it runs ------------------------------------------------------------------------------


def frame(events: int, rejects: int) -> Frame:
    rows = [
        {"_partition": "p0", "_offset": n, "reason": "no key", "detail": "id: expected a value",
         "message": b"\x1b[31m"}
        for n in range(rejects)
    ]  # fmt: skip
    return Frame(
        "p0", "p0", 0, events + rejects, pa.RecordBatch.from_pydict({"n": list(range(events))}),
        pa.RecordBatch.from_pylist(rows, schema=REJECT_SCHEMA),
    )  # fmt: skip


def test_most_messages_being_rejects_is_warned_of_now_and_then_with_a_sample(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    watch = RejectWatch(clock=lambda: now[0])
    with caplog.at_level(logging.WARNING, "forebay.rejects"):
        watch.take(frame(0, 10))
        assert caplog.messages == []
        now[0] = FIRST_S
        watch.take(frame(5, 10))
        (told,) = caplog.messages
        assert told.startswith(
            "20 of the last 25 messages are rejects (20 no key: id), such as p0 0"
        )
        assert "\x1b" not in told
        assert "forebay config check --connect" in told
        now[0] += EVERY_S - 1
        watch.take(frame(0, 1000))
        assert len(caplog.messages) == 1
        now[0] += 1
        watch.take(frame(0, 0))
        assert len(caplog.messages) == 2


def test_some_rejects_among_events_are_not_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    now = [0.0]
    watch = RejectWatch(clock=lambda: now[0])
    watch.take(frame(10, 9))
    now[0] = FIRST_S
    watch.take(frame(0, 1))
    assert caplog.messages == []


def test_reasons_are_told_the_most_frequent_first() -> None:
    found = Outcome(accepted=1_000, duplicates=2, rejects=12)
    found.reasons.update({"bad json": 4, "no key: id": 8})
    assert found.lines() == [
        "accepted 1,000  duplicates 2  rejects 12", "  8 no key: id", "  4 bad json",
    ]  # fmt: skip
