"""A merge in a process of its own, and the memory that it takes.

`python -m tests.merge_memory FOLDER write ROWS WIDTH TIMES` makes a block; WIDTH is the bytes of a
row; TIMES is `one` (all of one millisecond), `shuffled` (within an interval) or `ordered`. Given
what that prints, `python -m tests.merge_memory FOLDER MEMORY ...` merges it, and prints the peak
above what the process had before it imported Polars, in bytes, and the rows that were written.
"""

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from forebay.storage.base.disk import Disk
from forebay.storage.base.layout import BlockId
from forebay.storage.formats.log import Extent
from forebay.storage.formats.log_writer import GrowingLog
from forebay.storage.formats.state import BlockState
from forebay.verify.worker import peak_bytes

SCHEMA = pa.schema(
    [
        ("_partition", pa.string()),
        ("_offset", pa.int64()),
        ("upload_time", pa.timestamp("ms", tz="UTC")),
        ("id", pa.string()),
        ("raw", pa.binary()),
    ]
)
START_MS, SPAN_MS = 1_714_521_600_000, 300_000
BATCH_BYTES = 2 << 20


def write(folder: Path, rows: int, width: int, times: str) -> BlockState:
    """A block of these rows."""
    rng = np.random.default_rng(1)
    log = GrowingLog(Disk(), folder, "a-000001.1.arrows", SCHEMA)
    step, row_bytes = max(1, BATCH_BYTES // width), 0
    for first in range(0, rows, step):
        count = min(step, rows - first)
        at = {
            "one": np.zeros(count, np.int64),
            "shuffled": rng.integers(0, SPAN_MS, count),
            "ordered": (first + np.arange(count)) * SPAN_MS // rows,
        }[times]
        texts = rng.integers(97, 123, count * width // 4, np.uint8).tobytes() * 4
        offsets = np.arange(count + 1, dtype=np.int32) * (len(texts) // count)
        log.append(
            pa.RecordBatch.from_arrays(
                [
                    pa.repeat(pa.scalar("p"), count),
                    pa.array(np.arange(first, first + count)),
                    pa.array(START_MS + at).cast(SCHEMA.field("upload_time").type),
                    pa.array([f"k{n}" for n in range(first, first + count)]),
                    pa.Array.from_buffers(
                        pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(texts)]
                    ),
                ],
                schema=SCHEMA,
            )
        )
        if log.full or first + count == rows:
            row_bytes = max(row_bytes, log.row_bytes)
            log.flush()
    last_ms = START_MS + SPAN_MS - 1
    id = BlockId(START_MS, 1)
    return BlockState(id, last_ms, START_MS, last_ms, log.extents, number=1, row_bytes=row_bytes)


def main(folder: Path, block: BlockState, memory_bytes: int) -> None:
    idle = peak_bytes()
    from forebay.storage.formats.merge import groups_of_blocks, write_sorted

    groups = groups_of_blocks(Disk(), folder, [block])
    write_sorted(Disk(), folder / "out", groups, SCHEMA, memory_bytes)
    taken = peak_bytes() - idle
    print(taken, pq.read_metadata(folder / "out").num_rows)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    if sys.argv[2] == "write":
        block = write(folder, int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
        (extent,) = block.extents
        print(extent.file, extent.bytes, extent.rows, extent.crc, block.row_bytes)
    else:
        file, size, rows, crc, row_bytes = sys.argv[3:]
        last = START_MS + SPAN_MS - 1
        extents = (Extent(file, int(size), int(rows), int(crc)),)
        id = BlockId(START_MS, 1)
        block = BlockState(id, last, START_MS, last, extents, number=1, row_bytes=int(row_bytes))
        main(folder, block, int(sys.argv[2]))
