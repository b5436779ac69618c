"""Messages to columns by arro3, for the peers that take Arrow: the reader that Forebay uses."""

from __future__ import annotations

import io

import arro3.core
import arro3.io
import pyarrow as pa

from benchmarks.peers.columns import COLUMNS, INTEGERS, TEXTS, TIMES, json_name

READ_ROWS = 512
_TYPES = {
    **dict.fromkeys(TIMES, pa.timestamp("ms", tz="UTC")),
    **dict.fromkeys(INTEGERS, pa.int64()),
    **dict.fromkeys(TEXTS, pa.string()),
}
_SCHEMA = arro3.core.Schema.from_arrow(
    pa.schema([(json_name(name), _TYPES[name]) for name in COLUMNS])
)


def table(values: list[bytes]) -> pa.Table:
    """COLUMNS, and `raw` with the whole message."""
    stream = arro3.io.read_json(io.BytesIO(b"\n".join(values)), _SCHEMA, batch_size=READ_ROWS)
    read = pa.Table.from_batches(list(pa.RecordBatchReader.from_stream(stream)))
    return read.rename_columns(list(COLUMNS)).append_column("raw", pa.array(values, pa.binary()))
