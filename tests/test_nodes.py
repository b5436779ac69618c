"""Stores over other nodes: the answers of one data directory that has everything, each event once,
or an error that names the node; and servers and commands over other nodes.

Nodes are real servers, lines to them real sockets.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

import forebay
from forebay.cli.main import main
from forebay.query import Node
from forebay.query.analytics.period import Period
from forebay.query.exchange import PROTOCOL, Offer, Wanted
from forebay.query.folded import can_fold, folded, unfolded, with_times
from forebay.query.node import places_of
from forebay.query.pushed import pushed
from forebay.serve.tokens import add_token
from forebay.storage.base.errors import BadInput, NodeError
from tests import forked
from tests.nodes import NODES, Line, line, nodes
from tests.nodes import Node as Directory
from tests.serving import WAIT_S, Server
from tests.shop import FIRST

QUERIES = (
    "select count(*) as n from events",
    "select kind, count(*) as n, count(distinct who) as users from events group by all order by 1",
    "select count(distinct who) as users from events where kind = 'search' and visit >= 1",
    "select * from events order by id",
    "select raw->>'$.user_properties.plan' as plan, count(*) from events group by all order by all",
    "select count(*) as n from events where upload_time >= timestamptz '2024-05-02 00:00:00+00'",
    "select count(*) as n from events where kind in ('signup', 'purchase') or price > 3",
    "select count(*) as n from events a join events b using (who)",
    "select count(*) as n from events_late",
    "select _partition, _offset, reason, message from rejects order by all",
)
COUNT = QUERIES[0]


@dataclass
class Nodes:
    """Three servers, the directory that each serves, and the directory of all."""

    servers: list[Server]
    several: list[Directory]
    one: Directory

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{server.port}" for server in self.servers]

    @property
    def oracle(self) -> forebay.Store:
        return forebay.open(self.one.root)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    several, one = nodes(tmp_path_factory.mktemp("nodes"))
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # as each test has it
            patch.setattr(subprocess, "Popen", forked.Forked)
            servers = [serve(node.root) for node in several]
        for server in servers:
            stack.callback(server.close)
        for node in (*several, one):
            stack.callback(node.close)
        yield Nodes(servers, several, one)


@pytest.fixture
def fresh(tmp_path: Path) -> Iterator[tuple[list[Directory], Directory]]:
    """Nodes that are not served yet, and the directory of all."""
    several, one = nodes(tmp_path)
    yield several, one
    for node in (*several, one):
        node.close()


def serve(root: Path, *options: str) -> Server:
    """With one worker: a query that needs several answers of a node at once must not wait for
    itself."""
    return Server(root, "--workers", "1", *options)


def count(store: forebay.Store) -> int:
    return int(store.sql(COUNT).item())


def without(oracle: forebay.Store, number: int) -> int:
    """How many events there are but for a partition."""
    return int(oracle.sql(f"{COUNT} where _partition <> 's{number}'").item())


# -- the same answers -----------------------------------------------------------------------------


def test_the_oracle_has_hot_and_cold_events_of_each_node(made: Nodes) -> None:
    found = made.oracle.partitions()
    assert found.height == NODES
    assert found.filter((pl.col("hot_events") > 0) & (pl.col("cold_events") > 0)).height == NODES


@pytest.mark.few(3)
@pytest.mark.parametrize("text", QUERIES)
def test_a_query_over_nodes_and_directories_is_answered_as_over_one_directory(
    made: Nodes, text: str
) -> None:
    store = forebay.open(*made.urls[:2], made.several[2].root)
    assert_frame_equal(store.sql(text), made.oracle.sql(text))


def test_a_lazy_frame_has_each_event_once(made: Nodes) -> None:
    store = forebay.open(*made.urls)
    expected = made.oracle.scan().sort("id").collect()
    assert_frame_equal(store.scan().sort("id").collect(), expected)
    kinds, since = pl.col("kind").is_in(["search", "signup"]), datetime(2024, 5, 2, 3, tzinfo=UTC)
    some = (kinds & (pl.col("upload_time") >= since)) | (pl.col("visit") == 0)
    for store in (forebay.open(*made.urls), made.oracle):
        found = store.scan().filter(some).select("id", "price").sort("id").collect()
        assert_frame_equal(found, expected.filter(some).select("id", "price"))


def test_a_stream_has_each_event_once(made: Nodes) -> None:
    store = forebay.open(made.several[0].root, *made.urls[1:])
    expected = made.oracle.scan().sort("id").collect()
    assert_frame_equal(pl.DataFrame(store.stream().read_all()).sort("id"), expected)
    assert store.count_rows() == expected.height
    assert store.to_table(columns=["who"]).num_rows == expected.height
    rejects = pl.DataFrame(store.stream("rejects").read_all())
    assert rejects.height == made.oracle.rejects().collect().height == 2 * NODES


HOUR, LAST = timedelta(hours=1), FIRST + timedelta(days=3)


def _before(one: forebay.Store) -> pl.DataFrame:
    """The period before one that is cut within a day."""
    period = Period(FIRST + timedelta(days=1, hours=1), LAST)
    found = one.segmentation("search", period, compare=True, now=LAST - HOUR).before
    assert found is not None
    return found


ASKS: list[Callable[[forebay.Store], pl.DataFrame]] = [
    lambda one: one.segmentation("search", by="country").over_time,
    lambda one: one.segmentation("search").overall,
    lambda one: one.segmentation("search", Period(FIRST, LAST, "hour", "Asia/Kathmandu")).over_time,
    _before,
    lambda one: one.lifecycle().over_time,
    lambda one: one.stickiness().over_time,
    lambda one: one.funnel(["search", "purchase"], window=timedelta(days=2)).steps,
    lambda one: one.retention("search", days=2).overall,
    lambda one: one.timeline("u1").events,
]


@pytest.mark.few(1)
@pytest.mark.parametrize("ask", ASKS)
def test_questions_about_users_are_exact_over_nodes(
    made: Nodes, ask: Callable[[forebay.Store], pl.DataFrame]
) -> None:
    """Users have events on all nodes: parts of an answer can't be added up."""
    store, oracle = forebay.open(*made.urls[:1], *(n.root for n in made.several[1:])), made.oracle
    assert_frame_equal(ask(store), ask(oracle))
    assert store.roles() == oracle.roles()


