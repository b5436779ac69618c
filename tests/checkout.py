"""A checkout to run `make` in: this one's Makefile and set-up, with pins of few small packages.

What always holds: make finds no program but those of a folder of ours (so which Pythons there are
is up to the test), and pip no index but a folder of wheels, packed again from what is installed
here. The checkout's folder has a space in its name.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import distribution
from pathlib import Path

from tests.image import ROOT, copy_context

PROGRAMS = (
    "sh", "make", "awk", "cat", "cksum", "head", "rm", "mkdir", "mv", "dirname", "touch", "uname",
)  # fmt: skip
BASE = Path(sys._base_executable).resolve()  # type: ignore[attr-defined]
TOO_NEW = 'case "$*" in *version_info*) exit 1;; esac\n'
"""What a Python answers of which set-up asks whether its version fits, and it does not."""


def pack(name: str, folder: Path) -> tuple[str, str]:
    """A wheel of an installed package of pure Python; its pin and its hash."""
    found = distribution(name)
    stem = f"{name.replace('-', '_')}-{found.version}"
    wheel = folder / f"{stem}-py3-none-any.whl"
    left_out = {"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"}
    with zipfile.ZipFile(wheel, "w") as out:
        names = []
        for file in found.files or ():
            if ".." in file.parts or file.suffix == ".pyc" or file.name in left_out:
                continue
            out.write(str(file.locate()), str(file))
            names.append(str(file))
        [info] = {Path(one).parts[0] for one in names if ".dist-info" in Path(one).parts[0]}
        out.writestr(f"{info}/RECORD", "".join(f"{one},,\n" for one in names))
    return f"{name}=={found.version}", hashlib.sha256(wheel.read_bytes()).hexdigest()


class Checkout:
    """One checkout, and the machine that it is on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "a checkout"
        self.bin = folder / "bin"
        self.wheels = folder / "wheels"
        self.environment = {
            "PATH": str(self.bin),
            "HOME": str(folder / "home"),
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": self.wheels.as_uri(),
        }
        for made in (self.folder, self.bin, self.wheels, folder / "home"):
            made.mkdir(parents=True)
        for program in PROGRAMS:
            found = shutil.which(program)
            assert found, f"{program}: expected it on PATH"
            (self.bin / program).symlink_to(found)
        copy_context(self.folder)
        for name in ("Makefile", "setup.sh"):
            shutil.copy(ROOT / name, self.folder / name)
        (self.folder / ".editable").mkdir()
        (self.folder / ".editable" / "forebay").symlink_to("../forebay")
        (self.folder / "tests").mkdir()
        (self.folder / "benchmarks").mkdir()
        self.pin()

    def pin(self, *more: str) -> None:
        """Pin what this checkout's wheel is built with, and `more`."""
        names = re.findall(
            r"^([\w-]+)==", (ROOT / "constraints-build.txt").read_text(), re.MULTILINE
        )
        names += ["editables", *more]
        pins = [pack(name, self.wheels) for name in names]
        text = "".join(f"{pin} --hash=sha256:{digest}\n" for pin, digest in pins)
        (self.folder / "constraints-dev.txt").write_text(text)

    def program(self, name: str, text: str) -> None:
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)

    def python(self, name: str = "python3", before: str = "", real: Path = BASE) -> None:
        """Put a Python on PATH."""
        self.program(name, f'{before}exec "{real}" "$@"')

    def start(self, *targets: str, **environment: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            ["make", *targets],
            cwd=self.folder,
            env={**self.environment, **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def make(self, *targets: str, **environment: str) -> tuple[int, str]:
        """Exit code, and what was printed."""
        process = self.start(*targets, **environment)
        told, _ = process.communicate(timeout=300)
        return process.returncode, told

    def installed(self) -> bool:
        """Whether .venv runs this checkout's code, and the scripts of its packages."""
        run = {"cwd": self.folder.parent, "env": {"PATH": os.defpath}, "text": True}
        venv = self.folder / ".venv" / "bin"
        code = "import forebay; print(forebay.__file__)"
        asked = subprocess.run([venv / "python", "-c", code], capture_output=True, **run)  # type: ignore[call-overload]
        tool = subprocess.run([venv / "hatchling", "--help"], capture_output=True, **run)  # type: ignore[call-overload]
        here = str(self.folder / ".editable" / "forebay" / "__init__.py")
        return asked.stdout.strip() == here and tool.returncode == 0 and self.ready.exists()

    @property
    def ready(self) -> Path:
        return self.folder / ".venv" / "ready"
