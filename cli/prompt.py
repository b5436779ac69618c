"""The prompt of `forebay sql`: queries of one or more lines, ended by a semicolon; and answers.

History is kept in the user's state folder. Keywords, tables and columns can be completed. Ctrl-C
ends a query, or clears the line; Ctrl-D ends the prompt.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

from forebay import query
from forebay.flows.secrets import masked
from forebay.query.tables import TABLES
from forebay.storage.base.errors import ForebayError
from forebay.storage.base.text import plain_lines

KEYWORDS = (
    "select", "from", "where", "group by all", "order by", "limit", "having", "with", "as", "join",
    "using", "and", "or", "not", "in", "is null", "between", "like", "ilike", "case when", "then",
    "else", "end", "distinct", "count(*)", "sum(", "avg(", "min(", "max(", "median(",
    "date_trunc('hour', ", "time_bucket(interval '5 minutes', ", "now()", "interval", "pivot",
    "describe", "summarize", "show tables", "explain", "desc", "asc", "union all",
)  # fmt: skip
ENDS = frozenset({"exit", "quit", ".exit", ".quit", "\\q"})
HELP = "a query ends with ';'; 'describe events;' lists columns; Ctrl-D ends the prompt"


def ask(answer: Callable[[str], None], store: query.Store) -> None:
    """Answer one query after another until the user leaves."""
    words = [*TABLES, *store.schema.names, *KEYWORDS]
    session: PromptSession[str] = PromptSession(
        history=_history(),
        completer=WordCompleter(words, ignore_case=True, WORD=False),
        complete_while_typing=False,
        multiline=True,
        key_bindings=_keys(),
        prompt_continuation="      -> ",
    )
    click.echo(HELP, err=True)
    while True:
        try:
            text = session.prompt("forebay> ").strip().rstrip(";").strip()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return
        if text.casefold() in ENDS:
            return
        if text.casefold() in ("help", "?"):
            click.echo(HELP)
        elif text:
            _answered(answer, text)


def _answered(answer: Callable[[str], None], text: str) -> None:
    try:
        answer(text)
    except ForebayError as error:
        # Quoted text may be hostile, or a secret.
        click.echo(f"Error: {plain_lines(masked(str(error)))}", err=True)
    except KeyboardInterrupt:
        click.echo("ended", err=True)


def _keys() -> KeyBindings:
    """Enter ends a query that has a semicolon, or an empty line at its end; else adds a line."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        text = buffer.document.text
        last = text.rsplit("\n", 1)[-1].strip()
        whole = text.rstrip().endswith(";") or not last
        if whole or text.strip().casefold() in {*ENDS, "help", "?"}:
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    return keys


def _history() -> History:
    folder = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "forebay"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "sql-history"
        path.touch(mode=0o600, exist_ok=True)
    except (OSError, RuntimeError):
        return InMemoryHistory()  # the home directory is not writable
    return FileHistory(str(path))