def test_a_receipt_says_what_each_node_has(made: Nodes) -> None:
    store = forebay.open(*made.urls)
    receipt, expected = store.receipt(), made.oracle.receipt()
    assert (receipt.hot_rows, receipt.cold_rows) == (expected.hot_rows, expected.cold_rows)
    assert [one.node for one in receipt.nodes] == made.urls
    assert [one.missing for one in receipt.nodes] == [None] * NODES
    assert [(one.node, one.next_offsets) for one in receipt.partitions] == [
        (url, one.next_offsets) for url, one in zip(made.urls, expected.partitions, strict=True)
    ]


def test_only_what_a_query_needs_leaves_a_node(made: Nodes) -> None:
    with line(made.servers[0].port) as to:
        store = forebay.open(to.url)
        carried: list[int] = []
        for text in (
            "select * from events",
            "select id, who from events",
            "select who from events where id = 's0-1'",
            "select who from events where upload_time < timestamptz '2020-01-01'",
        ):
            store.sql(text)
            carried.append(to.carried - sum(carried))
        assert carried == sorted(carried, reverse=True)
        assert carried[0] > 2 * carried[1]
        scans = to.scans
        store.scan().filter(pl.col("id") == "s0-1").select("who").collect()
        assert to.carried - sum(carried) < carried[1]
        assert to.scans == scans + 1


# -- one boundary, each partition once -------------------------------------------------------------


def test_a_node_a_day_behind_in_its_handoff_does_not_double_or_lose_an_event(
    fresh: tuple[list[Directory], Directory],
) -> None:
    several, one = fresh
    for node in (*several, one):
        node.seal(1)
    for number, node in enumerate(several):
        node.late(number)
        one.late(number)
    for node in (*several[:2], one):
        node.complete()
    servers = [serve(several[0].root), serve(several[2].root)]
    try:
        ahead, behind = (f"http://127.0.0.1:{server.port}" for server in servers)
        store, oracle = forebay.open(ahead, several[1].root, behind), forebay.open(one.root)
        assert count(oracle) < made_before(one)
        for text in ("select * from events order by id", "select * from events_late order by id"):
            expected = oracle.sql(text)
            assert expected.height
            assert_frame_equal(store.sql(text), expected)
        receipt = store.receipt()
        assert receipt.covered_until == oracle.receipt().covered_until
        assert [found.batch_number for found in receipt.nodes] == [1, 1, 0]
        assert receipt.nodes[2].covered_until is None
        found, expected = (one.scan().sort("id").collect() for one in (store, oracle))
        assert_frame_equal(found, expected)
    finally:
        for server in servers:
            server.close()


