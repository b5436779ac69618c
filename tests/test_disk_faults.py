"""The disk is full, read-only or forbidden, or too many files are open.

First in storage: each call that it makes of the file system fails once, in turn. The process then
dies, as the job does; until the next start readers see what was published, and the next start goes
on from the last commit as if nothing had been. Then the real job on a real small disk: it says why,
tries again with a back-off, and goes on once there is room.
"""

from __future__ import annotations

import errno
import itertools
import os
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import BinaryIO, cast

import pytest
from typing_extensions import Buffer

import forebay
from forebay.cli.load import LoadSpec
from forebay.flows.open_files import PEER_FILES, WORKER_FILES, require_open_files
from forebay.storage.base.disk import Appender, NameLock
from forebay.storage.base.errors import PERMANENT, BadInput, Corruption
from forebay.storage.base.layout import Layout
from forebay.storage.partition.owner import own
from tests import cases, engine
from tests.job import NOW_MS, Generated, Job, assert_exact, generated, taken
from tests.oracle import Place
from tests.partition import GRACE_MS, OpenDisk, Partition, assert_agrees, event, judge

MakeJob = Callable[..., Job]
ERRORS = (errno.ENOSPC, errno.EACCES, errno.EMFILE, errno.EROFS, errno.EIO)
MESSAGES = [event(n, n % 50, 23 * n) for n in range(60)]
MESSAGES[17] = MESSAGES[17].__class__(MESSAGES[17].place, None)


# -- every call, once ---------------------------------------------------------------------------


@dataclass
class Trouble:
    """Fails the `nth` call (from 0) of `method`, before or after it has done its work."""

    method: str
    nth: int
    error: int
    after: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    """How often each method was called."""

    def strikes(self, method: str) -> bool:
        self.calls[method] += 1
        return method == self.method and self.calls[method] == self.nth + 1

    def problem(self) -> OSError:
        return OSError(self.error, os.strerror(self.error))


