"""A SQL text, checked before any of it runs: one statement that only reads our tables.

What always holds: a text is refused unless every node of its parse tree is known to be harmless; so
what a later version of the engine adds is refused until it is allowed here. This is the first of
two fences: with the second, `forebay.query.sql`, the engine itself can open nothing but chunks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NoReturn

import duckdb

from forebay.query.tables import TABLES
from forebay.storage.base.errors import BadInput
from forebay.storage.base.text import did_you_mean, shortened

TABLE_FUNCTIONS = frozenset({
    "generate_series", "histogram", "histogram_values", "json_each", "json_tree",
    "pg_timezone_names", "range", "repeat", "repeat_row", "unnest",
})  # fmt: skip
"""Functions that make rows from their arguments, or from a table of ours."""

OF_A_TABLE = frozenset({"histogram", "histogram_values"})

BLOCKED_FUNCTIONS = frozenset({
    "add_parquet_key", "currval", "current_setting", "getenv", "getvariable", "nextval",
    "write_log",
})  # fmt: skip
"""Functions that reach settings, variables, or something outside the query."""

UNSTEADY = frozenset({
    "current_date", "current_time", "current_timestamp", "localtime", "localtimestamp", "now",
    "sample", "tablesample", "today", "tomorrow", "yesterday",
})  # fmt: skip
"""Words that depend on time or chance, but are not in the engine's list of functions."""

NODES = frozenset({"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"})
FROM = frozenset({"BASE_TABLE", "COLUMN_DATA", "EMPTY", "EXPRESSION_LIST", "JOIN", "PIVOT",
                  "SHOW_REF", "SUBQUERY", "TABLE_FUNCTION"})  # fmt: skip
SHOWN = frozenset({'"tables"', "__show_tables_expanded"})
SHOW_TABLES = f"select unnest({list(TABLES)}) as name"

WORD = re.compile(r"[\w$]+")
TOLD_LINES = 6
TOLD_CHARACTERS = 500
READS = "SELECT, WITH, FROM, PIVOT, EXPLAIN, DESCRIBE, SHOW TABLES or SUMMARIZE"
INSTEAD = {
    "ATTACH": "several data directories are read as one with --data-dir, or forebay.open(a, b)",
    "COPY": "forebay sql --output FILE and forebay export write files",
    "CREATE": "name a query with WITH",
    "DELETE": "events go by handoff and retention, rejects by forebay rejects delete",
    "EXECUTE": "parameters are ? or $name",
    "EXPORT": "forebay export writes files",
    "INSERT": "events come from the source alone",
    "LOAD": "extensions can't be loaded",
    "PREPARE": "parameters are ? or $name",
    "SET": "limits and time zone are options of forebay sql and forebay.open",
    "TRANSACTION": "each query reads one view",
    "VARIABLE_SET": "parameters are ? or $name",
}
ALIKE = {
    "ALTER": "CREATE", "CREATE_FUNC": "CREATE", "DETACH": "ATTACH", "DROP": "DELETE",
    "EXTENSION": "LOAD", "MERGE_INTO": "INSERT", "PRAGMA": "SET", "UPDATE": "INSERT",
    "COPY_DATABASE": "COPY",
}  # fmt: skip

Node = dict[str, Any]


@dataclass(frozen=True)
class Statement:
    """What to run: `text`; which `tables` of ours it reads; and whether it may read columns of
    theirs that it does not name, as with `*` (`whole`)."""

    text: str
    tables: frozenset[str]
    whole: bool = False

    def asks_for(self, column: str) -> bool:
        """Whether it may read this column."""
        if self.whole:
            return True
        text, name = self.text.casefold(), column.casefold()
        return name in (WORD.findall(text) if WORD.fullmatch(name) else text.replace('""', '"'))


def parse(text: object) -> Statement:
    """The statement in a text. Raises BadInput, with the place in the text, for anything but one
    statement that only reads our tables."""
    if not isinstance(text, str) or not text.strip():
        raise BadInput(f"query: expected a SQL query, got {text!r}")
    try:
        return _Check(text, text.encode()).statement()
    except UnicodeEncodeError as error:
        raise BadInput(f"query: expected Unicode text, got {error}") from error


@cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A parser of texts: it runs none, has no tables, and opens nothing. (To list the statements of
    an IMPORT DATABASE, it would read them from a file.)"""
    fenced = dict.fromkeys(
        (
            "allow_community_extensions",
            "autoinstall_known_extensions",
            "autoload_known_extensions",
            "enable_external_access",
            "python_enable_replacements",
        ),
        False,
    )
    return duckdb.connect(":memory:", config={"threads": 1, **fenced, "lock_configuration": True})


@cache
def _table_functions() -> frozenset[str]:
    rows = (
        _parser()
        .cursor()
        .execute(
            "select distinct function_name from duckdb_functions()"
            " where function_type in ('table', 'table_macro', 'pragma')"
        )
    )
    return frozenset(name for (name,) in rows.fetchall())


def steady(text: str) -> bool:
    """Whether the same rows always give the same answer: no word of the text is a function of time
    or chance."""
    return _unsteady().isdisjoint(WORD.findall(text.casefold()))


@cache
def _unsteady() -> frozenset[str]:
    rows = (
        _parser()
        .cursor()
        .execute(
            "select distinct function_name from duckdb_functions() where stability is null"
            " and function_type = 'macro' and macro_definition ~ 'now|current_|random'"
            " or stability <> 'CONSISTENT'"
        )
    )
    return frozenset(name for (name,) in rows.fetchall()) | UNSTEADY


class _Check:
    """The check of one text. The engine counts positions in bytes."""

    def __init__(self, text: str, utf8: bytes) -> None:
        self._text = text
        self._utf8 = utf8
        self._tables: set[str] = set()
        self._named: set[str] = set()
        self._whole = "columns" in text.casefold()  # the tree lacks some of COLUMNS(…)

    def statement(self) -> Statement:
        kinds = self._kinds()
        if kinds == ["EXPLAIN"]:
            self._reading(self._explained())
        elif len(kinds) > 1 and kinds[-1] == "SELECT" and set(kinds[:-1]) == {"CREATE"}:
            self._pivot()
        else:
            if len(kinds) != 1:
                self._refuse(f"expected one statement, got {len(kinds)}")
            if kinds != ["SELECT"]:
                instead = INSTEAD.get(ALIKE.get(kinds[0], kinds[0]), "")
                instead = f": {instead}" if instead else ""
                self._refuse(f"expected {READS}, got {_words(kinds[0])}{instead}")
            tree = self._reading(0)
            if _shows_tables(tree):
                return Statement(SHOW_TABLES, frozenset())
        return Statement(self._text, frozenset(self._tables), self._whole)

    def _kinds(self) -> list[str]:
        """The kinds of its statements; if the parser split up one PIVOT, there are several."""
        try:
            return [str(one.type.name) for one in _parser().cursor().extract_statements(self._text)]
        except duckdb.Error as error:
            raise BadInput(f"query: {said(error)}") from error

    def _reading(self, at: int) -> Node:
        """The tree of the text from `at` on, in which every node is known to be harmless."""
        row = _parser().cursor().execute("select json_serialize_sql(?)", [self._utf8[at:].decode()])
        try:
            tree: Node = json.loads(row.fetchall()[0][0])
        except RecursionError as error:
            raise BadInput("query: expected less nesting, such as IN (…) for many ORs") from error
        if tree["error"]:
            where = tree.get("position")
            said_so = tree["error_message"] if where else f"expected {READS} in it"
            self._refuse(said_so, None if where is None else at + int(where))
        if len(tree["statements"]) != 1:
            self._refuse(f"expected one statement, got {len(tree['statements'])}")
        nodes = list(_nodes(tree))
        for node in nodes:
            self._named |= {one["key"].casefold() for one in node.get("cte_map", {}).get("map", ())}
            if node.get("type") == "RECURSIVE_CTE_NODE":
                self._named.add(str(node["cte_name"]).casefold())
        if not _shows_tables(tree):
            for node in nodes:
                self._harmless(node, at)
        self._whole |= _takes_all(nodes)
        return tree

    def _harmless(self, node: Node, begin: int) -> None:
        kind, at = node.get("type"), node.get("query_location")
        at = begin + at if isinstance(at, int) and begin + at <= len(self._utf8) else None
        if isinstance(kind, str) and kind.endswith("_NODE") and kind not in NODES:
            self._refuse(f"expected {READS}, got {_words(kind)}", at)
        if "sample" in node and "alias" in node and kind not in FROM:
            self._refuse(f"expected a table or a query to read from, got {_words(str(kind))}", at)
        if kind == "BASE_TABLE":
            self._table(node, at)
        elif kind == "TABLE_FUNCTION":
            self._table_function(node["function"], at)
        elif kind == "SHOW_REF" and node.get("query") is None:
            self._refuse("expected SHOW TABLES, DESCRIBE or SUMMARIZE of a table or query", at)
        elif node.get("class") == "FUNCTION":
            self._function(str(node.get("function_name", "")), at)

    def _table(self, node: Node, at: int | None) -> None:
        name, schema = str(node["table_name"]), node.get("schema_name")
        folded = name.casefold()
        if not node.get("catalog_name") and schema in ("", "main") and folded in TABLES:
            self._tables.add(folded)
        elif schema or folded not in self._named or _elsewhere(folded):
            whole = ".".join(filter(None, [str(node.get("catalog_name") or ""), schema, name]))
            near = did_you_mean(folded, TABLES)
            got = shortened(repr(whole), 100)
            self._refuse(f"expected one of {', '.join(TABLES)}; got {got}{near}", at)

    def _table_function(self, function: Node, at: int | None) -> None:
        name = str(function.get("function_name", ""))
        if name.casefold() not in TABLE_FUNCTIONS or function.get("schema") not in ("", "main"):
            self._refuse(f"expected one of {', '.join(TABLES)}; got {name}(…)", at)
        if name.casefold() in OF_A_TABLE:
            first: Node = next(iter(function.get("children", ())), {})
            table = ".".join(first.get("column_names", ())).casefold()
            if table not in TABLES:
                self._refuse(f"expected {name}({'|'.join(TABLES)}, …)", at)
            self._tables.add(table)
            self._whole = True

    def _function(self, name: str, at: int | None) -> None:
        if name.casefold() in BLOCKED_FUNCTIONS:
            self._refuse(f"expected functions of values alone, got {name}", at)

    def _explained(self) -> int:
        """Where the statement after EXPLAIN begins, past options such as (FORMAT json)."""
        words = self._words()
        depth = 0
        for n, (at, word) in enumerate(words):
            option = len(words) > n + 1 and words[n + 1][1] in EXPLAINED
            depth += 1 if word == "(" and (depth or option) else -1 if word == ")" else 0
            if not depth and word not in (")", "explain", *EXPLAINED):
                return at
        return len(self._utf8)

    def _words(self) -> list[tuple[int, str]]:
        """The tokens, case-folded, and where each begins; without what is between them."""
        starts = [at for at, _ in duckdb.tokenize(self._text)]
        ends = [*starts[1:], len(self._utf8)]
        tokens = [self._utf8[at:end].decode() for at, end in zip(starts, ends, strict=True)]
        return [(at, _token(one)) for at, one in zip(starts, tokens, strict=True)]

    def _pivot(self) -> None:
        """Check a PIVOT that looks up its own values. It has no tree, as the parser splits it into
        several statements. So its words are checked, and refused if they might name anything else;
        it is one statement if it has no semicolon except at its end."""
        self._whole = True
        words = [word for _, word in self._words()]
        while words and words[-1] == ";":
            words.pop()
        if ";" in words:
            self._refuse("expected one statement, got several")
        for word, following in zip(words, [*words[1:], ""], strict=True):
            bare = word.strip('"')
            if following == "(" and bare in _table_functions() - TABLE_FUNCTIONS:
                self._refuse(f"expected one of {', '.join(TABLES)}; got {bare}(…)")
            if following == "(":
                self._function(bare, None)
            if bare.startswith(CATALOGS) or _is_own(bare) or _names_file(word, following):
                self._refuse(
                    f"expected one of {', '.join(TABLES)}; got {shortened(word, 100)} in a PIVOT"
                    " without IN (…)"
                )
            if bare in TABLES:
                self._tables.add(bare)

    def _refuse(self, reason: str, at: int | None = None) -> NoReturn:
        where = "" if at is None else pointed(self._text, at)
        raise BadInput(f"query: {reason}{where}")


CATALOGS = ("duckdb_", "information_schema", "pg_", "pragma_", "sqlite_")
QUOTE = '"'
FILE_ENDS = (".parquet", ".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".db", ".duckdb", ".txt",
             ".gz", ".zst", ".arrow", ".avro", ".xlsx")  # fmt: skip


TOKEN = re.compile(
    r"""e'(?:[^'\\]|''|\\.)*' | [bxn]?'(?:[^']|'')*' | "(?:[^"]|"")*" | \$(\w*)\$.*?\$\1\$""",
    re.DOTALL | re.IGNORECASE | re.VERBOSE,
)
"""A token that may contain anything."""
EXPLAINED = ("analyse", "analyze", "format", "verbose")


