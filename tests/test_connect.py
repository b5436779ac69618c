"""`forebay config check --connect`: what the source answers, and what its messages would become."""

from __future__ import annotations

import gzip
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import orjson
import pytest
import zstandard
from click.testing import CliRunner, Result
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from forebay.cli.main import main
from tests.broker import Broker

ROOT = Path(__file__).parent.parent
WAIT_S = 60.0
GOOD = {"device_id": "d", "$insert_id": "i", "server_upload_time": "2024-05-01 00:00:00"}


pytestmark = pytest.mark.usefixtures("alone")


def connect() -> Result:
    return CliRunner().invoke(main, ["config", "check", "--connect"])


def within(seconds: float, command: Callable[[], Result]) -> Result:
    """What it answers. Raises TimeoutError if it takes longer."""
    results: queue.SimpleQueue[Result] = queue.SimpleQueue()
    threading.Thread(target=lambda: results.put(command()), daemon=True).start()
    try:
        return results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"expected an answer within {seconds:.0f} s, got none") from None


def messages(count: int, **fields: object) -> list[bytes]:
    return [orjson.dumps({**GOOD, "$insert_id": f"i{n}", **fields}) for n in range(count)]


# -- files --------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_the_heads_of_files_are_tried(suffix: str, tmp_path: Path) -> None:
    content = b"\n".join([*messages(30), b"", b'{"device_id": 5}', b"half"])
    packed: dict[str, Callable[[bytes], bytes]]
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}
    (tmp_path / "events").mkdir()
    (tmp_path / "events" / f"a.ndjson{suffix}").write_bytes(packed[suffix](content))
    result = connect()
    assert result.exit_code == 0, result.output
    assert "files: 1 at events" in result.stdout
    assert "messages: 32 tried: accepted 30  duplicates 0  rejects 2" in result.stdout
    assert "  1 bad json" in result.stdout
    assert "\nwarning: 2 of 32 messages would be rejects: 1 " in result.stdout
    assert result.stdout.endswith(": no faults, 1 warning\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "events"]


def test_a_schema_of_other_messages_is_a_fault_with_the_reasons_and_a_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "events").mkdir()
    lines = messages(3, note="\x1b[31m")
    (tmp_path / "events" / "a.ndjson").write_bytes(b"\n".join(lines))
    monkeypatch.setenv("FOREBAY_SCHEMA", "segment")
    result = connect()
    assert result.exit_code == 1
    told = "schema: expected messages that can become events, got 3 rejects among 3 (3 no key:"
    assert told in result.stderr
    assert "  3 no key" in result.stdout
    assert "such as a.ndjson 0: no key" in result.stdout
    assert "\x1b" not in result.output


