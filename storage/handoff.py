"""Handing over to a batch layer: sealing a time on all nodes, and moving the boundary.

    with Handoff([Path("data")]) as handoff:
        handoff.seal(until_ms)      # from now on, what is below it never changes
        ...                         # read it, for as long as that takes
        handoff.complete(now_ms, late=True)

What always holds: only one handoff is open at a time; a seal returns when no crash can undo it;
sealing the same time again, or completing again after a crash in between, changes nothing.

A running job carries the seal out and commits that. Without a job, nothing arrives, so the seal is
in force as soon as it is written; but the data must be what the last run committed, hence `ended`.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from os import PathLike
from pathlib import Path
from typing import Self

from forebay.storage.base.directory import require_data_directory
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import Layout
from forebay.storage.base.running import job_runs
from forebay.storage.base.times import utc_text
from forebay.storage.formats.boundary import Boundary, BoundaryWriter
from forebay.storage.formats.state import PartitionState, read_manifest

SEAL_S = 60.0
LOOK_S = 0.05


class Handoff:
    """One handoff of all nodes, open from `with` on.

        with forebay.Handoff(["data"]) as handoff:
            handoff.seal(until_ms)
            ...  # read the table `events_sealed`
            handoff.complete(now_ms, late=True)

    Opening it raises BadInput if another is open, or if a root is not a data directory.
    """

    def __init__(self, roots: Sequence[str | PathLike[str]], timeout_s: float = SEAL_S) -> None:
        """`roots` are the data directories of all nodes; `timeout_s` is how many seconds a running
        job may take to commit a seal."""
        self._disk = Disk()
        self._layouts = [Layout(Path(root)) for root in roots]
        self._timeout_s = timeout_s
        self._writers: list[BoundaryWriter] = []
        self._sealed: list[Boundary] = []
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for layout in self._layouts:
                require_data_directory(layout.root)  # before a lock in it makes it look like one
            for layout in self._layouts:
                self._writers.append(stack.enter_context(BoundaryWriter(self._disk, layout)))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def batches(self) -> list[Boundary]:
        """What each node has on record now."""
        return [writer.boundary for writer in self._writers]

    def reach_ms(self) -> int | None:
        """The newest upload time that was committed (since 1970), None if there is none: a time can
        be sealed up to there."""
        reached = []
        for layout in self._layouts:
            running = job_runs(self._disk, layout)
            for state in self._states(layout):
                reached.append(state.committed_ms if running else state.stream_time_ms)
        return max((ms for ms in reached if ms is not None), default=None)

    def seal(self, until_ms: int) -> list[Boundary]:
        """Have events that arrive from now on with upload times below `until_ms` (since 1970)
        treated as late.

        Returns each node's batch once that is committed. Raises BadInput if the seal would go back
        or past what has been committed, if the job was killed and is not running, or if it takes
        longer than the timeout; none of these changes what a query sees.
        """
        self._require_one_boundary(until_ms)
        reach_ms = self.reach_ms()
        if reach_ms is None or until_ms > reach_ms:
            reached = "nothing yet" if reach_ms is None else f"at most {utc_text(reach_ms)}"
            raise BadInput(
                f"seal: expected a time that committed events have reached, {reached}, got"
                f" {utc_text(until_ms)}"
            )
        for layout, writer in zip(self._layouts, self._writers, strict=True):
            spans_ms = {state.block_span_ms for state in self._states(layout)}
            with ExitStack() as stack:
                if not job_runs(self._disk, layout):
                    stack.enter_context(self._disk.lock(layout.lock))
                    self._require_ended(layout)
                writer.seal(until_ms, spans_ms)
        deadline = time.monotonic() + self._timeout_s
        for layout, batch in zip(self._layouts, self.batches, strict=True):
            self._wait(layout, batch, deadline)
        self._sealed = self.batches
        return self._sealed

    def complete(self, now_ms: int, *, late: bool, table: str | None = None) -> list[Boundary]:
        """Move the boundary to the seal: from now on the batch layer answers below it. Returns what
        each node has on record then.

        `now_ms` is the wall time (since 1970), which is kept; `late`: the batch layer has taken the
        late table too; `table`: the metadata file of its Iceberg table, which `events_all` reads.
        Raises BadInput unless `seal` has confirmed what is completed.
        """
        if self._sealed != self.batches:
            raise BadInput("complete: expected `seal` to have returned before, it has not")
        return [writer.complete(now_ms, late=late, table=table) for writer in self._writers]

    def _require_one_boundary(self, until_ms: int) -> None:
        """What a node has below the boundary of another is hidden from queries, so it must not be
        handed over unseen. A handoff that was completed on some nodes only may go on."""
        batches = self.batches
        if len({batch.covered_until_ms for batch in batches}) > 1 and any(
            batch.seal is None or batch.seal.until_ms != until_ms for batch in batches
        ):
            ends = (batch.covered_until_ms for batch in batches)
            found = ", ".join(
                f"{layout.root}: {'none' if ms is None else utc_text(ms)}"
                for layout, ms in zip(self._layouts, ends, strict=True)
            )
            raise BadInput(f"seal: expected one boundary on all nodes, got {found}")

    def _require_ended(self, layout: Layout) -> None:
        if not layout.ended.exists():
            raise BadInput(
                f"{layout.root}: expected a job that runs, or a last `forebay run` that ended well;"
                " there is neither: start it again"
            )

    def _states(self, layout: Layout) -> list[PartitionState]:
        found = (read_manifest(self._disk, layout.manifest(name)) for name in layout.partitions())
        return [state for state in found if state is not None]

    def _wait(self, layout: Layout, batch: Boundary, deadline: float) -> None:
        number = batch.seal.number if batch.seal else 0
        while True:
            behind = [s.partition for s in self._states(layout) if s.committed_seal < number]
            if not behind:
                return
            if not job_runs(self._disk, layout):
                self._require_ended(layout)
                return
            if time.monotonic() > deadline:
                raise BadInput(
                    f"{layout.root}: expected the job to commit the seal within"
                    f" {self._timeout_s:.0f} s, partition {behind[0]} has not"
                )
            time.sleep(LOOK_S)
