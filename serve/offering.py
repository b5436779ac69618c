"""What a query worker answers another node: what there is here, and rows of it (`query.exchange`).

Rows are a stream of Arrow's IPC, compressed, of any size in bounded memory. It bears no bound of
rows, for who asks has one of its own, but that of time.
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
    """Raises Problem 410 where what is wanted has gone: the view that it is of is too old."""
    try:
        schema, batches = rows_for(store, Wanted.decode(body.encode()))
        options = pa.ipc.IpcWriteOptions(compression=COMPRESSION)
        writer = pa.ipc.new_stream(out, schema, options=options)
        for batch in batches:
            writer.write_batch(batch)
        writer.close()  # not where it is cut off: its end would say that it is whole
    except MissingFile as error:
        raise Problem(410, str(error)) from error
