"""Compiles the functions that questions call, ahead of the first question: a process of the server,
of low priority, which ends when it is done, or when its standard input does.

Machine code is kept (see `storage.base.compiled`), so where it already is, this only loads it. The
first funnel or retention of an installation would otherwise wait for it, perhaps for longer than a
question may take.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from datetime import date, timedelta
from itertools import product
from typing import Literal, get_args

import polars as pl

from forebay.query.analytics.events import Event, Roles
from forebay.query.analytics.funnel import Exclusion, Order, Reentry, funnel
from forebay.query.analytics.period import Period
from forebay.query.analytics.retention import retention
from forebay.query.analytics.units import order
from forebay.storage.base.compiled import is_kept

NICENESS = 19


def compile_all() -> None:
    """Ask a few events the questions that between them call every compiled function."""
    roles, period = Roles("user", "event", "time"), Period(date(2024, 5, 1), date(2024, 5, 3))
    times = pl.Series([1714521600000, 1714521660000, 1714608000000]).cast(pl.Datetime("ms", "UTC"))
    frame = pl.LazyFrame({"user": ["u"] * 3, "event": ["a", "b", "a"], "time": times})
    steps = [Event("a"), Event("b")]
    counts: tuple[Literal["uniques", "totals"], ...] = ("uniques", "totals")
    for ordered, reentry, count in product(get_args(Order), get_args(Reentry), counts):
        if (ordered, reentry) != ("any", "latest"):
            exclude = [] if ordered == "any" else [Exclusion(Event("c"))]
            funnel(frame, roles, steps, period, order=ordered, reentry=reentry, count=count,
                   exclude=exclude, resolution=timedelta(seconds=1))  # fmt: skip
    for calendar in (False, True):
        retention(frame, roles, Event("a"), Event("a"), period, days=1, calendar=calendar)


def _end_with_the_server() -> None:
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    logging.basicConfig(format="%(asctime)s serve %(levelname)s %(message)s")
    logging.getLogger("forebay.compiled").setLevel(logging.INFO)
    os.nice(NICENESS)
    if is_kept(order):
        compile_all()