def made_before(one: Directory) -> int:
    return sum(partition.manifest().counters.accepted for partition in one.partitions)


@pytest.mark.long
def test_what_the_batch_layer_has_is_read_through_the_node_that_has_its_table(
    fresh: tuple[list[Directory], Directory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    several, _ = fresh
    roots = [node.root for node in several]
    for node in several:
        node.partitions[0].layout.ended.touch()
        node.close()
    words = [word for root in roots for word in ("--data-dir", str(root))]
    handed = run("batch", "run", "--day", "2024-05-01", *words)
    assert handed.exit_code == 0, handed.output
    servers = [serve(root) for root in roots[:2]]
    try:
        urls = [f"http://127.0.0.1:{server.port}" for server in servers]
        store, here = forebay.open(*urls, roots[2]), forebay.open(*roots)
        for text in (
            "select * from events_all order by id",
            "select kind, count(*) as n from events_all where visit = 0 group by all order by all",
        ):
            expected = here.sql(text)
            assert expected.height
            assert_frame_equal(store.sql(text), expected)
        found, all_of = (one.scan("all").sort("id").collect() for one in (store, here))
        assert_frame_equal(found, all_of)
        assert all_of.height > here.scan().collect().height
    finally:
        for server in servers:
            server.close()


@pytest.mark.long
def test_nodes_that_share_a_directory_are_counted_once(made: Nodes) -> None:
    again = serve(made.several[0].root)
    try:
        url, other = f"http://127.0.0.1:{again.port}", made.urls[0]
        expected = count(forebay.open(made.several[0].root))
        for places in ([url, other], [other, made.several[0].root], [made.several[0].root, url]):
            store = forebay.open(*places)
            assert count(store) == expected == store.scan().collect().height
            assert len(store.receipt().partitions) == 1
            assert store.rejects().collect().height == 2
        assert count(forebay.open(*made.urls, url, *(n.root for n in made.several))) == count(
            made.oracle
        )
    finally:
        again.close()


@pytest.mark.long
def test_a_node_that_serves_several_directories_is_all_of_them(made: Nodes) -> None:
    roots = [str(node.root) for node in made.several]
    server = serve(made.several[0].root, "--data-dir", roots[1], "--data-dir", roots[2])
    try:
        url = f"http://127.0.0.1:{server.port}"
        store = forebay.open(url)
        assert count(store) == count(made.oracle)
        assert [one.node for one in store.receipt().nodes] == [f"{url} {root}" for root in roots]
    finally:
        server.close()


# -- nodes that fail -------------------------------------------------------------------------------


def test_a_node_that_was_killed_is_an_error_or_said_to_be_missing(
    fresh: tuple[list[Directory], Directory],
) -> None:
    several, one = fresh
    server = serve(several[1].root)
    places: list[str | Path] = [several[0].root, f"http://127.0.0.1:{server.port}", several[2].root]
    try:
        store = forebay.open(*places)
        partial = forebay.open(*places, partial=True)
        oracle = forebay.open(one.root)
        assert count(store) == count(partial) == count(oracle)
        assert partial.receipt().silent_nodes == ()
    finally:
        server.close()
    for ask in (count, lambda one: one.scan(), lambda one: one.partitions()):
        with pytest.raises(NodeError, match=rf"{places[1]}: expected a server .*, got .*refused"):
            ask(store)
    assert count(partial) == without(oracle, 1)
    assert partial.receipt().silent_nodes == (places[1],)
    assert "refused" in str(partial.receipt().nodes[1].missing)
    assert partial.segmentation("search").overall.height == 1
    assert "without 1 that can't be read" in repr(partial)


@pytest.mark.few(1)
@pytest.mark.parametrize("passes", [700, 0])
def test_a_node_that_is_cut_off_is_never_taken_for_whole(made: Nodes, passes: int) -> None:
    with line(made.servers[1].port, passes=passes) as to:
        places: list[str | Path] = [made.urls[0], to.url, made.several[2].root]
        store = forebay.open(*places)
        for ask in (
            count,
            lambda one: one.scan().collect(),
            lambda one: one.segmentation("search"),
            lambda one: one.stream().read_all(),
            lambda one: one.rejects().collect(),
        ):
            with pytest.raises(NodeError, match=f"{to.url}: expected a whole answer, got"):
                ask(store)
        partial = forebay.open(*places, partial=True)
        assert count(partial) == without(made.oracle, 1)
        assert partial.receipt().silent_nodes == (to.url,)
        found, rest = (one.segmentation("search") for one in (partial, forebay.open(*places[::2])))
        assert_frame_equal(found.overall, rest.overall)
        to.passes = None
        assert count(partial) == count(made.oracle)
        assert partial.receipt().silent_nodes == ()


def test_a_slow_node_has_a_deadline_of_its_own(made: Nodes) -> None:
    with line(made.servers[1].port, passes=500, stalls=True) as to:
        slow = Node(to.url, seconds=1.0)
        store = forebay.open(made.urls[0], slow)
        with pytest.raises(NodeError, match=rf"{to.url}: expected an answer within 1 s, got"):
            count(store)
        partial = forebay.open(made.urls[0], slow, made.urls[2], partial=True)
        assert count(partial) == without(made.oracle, 1)
        assert "within 1 s" in str(partial.receipt().nodes[1].missing)


def test_a_reader_that_stops_half_way_leaves_its_node(made: Nodes) -> None:
    with line(made.servers[0].port, passes=500, stalls=True) as to:
        store = forebay.open(made.several[1].root, Node(to.url, seconds=60.0))
        batches = store.to_batches(columns=["id"])
        assert next(batches).num_rows
        del batches
    assert count(forebay.open(made.urls[0])) == count(forebay.open(made.several[0].root))


@pytest.mark.long
def test_a_process_that_ends_waits_for_no_node(made: Nodes) -> None:
    program = (
        "import atexit, sys, threading;"
        " read = threading.Thread(target=lambda: [*store.to_batches()], daemon=True);"
        " atexit.register(read.join);"  # after what is registered later
        " import forebay;"
        " store = forebay.open(forebay.Node(sys.argv[1], seconds=3600));"
        " read.start();"
        " sys.stdin.read()"
    )
    with line(made.servers[0].port, passes=0, stalls=True) as to:
        process = subprocess.Popen([sys.executable, "-c", program, to.url], stdin=subprocess.PIPE)
        with process:
            assert to.scanned.wait(WAIT_S)
            assert process.stdin is not None
            process.stdin.close()
            assert process.wait(WAIT_S) == 0


# -- who may ask, and what is understood -----------------------------------------------------------


@pytest.mark.long
def test_each_node_has_its_own_token(
    made: Nodes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / "a.json", tmp_path / "b.json"]
    tokens = [add_token(file, "reader", "read") for file in files]
    servers = [
        serve(node.root, "--tokens", str(file))
        for node, file in zip(made.several, files, strict=False)
    ]
    try:
        urls = [f"http://127.0.0.1:{server.port}" for server in servers]
        mapping = dict(zip(urls, tokens, strict=True))
        assert count(forebay.open(*urls, made.several[2].root, token=mapping)) == count(made.oracle)
        named = [Node(url, token) for url, token in mapping.items()]
        assert count(forebay.open(*named)) == without(made.oracle, 2)
        with pytest.raises(NodeError, match=f"{urls[1]}: expected access, got 401: .*got another"):
            forebay.open(*urls, token=tokens[0])
        with pytest.raises(NodeError, match=f"{urls[0]}: expected access, got 401: .*got none"):
            forebay.open(*urls)
        pairs = " ".join(f"{url}={token}" for url, token in mapping.items())
        monkeypatch.setenv("FOREBAY_TOKEN", pairs)
        assert count(forebay.open(*urls)) == without(made.oracle, 2)
        monkeypatch.setenv("FOREBAY_TOKEN", f"{tokens[0]} {urls[1]}={tokens[1]}")
        assert count(forebay.open(*urls)) == without(made.oracle, 2)
        assert tokens[0] not in repr(named) + repr(forebay.open(*urls))
    finally:
        for server in servers:
            server.close()


@pytest.mark.parametrize(
    ("given", "options", "told"),
    [
        (["http://a:1"], {"token": "t"}, "http://a:1: expected https where a token is sent"),
        (["https://u:p@a"], {}, "expected a URL without a user, got one for a"),
        (["https://"], {}, "expected a URL such as https://a:8080, got 'https://'"),
        (["https://a:99999"], {}, "expected a URL such as https://a:8080, got"),
        (["https://a", "HTTPS://A/"], {}, "expected each node once"),
        (["https://a"], {"token": "a\nb"}, "https://a: token: expected one of forebay token add"),
        (["https://a"], {"seconds": 0}, "https://a: seconds: expected more than 0, got 0"),
    ],
)
def test_a_node_that_can_not_be_asked_so_is_refused(
    given: list[str], options: dict[str, Any], told: str
) -> None:
    with pytest.raises(BadInput, match=told):
        places_of(given, **options)


def test_an_authority_that_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="ca: expected a file of certificates, got"):
        forebay.open("https://127.0.0.1:1", ca=tmp_path / "none.pem")


def test_what_is_no_node_is_said_to_be_none(made: Nodes, tmp_path: Path) -> None:
    with pytest.raises(
        NodeError, match="expected a forebay serve that other nodes can ask, got 404"
    ):
        forebay.open(f"{made.urls[0]}/elsewhere")


def test_a_node_one_version_apart_is_understood(made: Nodes) -> None:
    """Unknown fields are left alone, wherever they stand; a version further is refused."""
    told = orjson.loads(made.servers[0].ask("/v1/node").body)
    known = Offer.decode(orjson.dumps(told), "n")
    grown = _grown(told)
    assert Offer.decode(orjson.dumps({**grown, "protocol": PROTOCOL + 1}), "n") == Offer(
        known.directories, known.version, PROTOCOL + 1
    )
    for protocol in (PROTOCOL + 2, PROTOCOL - 2, None, "1", True):
        with pytest.raises(NodeError, match=r"n: expected an offer .* protocol: expected"):
            Offer.decode(orjson.dumps({**told, "protocol": protocol}), "n")
    for other in (b"", b"[]", b"{}", b"<html>", orjson.dumps({**told, "directories": 3})):
        with pytest.raises(NodeError, match="n: expected an offer of Forebay's, got another"):
            Offer.decode(other, "n")


def _grown(value: Any) -> Any:
    """With a field that nobody knows in each object that has fields of ours."""
    if isinstance(value, list):
        return [_grown(one) for one in value]
    if not isinstance(value, dict):
        return value
    found = {name: _grown(one) for name, one in value.items()}
    mappings = "rejected schema next_offsets end_offsets paths types roles silent"
    for name in {*mappings.split()} & value.keys():
        found[name] = value[name]
    return {**found, "of_a_later_version": {"a": [1]}}


def test_an_offer_does_not_give_away_a_seed(made: Nodes) -> None:
    seeds = [one.manifest().seed for one in made.several[0].partitions]
    body = made.servers[0].ask("/v1/node").body.decode()
    assert all(seed and seed not in body for seed in seeds)


AT = {"columns": ["at"], "schema": {"at": "timestamp[ms, tz=UTC]"}, "fold": True}


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"parts": [{"root": "/etc", "name": "p00"}]}, 422),
        ({"parts": [{"root": None, "name": "../p00"}]}, 422),
        ({"parts": [{"root": None, "name": "p00", "chunks": "x"}]}, 422),
        ({"table": "secrets"}, 422),
        ({"columns": ["none"]}, 422),
        ({"schema": {"id": "list<int>"}}, 422),
        ({"granularity_ms": {"id": 1000}, "fold": True}, 422),
        ({"granularity_ms": {"none": 1000}, "fold": True}, 422),
        ({**AT, "granularity_ms": {"at": 0}}, 422),
        ({**AT, "granularity_ms": {"at": 2**53 - 1}}, 422),
        ({**AT, "granularity_ms": {"at": 86_400_000}}, 200),
        ({"where": "AAAA"}, 422),
        ({"where": "%"}, 422),
        ({"protocol": 9}, 422),
        ({"table": "batch", "metadata": "/etc/passwd"}, 422),
    ],
)
def test_a_scan_reads_nothing_but_what_a_view_could_name(
    made: Nodes, change: dict[str, Any], status: int
) -> None:
    root = str(made.several[0].root)
    for part in change.get("parts", ()):
        part["root"] = part["root"] or root
    wanted = {**orjson.loads(Wanted("events", ("id",), {"id": "string"}).encode()), **change}
    assert made.servers[0].ask("/v1/node/scan", body=wanted).status == status


