"""ClickHouse (chdb) as an oracle, in the environment that benchmarks make for it: a process that is
given queries, a line each, and answers them (see `benchmarks.engines`).

    python -m tests.clickhouse NAME FOLDER
"""

from __future__ import annotations

import sys

from benchmarks.engines import Ask, Rows, serve


def chdb(_: str) -> Ask:
    import json

    from chdb.session import Session

    session = Session()

    def ask(query: str) -> Rows:
        answer = str(session.query(query, "JSONCompactEachRow"))
        return [json.loads(line) for line in answer.splitlines()]

    return ask


if __name__ == "__main__":
    raise SystemExit(serve(chdb, sys.argv[2]))
