"""What `docker/` makes, without Docker: the image's environment, and what compose would run in it.

`build` does what the Dockerfile's first stage does, RUN line by RUN line, over what .dockerignore
lets in, with /opt, /src, /wheels and /tmp below a folder of its own. `Image.start` runs a command
as the second stage would: nothing of the image can be written to but the data, the numba cache, and
the working directory; the home is not there; no variable and no module comes from this checkout.

Invariants: a command runs without the right to ignore permissions, even if this process is root.
`services` raises if compose.yaml is not what the small part of the Compose format read here allows.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCKERFILE = ROOT / "docker" / "Dockerfile"
COMPOSE = ROOT / "docker" / "compose.yaml"
NO_RIGHTS = ("--bounding-set=-all", "--inh-caps=-all")
KEPT = ("PATH", "LANG", "LC_ALL", "TERM")
HOSTS_OWN = re.compile(r"PIP_(?!USER|TARGET|PREFIX|REQUIRE|CONSTRAINT)|SSL_|\w+_proxy$|\w+_PROXY$")
"""How this machine reaches its package index."""


def context() -> list[Path]:
    """The files of the checkout that an image build may see, relative to it, by .dockerignore:
    the last pattern that matches a file or a folder above it decides."""
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    patterns = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    rules = [(not text.startswith("!"), _pattern(text.lstrip("!"))) for text in patterns]
    found = []
    for folder, folders, names in os.walk(ROOT):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in (*names, *links):
            path = (Path(folder) / name).relative_to(ROOT)
            matching = [ignored for ignored, rule in rules if rule.fullmatch(path.as_posix())]
            if not (matching and matching[-1]):
                found.append(path)
    return sorted(found)


def _pattern(text: str) -> re.Pattern[str]:
    """Docker's pattern, of a path or of any below it."""
    parts = re.split(r"(\*\*/|\*)", text.strip("/"))
    stars = {"**/": "(?:.*/)?", "*": "[^/]*"}
    return re.compile("".join(stars.get(part, re.escape(part)) for part in parts) + "(?:/.*)?")


def copy_context(target: Path) -> None:
    for path in context():
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, target / path, follow_symlinks=False)


def stages() -> list[list[tuple[str, str]]]:
    """Each stage's instructions, as (word, rest), lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    instructions = [tuple(line.split(maxsplit=1)) for line in lines if line.strip()]
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions:
        if word == "FROM":
            found.append([])
        found[-1].append((word, rest))
    return found


@dataclass(frozen=True)
class Image:
    """The environment of an image below `root`."""

    root: Path

    @property
    def forebay(self) -> Path:
        return self.root / "opt" / "forebay" / "bin" / "forebay"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def environment(self, settings: Mapping[str, str]) -> dict[str, str]:
        """That of the Dockerfile, and `settings`; little else of this process's."""
        kept = {name: value for name, value in os.environ.items() if name in KEPT}
        for word, rest in stages()[-1]:
            if word == "ENV":
                for name, value in re.findall(r"(\w+)=(\S+)", rest):
                    kept[name] = self.inside(value).replace("$PATH", kept.get("PATH", ""))
        return {**kept, "HOME": str(self.root / "no-home"), **settings}

    def inside(self, text: str) -> str:
        """The text with the image's absolute paths below `root`."""
        folders = r"(?<![\w./])/(opt|src|wheels|tmp|data|var/cache/forebay)\b"
        return re.sub(folders, rf"{self.root}/\1", text)

    def start(
        self, *command: str, folder: Path, settings: Mapping[str, str] | None = None
    ) -> subprocess.Popen[str]:
        """A command of the image, in `folder`; what it prints is in one pipe."""
        return subprocess.Popen(
            [*_without_rights(), *command],
            cwd=folder,
            env=self.environment(settings or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, *arguments: str, folder: Path, settings: Mapping[str, str] | None = None) -> str:
        """What `forebay ARGUMENTS` prints; it must end with 0."""
        process = self.start(str(self.forebay), *arguments, folder=folder, settings=settings)
        told, _ = process.communicate(timeout=300)
        assert process.returncode == 0, f"forebay {' '.join(arguments)}:\n{told}"
        return told


def build(root: Path) -> Image:
    """The Dockerfile's first stage, and what of its second makes folders."""
    image = Image(root)
    for name in ("opt", "src", "wheels", "tmp", "data", "var/cache/forebay", "bin"):
        (root / name).mkdir(parents=True)
    tools = {"python": sys._base_executable, "pip": f"{sys.executable} -m pip"}  # type: ignore[attr-defined]
    for name, command in tools.items():
        tool = root / "bin" / name
        tool.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        tool.chmod(0o755)
    own = {name: value for name, value in os.environ.items() if HOSTS_OWN.match(name)}
    path = f"{root / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {**own, "PATH": path, "HOME": os.environ.get("HOME", "")}
    for word, rest in stages()[0]:
        if word == "ENV":
            # The cache saves a download, and is no part of the image here.
            pairs = dict(re.findall(r"(\w+)=(\S+)", rest))
            environment |= {k: v for k, v in pairs.items() if k != "PIP_NO_CACHE_DIR"}
        elif word == "COPY" and rest == ". .":
            copy_context(root / "src")
        elif word == "COPY":
            for name in rest.split()[:-1]:
                assert Path(name) in context(), f".dockerignore: expected it to let {name} in"
                shutil.copy(ROOT / name, root / "src" / name)
        elif word == "RUN":
            done = subprocess.run(
                ["sh", "-c", image.inside(rest)],
                cwd=root / "src",
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert done.returncode == 0, f"RUN {rest}:\n{done.stdout[-4000:]}"
        else:
            assert word in ("FROM", "WORKDIR"), f"{word}: expected an instruction known here"
    for path_inside in (root / "opt").rglob("*"):
        if not path_inside.is_symlink():
            path_inside.chmod(path_inside.stat().st_mode & ~0o222)
    return image


def _without_rights() -> list[str]:
    """A prefix of a command that takes root's right to write where permissions forbid it."""
    if os.geteuid() != 0:
        return []
    tool = shutil.which("setpriv")
    assert tool, "image: expected setpriv (util-linux) for a test as root, found none"
    return [tool, *NO_RIGHTS, "--"]


def services(environment: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """The services of compose.yaml, with variables as Compose would put them in."""
    found: dict[str, dict[str, Any]] = yaml.safe_load(COMPOSE.read_text())["services"]
    return {name: _filled(service, environment) for name, service in found.items()}


def _filled(value: Any, environment: Mapping[str, str]) -> Any:
    if isinstance(value, dict):
        return {key: _filled(one, environment) for key, one in value.items()}
    if isinstance(value, list):
        return [_filled(one, environment) for one in value]
    if not isinstance(value, str):
        return value

    def put(match: re.Match[str]) -> str:
        name, default = match.group("name", "default")
        return "$" if name is None else environment.get(name) or default

    return re.sub(r"\$\$|\$\{(?P<name>\w+):-(?P<default>[^}]*)\}", put, value)
