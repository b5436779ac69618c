"""A wall clock that a test can set, of a real process and all that runs in it, the engine included.

    STEPPED=FILE python -m tests.stepped_clock supervisor DATA WORKERS
    STEPPED=FILE python -m tests.stepped_clock PROCESS ADDRESS...

FILE has eight bytes: by how many seconds the wall clock is off. All but libc itself calls libc's
`clock_gettime` through a slot of its own in memory, which the dynamic linker has filled in; the
slots of Python and of the engine are overwritten here with a function that numba compiles, for no
lock of Python's is held there. The monotonic clock stays as it is.
"""

from __future__ import annotations

import ctypes
import logging
import mmap
import os
import struct
import sys
from pathlib import Path

import numpy as np
from numba import cfunc, types

TARGET = b"clock_gettime"
REALTIME = 0
_libc = ctypes.CDLL(None, use_errno=True)
_SECTION, _SYMBOL, _RELOCATION = "<IIQQQQIIQQ", "<IBBHQQ", "<QQq"
_DYNSYM, _RELA = 11, 4
_kept: list[object] = []


def step_with(file: Path) -> None:
    """From now on the wall clock of this process is off by what the file says."""
    import bytewax._bytewax

    with file.open("rb") as opened:
        shared = mmap.mmap(opened.fileno(), 8, access=mmap.ACCESS_READ)
    view = np.frombuffer(shared, np.int64)
    at, size = int(view.ctypes.data), 8
    real = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_int32, ctypes.c_size_t)(
        ctypes.cast(_libc.clock_gettime, ctypes.c_void_p).value or 0
    )
    copy = ctypes.CFUNCTYPE(ctypes.c_size_t, *[ctypes.c_size_t] * 3)(
        ctypes.cast(_libc.memcpy, ctypes.c_void_p).value or 0
    )

    def stepped(clock: int, time: int) -> int:
        result: int = real(clock, time)
        if clock == REALTIME:
            seconds = np.empty(2, np.int64)
            copy(seconds.ctypes.data, time, size)
            copy(seconds.ctypes.data + size, at, size)
            seconds[0] += seconds[1]
            copy(time, seconds.ctypes.data, size)
        return result

    compiled = cfunc(types.int32(types.int32, types.uintp))(stepped)
    _kept.extend((shared, view, real, copy, compiled))
    for path, base in _mapped().items():
        if "libpython" in path or "_bytewax" in path or path == os.path.realpath(sys.executable):
            for slot in _slots(Path(path).read_bytes()):
                _overwrite(base + slot, compiled.address or 0)
    assert bytewax._bytewax


class SteppedClock:
    """Such a file, in which the test sets the clock."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.write_bytes(bytes(8))

    def step(self, seconds: int) -> None:
        """Set the clock forward, or back."""
        (off,) = struct.unpack("<q", self.file.read_bytes())
        with self.file.open("r+b") as opened:
            opened.write(struct.pack("<q", off + seconds))


def _mapped() -> dict[str, int]:
    """Where each file is mapped into this process from its beginning on."""
    found: dict[str, int] = {}
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, _, offset, _, _, *path = line.split(None, 5)
        if path and int(offset, 16) == 0:
            found.setdefault(path[0], int(span.partition("-")[0], 16))
    return found


def _slots(elf: bytes) -> list[int]:
    """The slots of TARGET in a 64-bit ELF file, relative to its beginning."""
    start, size, count = *struct.unpack_from("<Q", elf, 40), *struct.unpack_from("<HH", elf, 58)
    sections = [struct.unpack_from(_SECTION, elf, start + n * size) for n in range(count)]
    slots = []
    for _, kind, _, _, offset, length, link, *_ in sections:
        if kind != _RELA or sections[link][1] != _DYNSYM:
            continue
        symbols, names = sections[link], sections[sections[link][6]]
        for at in range(offset, offset + length, 24):
            slot, about, _ = struct.unpack_from(_RELOCATION, elf, at)
            name, *_ = struct.unpack_from(_SYMBOL, elf, symbols[4] + 24 * (about >> 32))
            if elf.startswith(TARGET + b"\0", names[4] + name):
                slots.append(slot)
    return slots


def _overwrite(at: int, value: int) -> None:
    page = at - at % mmap.PAGESIZE
    code = _libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(2 * mmap.PAGESIZE), 3)
    if code:
        raise OSError(ctypes.get_errno(), "mprotect")
    ctypes.c_uint64.from_address(at).value = value


def main(arguments: list[str]) -> int:
    step_with(Path(os.environ["STEPPED"]))
    if arguments[0] != "supervisor":
        from forebay.flows import worker

        return worker.main(int(arguments[0]), arguments[1:])
    from forebay.flows.cluster import Cluster

    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s supervisor %(levelname)s %(message)s"
    )
    return Cluster(Path(arguments[1]), int(arguments[2]), module="tests.stepped_clock").run()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    logging.shutdown()
    os._exit(code)
