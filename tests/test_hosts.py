"""The job over several hosts, as real processes: they begin together, end together, and come back
in any order; what a query over all of them finds is the oracle's.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from forebay.cli.load import LoadSpec
from forebay.flows.cluster import BUILT, GO
from forebay.flows.hosts import Hosts
from forebay.flows.recovery import begin, init_recovery, join_hosts, take_data_directory
from forebay.storage.base.errors import INCOMPLETE, PERMANENT, BadInput, MissingFile
from forebay.storage.base.layout import Layout
from tests import engine
from tests.broker import Broker, BrokerProcess, _free_port, missing, produce
from tests.hosts import Several, in_namespaces, network, on_loopback
from tests.job import Generated, Job, assert_exact, generated, taken, until_written

engine.need()

NOW_MS = time.time_ns() // 1_000_000
SPEC = LoadSpec(
    events=12_000,
    partitions=5,
    seed=13,
    start_ms=NOW_MS - 3_600_000,
    span_ms=45 * 60_000,
    late=0.002,
    broken=0.01,
    duplicates=0.05,
)
SMALL = {"BATCH_ROWS": "500", "BLOCKS_PER_CHUNK": "2", "EPOCH_INTERVAL": "100ms"}
MakeSeveral = Callable[..., Several]


@pytest.fixture(scope="module")
def load() -> Generated:
    return generated(SPEC, "part-{:05d}.ndjson", NOW_MS)


@pytest.fixture
def events(load: Generated, tmp_path: Path) -> Path:
    folder = tmp_path / "events"
    folder.mkdir()
    for name, messages in load.messages.items():
        (folder / name).write_bytes(b"\n".join(messages) + b"\n")
    return folder


@pytest.fixture
def make_several(tmp_path: Path) -> Iterator[MakeSeveral]:
    made: list[Several] = []

    def make(count: int = 2, **settings: str) -> Several:
        made.append(on_loopback(tmp_path / "hosts", count, **SMALL, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


# -- begun, killed, stopped ---------------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize("victims", [(1,), (0,), (1, 0, 1)])
def test_two_hosts_are_exact_over_sigkill_of_either_and_its_return(
    victims: tuple[int, ...], make_several: MakeSeveral, events: Path, load: Generated
) -> None:
    """The supervisor of the other stays, and waits."""
    several = make_several(FILES__PATH=str(events))
    processes = several.run_all()
    for turn, victim in enumerate(victims, 1):
        goal = load.count * turn // 6
        several.until(processes[0], lambda found, goal=goal: taken(found) > goal)  # type: ignore[misc]
        other, named = several.hosts[1 - victim], f"host {victim} at"
        before = other.log.read_text().count(named)
        several.hosts[victim].kill(processes[victim])
        until_written(other.log, named, before + 1, processes[1 - victim])
        processes[victim] = several.run_host(victim)
    assert several.ends_all(processes) == [0, 0], several.told()
    assert_exact(several, load)
    for host in several.hosts:
        assert host.partitions().height
        assert Layout(host.data).ended.exists()


@pytest.mark.long
def test_hosts_that_were_all_killed_come_back_in_the_other_order(
    make_several: MakeSeveral, events: Path, load: Generated
) -> None:
    several = make_several(3, FILES__PATH=str(events))
    processes = several.run_all()
    several.until(processes[0], lambda found: taken(found) > load.count / 4)
    for host, process in zip(several.hosts, processes, strict=True):
        host.kill(process)
    assert several.ends_all(several.run_all([2, 1, 0])) == [0, 0, 0], several.told()
    assert_exact(several, load)


@pytest.mark.long
def test_hosts_scale_their_workers_and_each_partition_finds_its_data(
    make_several: MakeSeveral, events: Path, load: Generated
) -> None:
    several = make_several(FILES__PATH=str(events))
    for workers in (1, 3, 2):
        processes = several.run_all([1, 0], workers)
        goal = taken(several.partitions()) + load.count // 5
        several.until(processes[0], lambda found, goal=goal: taken(found) >= goal)  # type: ignore[misc]
        for host, process in zip(several.hosts, processes, strict=True):
            host.kill(process)
    assert several.ends_all(several.run_all()) == [0, 0], several.told()
    assert_exact(several, load)


@pytest.mark.long
def test_a_stop_of_one_host_stops_all_with_a_last_snapshot_and_the_other_waits_for_it(
    make_several: MakeSeveral, events: Path, load: Generated
) -> None:
    several = make_several(FILES__PATH=str(events))
    first, second = several.run_all()
    several.until(first, lambda found: taken(found) > load.count / 6)
    second.send_signal(signal.SIGTERM)
    assert several.ends(second) == 0, several.told()
    assert all(Layout(host.data).ended.exists() for host in several.hosts)
    assert "ERROR" not in several.told()
    second = several.run_host(1)
    assert several.ends_all([first, second]) == [0, 0], several.told()
    assert_exact(several, load)


@pytest.mark.long
def test_by_hand_as_the_engine_documents_it_two_hosts_are_exact_over_sigkill_of_one(
    make_several: MakeSeveral, events: Path, load: Generated
) -> None:
    """Each has its part of a store that was made once; the other ends by the engine's panic."""
    several = make_several(FILES__PATH=str(events))
    several.hosts[0].data.mkdir(parents=True)
    store = several.folder / "recovery"
    store.mkdir()
    several.hosts[0].start("-m", "bytewax.recovery", str(store), "2").wait()
    for number, host in enumerate(several.hosts):
        (host.data / "recovery").mkdir(parents=True)
        part = f"part-{number}.sqlite3"
        (store / part).rename(host.data / "recovery" / part)
    addresses = several.named.replace(",", ";")

    def start(number: int) -> subprocess.Popen[bytes]:
        return several.hosts[number].bytewax("-i", str(number), "-a", addresses)

    processes = [start(0), start(1)]
    several.until(processes[0], lambda found: taken(found) > load.count / 4)
    several.hosts[1].kill(processes[1])
    assert several.ends(processes[0]) != 0
    processes = [start(number) for number in (1, 0)]
    assert several.ends_all(processes) == [0, 0], several.told()
    assert_exact(several, load)