def test_more_rejects_than_events_are_a_fault_with_a_count_of_each_reason(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    lines = [*messages(4), b"{", b"[]", *messages(3, device_id=None)]
    (tmp_path / "events" / "a.ndjson").write_bytes(b"\n".join(lines))
    result = connect()
    assert result.exit_code == 1
    assert "got 5 rejects among 9 (3 no key: device_id, 2 bad json): schema is" in result.stderr
    assert "no faults" not in result.output
    (tmp_path / "events" / "a.ndjson").write_bytes(b"\n".join(messages(4)))
    assert connect().stdout.endswith(": no faults\n")


def test_files_that_cannot_be_read_are_faults_each(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    for name, content in (("a.json.gz", b"no gzip"), ("b.json.zst", b"no zstd")):
        (tmp_path / "events" / name).write_bytes(content)
    result = connect()
    assert result.exit_code == 1
    told = sorted(result.stderr.splitlines())
    assert len(told) == 2
    for line, name, kind in zip(told, ("a.json.gz", "b.json.zst"), ("gzip", "zstd"), strict=True):
        assert f"files.path: file events/{name}: expected {kind} data, " in line


def test_a_pipe_that_nobody_writes_to_is_a_fault_and_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    for name in ("a.json", "b.json.gz", "c.json.zst"):
        os.mkfifo(tmp_path / "events" / name)
    done = subprocess.run(
        [sys.executable, "-m", "forebay", "config", "check", "--connect"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
    )
    assert done.returncode == 1
    assert done.stderr.count("expected a plain file, got a pipe") == 3


def test_what_the_job_would_read_is_tried_and_what_it_would_refuse_is_a_fault(
    tmp_path: Path,
) -> None:
    """All frames of a file are read; a window beyond the limit is none that the job takes."""
    (tmp_path / "events").mkdir()
    frames = (zstandard.compress(line + b"\n") for line in messages(20))
    (tmp_path / "events" / "a.json.zst").write_bytes(b"".join(frames))
    assert "messages: 20 tried: accepted 20 " in connect().stdout
    wide = zstandard.ZstdCompressionParameters(window_log=28, enable_ldm=True)
    packing = zstandard.ZstdCompressor(compression_params=wide).compressobj()
    frame = packing.compress(b"{}\n") + packing.flush()
    (tmp_path / "events" / "b.json.zst").write_bytes(frame)
    result = connect()
    assert result.exit_code == 1
    assert "b.json.zst: expected a zstd frame with a window of at most 128 MiB" in result.stderr


def test_a_small_file_that_unpacks_to_much_is_read_to_a_bound(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    bomb = zstandard.ZstdCompressor().compress(b" " * (1 << 30))
    (tmp_path / "events" / "a.json.zst").write_bytes(bomb)
    assert "messages: none there to try" in connect().stdout


# -- a topic ------------------------------------------------------------------------------------


def test_a_broker_that_does_not_answer_is_a_fault_within_a_bounded_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("forebay.cli.connect.ANSWER_S", 1.0)
    monkeypatch.setenv("FOREBAY_SOURCE", "kafka")
    monkeypatch.setenv("FOREBAY_KAFKA__BOOTSTRAP", "127.0.0.1:1")
    result = within(WAIT_S, connect)
    assert result.exit_code == 1
    assert "kafka.bootstrap: expected an answer from 127.0.0.1:1 within 1 s" in result.stderr
    assert "Connection refused" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_heard_while_a_broker_is_waited_for() -> None:
    code = (
        "import forebay.cli.connect as c, forebay.cli.main\n"
        f"c.ANSWER_S = {100 * WAIT_S}\n"
        "forebay.cli.main.main(['config', 'check', '--connect'])\n"
    )
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(WAIT_S)
        own = {"SOURCE": "kafka", "KAFKA__BOOTSTRAP": f"127.0.0.1:{silent.getsockname()[1]}"}
        given = {f"FOREBAY_{name}": text for name, text in own.items()}
        with subprocess.Popen(
            [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT), **given},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        ) as asking:  # fmt: skip
            connection, _ = silent.accept()
            asking.send_signal(signal.SIGINT)
            assert asking.communicate(timeout=WAIT_S) == ("", "")
            connection.close()
        assert asking.returncode == 130


@pytest.fixture
def topic(broker: Broker, monkeypatch: pytest.MonkeyPatch) -> str:
    name = f"clicks-{uuid.uuid4().hex[:8]}"
    broker.create_topic(name, 3)
    monkeypatch.setenv("FOREBAY_SOURCE", "kafka")
    monkeypatch.setenv("FOREBAY_KAFKA__BOOTSTRAP", broker.address)
    monkeypatch.setenv("FOREBAY_KAFKA__TOPIC", name)
    return name


def _produce(broker: Broker, topic: str, values: list[bytes]) -> None:
    producer = Producer({"bootstrap.servers": broker.address})
    for number, value in enumerate(values):
        producer.produce(topic, value, partition=number % 3)
    assert producer.flush(30) == 0


@pytest.mark.kafka
def test_a_topic_is_asked_and_its_newest_messages_are_tried(broker: Broker, topic: str) -> None:
    _produce(broker, topic, [*messages(500), b"{", b"[]"])
    result = connect()
    assert result.exit_code == 0, result.output
    assert f"topic {topic} has 3 partitions" in result.stdout
    assert "messages: 102 tried: accepted 100  duplicates 0  rejects 2" in result.stdout
    assert "  2 bad json" in result.stdout


@pytest.mark.kafka
def test_a_topic_that_ends_in_markers_of_transactions_is_not_waited_for(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.cli.connect.READ_S", 100 * WAIT_S)
    out = Producer({"bootstrap.servers": broker.address, "transactional.id": topic})
    out.init_transactions(30)
    for keep in (True, False):
        out.begin_transaction()
        for number, value in enumerate(messages(30)):
            out.produce(topic, value, partition=number % 3)
        assert out.flush(30) == 0
        (out.commit_transaction if keep else out.abort_transaction)(30)
    result = within(WAIT_S, connect)
    assert result.exit_code == 0, result.output
    assert "messages: 30 tried: accepted 30 " in result.stdout


@pytest.mark.kafka
def test_a_topic_without_messages_is_no_fault(topic: str) -> None:
    result = connect()
    assert result.exit_code == 0, result.output
    assert "messages: none there to try" in result.stdout


@pytest.mark.kafka
def test_a_topic_that_is_not_there_is_a_fault_with_the_name_most_like_it_and_is_not_created(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_KAFKA__TOPIC", f"{topic[:-1]}_")
    result = connect()
    assert result.exit_code == 1
    assert f"kafka.topic: expected a topic of {broker.address}, got" in result.stderr
    assert f"did you mean '{topic}'?" in result.stderr
    topics = AdminClient({"bootstrap.servers": broker.address}).list_topics(timeout=10).topics
    assert f"{topic[:-1]}_" not in topics


@pytest.mark.kafka
def test_a_broker_that_wants_no_password_tells_who_brings_one(
    broker: Broker, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.cli.connect.ANSWER_S", 2.0)
    own = {
        "security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN", "sasl.username": "me",
        "sasl.password": "hunter2hunter2",
    }  # fmt: skip
    monkeypatch.setenv("FOREBAY_KAFKA__LIBRDKAFKA", orjson.dumps(own).decode())
    result = connect()
    assert result.exit_code == 1
    assert "kafka.bootstrap: expected an answer" in result.stderr
    assert "hunter2hunter2" not in result.output
