"""A stranger: reads a page of the documentation from the top and does what it says, word for word.

`blocks` parses a page. A `Stranger` has a checkout of this project as a clone would give it, whose
set-up is done, an empty home, and one terminal, whose folder and variables last from command to
command as in a shell. A command that goes on until it is stopped has a terminal of its own.

Invariants: nothing that a command writes gets into this checkout. `make` runs in the checkout, as
the pages say. The one text that is changed is the broker's port, for another may be in use.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.broker import BUILD, jars
from tests.image import ROOT

COLUMNS = 80
SECONDS = 300
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OBEY = """
import json, sys
names = {"__name__": "__main__"}
for line in sys.stdin:
    exec(json.loads(line), names)
    print("done", file=sys.stderr, flush=True)
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page: the line it is on, its language, and the paragraph before it."""

    page: str
    line: int
    language: str
    text: str
    before: str

    @property
    def commands(self) -> list[str]:
        """Its lines without comments, with a line that ends in a backslash joined to the next."""
        lines = self.text.replace("\\\n", " ").splitlines()
        bare = [re.sub(r"(^|\s+)#.*$", "", line).strip() for line in lines]
        return [line for line in bare if line]

    @property
    def file(self) -> str:
        """The file that the paragraph before names."""
        [*_, name] = re.findall(r"`([\w.-]+\.toml)`", self.before)
        return str(name)

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text()
    for found in FENCE.finditer(text):
        paragraphs = [one for one in text[: found.start()].split("\n\n") if one.strip()]
        line = text.count("\n", 0, found.start()) + 1
        yield Block(page, line, found[1], found[2], paragraphs[-1] if paragraphs else "")


@dataclass
class Terminal:
    """A command that goes on until it is stopped, in a terminal of 80 columns."""

    command: str
    process: subprocess.Popen[bytes]
    screen: int
    told: str = ""

    def until(self, pattern: str) -> str:
        """All that it has said, as soon as that has `pattern` in it."""
        while not re.search(pattern, self.told):
            ready, _, _ = select.select([self.screen], [], [], SECONDS)
            assert ready, f"{self.command}: silent before it said {pattern!r}:\n{self.told}"
            try:
                more = os.read(self.screen, 65536)
            except OSError:  # the other side is closed
                more = b""
            assert more, f"{self.command}: ended before it said {pattern!r}:\n{self.told}"
            # Without what colours, and moves the cursor.
            self.told += re.sub(r"\x1b\[[\d;?]*\w", "", more.decode(errors="replace"))
        return self.told

    def stop(self, number: signal.Signals) -> int:
        """What it exits with: the signal goes to all that Ctrl-C would reach."""
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            self.process.send_signal(number)
        try:
            while os.read(self.screen, 65536):
                pass
        except OSError:  # the other side is closed
            pass
        os.close(self.screen)
        return self.process.wait(SECONDS)


@dataclass
class Stranger:
    """`port` is where the broker of the pages will be."""

    root: Path
    port: int
    terminals: list[Terminal] = field(default_factory=list)
    counted: dict[str, Any] = field(default_factory=dict)
    """What commands said that later ones must agree with."""
    told: str = ""
    """What the last command printed."""
    _python: subprocess.Popen[str] | None = None

    def __post_init__(self) -> None:
        self.checkout = self.root / "forebay"
        self.home = self.root / "home"
        self._state = self.root / "state"
        self.home.mkdir()
        tracked = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout.split("\0")  # fmt: skip
        for name in filter(None, tracked):
            (self.checkout / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, self.checkout / name, follow_symlinks=False)
        self._set_up()
        kept = {
            name: value
            for name, value in os.environ.items()
            if not re.match(r"FOREBAY_|PYTHONPATH|PYTEST|VIRTUAL_ENV|MAKE|MFLAGS", name)
        }
        self._environment = {
            **kept,
            "HOME": str(self.home),
            "PORT": str(self.port),
        }
        quoted = _quoted(self.checkout)
        self._state.write_text(f"cd {quoted}\n")

    def _set_up(self) -> None:
        """A .venv that is this process's, and that setup.sh takes for the checkout's own."""
        venv = self.checkout / ".venv"
        venv.mkdir()
        for entry in Path(sys.prefix).iterdir():
            if entry.name not in ("ready", "unfinished"):
                (venv / entry.name).symlink_to(entry)
        pins = subprocess.run(
            ["sh", "-c", "cat constraints-dev.txt pyproject.toml setup.sh | cksum"],
            cwd=self.checkout, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        (venv / "ready").write_text(f"{self.checkout.resolve()}\n{pins}")

    def have_jars(self) -> None:
        """What `make kafka` gets from Maven once."""
        kafka = self.checkout / "build" / BUILD.name
        kafka.mkdir(parents=True)
        (kafka / "lib").symlink_to(jars())

    def _script(self, command: str) -> str:
        command = command.replace("localhost:9092", f"localhost:{self.port}")
        return f"source {_quoted(self._state)}\n" + (
            f"cd {_quoted(self.checkout)}\n{command}" if command.startswith("make ") else command
        )

    def run(self, command: str) -> str:
        """What a command prints; it must succeed."""
        keep = f'{{ export -p; echo "cd \\"$PWD\\""; }} >{_quoted(self._state)}'
        done = subprocess.run(
            ["bash", "-c", f"{self._script(command)} || exit\n{keep}"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"$ {command}\n{done.stdout}"
        return done.stdout

    def start(self, command: str) -> Terminal:
        screen, inside = pty.openpty()
        fcntl.ioctl(inside, termios.TIOCSWINSZ, struct.pack("HHHH", 40, COLUMNS, 0, 0))
        before, _, last = self._script(command).rpartition("\n")
        process = subprocess.Popen(
            ["bash", "-c", f"{before}\nexec {last}"],
            env={**self._environment, "TERM": "xterm"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )
        os.close(inside)
        self.terminals.append(Terminal(command, process, screen))
        return self.terminals[-1]

    def write(self, block: Block) -> None:
        text = block.text.replace("localhost:9092", f"localhost:{self.port}")
        (self.folder / block.file).write_text(text)

    def python(self, text: str) -> None:
        """Run a block in the one interpreter that all blocks share, in the terminal's folder."""
        if self._python is None:
            self._python = subprocess.Popen(
                ["bash", "-c", f"source {_quoted(self._state)}\nexec python -c {_quoted(OBEY)}"],
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        assert self._python.stdin is not None
        assert self._python.stderr is not None
        self._python.stdin.write(json.dumps(text) + "\n")
        self._python.stdin.flush()
        told = ""
        while (line := self._python.stderr.readline()) != "done\n":
            told += line
            assert line, f"{text}\n{told}"

    @property
    def folder(self) -> Path:
        return Path(self.run("pwd").strip())

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.run("forebay status --json"))
        return found

    def close(self) -> None:
        """End whatever still runs."""
        if self._python is not None:
            assert self._python.stdin is not None
            assert self._python.stderr is not None
            self._python.stdin.close()
            self._python.stderr.close()
            self._python.wait(SECONDS)
        for terminal in self.terminals:
            if terminal.process.poll() is None:
                os.killpg(terminal.process.pid, signal.SIGKILL)
                terminal.process.wait()


def _quoted(text: object) -> str:
    return "'" + str(text).replace("'", "'\\''") + "'"