@pytest.mark.long
def test_a_worker_says_that_others_cannot_be_reached_though_their_supervisors_can(
    tmp_path: Path, events: Path
) -> None:
    job = Job(tmp_path / "job", {"FILES__PATH": str(events)})
    init_recovery(Layout(job.data).recovery)
    port = _free_port()
    addresses = [f"127.0.0.{number}:{port}" for number in (1, 2)]
    ours, theirs = socket.socketpair()
    with ours, theirs, (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "forebay.flows.worker", "1", *addresses],
            env=job.environment, stdin=theirs.fileno(), stdout=log, stderr=log,
        )  # fmt: skip
        assert ours.recv(1) == BUILT
        ours.send(GO)
        said = f"the workers at {', '.join(addresses)} have not found each other"
        until_written(tmp_path / "log", said, by=process)
        process.kill()
        process.wait()


# -- in network namespaces ----------------------------------------------------------------------


@pytest.mark.long
def test_three_hosts_in_namespaces_are_exact_though_one_is_cut_off_and_one_is_killed(
    tmp_path: Path, events: Path, load: Generated
) -> None:
    with network(3) as net:
        several = in_namespaces(tmp_path / "hosts", net, FILES__PATH=str(events), **SMALL)
        try:
            processes = several.run_all()
            several.until(processes[0], lambda found: taken(found) > load.count / 6)
            net.cut(1)
            for number in (0, 1):
                log = several.hosts[number].log
                until_written(log, "nothing was heard of it", by=processes[number])
            net.mend(1)
            several.until(processes[0], lambda found: taken(found) > load.count / 2)
            several.hosts[2].kill(processes[2])
            processes[2] = several.run_host(2)
            assert several.ends_all(processes) == [0, 0, 0], several.told()
            assert_exact(several, load)
        finally:
            several.close()


