"""`forebay serve` when something goes wrong: questions that take too much, clients that leave or
are slow, processes that are killed. Each costs one answer, and nothing else."""

from __future__ import annotations

import http.client
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.serving import LONG, Reply, Server, ended, filled

SMALL = "select count(*) as n from events"
WIDE = "select range as n, repeat('x', 1000) as text from range(60000)"
WIDE_BYTES = 60_000_000

Start = Callable[..., Server]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    partition = filled(tmp_path_factory.mktemp("served") / "data")
    yield partition.root
    partition.crash()


@pytest.fixture
def start(root: Path) -> Iterator[Start]:
    made: list[Server] = []

    def start(*options: str) -> Server:
        made.append(Server(root, *options))
        return made[-1]

    yield start
    for server in made:
        server.close()


class Asked:
    """A question that is asked on the side."""

    def __init__(self, server: Server, text: str) -> None:
        self.reply: Reply | None = None
        self._thread = threading.Thread(target=self._ask, args=(server, text))
        self._thread.start()

    def _ask(self, server: Server, text: str) -> None:
        self.reply = server.sql(text)

    def answer(self) -> Reply:
        self._thread.join()
        assert self.reply is not None
        return self.reply


def replaced(reason: str) -> str:
    return f'forebay_serve_workers_replaced_total{{reason="{reason}"}}'


