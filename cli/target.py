"""Where a command writes: a file that did not exist, or a folder that it made itself.

What always holds, for every command:

- A file is written under a temporary name next to its own, and renamed when it is complete. An
  error before that leaves nothing behind; a killed process leaves the temporary file at most, which
  does not keep a later one from writing, even with the same process id, as in a container.
- A file that exists is overwritten only with `--force`, and only if it is a plain file.
- A folder is reused only if it has the marker of an earlier run, and then only what such a run
  makes is deleted.
"""

import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from forebay.storage.base.disk import Disk
from forebay.storage.base.errors import BadInput


@contextmanager
def new_file(path: Path, *, force: bool = False) -> Iterator[Path]:
    """The temporary name to write to; when the context is left, the file gets its own name.

    Raises BadInput if `path` exists and `force` is not given, or if it can't be written.
    """
    target = _target(path, force)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
    except OSError as error:
        raise BadInput(f"{path}: expected a file that can be written, got {error}") from error
    try:
        yield temporary
        _target(path, force)  # it may have been created meanwhile
        temporary.replace(target)
    except OSError as error:
        raise BadInput(f"{path}: expected to write it, got {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _target(path: Path, force: bool) -> Path:
    """What a rename must replace: if `path` is a link, its target."""
    if not path.name:
        raise BadInput(f"expected the name of a file, got {str(path)!r}")
    if os.path.lexists(path):
        if not force:
            raise BadInput(f"{path}: expected no such file, got one; --force overwrites it")
        if not path.is_file():
            raise BadInput(f"{path}: expected a plain file to overwrite, got something else")
    return path.resolve()


@contextmanager
def own_folder(
    folder: Path, marker: str, made: Sequence[str], ours: Callable[[Path], bool]
) -> Iterator[None]:
    """A folder for this command's use alone, without what is `made` in it: it is new, was empty, or
    has the `marker` file, whose lock is held.

    Raises BadInput if it is another folder, if another process uses it, or if a reused folder
    directly contains anything that is not `ours`.
    """
    mark = folder / marker
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = sorted(entry.name for entry in folder.iterdir())
        if others and (mark.is_symlink() or not mark.is_file()):
            raise BadInput(
                f"{folder}: expected a new or empty folder, or one with the file {marker} that an"
                f" earlier run left, got one with {', '.join(others[:3])}"
            )
        lock = Disk().lock(mark)
    except OSError as error:
        raise BadInput(f"{folder}: expected a folder to work in, got {error}") from error
    with lock:
        folders = [folder / name for name in made if not (folder / name).is_symlink()]
        for entry in [entry for one in folders if one.is_dir() for entry in sorted(one.iterdir())]:
            if not ours(entry):
                raise BadInput(
                    f"{entry.parent}: expected only what an earlier run made, got {entry.name};"
                    " move it elsewhere"
                )
        for path in [folder / name for name in made]:
            try:  # links are never followed
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
            except OSError as error:
                raise BadInput(
                    f"{path}: expected to delete what an earlier run made, got {error}"
                ) from error
        yield