@pytest.mark.long
@pytest.mark.kafka
def test_two_hosts_in_namespaces_take_a_topic_exactly_over_sigkill_and_new_partitions(
    tmp_path: Path,
) -> None:
    if lack := missing():
        pytest.skip(lack)
    topic = f"t{uuid.uuid4().hex[:8]}"
    load = generated(SPEC, f"{topic}-{{:05d}}", NOW_MS)
    with (
        network(2) as net,
        BrokerProcess(tmp_path / "broker", brief=True, lan=net.here) as broker,
    ):
        broker.create_topic(topic, SPEC.partitions - 1)
        several = in_namespaces(
            tmp_path / "hosts", net, SOURCE="kafka", KAFKA__BOOTSTRAP=broker.lan_address,
            KAFKA__TOPIC=topic, **SMALL,
        )  # fmt: skip
        try:
            processes = several.run_all()
            parts = list(load.messages.values())
            for number in range(SPEC.partitions - 1):
                produce(broker, topic, number, parts[number])
            several.until(processes[0], lambda found: taken(found) > load.count / 4)
            several.hosts[0].kill(processes[0])
            processes[0] = several.run_host(0)
            broker.add_partitions(topic, SPEC.partitions)
            produce(broker, topic, SPEC.partitions - 1, parts[-1])
            several.until(processes[0], lambda found: taken(found) == load.count)
            for process in processes:
                process.send_signal(signal.SIGTERM)
            assert several.ends_all(processes) == [0, 0], several.told()
            assert_exact(several, load)
        finally:
            several.close()


@pytest.mark.long
@pytest.mark.kafka
def test_two_hosts_take_a_topic_exactly_over_sigkill_of_one(
    broker: Broker, make_several: MakeSeveral
) -> None:
    topic = f"t{uuid.uuid4().hex[:8]}"
    load = generated(SPEC, f"{topic}-{{:05d}}", NOW_MS)
    broker.create_topic(topic, SPEC.partitions)
    for number, messages in enumerate(load.messages.values()):
        produce(broker, topic, number, messages)
    several = make_several(SOURCE="kafka", KAFKA__BOOTSTRAP=broker.address, KAFKA__TOPIC=topic)
    processes = several.run_all([1, 0])
    several.until(processes[0], lambda found: taken(found) > load.count / 4)
    several.hosts[1].kill(processes[1])
    processes[1] = several.run_host(1)
    several.until(processes[0], lambda found: taken(found) == load.count)
    for process in processes:
        process.send_signal(signal.SIGTERM)
    assert several.ends_all(processes) == [0, 0], several.told()
    assert_exact(several, load)


# -- supervisors over workers that do as they are told ---------------------------------------------


class Shams:
    """Two supervisors in processes of their own; SHAM has the steps of the one worker of each."""

    def __init__(self, folder: Path, sham: str) -> None:
        self.folder, self.done = folder, folder / "done"
        self.done.touch()
        port = _free_port()
        self.named = f"127.0.0.1:{port},127.0.0.2:{port}"
        self.environment = {**os.environ, "SHAM": sham, "SHAM_LOG": str(self.done)}
        self.processes = [self.start(0), self.start(1)]

    def start(self, number: int) -> subprocess.Popen[bytes]:
        code = (
            "import logging, sys\n"
            "from pathlib import Path\n"
            "from forebay.flows.cluster import Cluster\n"
            "from forebay.flows.hosts import Hosts\n"
            "logging.basicConfig(level=logging.INFO)\n"
            f"hosts = Hosts.parse({self.named!r}, {number}, 1)\n"
            f"sys.exit(Cluster(Path({str(self.data(number))!r}), 1,"
            " module='tests.sham_worker', hosts=hosts).run())\n"
        )
        with self.log(number).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-c", code], env=self.environment, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def data(self, number: int) -> Path:
        return self.folder / f"data-{number}"

    def log(self, number: int) -> Path:
        return self.folder / f"log-{number}"

    def told(self) -> str:
        return "".join(self.log(number).read_text() for number in range(2))

    def until(self, text: str, count: int = 1) -> None:
        until_written(self.done, text, count, self.processes[0])

    def codes(self) -> list[int]:
        return [process.wait(60) for process in self.processes]

    def ended(self) -> list[bool]:
        return [Layout(self.data(number)).ended.exists() for number in range(2)]


@pytest.fixture
def shams(tmp_path: Path) -> Iterator[Callable[[str], Shams]]:
    made: list[Shams] = []

    def make(sham: str) -> Shams:
        made.append(Shams(tmp_path, sham))
        return made[-1]

    yield make
    for one in made:
        for process in one.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


MakeShams = Callable[[str], Shams]


