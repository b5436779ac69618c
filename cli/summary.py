"""The summary of a job that has ended: what its data holds now, and why messages are rejects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from forebay.query.view import PartitionView, View, take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import ForebayError
from forebay.storage.formats.outcome import ADVICE, Outcome, sample
from forebay.storage.formats.rejects import ALL, read_rejects


def summary(root: Path) -> list[str]:
    """The lines to end a run with. What can't be read does not fail the job that has ended."""
    try:
        view = take_view(Disk(), [root], partial=True)
        if not view.partitions:
            return [f"{root}: no message was read yet"]
        found = outcome_of(view)
    except (ForebayError, OSError) as error:
        return [f"{root}: no summary: {error}"]
    first, *rest = found.lines()
    told = [f"in {root} now: {first}", *rest]
    if found.rejects and not found.accepted:
        return [*told, f"no message became an event: {ADVICE}"]
    return [*told, f"most messages are rejects: {ADVICE}"] if found.most_are_rejects else told


def outcome_of(view: View) -> Outcome:
    """What the counters of all partitions say, and the newest reject of one of them."""
    found = Outcome()
    for partition in view.partitions:
        counters = partition.state.counters
        found.accepted += counters.accepted
        found.duplicates += counters.duplicates
        found.rejects += counters.rejects
        found.reasons.update(counters.rejected)
    found.sample = next(_newest(view.partitions), None)
    return found


def _newest(partitions: Iterable[PartitionView]) -> Iterator[str]:
    """A reject of each partition that has one, of its newest file."""
    disk = Disk()
    for partition in partitions:
        folder = partition.layout.rejects(partition.state.partition)
        for batch in read_rejects(disk, folder, partition.state.rejects[-1:], ALL):
            yield sample(batch.slice(batch.num_rows - 1).to_pylist()[0])
            break
