"""A reader that is broken on purpose, so that tests can see that its own checks notice.

    python -m tests.broken_reader DATA BUG      otherwise as `verify.reader`

The bugs:

    both     hot blocks that a catalog covers are not left out
    early    what was evicted is left out, whether a chunk covers it yet or not
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from forebay.query import view
from forebay.query.partition import Partition
from forebay.storage.formats.state import BlockState
from forebay.verify.reader import main


def _with_hot(choose: Callable[[Partition], list[BlockState]]) -> None:
    """Have views with these blocks as the hot ones."""
    whole_view = view._partition

    def broken(*args: Any) -> Partition:
        found = whole_view(*args)
        return replace(found, hot=tuple(choose(found)))

    view._partition = broken  # type: ignore[assignment]


def both() -> None:
    def whole(found: Partition) -> list[BlockState]:
        """All whose logs are there, so that it is events that are wrong and not files."""
        there = {path.name for path in found.folder.iterdir()}
        return [b for b in found.state.blocks if there.issuperset(e.file for e in b.extents)]

    _with_hot(whole)


def early() -> None:
    _with_hot(lambda found: [block for block in found.hot if block.number is None])


BUGS: dict[str, Callable[[], None]] = {"both": both, "early": early}

if __name__ == "__main__":
    BUGS[sys.argv[2]]()
    main([sys.argv[1], *sys.argv[3:]])