@pytest.mark.long
@pytest.mark.parametrize(
    ("sham", "code", "well"),
    [
        ("build stop:0,build exit:78", PERMANENT, False),
        ("build exit:0,build exit:65", INCOMPLETE, True),
        ("build exit:78,build stop:0", PERMANENT, False),
        ("hang,exit:78", PERMANENT, False),
        ("build exit:0,build exit:0", 0, True),
    ],
)
def test_hosts_end_with_the_same_exit_code(
    sham: str, code: int, well: bool, shams: MakeShams
) -> None:
    running = shams(sham)
    assert running.codes() == [code, code], running.told()
    assert running.ended() == [well, well]


@pytest.mark.long
@pytest.mark.parametrize(
    "sham", ["build stop:0,build again stop:0", "build again stop:0,build stop:0"]
)
def test_when_a_worker_of_one_host_asks_all_hosts_start_again_at_once(
    sham: str, shams: MakeShams
) -> None:
    running = shams(sham)
    running.until("runs", 4)
    assert running.done.read_text().count("stops") == 2
    assert "ERROR" not in running.told()
    for process in running.processes:
        process.send_signal(signal.SIGTERM)
    assert running.codes() == [0, 0], running.told()


@pytest.mark.long
@pytest.mark.parametrize("failing", [0, 1])
def test_when_a_worker_of_one_host_fails_all_hosts_start_again(
    failing: int, shams: MakeShams
) -> None:
    steps = ["build stop:0", "build stop:0"]
    steps[failing] = "build exit:1"
    running = shams(",".join(steps))
    running.until(f"{1 - failing} runs", 2)
    assert running.told().count("all restart in 1 s") == 2
    assert f"host {failing} at" in running.log(1 - failing).read_text()
    for process in running.processes:
        process.send_signal(signal.SIGTERM)
    assert set(running.codes()) <= {0, 1}


@pytest.mark.long
def test_a_stop_before_all_hosts_have_built_begins_nothing(shams: MakeShams) -> None:
    running = shams("build stop:0,hang")
    running.until("hangs")
    for process in reversed(running.processes):
        process.send_signal(signal.SIGTERM)
    codes = running.codes()
    assert "runs" not in running.done.read_text()
    assert codes[1] == 0, running.told()


# -- hosts that don't fit together --------------------------------------------------------------


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"DEDUP_WINDOW": "5m"}, "dedup_window: expected '10m', as host 0 has, got '5m' on host 1"),
        ({"hosts": "127.0.0.1:{port},127.0.0.3:{port}"}, "hosts: expected 127.0.0.1:"),
        ({"hosts": "127.0.0.1:{port},127.0.0.2:{port},127.0.0.3:{port}"}, "hosts: expected "),
        ({"workers": "2"}, "workers: expected 1, as host 0 has, got 2 on host 1"),
    ],
)
def test_a_host_that_does_not_fit_is_refused_in_a_line_and_host_0_goes_on_waiting(
    change: dict[str, str], said: str, make_several: MakeSeveral, events: Path
) -> None:
    several = make_several(FILES__PATH=str(events))
    first = several.run_host(0)
    named = several.named
    port = named.rpartition(":")[2]
    several.named = change.get("hosts", named).format(port=port)
    several.hosts[1].settings |= {name: text for name, text in change.items() if name.isupper()}
    second = several.run_host(1, int(change.get("workers", 1)))
    assert several.ends(second) == PERMANENT, several.told()
    assert f"Error: {said}" in several.hosts[1].told()
    assert said in several.hosts[0].told()
    assert "Traceback" not in several.told()
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert several.ends(first) == 0, several.told()
    assert several.partitions().height == 0


def test_two_that_both_take_themselves_for_host_0_are_told_that_their_orders_differ(
    make_several: MakeSeveral, events: Path
) -> None:
    several = make_several(FILES__PATH=str(events))
    first = several.run_host(0)
    one, other = several.named.split(",")
    several.named = f"{other},{one}"
    several.hosts.reverse()
    second = several.run_host(0)
    until(lambda: first.poll() is not None or second.poll() is not None)
    for process in (first, second):
        process.send_signal(signal.SIGTERM)
    assert sorted(several.ends_all([first, second])) in ([0, PERMANENT], [PERMANENT, PERMANENT])
    assert "Error: hosts: expected 127.0.0." in several.told()
    assert "refused 127.0.0." in several.told()