def test_a_scan_of_files_that_have_gone_is_refused_as_too_old(made: Nodes) -> None:
    told = orjson.loads(made.servers[0].ask("/v1/node").body)["directories"][0]
    chunks = told["partitions"][0]["chunks"]
    chunks[0]["file"] = chunks[0]["file"].replace("date=2024", "date=1024")
    part = {"root": told["root"], "name": "p00", "chunks": chunks}
    wanted = orjson.loads(Wanted("events", ("id",), {"id": "string"}).encode())
    reply = made.servers[0].ask("/v1/node/scan", body={**wanted, "parts": [part]})
    assert reply.status == 410
    assert "is missing" in reply.json["detail"]


# -- servers and commands over nodes ---------------------------------------------------------------


def test_a_server_over_nodes_answers_as_one_over_the_directory(made: Nodes) -> None:
    options = [word for url in made.urls[:2] for word in ("--nodes", url)]
    front, whole = serve(made.several[2].root, *options), serve(made.one.root)
    try:
        for path, asked in (
            ("/v1/sql", {"text": QUERIES[1]}),
            ("/v1/segmentation", {"events": "search", "by": "country"}),
            ("/v1/users/u1", {}),
            ("/v1/schema", {}),
        ):
            found = front.ask(path, asked)
            assert (found.status, found.body) == (200, whole.ask(path, asked).body)
            tag = {"If-None-Match": found.headers["etag"]}
            assert front.ask(path, asked, headers=tag).status == 304
        assert len(front.ask("/v1/partitions").json) == NODES
        assert len(front.ask("/v1/rejects").json) == 2 * NODES
        assert front.ask("/v1/node").status == 422
        assert front.ask("/v1/events").status == 501
    finally:
        front.close()
        whole.close()