class FaultyAppender(Appender):
    """When it fails to append, half of the data is in the file; when it fails to sync, what was not
    synced before is lost, and no later call tells of it, as on Linux."""

    def __init__(self, path: Path, trouble: Trouble) -> None:
        super().__init__(path)
        self._trouble = trouble
        self._synced = 0
        self._append = "append_hashes" if path.suffix == ".hashes" else "append"

    def append(self, data: bytes | memoryview) -> None:
        if self._trouble.strikes(self._append):
            super().append(memoryview(data)[: len(data) // 2])
            raise self._trouble.problem()
        super().append(data)

    def sync(self) -> None:
        if self._trouble.strikes("sync"):
            os.truncate(self._path, self._synced)
            raise self._trouble.problem()
        self._synced = self._path.stat().st_size


class FaultyChunk(FileIO):
    """When it fails to write, half of the data is in the file."""

    def __init__(self, path: Path, trouble: Trouble) -> None:
        super().__init__(path, "wb")
        self._trouble = trouble

    def write(self, data: Buffer) -> int:
        if self._trouble.strikes("write"):
            super().write(memoryview(data)[: memoryview(data).nbytes // 2])
            raise self._trouble.problem()
        return super().write(data)


class FaultyDisk(OpenDisk):
    """The real file system with one fault. Nothing is really synced."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__()
        self.trouble = trouble

    def create(self, path: Path) -> Appender:
        self._strike("create", after=False)
        file = FaultyAppender(path, self.trouble)
        self._strike("created", after=True)
        return file

    def read(self, path: Path, start: int = 0, end: int | None = None) -> bytes:
        self._strike("read", after=False)
        return super().read(path, start, end)

    def size(self, path: Path) -> int:
        self._strike("size", after=False)
        return super().size(path)

    def replace(self, path: Path, data: bytes, *, durable: bool) -> None:
        """A failure leaves half a temporary file; one afterwards has replaced the file."""
        if self.trouble.strikes("replace"):
            path.with_name(f".{path.name}.tmp").write_bytes(data[: len(data) // 2])
            raise self.trouble.problem()
        super().replace(path, data, durable=durable)
        self._strike("replaced", after=True)

    def write(self, path: Path) -> BinaryIO:
        return cast(BinaryIO, FaultyChunk(path, self.trouble))

    def publish(self, temporary: Path, path: Path) -> None:
        self._strike("publish", after=False)
        super().publish(temporary, path)
        self._strike("published", after=True)

    def make_directory(self, path: Path) -> None:
        self._strike("make_directory", after=False)
        super().make_directory(path)

    def sync_directory(self, path: Path) -> None:
        self._strike("sync_directory", after=False)

    def lock_name(self, path: Path, name: str) -> NameLock:
        self._strike("lock_name", after=False)
        return super().lock_name(path, name)

    def remove(self, path: Path) -> None:
        self._strike("remove", after=False)
        super().remove(path)

    def _strike(self, method: str, *, after: bool) -> None:
        if self.trouble.strikes(method):
            raise self.trouble.problem()


METHODS = (
    "create", "created", "append", "append_hashes", "sync", "read", "replace", "replaced", "write",
    "publish", "published", "make_directory", "sync_directory", "lock_name", "remove",
)  # fmt: skip


@dataclass
class Story:
    """A partition's life up to a fault: what was committed last, and what was published."""

    partition: Partition
    snapshot: bytes | None = None
    committed: int = 0
    published: int = 0

    def live(self) -> None:
        """From the last commit to the end of the messages, with a commit, a publication and a
        merge after every few of them."""
        self.partition.start(self.snapshot)
        self.published = self.committed
        for low in range(self.committed, len(MESSAGES), 10):
            self.partition.append(*MESSAGES[low : low + 10])
            self.partition.blocks.publish()
            self.published = low + 10
            self.snapshot = self.partition.blocks.snapshot()
            self.committed = low + 10
            self.partition.merge()
            self.partition.tidy(GRACE_MS // 2)
        self.partition.blocks.publish()

    def assert_readable(self) -> None:
        """A reader sees what was published, or what was taken in next, each event once."""
        found = places_of(self.partition.root)
        assert len(set(found)) == len(found)
        least = judge(MESSAGES[: min(self.published, self.committed)]).places()
        most = judge(MESSAGES[: self.published + 10]).places()
        assert set(least) <= set(found) <= set(most)


def places_of(root: Path) -> list[Place]:
    """Every event that a query finds."""
    return sorted(forebay.open(root).scan().select("_partition", "_offset").collect().rows())


def lived(folder: Path, trouble: Trouble) -> Counter[str]:
    """The calls of a life in which `trouble` struck; asserts that it did no harm."""
    (folder / "data").mkdir(parents=True)
    disk = FaultyDisk(trouble)
    story = Story(Partition(folder / "data", files=disk))
    try:
        try:
            story.live()
        except OSError as error:
            if error.errno != trouble.error:
                raise
            disk.close()
            story.assert_readable()
            story.partition.offers = []
            story.live()
        trouble.method = "none"
        assert_agrees(story.partition, judge(MESSAGES))
        assert places_of(folder / "data") == judge(MESSAGES).places()
    finally:
        disk.close()
    return trouble.calls


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    """How often a life without faults calls each method."""
    return lived(tmp_path_factory.mktemp("calls"), Trouble("none", 0, 0))


@pytest.mark.few(5)
@pytest.mark.cases
@pytest.mark.parametrize("method", METHODS)
def test_a_fault_at_any_call_loses_and_doubles_nothing(
    method: str, calls: Counter[str], tmp_path: Path
) -> None:
    assert calls[method]
    step = max(1, calls[method] // cases(2, 5, calls[method]))
    errors = itertools.cycle(ERRORS)
    for nth in range(0, calls[method], step):
        folder = tmp_path / str(nth)
        lived(folder, Trouble(method, nth, next(errors)))
        shutil.rmtree(folder)


@pytest.mark.mutant
@pytest.mark.parametrize("method", ["append", "sync"])
def test_a_build_that_goes_on_after_a_failed_call_is_noticed_here(
    method: str, calls: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else these tests would prove nothing."""
    call = getattr(FaultyAppender, method)

    def deaf(*arguments: object) -> None:
        with suppress(OSError):
            call(*arguments)

    monkeypatch.setattr(FaultyAppender, method, deaf)
    with pytest.raises((AssertionError, Corruption)):
        lived(tmp_path / "life", Trouble(method, calls[method] // 2, errno.ENOSPC))


def test_a_lock_that_cannot_be_had_for_another_reason_is_not_called_another_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.fcntl", full)
    with pytest.raises((OSError, BadInput)) as caught:
        OpenDisk().lock(tmp_path / "lock")
    assert "another job" not in str(caught.value)
    assert "No locks available" in str(caught.value)


def test_a_name_is_held_once_by_whomever_and_all_of_one_disk_share_a_descriptor(
    tmp_path: Path,
) -> None:
    path = tmp_path / "lock"
    with closing(OpenDisk()) as disk, closing(OpenDisk()) as other:
        first = len(os.listdir("/proc/self/fd"))
        locks = [disk.lock_name(path, f"p{n}") for n in range(100)]
        assert len(os.listdir("/proc/self/fd")) == first + 1
        for one in (disk, other):
            with pytest.raises(BadInput, match=r"lock for p7: expected no other writer, got one"):
                one.lock_name(path, "p7")
        theirs = other.lock_name(path, "q7")
        locks[7].close()
        again = other.lock_name(path, "p7")
        locks[7].close()  # once more, which lets go of nothing that is another's
        with pytest.raises(BadInput, match="another job runs"):
            disk.lock_name(path, "p7")
        locks.clear()
        assert disk.locked(path)
        again.close()
        theirs.close()
        assert not disk.locked(path)


def test_a_partition_that_a_job_of_an_earlier_version_writes_is_not_written_by_another(
    tmp_path: Path,
) -> None:
    """It held a file in each partition's folder, which is still there when it has ended."""
    layout = Layout(tmp_path)
    layout.hot("p").mkdir(parents=True)
    with closing(OpenDisk()) as disk:
        with (
            OpenDisk().lock(layout.hot("p") / "lock"),
            pytest.raises(BadInput, match="a job of an earlier version runs"),
        ):
            own(disk, layout, "p")
        own(disk, layout, "p")


# -- a real job on a real disk ------------------------------------------------------------------

SPEC = LoadSpec(
    events=20_000,
    partitions=3,
    seed=3,
    span_ms=45 * 60_000,
    late=0.002,
    broken=0.01,
    duplicates=0.05,
)
ENOUGH = 64 << 20


@pytest.fixture(scope="module")
def load() -> Generated:
    return generated(SPEC, "part-{:05d}.ndjson", NOW_MS)


@pytest.fixture
def job(load: Generated, make_job: MakeJob, tmp_path: Path) -> Job:
    events = tmp_path / "events"
    events.mkdir()
    for name, messages in load.messages.items():
        (events / name).write_bytes(b"\n".join(messages) + b"\n")
    return make_job(
        FILES__PATH=str(events), BATCH_ROWS="500", BLOCKS_PER_CHUNK="2", EPOCH_INTERVAL="100ms"
    )


@dataclass(frozen=True)
class Disk:
    """A disk of its own at `path`."""

    path: Path

    def remount(self, options: str) -> None:
        """Tried again while it is refused, for what was killed just now may still be ending."""
        command = ["mount", "-o", f"remount,{options}", str(self.path)]
        deadline = time.monotonic() + 10
        while (done := subprocess.run(command, capture_output=True, text=True)).returncode:
            assert time.monotonic() < deadline, done.stderr


@pytest.fixture
def disk(job: Job) -> Iterator[Disk]:
    """The job's data directory as a disk of a few MB."""
    job.data.mkdir(parents=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ENOUGH}", "tmpfs", str(job.data)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        pytest.skip(f"mount: expected to be allowed to mount a tmpfs, got {done.stderr.strip()}")
    yield Disk(job.data)
    job.close()
    subprocess.run(["umount", str(job.data)], check=True)


SMALL = 300_000
"""Bytes of a disk that is full before anything could be published."""


def told(job: Job) -> str:
    """All that the job has said."""
    return job.log.read_text(errors="replace")


def restarts(job: Job) -> int:
    return told(job).count("all restart")


@pytest.mark.parametrize(
    "room",
    [1_500_000, *(pytest.param(room, marks=pytest.mark.long) for room in (SMALL, 3_000_000))],
)
def test_a_full_disk_is_told_and_the_job_goes_on_when_there_is_room(
    room: int, job: Job, load: Generated, disk: Disk
) -> None:
    disk.remount(f"size={room}")
    process = job.run(2)
    job.until(process, lambda _: restarts(job) >= 2)
    assert f"No space left on device: '{job.data}" in told(job)
    assert "Traceback" not in told(job)
    assert process.poll() is None
    partly = places_or_none(job)
    assert partly or room == SMALL, "expected what was published before the disk was full"
    assert set(partly) <= set(load.places)
    assert len(set(partly)) == len(partly)
    disk.remount(f"size={ENOUGH}")
    assert job.ends(process) == 0, job.told()
    assert_exact(job, load)


@pytest.mark.long
def test_a_read_only_disk_is_told_and_the_job_goes_on_when_it_can_write(
    job: Job, load: Generated, disk: Disk
) -> None:
    first = job.run()
    job.until(first, lambda found: taken(found) > load.count / 4)
    job.kill(first)
    before = job.places()
    disk.remount("ro")
    second = job.run()
    job.until(second, lambda _: restarts(job) >= 2)
    assert "ead-only file system" in told(job) or "readonly database" in told(job)
    assert job.places() == before
    disk.remount("rw")
    assert job.ends(second) == 0, job.told()
    assert_exact(job, load)


def places_or_none(job: Job) -> list[Place]:
    """What a query finds now; nothing if there is no partition yet."""
    return job.places() if Layout(job.data).partitions() else []


FOLDERS = ["hot/PARTITION", "chunks/PARTITION", "recovery", "hot"]
AS_NOBODY = """
import ctypes, os, sys
for capability in (1, 2):  # dac_override, dac_read_search
    ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""
FEW_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


@pytest.mark.long
@pytest.mark.parametrize(
    "folder", [FOLDERS[0], *(pytest.param(one, marks=pytest.mark.long) for one in FOLDERS[1:])]
)
def test_a_folder_that_may_not_be_written_is_told_and_the_job_goes_on_when_it_may(
    folder: str, job: Job, load: Generated
) -> None:
    first = job.run()
    job.until(first, lambda found: taken(found) > load.count / 4)
    job.until(first, lambda found: bool(found["chunks"].min()))
    job.kill(first)
    at = job.data / folder.replace("PARTITION", next(iter(load.messages)))
    files = [path for path in at.iterdir() if path.is_file()] if folder == "recovery" else []
    for path in [at, *files]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    second = job.start("-c", AS_NOBODY, "-m", "forebay", "run")
    if folder == "hot":  # nothing new is made there
        assert job.ends(second) == 0, job.told()
    else:
        job.until(second, lambda _: restarts(job) >= 1)
        assert "ermission denied" in told(job) or "readonly" in told(job)
        found = job.places()
        assert set(found) <= set(load.places)
        assert found  # a chunk at least was committed
        assert len(set(found)) == len(found)
        for path in [at, *files]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        assert job.ends(second) == 0, job.told()
    assert_exact(job, load)


def test_a_limit_of_open_files_that_is_too_low_is_told_before_anything_is_begun(job: Job) -> None:
    """(What happens where files run out in the middle, `forebay verify` tells.)"""
    engine.need()
    process = job.start("-c", FEW_FILES, "100", "-m", "forebay", "run", "--workers", "2")
    assert job.ends(process) == PERMANENT
    assert told(job).splitlines()[-1] == (
        "Error: limit of open files: expected at least 136 for 2 workers, got 100 (`ulimit -Hn`; in"
        " systemd LimitNOFILE)"
    )
    assert not job.data.exists()


def test_a_soft_limit_of_open_files_is_raised_to_what_the_job_needs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits = [100, 1000]
    monkeypatch.setattr("resource.getrlimit", lambda _: tuple(limits))
    monkeypatch.setattr("resource.setrlimit", lambda _, new: limits.__setitem__(slice(2), new))
    require_open_files(1)
    assert limits == [WORKER_FILES + PEER_FILES, 1000]
    limits[:] = [resource.RLIM_INFINITY] * 2
    require_open_files(1)
    assert limits == [resource.RLIM_INFINITY] * 2