@pytest.mark.long
def test_files_that_only_one_host_has_are_named_and_all_begin_when_the_other_has_them(
    make_several: MakeSeveral, events: Path, load: Generated, tmp_path: Path
) -> None:
    several = make_several(FILES__PATH=str(events))
    copy = tmp_path / "copy"
    shutil.copytree(events, copy)
    (copy / "part-00003.ndjson").rename(tmp_path / "kept")
    several.hosts[1].settings["FILES__PATH"] = str(copy)
    processes = several.run_all()
    said = "got 5 on host 0, 4 on host 1; part-00003.ndjson is known on host 0 only"
    for host, process in zip(several.hosts, processes, strict=True):
        until_written(host.log, said, by=process)
    (tmp_path / "kept").rename(copy / "part-00003.ndjson")
    assert several.ends_all(processes) == [0, 0], several.told()
    assert_exact(several, load)


@pytest.mark.long
def test_a_host_that_lost_its_data_is_refused_for_the_others_cannot_tell_what_is_missing(
    make_several: MakeSeveral, events: Path, load: Generated
) -> None:
    several = make_several(FILES__PATH=str(events))
    processes = several.run_all()
    several.until(processes[0], lambda found: taken(found) > load.count / 6)
    for host, process in zip(several.hosts, processes, strict=True):
        host.kill(process)
    several.hosts[1].data.rename(several.folder / "kept")
    processes = several.run_all()
    assert several.ends(processes[1]) == PERMANENT
    assert "data_dir: expected data directories that were begun together" in several.told()
    shutil.rmtree(several.hosts[1].data)
    (several.folder / "kept").rename(several.hosts[1].data)
    processes[1] = several.run_host(1)
    assert several.ends_all(processes) == [0, 0], several.told()
    assert_exact(several, load)


@pytest.mark.few(1)
@pytest.mark.parametrize("lonely", [0, 1])
def test_a_host_that_does_not_come_is_named_and_waited_for(
    lonely: int, make_several: MakeSeveral, events: Path
) -> None:
    several = make_several(FILES__PATH=str(events))
    process = several.run_host(lonely)
    until_written(several.hosts[lonely].log, "waiting for host", by=process)
    assert f"waiting for host {1 - lonely} at 127.0.0.{2 - lonely}:" in several.told()
    process.send_signal(signal.SIGTERM)
    assert several.ends(process) == 0, several.told()


@pytest.mark.long
@pytest.mark.parametrize("above", [0, 1])
def test_a_port_that_is_taken_is_named_and_tried_again(
    above: int, make_several: MakeSeveral, events: Path, load: Generated
) -> None:
    several = make_several(FILES__PATH=str(events))
    port = int(several.named.rpartition(":")[2]) + above
    with socket.socket() as taking:
        taking.bind(("127.0.0.1", port))
        taking.listen()
        processes = several.run_all()
        said = f"hosts: expected 127.0.0.1:{port} to be a free port of this host, got: Address alr"
        until_written(several.hosts[0].log, said, by=processes[0])
    assert several.ends_all(processes) == [0, 0], several.told()
    assert_exact(several, load)


def test_what_a_stranger_sends_to_host_0_changes_nothing(
    make_several: MakeSeveral, events: Path
) -> None:
    several = make_several(FILES__PATH=str(events))
    first = several.run_host(0)
    host, _, port = several.named.split(",")[0].partition(":")
    for sent in (
        b"GET / HTTP/1.1\r\n\r\n",
        b'{"word":"handshake","handshake":{"number":1}}\n',
        b'{"word":"refused","reason":"no"}\n',
        b'{"word":"parted","permanent":true}\n[]\n',
        b"x" * 100_000,
    ):
        with _connected(host, int(port)) as stranger:
            stranger.sendall(sent)
            stranger.shutdown(socket.SHUT_WR)
            while stranger.recv(4096):
                pass
    several.hosts[1].settings["DEDUP_WINDOW"] = "5m"
    assert several.ends(several.run_host(1)) == PERMANENT, several.told()
    assert first.poll() is None
    first.send_signal(signal.SIGTERM)
    assert several.ends(first) == 0, several.told()


