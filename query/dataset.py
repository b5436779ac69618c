"""A table whose rows are made on demand, as the kind of dataset that DuckDB and pyarrow know.

Both ask a `pyarrow.dataset.Dataset` for just the columns and rows that they need, but read any
other object whole. What always holds: nothing is read before it is asked for, no thread of ours
reads ahead, and an abandoned reader leaves nothing behind.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NoReturn, Protocol, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from forebay.query.batches import Pulled
from forebay.storage.base.errors import BadInput

T = TypeVar("T")


Rows = Callable[[Sequence[str], pc.Expression | None], Iterator[pa.RecordBatch]]
"""Makes rows with these columns: at least all rows for which the filter may hold."""


class Retried(Protocol):
    def __call__(self, answer: Callable[[], T], /) -> T: ...


class NotRead(Exception):
    """An engine could not read its input."""


class Scan:
    """One scan of a dataset: columns and rows are chosen, but nothing is read yet. Each method
    reads anew."""

    def __init__(
        self, schema: pa.Schema, batches: Callable[[], Iterator[pa.RecordBatch]], retried: Retried
    ) -> None:
        self.projected_schema = schema
        self._batches = batches
        self._retried = retried

    def to_reader(self) -> pa.RecordBatchReader:
        return self._retried(lambda: reader(self.projected_schema, self._batches()))

    def to_batches(self) -> Iterator[pa.RecordBatch]:
        return iter(self.to_reader())

    def to_table(self) -> pa.Table:
        return self._retried(lambda: pa.Table.from_batches(self._batches(), self.projected_schema))

    def count_rows(self) -> int:
        return self._retried(lambda: sum(int(batch.num_rows) for batch in self._batches()))

    def head(self, num_rows: int) -> pa.Table:
        held: list[pa.RecordBatch] = []
        for batch in self.to_batches():
            held.append(batch.slice(0, num_rows))
            num_rows -= held[-1].num_rows
            if not num_rows:
                break
        return pa.Table.from_batches(held, self.projected_schema)


class Dataset(ds.Dataset):  # type: ignore[misc]  # pyarrow has no types
    """The interface of a `pyarrow.dataset.Dataset` over rows made by `_rows`; without fragments, as
    there are none, and without what a query does better."""

    def __init__(self) -> None:
        """Does not call pyarrow's constructor, which can't make one."""

    @abstractmethod
    def _rows(
        self, columns: Sequence[str], where: pc.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        """The rows of the table: at least these columns, and all for which `where` may hold."""

    def _retried(self, answer: Callable[[], T]) -> T:
        """The answer, asked for again if that may help."""
        return answer()

    @property
    @abstractmethod
    def schema(self) -> pa.Schema:
        """Columns and types."""

    def scanner(
        self,
        columns: Sequence[str] | None = None,
        filter: pc.Expression | None = None,
        **options: object,
    ) -> Scan:
        """A scan of these columns, or of all, and of the rows for which `filter` holds; other
        `options` of pyarrow are ignored. Raises BadInput for unknown columns."""
        schema = self.schema
        if isinstance(columns, Mapping):
            raise BadInput("columns: expected names, got expressions")
        names = schema.names if columns is None else list(columns)
        for name in names:
            if name not in schema.names:
                raise BadInput(f"columns: expected one of {schema.names}, got {name!r}")
        chosen = pa.schema([schema.field(name) for name in names])
        # An expression does not list the columns it refers to, but names them when written out.
        named = [] if filter is None else [one for one in schema.names if one in str(filter)]
        wanted = [*names, *(one for one in named if one not in names)]
        return Scan(chosen, lambda: self._chosen(wanted, filter, names), self._retried)

    def _chosen(
        self, wanted: Sequence[str], where: pc.Expression | None, names: Sequence[str]
    ) -> Iterator[pa.RecordBatch]:
        for batch in self._rows(wanted, where):
            if where is None:
                yield batch.select(names)
            else:
                found = pa.Table.from_batches([batch]).filter(where).select(names)
                yield from found.to_batches()

    def to_batches(self, columns: Any = None, filter: Any = None, **options: object) -> Any:
        return self.scanner(columns, filter).to_batches()

    def to_table(self, columns: Any = None, filter: Any = None, **options: object) -> pa.Table:
        return self.scanner(columns, filter).to_table()

    def head(
        self, num_rows: int, columns: Any = None, filter: Any = None, **options: object
    ) -> pa.Table:
        return self.scanner(columns, filter).head(num_rows)

    def count_rows(self, filter: Any = None, **options: object) -> int:
        return self.scanner(self.schema.names[:1], filter).count_rows()

    def _refused(self, *_: object, **__: object) -> NoReturn:
        raise BadInput("dataset: expected scanner, to_table, to_batches, head or count_rows")

    filter = get_fragments = join = join_asof = replace_schema = sort_by = take = _refused
    partition_expression = None


class Made(Dataset):
    """Rows that a function makes, called like `_rows`. `failure` is the error raised while making
    them, since a reader in another language passes on only its text."""

    def __init__(self, schema: pa.Schema, rows: Rows) -> None:
        super().__init__()
        self._made, self._schema = rows, schema
        self.failure: BaseException | None = None

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def _rows(
        self, columns: Sequence[str], where: pc.Expression | None
    ) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._made(columns, where)
        except BaseException as error:
            self.failure = error
            raise


def reader(schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> pa.RecordBatchReader:
    """A reader of the batches. Reads the first one now, so that an old view is noticed."""
    first = next(batches, None)
    head = () if first is None else (first,)
    return pa.RecordBatchReader.from_batches(schema, Pulled(chain(head, batches)))
