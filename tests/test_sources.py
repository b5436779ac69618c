"""What is kept of sources before they are read: formats, and workers that write it at once."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.flows.recovery import take_data_directory
from forebay.storage.base import record
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import Corruption, FormatVersion
from forebay.storage.base.layout import Layout
from forebay.storage.formats.source import (
    VERSION,
    Source,
    Topic,
    claim_sources,
    claim_topic,
    keep_source,
    read_sources,
    read_topic,
)
from tests.power import Mood, PowerDisk

GOLDEN = Path(__file__).parent / "golden" / "sources"
ID, OTHER_ID = "vNI5aYkHRZeUBW3q+x4/Vg", "AbCdEfGhIj-lMn_pQrStUv"


class Small(NamedTuple):
    """A small file: its name in GOLDEN, its bytes as encoded now, its decoder, and its value."""

    name: str
    data: bytes
    decode: Callable[[bytes, str], object]
    value: object


TOPIC, NO_ID = Topic(ID, 12), Topic(None, 1)
FILES = [
    Small("topic.json", TOPIC.encode(), Topic.decode, TOPIC),
    Small("topic-without-id.json", NO_ID.encode(), Topic.decode, NO_ID),
    Small("source.json", Source(17).encode(), Source.decode, Source(17)),
    Small("source-undecided.json", Source().encode(), Source.decode, Source()),
]
each_file = pytest.mark.parametrize("made", FILES, ids=[made.name for made in FILES])


@pytest.fixture(scope="module", autouse=True)
def rewritten_if_asked() -> None:
    if os.environ.get("REWRITE_GOLDEN") == "1":
        GOLDEN.mkdir(parents=True, exist_ok=True)
        for made in FILES:
            (GOLDEN / made.name).write_bytes(made.data)


# -- formats ------------------------------------------------------------------------------------


@each_file
def test_golden_file_reads_back_and_is_encoded_to_the_same_bytes(made: Small) -> None:
    data = (GOLDEN / made.name).read_bytes()
    assert made.decode(data, made.name) == made.value
    assert made.data == data


def test_a_bare_id_and_an_empty_file_are_version_1() -> None:
    assert Topic.decode(ID.encode(), "x") == Topic(ID, None)
    assert Source.decode(b"", "x") == Source(None)


@each_file
def test_a_later_version_is_refused_by_name(made: Small) -> None:
    with pytest.raises(FormatVersion, match=r"DATA/x: .*version 3"):
        made.decode(made.data.replace(b'"version":2', b'"version":3'), "DATA/x")


@given(st.sampled_from(FILES), st.data())
def test_a_byte_flipped_or_an_end_lost_is_an_error_that_names_the_file(
    made: Small, data: st.DataObject
) -> None:
    broken = bytearray(made.data)
    broken[data.draw(st.integers(0, len(broken) - 1))] ^= data.draw(st.integers(1, 255))
    short = made.data[: data.draw(st.integers(1, len(made.data) - 1))]
    for wrong in (bytes(broken), short):
        with pytest.raises((Corruption, FormatVersion), match="DATA/x"):
            made.decode(wrong, "DATA/x")


BODIES: list[object] = [
    {}, [], 1, {"id": 1, "partitions": 1}, {"id": "../../x", "partitions": 1},
    {"id": ID, "partitions": -1}, {"id": ID, "partitions": 2**63}, {"id": ID},
    {"id": ID, "partitions": True}, {"first_offset": -1}, {"first_offset": 1.5},
    {"first_offset": 2**63}, {"first_offset": "1"}, {"first_offset": [1]},
]  # fmt: skip
HOSTILE = [
    b"\0", b"\n", b"{}", b"null", b"first", ID.encode() + b"\n", b"\xff" * 22, b"A" * 21, b"A" * 23,
    *(record.encode(kind, VERSION, body) for kind in ("topic", "source") for body in BODIES),
]  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_no_version_wrote_is_corruption_that_names_the_file(
    hostile: bytes, tmp_path: Path
) -> None:
    layout = Layout(tmp_path)
    layout.sources.mkdir()
    layout.topics.mkdir()
    (layout.sources / "events-00000").write_bytes(hostile)
    layout.topic("events").write_bytes(hostile)
    with pytest.raises(Corruption, match="sources/events-00000"):
        read_sources(Disk(), layout)
    with pytest.raises(Corruption, match="topics/events"):
        read_topic(Disk(), layout.topic("events"))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_plain_file_is_corruption_that_names_it(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    layout = Layout(tmp_path)
    layout.sources.mkdir()
    layout.topics.mkdir()
    make(layout.sources / "events-00000")
    make(layout.topic("events"))
    with pytest.raises(Corruption, match="sources/events-00000: expected a plain file"):
        read_sources(Disk(), layout)
    with pytest.raises(Corruption, match="topics/events: expected a plain file"):
        read_topic(Disk(), layout.topic("events"))


def test_files_that_no_partition_can_name_are_left_alone(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layout.sources.mkdir()
    for name in (".DS_Store", "events-00000~", "#a#"):
        (layout.sources / name).write_bytes(b"?")
    assert read_sources(Disk(), layout) == {}


@pytest.mark.parametrize(
    ("topic", "number", "source"),
    [
        (Topic(ID, 2), 1, Source(None)),
        (Topic(ID, 2), 2, Source(0)),
        (Topic(ID, None), 0, Source(0)),
    ],
    ids=["there at the first start", "added later", "version 1 kept nothing of it"],
)
def test_a_partition_begins_at_0_unless_it_was_there_at_the_first_start(
    topic: Topic, number: int, source: Source
) -> None:
    assert topic.source(number) == source


# -- several at once ----------------------------------------------------------------------------

WORKERS, ROUNDS = 8, 12


def _claim(root: str, number: int, start: object, out: object) -> None:
    """One of the workers that start at once, each with a mind of its own."""
    layout, files = Layout(Path(root)), Disk()
    start.wait()  # type: ignore[attr-defined]
    kept: list[object] = []
    try:
        kept.append(claim_topic(files, layout.topic("events"), Topic(ID, number + 1)))
        wanted = {f"events-{n:05d}": Source(number) for n in range(4)}
        kept.append(claim_sources(files, layout, wanted))
    finally:
        out.put(kept)  # type: ignore[attr-defined]


def test_workers_that_start_at_once_all_keep_what_one_of_them_wrote(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for turn in range(ROUNDS):
        layout = Layout(tmp_path / str(turn))
        layout.root.mkdir()
        start, out = context.Barrier(WORKERS), context.SimpleQueue()
        workers = [
            context.Process(target=_claim, args=(str(layout.root), number, start, out))
            for number in range(WORKERS)
        ]
        for worker in workers:
            worker.start()
        kept = [out.get() for _ in workers]
        for worker in workers:
            worker.join()
        assert kept == [kept[0]] * WORKERS
        assert kept[0] == [
            read_topic(Disk(), layout.topic("events")),
            read_sources(Disk(), layout),
        ]
        names = [path.name for path in layout.sources.iterdir()]
        assert sorted(names) == [f"events-{n:05d}" for n in range(4)]
        assert [path.name for path in layout.topics.iterdir()] == ["events"]


DYING = """
import os, signal, sys
from pathlib import Path
from forebay.storage.base.disk import Disk
os.link = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
Disk().claim(Path(sys.argv[1]), b"half")
"""


def test_what_a_killed_start_left_harms_none_and_goes_with_the_next(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    for path in (layout.topic("events"), layout.sources / "events-00000"):
        path.parent.mkdir()
        done = subprocess.run([sys.executable, "-c", DYING, str(path)])
        assert done.returncode == -signal.SIGKILL
        assert len(list(path.parent.iterdir())) == 1
    assert read_sources(Disk(), layout) == {}
    assert claim_topic(Disk(), layout.topic("events"), TOPIC) == TOPIC
    take_data_directory(layout).close()
    assert list(layout.sources.iterdir()) == []
    assert [path.name for path in layout.topics.iterdir()] == ["events"]
    assert claim_topic(Disk(), layout.topic("events"), Topic(OTHER_ID, 3)) == TOPIC


# -- power --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mood", ["least", "most", "mixed"])
def test_what_was_claimed_or_kept_survives_a_power_loss(mood: Mood, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    layout = Layout(root)
    with PowerDisk(root, tmp_path / "shadow") as files:
        claim_topic(files, layout.topic("events"), TOPIC)
        claim_sources(files, layout, {"events-00000": Source(), "events-00001": Source(0)})
        keep_source(files, layout, "events-00000", Source(7))
        files.lose_power(random.Random(0), mood)
    assert read_topic(Disk(), layout.topic("events")) == TOPIC
    assert read_sources(Disk(), layout) == {
        "events-00000": Source(7),
        "events-00001": Source(0),
    }


def test_a_claim_is_durable_though_who_made_it_was_killed_before_syncing_its_folder(
    tmp_path: Path,
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    layout = Layout(root)
    with PowerDisk(root, tmp_path / "shadow") as files:
        files.make_directory(layout.sources)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(files, "sync_directory", lambda path: None)
            files.claim(layout.sources / "events-00000", Source(5).encode())
        kept = claim_sources(files, layout, {"events-00000": Source(9)})
        assert kept == {"events-00000": Source(5)}
        files.lose_power(random.Random(0), "least")
    assert read_sources(Disk(), layout) == kept