def _token(text: str) -> str:
    """The first token of a text, case-folded. Unquoted ones end at a space or comment."""
    quoted = TOKEN.match(text)
    found = quoted[0] if quoted else re.split(r"\s|--|/\*", text, maxsplit=1)[0]
    return found.casefold()


def _elsewhere(name: str) -> bool:
    """Whether a name that is not one of our tables could, if no CTE has it, be that of a file, of a
    catalog, or of a part of a table."""
    return "." in name or "/" in name or name.startswith(CATALOGS) or _is_own(name)


def _is_own(name: str) -> bool:
    """Whether it is named like the parts that tables are made of, such as "events hot 0"."""
    table, space, _ = name.partition(" ")
    return bool(space) and table in TABLES


def _names_file(word: str, following: str) -> bool:
    if word == ".":
        return f".{following.strip(QUOTE)}" in FILE_ENDS
    escaped = word[:2] == "e'" and "\\" in word
    return word[:1] in ("'", '"', "$", "e") and (escaped or any(end in word for end in FILE_ENDS))


def _shows_tables(tree: Node) -> bool:
    """Whether it is SHOW TABLES, and nothing else."""
    source = tree["statements"][0]["node"].get("from_table", {})
    return source.get("type") == "SHOW_REF" and source.get("table_name") in SHOWN