def until(reached: Callable[[], bool]) -> None:
    """Wait for what nothing tells of."""
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _connected(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + 30
    while True:
        try:
            return socket.create_connection((host, port), 30)
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


# -- a data directory that is another's ----------------------------------------------------------

TWO = "a:2101,b:2101"


def _begun(root: Path, number: int = 0) -> Layout:
    """The data of one of two hosts."""
    layout, hosts = Layout(root), Hosts.parse(TWO, number, 1)
    take_data_directory(layout, hosts).close()
    join_hosts(layout, hosts, "0" * 32)
    init_recovery(layout.recovery, hosts)
    begin(layout)
    return layout


@pytest.mark.parametrize(
    ("named", "number", "said"),
    [
        (TWO, 1, "expected that of host 1 of 2, got that of host 0 of 2"),
        ("a:1,b:1,c:1", 0, "expected that of host 0 of 3, got that of host 0 of 2"),
        (None, 0, "expected that of a job on one host, got that of host 0 of 2"),
    ],
)
def test_data_of_another_host_is_refused(
    named: str | None, number: int, said: str, tmp_path: Path
) -> None:
    layout = _begun(tmp_path)
    with pytest.raises(BadInput, match=said):
        take_data_directory(layout, Hosts.parse(named, number, 1) if named else None)
    take_data_directory(layout, Hosts.parse(TWO, 0, 2)).close()


def test_data_of_one_host_is_not_divided_among_more(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    take_data_directory(layout).close()
    init_recovery(layout.recovery)
    with pytest.raises(
        BadInput, match=r"host 0 of 2, got that of a job on one host.* redistributed"
    ):
        take_data_directory(layout, Hosts.parse(TWO, 0, 1))


def test_a_recovery_store_with_other_parts_is_refused_and_one_that_is_lost_is_missed(
    tmp_path: Path,
) -> None:
    layout = _begun(tmp_path, 1)
    part = layout.recovery / "part-1.sqlite3"
    assert [*layout.recovery.glob("*.sqlite3")] == [part]
    part.rename(layout.recovery / "part-3.sqlite3")
    with pytest.raises(BadInput, match=r"expected part-1\.sqlite3 alone.* got part-3\.sqlite3"):
        take_data_directory(layout, Hosts.parse(TWO, 1, 1))
    (layout.recovery / "part-3.sqlite3").unlink()
    with pytest.raises(MissingFile, match="expected the recovery store"):
        take_data_directory(layout, Hosts.parse(TWO, 1, 1))


def test_data_that_never_began_may_go_to_another_job_and_what_began_may_not(
    tmp_path: Path,
) -> None:
    layout, hosts = Layout(tmp_path), Hosts.parse(TWO, 0, 1)
    layout.root.mkdir(exist_ok=True)
    for job in ("0" * 32, "1" * 32):
        join_hosts(layout, hosts, job)
        init_recovery(layout.recovery, hosts)
    begin(layout)
    join_hosts(layout, hosts, "1" * 32)
    with pytest.raises(BadInput, match="expected the data of job 2"):
        join_hosts(layout, hosts, "2" * 32)


# -- what is said of hosts ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "number", "said"),
    [
        ("a:1", 0, "hosts: expected at least two"),
        ("a:1,b", 0, r"hosts: expected NAME:PORT, such as a:2101, got 'b'"),
        ("a:1,b:0", 0, "hosts: expected NAME:PORT"),
        ("a:1,b:65535", 0, "hosts: expected 1 more ports"),
        ("a:1,a:2", 0, "hosts: expected a port for each host"),
        ("a:1,a:1", 0, "hosts: expected a port for each host"),
        ("a:1,b:1", 2, "host: expected the number of this one, from 0 to 1, got 2"),
    ],
)
def test_hosts_that_are_none_are_refused(named: str, number: int, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        Hosts.parse(named, number, 1)


def test_workers_are_numbered_so_that_a_partition_stays_on_its_host() -> None:
    for workers in (1, 2, 3):
        hosts = [Hosts.parse("a:1,b:1,[::1]:1", number, workers) for number in range(3)]
        assert sorted(n for one in hosts for n in one.processes) == [*range(3 * workers)]
        for number, one in enumerate(hosts):
            assert {process % 3 for process in one.processes} == {number}
            for worker, process in enumerate(one.processes):
                assert one.workers_addresses[process] == one.addresses[number].above(worker + 1)
    assert str(hosts[0].workers_addresses[2]) == "[::1]:2"


def test_only_one_of_hosts_and_host_is_a_fault_of_the_command_line(tmp_path: Path) -> None:
    job = Job(tmp_path / "job", {})
    process = job.start("-m", "forebay", "run", "--host", "0")
    assert job.ends(process) == 2
    assert "expected both --hosts and --host, or neither" in job.told()
