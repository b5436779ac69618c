"""The part of a Polars filter that another node can apply: an Arrow expression that holds wherever
the filter does.

The filter is read from Polars' JSON form. What always holds: unknown parts are left out, so that
rather too many rows come than too few; the filter itself is then applied to them. Columns of
floating point are left out, as NaN differs between Arrow and Polars.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from forebay.query.frames import PolarsSchema

COMPARED: Mapping[str, Callable[[Any, Any], Any]] = {
    "Eq": operator.eq, "NotEq": operator.ne, "Lt": operator.lt, "LtEq": operator.le,
    "Gt": operator.gt, "GtEq": operator.ge,
}  # fmt: skip
TURNED = {"Lt": "Gt", "LtEq": "GtEq", "Gt": "Lt", "GtEq": "LtEq"}
BOUNDS = {
    "Both": ("GtEq", "LtEq"), "Left": ("GtEq", "Lt"), "Right": ("Gt", "LtEq"), "None": ("Gt", "Lt"),
}  # fmt: skip
UNITS = {"Milliseconds": "ms", "Microseconds": "us", "Nanoseconds": "ns"}
Json = Any


def pushed(predicate: pl.Expr | None, schema: PolarsSchema) -> pc.Expression | None:
    """The expression, or None if there is none."""
    if predicate is None:
        return None
    try:
        return _Reading(schema).expression(orjson.loads(predicate.meta.serialize(format="json")))
    except (pl.exceptions.PolarsError, ValueError, pa.ArrowException):
        return None


class _Reading:
    def __init__(self, schema: PolarsSchema) -> None:
        self._schema = schema

    def expression(self, node: Json) -> pc.Expression | None:
        match node:
            case {"BinaryExpr": {"left": left, "op": "And" | "LogicalAnd", "right": right}}:
                parts = [self.expression(left), self.expression(right)]
                known = [one for one in parts if one is not None]
                return known[0] & known[1] if len(known) == 2 else next(iter(known), None)
            case {"BinaryExpr": {"left": left, "op": "Or" | "LogicalOr", "right": right}}:
                either, other = self.expression(left), self.expression(right)
                return None if either is None or other is None else either | other
            case {"BinaryExpr": {"left": {"Column": str(name)}, "op": op, "right": value}}:
                return self._compared(name, op, value)
            case {"BinaryExpr": {"left": value, "op": op, "right": {"Column": str(name)}}}:
                return self._compared(name, TURNED.get(op, op), value)
            case {"Function": {"input": [{"Column": str(name)}, *values], "function": function}}:
                return self._called(name, values, function)
        return None

    def _compared(self, name: str, op: str, value: Json) -> pc.Expression | None:
        scalar = self._scalar(name, value)
        if scalar is None or op not in COMPARED:
            return None
        found: pc.Expression = COMPARED[op](pc.field(name), scalar)
        return found

    def _called(self, name: str, values: list[Json], function: Json) -> pc.Expression | None:
        match function, values:
            case {"Boolean": "IsNotNull"}, []:
                return pc.field(name).is_valid()
            case {"Boolean": "IsNull"}, []:
                return pc.field(name).is_null()
            case {"Boolean": {"IsBetween": {"closed": str(closed)}}}, [low, high]:
                first, last = BOUNDS[closed]
                bounds = [self._compared(name, first, low), self._compared(name, last, high)]
                known = [one for one in bounds if one is not None]
                return known[0] & known[1] if len(known) == 2 else next(iter(known), None)
            case (
                {"Boolean": {"IsIn": {"nulls_equal": False}}},
                [{"Literal": {"Scalar": {"List": data}}}],
            ):
                return self._among(name, bytes(data))
        return None

    def _among(self, name: str, data: bytes) -> pc.Expression | None:
        """The value is among these texts, given as an Arrow stream."""
        texts = pa.ipc.open_stream(data).read_all().column(0).to_pylist()
        usual = self._schema.get(name) == pl.String() and texts
        if not usual or not all(isinstance(one, str) for one in texts):
            return None
        return pc.field(name).isin(pa.array(texts, pa.string()))

    def _scalar(self, name: str, value: Json) -> pa.Scalar | None:
        """A value that the column can be compared with directly."""
        dtype = self._schema.get(name)
        match value:
            case {"Literal": {"Scalar": {"String": str(text)}}} if dtype == pl.String():
                return pa.scalar(text, pa.string())
            case {"Literal": {"Scalar": {"Boolean": bool(truth)}}} if dtype == pl.Boolean():
                return pa.scalar(truth)
            case {"Literal": {"Scalar": {"Int64": int(number)}}} | {
                "Literal": {"Dyn": {"Int": int(number)}}
            } if dtype == pl.Int64():
                return pa.scalar(number, pa.int64())
            case {"Literal": {"Scalar": {"Datetime": [int(number), unit, {"inner": "UTC"}]}}} if (
                isinstance(dtype, pl.Datetime) and UNITS.get(unit) == dtype.time_unit
            ):  # given two units, Polars uses the coarser, Arrow the finer
                return pa.scalar(number, pa.timestamp(dtype.time_unit, "UTC"))
        return None
