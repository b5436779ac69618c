"""The files below a folder that are input: one partition a file, known by its relative path.

A partition's name and number come from that path alone, so files may be added in any order. A link
to another of the files is left out, as its events would be there twice. What looks like input and
is not read is named in the log. Knows nothing of the engine: `forebay config check` uses it too.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from isal.isal_zlib import crc32

from forebay.operators.process import note_unread
from forebay.storage.base.errors import BadInput
from forebay.storage.base.layout import PartitionKey

log = logging.getLogger("forebay.files")

SUFFIXES = (".ndjson", ".jsonl", ".json")
COMPRESSIONS = ("", ".gz", ".zst")
NAME_CHARS_MAX = 200
"""Of a partition's name."""
_ENDINGS = tuple(suffix + packed for suffix in SUFFIXES for packed in COMPRESSIONS)
_ALIKE = re.compile(
    r"\.(ndjson|jsonl|json)(\.[^.]*)?\Z|\.(gz|zst|zstd|bz2|xz|lz4|zip|br|snappy)\Z", re.IGNORECASE
)
"""What may be meant as input by its name."""
_SHOWN = 3


@dataclass(frozen=True)
class FilesConfig:
    """`leave_out` is a folder that is not searched: Forebay's own. A line longer than
    `line_bytes_max` need not be kept whole."""

    path: Path
    batch_rows: int = 5000
    leave_out: Path | None = None
    line_bytes_max: int = 1 << 20


def file_partitions(config: FilesConfig) -> dict[PartitionKey, Path]:
    """Every NDJSON file at or below `path`, each a partition named after its relative path. Whether
    a file can be read is found out later. Raises BadInput if there is none."""
    path = config.path
    problem = f"expected NDJSON files at {path} ({', '.join(_ENDINGS)})"
    try:
        found = {path.name: path} if path.is_file() else _once(path, dict(_below(config)))
    except OSError as error:
        raise BadInput(f"files.path: {problem}, got: {error.strerror}") from error
    if not found:
        raise BadInput(f"files.path: {problem}")
    return {file_key(_name(relative)): entry for relative, entry in found.items()}


def file_key(name: str) -> PartitionKey:
    """The partition of this name, whether its file exists or not."""
    return PartitionKey(name, crc32(name.encode()))


def _below(config: FilesConfig) -> Iterator[tuple[str, Path]]:
    """What is named as input below the folder, by relative path; warns of what may be meant as
    input and is not read. Raises OSError if the folder can't be listed, BadInput if it is ours."""

    def unlisted(error: OSError) -> None:
        if error.filename == str(config.path):
            raise error
        if not isinstance(error, FileNotFoundError):
            leave(f"folder {error.filename}: {error.strerror}")

    passed: list[str] = []
    own = os.path.realpath(config.leave_out) if config.leave_out else ""
    if own and _within(config.path, own):
        raise BadInput(f"files.path: expected a folder outside of data_dir, got {config.path}")
    for folder, folders, names in os.walk(config.path, onerror=unlisted):
        links = [name for name in folders if Path(folder, name).is_symlink()]
        folders[:] = sorted(name for name in folders if not _within(Path(folder, name), own))
        for name in sorted([*names, *links]):
            entry = Path(folder, name)
            relative = entry.relative_to(config.path).as_posix()
            if entry.is_symlink() and _within(entry, own):
                continue
            if name.endswith(_ENDINGS):
                yield relative, entry
            elif name in links or _ALIKE.search(name):
                passed.append(relative)
    if passed:
        more = f" and {len(passed) - _SHOWN} more" if len(passed) > _SHOWN else ""
        log.warning(
            "not read: %s%s (a file is, if its name ends in %s; a link to a folder is not)",
            ", ".join(passed[:_SHOWN]),
            more,
            ", ".join(_ENDINGS),
        )


def _once(root: Path, found: dict[str, Path]) -> dict[str, Path]:
    """What was found, without links to other files found."""
    links = {name: os.path.realpath(e) for name, e in found.items() if e.is_symlink()}
    top = os.path.realpath(root)
    files = {os.path.join(top, name) for name in found if name not in links} if links else set()
    return {name: entry for name, entry in found.items() if links.get(name) not in files}


def _within(entry: Path, own: str) -> bool:
    """Whether this is the folder `own`, or in it."""
    real = os.path.realpath(entry) if own else ""
    return bool(own) and (real == own or real.startswith(f"{own}{os.sep}"))


def leave(what: str) -> None:
    """Report that this is not read, now and at the end of the run."""
    log.error("%s; left to a later run", what)
    note_unread(what)


def _name(relative: str) -> str:
    """A partition name, different for each path: characters that it may not have become `_HEX_`,
    and the end of a name that is too long becomes a digest, which is longer than any `_HEX_`."""
    name = re.sub(r"\A[.=-]|[^A-Za-z0-9.=-]", lambda match: f"_{ord(match[0]):x}_", relative)
    if len(name) <= NAME_CHARS_MAX:
        return name
    digest = hashlib.sha256(os.fsencode(relative)).hexdigest()
    return f"{name[: NAME_CHARS_MAX - len(digest) - 2]}_{digest}_"