def memory(pid: int) -> int:
    pages = Path(f"/proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.long
def test_a_worker_that_is_killed_costs_its_own_question_only(start: Start) -> None:
    server = start("--workers", "2")
    long = Asked(server, LONG)
    os.kill(server.busiest(), signal.SIGKILL)
    assert server.sql(SMALL).status == 200
    answer = long.answer()
    assert (answer.status, answer.json["status"]) == (502, 502)
    server.until(replaced("ended"), 1)
    assert [server.sql(f"{SMALL} -- {n}").status for n in range(4)] == [200] * 4


def test_a_question_ends_at_its_deadline_with_its_worker(start: Start) -> None:
    server = start("--workers", "1", "--timeout", "1s")
    answer = server.sql(LONG)
    assert answer.status == 504
    assert answer.json["detail"] == "expected an answer within 1 s, got none"
    assert server.sql(SMALL).status == 200
    server.until(replaced("deadline"), 1)


@pytest.mark.long
def test_a_question_that_takes_too_much_memory_ends_with_its_worker(start: Start) -> None:
    server = start("--workers", "1", "--memory", "450MiB")
    answer = server.sql("select sum(length(repeat('x' || range, 100000000))) from range(16)")
    assert answer.status == 507, answer.body
    assert "at most 450 MiB of memory" in answer.json["detail"]
    assert server.sql(SMALL).status == 200
    server.until(replaced("memory"), 1)


def test_nobody_works_for_a_client_that_has_left(start: Start) -> None:
    server = start("--workers", "1", "--max-waiting", "1")
    with server.asked("/v1/sql", {"text": LONG}):
        server.until("forebay_serve_busy", 1)
    server.until(replaced("left"), 1)
    assert server.sql(SMALL).status == 200


@pytest.mark.long
def test_a_question_that_others_wait_for_goes_on_without_the_first(start: Start) -> None:
    server = start("--workers", "1")
    text = "select count(*) as n from range(400000000) where range % 7 = 3"
    with server.asked("/v1/sql", {"text": text}):
        server.until("forebay_serve_busy", 1)
        other = Asked(server, text)
        server.until("forebay_serve_shared_total", 1)
    assert other.answer().json == [{"n": 57142857}]
    assert server.metric(replaced("left")) == 0


@pytest.mark.long
def test_what_is_too_much_at_once_is_told_when_to_ask_again(start: Start) -> None:
    server = start("--workers", "1", "--max-waiting", "0")
    with server.asked("/v1/sql", {"text": LONG}):
        server.until("forebay_serve_busy", 1)
        answer = server.sql(SMALL)
        assert (answer.status, answer.headers["retry-after"]) == (429, "1")
    server.until(replaced("left"), 1)
    assert server.sql(SMALL).status == 200


@pytest.mark.long
def test_a_slow_client_holds_up_nobody_and_no_memory(start: Start) -> None:
    server = start("--workers", "2")
    assert server.sql(SMALL).status == 200
    before = memory(server.process.pid)
    connection = server.connection()
    connection.request("GET", "/v1/sql?format=ndjson&text=" + WIDE.replace(" ", "%20"))
    answer = connection.getresponse()
    first = answer.read(1000)
    assert [server.sql(f"{SMALL} -- {n}").status for n in range(8)] == [200] * 8
    assert memory(server.process.pid) < before + (24 << 20)
    size = len(first)
    while part := answer.read(1 << 20):
        size += len(part)
    connection.close()
    assert size > WIDE_BYTES


@pytest.mark.long
def test_an_answer_that_breaks_off_is_never_whole(start: Start) -> None:
    server = start("--workers", "1", "--max-rows", "300000")
    text = "select range as n, md5(range::varchar) as text from range(400000)"
    for kind in ("ndjson", "json", "csv", "arrow", "parquet"):
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            server.ask("/v1/sql", {"text": text, "format": kind})
    for rows, status in ((300_000, 200), (300_001, 422)):
        text = f"select 1 from range({rows})"
        assert server.ask("/v1/sql", {"text": text, "format": "parquet"}).status == status
    server.until("forebay_serve_cut_total", 5)


@pytest.mark.long
def test_a_client_that_can_t_tell_the_end_gets_no_large_answer(start: Start) -> None:
    server = start("--workers", "1")
    with server.asked("/livez", {}) as client:
        while b"live\n" not in client.recv(65536):
            pass
        address = "/v1/sql?text=" + WIDE.replace(" ", "%20")
        client.sendall(f"GET {address} HTTP/1.0\r\nHost: localhost\r\n\r\n".encode())
        assert client.recv(65536).startswith(b"HTTP/1.1 505")
    assert server.sql(SMALL).status == 200


@pytest.mark.few(1)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_is_left_however_the_server_ends(start: Start, number: int) -> None:
    server = start("--workers", "1")
    with (
        server.asked("/v1/sql", {"text": LONG}),
        server.asked("/v1/events", {"last": "1"}) as client,
    ):
        assert client.recv(65536)
        server.until("forebay_serve_busy", 1)
        workers = server.children
        assert len(workers) in (3, 4)  # the one that compiles ends when it is done
        code = server.stop(number)
    assert ended(workers)
    codes: dict[int, int] = {signal.SIGTERM: 0, signal.SIGINT: 130}
    assert code == codes.get(number, -number)
    assert server.process.stderr is not None
    assert b"Traceback" not in server.process.stderr.read()


def test_a_follower_that_reads_too_slowly_is_told_what_it_missed() -> None:
    from forebay.serve.feed import HELD_BYTES, SENT_BYTES, _Client

    client = _Client()
    line = b'{"n":1}\n'
    client.put(2, 0, line * 2)
    client.put(9, 0, b"x" * HELD_BYTES)
    client.put(0, 3, b"")
    messages = [
        *(b'data: {"n":1}\nid: %b-%d' % (client.name.encode(), n) for n in (1, 2)),
        b'event: missed\ndata: {"missed":12}\nid: %b-3' % client.name.encode(),
    ]
    assert client.taken().split(b"\n\n") == [*messages, b""]
    assert client.since(1) == b"\n\n".join([*messages[1:], b""])
    assert (client.since(3), client.since(4)) == (b"", None)
    client.put(9, 0, b'{"n":2}\n' * (SENT_BYTES // 8))
    assert client.taken().count(b"data: ") == SENT_BYTES // 8
    assert client.since(3) is None


@pytest.mark.long
def test_a_stream_of_events_goes_on_with_another_process(start: Start) -> None:
    server = start("--workers", "1")
    feeds = set()
    for _ in range(2):
        with server.asked("/v1/events", {"last": "1"}) as client:
            received = b""
            while b"data: " not in received:
                more = client.recv(65536)
                assert more, received
                received += more
            feed = max(server.children)
            feeds.add(feed)
            os.kill(feed, signal.SIGKILL)
            while received := client.recv(65536):
                pass
    assert len(feeds) == 2
