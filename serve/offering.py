"""What a query worker answers another node: what it has, and its rows (`query.exchange`).

Rows are a compressed Arrow IPC stream, of any size in bounded memory. Only their time is limited,
not their number, as the asking node has its own limit.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import BinaryIO

import pyarrow as pa

from forebay.query.exchange import Wanted
from forebay.query.store import Store, offer, rows_for
from forebay.serve.problems import Problem
from forebay.storage.base.errors import MissingFile

COMPRESSION = "zstd"


def write_offer(store: Store, out: BinaryIO) -> None:
    out.write(offer(store, version("forebay")).encode())


def write_rows(store: Store, body: str, out: BinaryIO) -> None:
    """Raises Problem 410 if what is wanted is gone, as its view is too old."""
    try:
        schema, batches = rows_for(store, Wanted.decode(body.encode()))
        options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
        writer = pa.ipc.new_stream(out, schema, options=options)
        for batch in batches:
            writer.write_batch(batch)
        writer.close()  # not if cut off: its end would mark it as whole
    except MissingFile as error:
        raise Problem(410, str(error)) from error