@pytest.mark.long
def test_a_server_says_which_node_is_missing(made: Nodes, tmp_path: Path) -> None:
    gone = serve(made.several[1].root)
    url = f"http://127.0.0.1:{gone.port}"
    options = ["--nodes", url, "--nodes", made.urls[2]]
    strict, partial = (serve(made.several[0].root, *options, *o) for o in ([], ["--partial"]))
    try:
        whole = partial.sql(COUNT)
        assert whole.json == strict.sql(COUNT).json == [{"n": count(made.oracle)}]
        assert "forebay-missing" not in whole.headers
        gone.close()
        refused = strict.sql("select count(*) as m from events")
        assert refused.status == 502
        assert refused.json["detail"].startswith(f"{url}: expected a server that can be reached")
        found = partial.sql("select count(*) as m from events")
        assert found.json == [{"m": without(made.oracle, 1)}]
        assert found.headers["forebay-missing"] == url
        assert "etag" not in found.headers
        receipt = partial.ask("/v1/receipt").json
        assert receipt["silent_nodes"] == [url]
    finally:
        for server in (gone, strict, partial):
            server.close()


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), prog_name="forebay")


def test_commands_ask_nodes(made: Nodes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    nodes = ["--nodes", made.urls[0], "--nodes", made.urls[1]]
    both = [*nodes, "--data-dir", str(made.several[2].root)]
    one = ["--data-dir", str(made.one.root)]
    for command in (["sql", QUERIES[1]], ["segment", "search", "--by", "country", "--json"]):
        found = run(*command, *both)
        assert (found.exit_code, found.output) == (0, run(*command, *one).output)
    assert run("sql", "--format", "csv", COUNT, *nodes).output == f"n\n{without(made.oracle, 2)}\n"
    code = run("segment", "search", "--show-code", *nodes).output
    assert f"forebay.open({made.urls[0]!r}, {made.urls[1]!r})" in code
    status = orjson.loads(run("status", "--json", *both).output)
    assert status["totals"]["accepted"] == count(made.oracle)
    assert [node["job_runs"] is None for node in status["nodes"]] == [False, True, True]
    assert "accepted" in run("status", *nodes).output
    refused = run("sql", COUNT, "--nodes", "data")
    assert (refused.exit_code, "nodes" in refused.output) == (1, True)


def test_a_command_says_what_its_answer_lacks(made: Nodes) -> None:
    with line(made.servers[1].port, passes=0) as to:
        options = ["--nodes", to.url, "--data-dir", str(made.several[0].root)]
        refused = run("sql", "--format", "csv", COUNT, *options)
        assert refused.exit_code == 1
        assert f"{to.url}: expected a whole answer, got" in refused.output
        found = run("sql", "--format", "csv", COUNT, *options, "--partial")
        assert found.exit_code == 0
        assert found.stdout == f"n\n{count(forebay.open(made.several[0].root))}\n"
        assert f"Warning: the answer is without {to.url}: expected a whole answer" in found.stderr


# -- filters ---------------------------------------------------------------------------------------

FRAME = pl.DataFrame(
    {
        "text": ["a", "b", None, "", "c", "a"],
        "number": [1, 2, None, -(2**63), 3, 2**63 - 1],
        "real": [0.5, float("nan"), None, float("inf"), -0.0, 2.0],
        "flag": [True, False, None, True, False, None],
        "at": [datetime(2024, 5, day, tzinfo=UTC) for day in (1, 2, 3, 4, 5)] + [None],
    },
    schema_overrides={"at": pl.Datetime("ms", "UTC")},
)
VALUES: dict[str, list[Any]] = {
    "text": ["a", "b", "", "zz"],
    "number": [1, 2, -5],
    "real": [0.5, 0.0, float("inf")],
    "flag": [True, False],
    "at": [datetime(2024, 5, 2, tzinfo=UTC), datetime(2024, 5, 4, 0, 0, 0, 1, tzinfo=UTC)],
}
COLUMNS = st.sampled_from(sorted(VALUES))


def _literal(value: Any) -> pl.Expr:
    """As Polars' own types have it: where it pushes filters, they are in those of the columns."""
    whole = isinstance(value, datetime) and not value.microsecond
    return pl.lit(value, pl.Datetime("ms", "UTC")) if whole else pl.lit(value)


@st.composite
def compared(draw: st.DrawFn) -> pl.Expr:
    name = draw(COLUMNS)
    column, values = pl.col(name), st.sampled_from(VALUES[name]).map(_literal)
    kind = draw(
        st.sampled_from(["==", "!=", "<", "<=", ">", ">=", "turned", "in", "null", "between"])
    )
    value = draw(values)
    found: dict[str, pl.Expr] = {
        "==": column == value, "!=": column != value, "<": column < value, "<=": column <= value,
        ">": column > value, ">=": column >= value, "turned": value < column,
        "in": column.is_in(VALUES[name][:2]), "null": column.is_null(),
        "between": column.is_between(value, draw(values), closed=draw(
            st.sampled_from(["both", "left", "right", "none"]))),
    }  # fmt: skip
    return found[kind]


@st.composite
def filters(draw: st.DrawFn, depth: int = 2) -> pl.Expr:
    kind = draw(st.sampled_from(["plain", "and", "or", "not"])) if depth else "plain"
    if kind == "plain":
        return draw(compared())
    inner = draw(filters(depth - 1))
    if kind == "not":
        return ~inner
    other = draw(filters(depth - 1))
    return inner & other if kind == "and" else inner | other


@pytest.mark.cases
@given(filters())
def test_what_a_node_leaves_out_no_filter_would_have_kept(predicate: pl.Expr) -> None:
    expected = FRAME.filter(predicate)
    where = pushed(predicate, dict(FRAME.schema))
    table: pa.Table = FRAME.to_arrow(compat_level=pl.CompatLevel.oldest())
    kept = pl.DataFrame(table if where is None else table.filter(where))
    assert_frame_equal(kept.filter(predicate), expected)


def test_what_is_known_of_a_filter_is_left_to_the_node() -> None:
    schema = dict(FRAME.schema)
    for predicate in (
        pl.col("text") == "a",
        pl.col("text").is_in(["a", "b"]),
        pl.col("at") >= pl.lit(datetime(2024, 5, 2, tzinfo=UTC), pl.Datetime("ms", "UTC")),
        pl.col("number").is_between(1, 2) & (pl.col("real") > 1),
    ):
        assert pushed(predicate, schema) is not None
    finer = pl.col("at") >= pl.lit(datetime(2024, 5, 2, tzinfo=UTC), pl.Datetime("us", "UTC"))
    for predicate in (
        pl.col("real") > 1, pl.col("text").str.len_chars() > 1, pl.col("flag"), finer,
    ):  # fmt: skip
        assert pushed(predicate, schema) is None


ROWS = st.lists(
    st.tuples(st.sampled_from(["a", "b", None, ""]), st.sampled_from([0, 1, None]), st.booleans()),
    max_size=50,
)


@pytest.mark.cases
@given(ROWS, st.integers(1, 20))
def test_folded_rows_are_the_same_rows(given: list[tuple[Any, ...]], size: int) -> None:
    schema = pa.schema([("text", pa.large_string()), ("number", pa.int64()), ("flag", pa.bool_())])
    columns = [[row[at] for row in given] for at in range(len(schema))]
    table = pa.table(columns, schema=schema)
    assert can_fold(schema)
    sent = [*folded(iter(table.to_batches(size)), schema)]
    assert all(batch.schema == with_times(schema) for batch in sent)
    found = [row for batch in sent for part in unfolded(batch) for row in part.to_pylist()]
    assert sorted(map(repr, found)) == sorted(map(repr, table.to_pylist()))


def test_counts_of_a_kind_cross_the_network_as_counts() -> None:
    schema = pa.schema([("kind", pa.large_string())])
    many = pa.table([["a", "b", "b"] * 20_000], schema=schema).to_batches(10_000)
    sent = [*folded(iter(many), schema)]
    assert sum(batch.num_rows for batch in sent) <= 2 * len(many)
    assert sum(part.num_rows for batch in sent for part in unfolded(batch)) == 60_000
    other = pa.table([[f"{n}" for n in range(3000)]], schema=schema).to_batches(1000)
    assert [batch.num_rows for batch in folded(iter(other), schema)] == [1000] * 3


def test_times_that_a_question_does_not_tell_apart_cross_as_one() -> None:
    day, hour = datetime(2024, 5, 1, tzinfo=UTC), 3_600_000
    schema = pa.schema([("at", pa.timestamp("us", "UTC")), ("who", pa.large_string())])
    rows = [(day + timedelta(seconds=n), f"u{n % 7}") for n in range(20_000)]
    table = pl.DataFrame(rows, ["at", "who"], orient="row").to_arrow().cast(schema)
    sent = [*folded(iter(table.to_batches(1000)), schema, {"at": hour})]
    assert sum(batch.num_rows for batch in sent) == 6 * 7
    found = pl.concat([pl.DataFrame(part) for batch in sent for part in unfolded(batch)])
    expected = pl.DataFrame(table).with_columns(pl.col("at").dt.truncate("1h"))
    assert_frame_equal(found, expected, check_row_order=False)


def test_a_row_that_comes_very_often_is_sent_in_parts() -> None:
    schema = pa.schema([("kind", pa.large_string())])
    batch = pa.table([["a", "b", *["c"] * 64_000]], schema=schema).to_batches()[0]
    sent = [*folded(iter([batch] * 50), schema)]
    assert 1 < sum(batch.num_rows for batch in sent) < 100
    found = [part for batch in sent for part in unfolded(batch)]
    counted = pl.concat([pl.DataFrame(part) for part in found])["kind"].value_counts(sort=True)
    assert sorted(counted.rows()) == [("a", 50), ("b", 50), ("c", 50 * 64_000)]


@pytest.mark.parametrize("times", [[0], [-1], [None], [2**40]])
def test_rows_that_came_impossibly_often_are_refused(times: list[int | None]) -> None:
    batch = pa.RecordBatch.from_arrays(
        [pa.array(["a"], pa.large_string()), pa.array(times, pa.int64())],
        schema=with_times(pa.schema([("kind", pa.large_string())])),
    )
    with pytest.raises(ValueError, match="expected rows with how often each came"):
        list(unfolded(batch))


def test_what_equal_values_may_differ_in_is_not_folded() -> None:
    for type in (pa.float64(), pa.binary(), pa.large_binary()):
        assert not can_fold(pa.schema([("kind", pa.large_string()), ("other", type)]))


def test_a_line_carries_what_it_should(made: Nodes) -> None:
    """What breaks in the tests above is the line, where it is meant to be."""
    with line(made.servers[0].port) as to:
        assert isinstance(to, Line)
        assert count(forebay.open(to.url)) == count(forebay.open(made.several[0].root))
