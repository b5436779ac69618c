"""The summary of a job that has ended: what its data contains, and why messages are rejects."""

from itertools import chain, islice
from pathlib import Path

from forebay.query.view import take_view
from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import ForebayError
from forebay.storage.formats.outcome import ADVICE, Outcome, sample


def summary(root: Path) -> list[str]:
    """The lines to end a run with. Unreadable data does not fail the job, which has ended."""
    found = Outcome()
    try:
        view = take_view(Disk(), [root], partial=True)
        if not view.partitions:
            return [f"{root}: no message was read yet"]
        for counters in (partition.state.counters for partition in view.partitions):
            found.accepted += counters.accepted
            found.duplicates += counters.duplicates
            found.rejects += counters.rejects
            found.rejects_expired += counters.rejects_expired
            found.reasons.update(counters.rejected)
        newest = chain.from_iterable(partition.reject_logs[-1:] for partition in view.partitions)
        for batch in islice(chain.from_iterable(log.batches() for log in newest), 1):
            found.sample = sample(batch.slice(batch.num_rows - 1).to_pylist()[0])
    except (ForebayError, OSError) as error:
        return [f"{root}: no summary: {error}"]
    first, *rest = found.lines()
    lines = [f"in {root} now: {first}", *rest]
    if found.rejects and not found.accepted:
        return [*lines, f"no message became an event: {ADVICE}"]
    return [*lines, f"most messages are rejects: {ADVICE}"] if found.most_are_rejects else lines