def _takes_all(nodes: Sequence[Node]) -> bool:
    """Whether it reads columns that it does not name: by a `*`, as the rest of a PIVOT, as those
    that two tables share, or as a row, which has the name of its table."""
    tables = [node for node in nodes if "sample" in node and "alias" in node]
    rows = {str(node.get(one, "")).casefold() for node in tables for one in ("table_name", "alias")}
    return any(
        node.get("class") == "STAR"
        or node.get("type") == "PIVOT"
        or node.get("ref_type") == "NATURAL"
        or (node.get("class") == "COLUMN_REF" and node["column_names"][-1].casefold() in rows)
        for node in nodes
    )


def _nodes(tree: object) -> Iterator[Node]:
    """All objects of a parse tree."""
    waiting = [tree]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
            waiting += one.values()
        elif isinstance(one, list):
            waiting += one


def _words(kind: str) -> str:
    return kind.removesuffix("_NODE").replace("_", " ")


def pointed(text: str, at: int) -> str:
    """Two lines that show a place in the text, given in bytes, like the engine's own errors."""
    before = text.encode()[:at].decode(errors="ignore")
    number = before.count("\n") + 1
    column = len(before) - (before.rfind("\n") + 1)
    head, line = f"LINE {number}: ", text.splitlines()[number - 1] if text.splitlines() else ""
    first = max(0, column - 50)
    shown = ("…" if first else "") + line[first : column + 50]
    return f"\n{head}{shown}\n{' ' * (len(head) + column - first + bool(first))}^"


def said(error: duckdb.Error) -> str:
    """The engine's message, without the kind of error and without empty lines; a long list of
    suggestions is shortened."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    _, found, rest = lines[0].partition("Error: ")
    lines[0] = rest if found else lines[0]
    place = next((at for at, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
    told, shown = lines[:place], lines[place : place + 2]
    if len(told) > TOLD_LINES:
        told = [*told[: TOLD_LINES - 1], f"\t… and {len(told) - TOLD_LINES + 1} more"]
    return "\n".join(shortened(line, TOLD_CHARACTERS) for line in [*told, *shown])
