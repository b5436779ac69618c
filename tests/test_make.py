"""`make` on the machine of a newcomer: what was interrupted, moved, is too new, or missing."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.checkout import BASE, TOO_NEW, Checkout
from tests.image import HOSTS_OWN, ROOT

pytestmark = pytest.mark.long

NOT_NEEDED = {
    "test",
    "tests",
    "site-packages",
    "dist-packages",
    "idlelib",
    "tkinter",
    "__pycache__",
}


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    made = Checkout(tmp_path)
    made.python()
    return made


def test_make_alone_lists_every_target(checkout: Checkout) -> None:
    code, told = checkout.make()
    assert code == 0
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    listed = re.findall(r"^make (\S+)  +\S", told, re.MULTILINE)
    assert sorted(["help", *listed]) == sorted(phony.group(1).split())
    assert not (checkout.folder / ".venv").exists()


def test_set_up_in_a_folder_with_a_space_is_done_once(checkout: Checkout) -> None:
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()
    shutil.rmtree(checkout.wheels)  # what is there needs nothing more
    checkout.bin.joinpath("python3").unlink()
    code, told = checkout.make("setup")
    assert (code, told) == (0, "")


def test_changed_pins_are_installed_into_the_same_venv(checkout: Checkout) -> None:
    assert checkout.make("setup")[0] == 0
    kept = checkout.folder / ".venv" / "kept"
    kept.touch()
    checkout.pin("typing-extensions")
    assert checkout.make("setup")[0] == 0
    assert kept.exists()
    assert list(checkout.folder.glob(".venv/lib/python*/site-packages/typing_extensions.py"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_set_up_that_was_interrupted_is_done_again(checkout: Checkout, number: int) -> None:
    with _index_that_never_answers() as (address, asked):
        links = {"PIP_FIND_LINKS": address, "PIP_RETRIES": "0"}
        process = checkout.start("setup", **links)
        assert asked.wait(120)
        os.killpg(process.pid, number)
        process.communicate(timeout=60)
        assert process.returncode != 0
    assert (checkout.folder / ".venv" / "bin" / "python").exists()
    assert not checkout.ready.exists()
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()


@contextmanager
def _index_that_never_answers() -> Iterator[tuple[str, threading.Event]]:
    """Its address, and an event set when it is asked; whoever asks waits until the end of this."""
    asked, over = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            over.wait()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", asked
    finally:
        over.set()
        server.shutdown()
        thread.join()
        server.server_close()


def test_checkout_that_was_moved_runs_its_own_code(checkout: Checkout) -> None:
    assert checkout.make("setup")[0] == 0
    old, checkout.folder = checkout.folder, checkout.folder.with_name("moved")
    shutil.copytree(old, checkout.folder, symlinks=True)
    assert not checkout.installed()
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()


def test_venv_whose_python_is_gone_is_made_again(checkout: Checkout) -> None:
    assert checkout.make("setup")[0] == 0
    for python in (checkout.folder / ".venv" / "bin").glob("python*"):
        python.unlink()
        python.symlink_to("/nowhere/python")
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()


def test_foreign_venv_that_works_is_used(checkout: Checkout) -> None:
    venv = checkout.folder / ".venv"
    subprocess.run([BASE, "-m", "venv", venv], check=True)
    (venv / "theirs").touch()
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()
    assert (venv / "theirs").exists()


def test_foreign_venv_that_does_not_work_is_left_alone(checkout: Checkout) -> None:
    theirs = checkout.folder / ".venv" / "theirs"
    theirs.parent.mkdir()
    theirs.write_text("mine")
    code, told = checkout.make("setup")
    assert code == 2
    assert "expected .venv to have a Python 3.11 or 3.12 and pip" in told
    assert theirs.read_text() == "mine"


def test_variables_of_pip_and_python_do_not_lead_set_up_astray(checkout: Checkout) -> None:
    """Each alone would install elsewhere, nothing, or fail."""
    code, told = checkout.make(
        "setup", PIP_USER="1", PIP_TARGET="elsewhere", PIP_PREFIX="elsewhere", PIP_NO_DEPS="1",
        PIP_REQUIRE_HASHES="1", PIP_NO_BINARY=":all:", PIP_CONSTRAINT="nowhere.txt",
        PIP_DRY_RUN="1", PIP_REQUIRE_VIRTUALENV="1", PYTHONPATH="elsewhere",
        PYTHONDONTWRITEBYTECODE="1",
    )  # fmt: skip
    assert code == 0, told
    assert checkout.installed()
    assert not (checkout.folder / "elsewhere").exists()


def test_without_a_package_index_set_up_says_what_it_lacks_and_later_goes_on(
    checkout: Checkout,
) -> None:
    code, told = checkout.make("setup", PIP_FIND_LINKS="nowhere")
    assert code == 2
    assert "expected pip to install the packages of constraints-dev.txt" in told
    assert "Once it reaches a package index (see 'pip config list'), run make again" in told
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()


def test_python_without_what_makes_a_venv_is_passed_over(checkout: Checkout) -> None:
    """As on Debian without python3-venv."""
    checkout.python("python3.12", "exit 1\n")
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()


@pytest.mark.parametrize("pythons", [(), ("python3",)], ids=["no Python", "a Python too new"])
def test_without_a_python_that_fits_set_up_says_what_to_install(
    checkout: Checkout, pythons: tuple[str, ...]
) -> None:
    (checkout.bin / "python3").unlink()
    for name in pythons:
        checkout.python(name, TOO_NEW)
    code, told = checkout.make("setup")  # the folder of wheels has no uv
    assert code == 2
    assert "Python 3.11 or 3.12" in told
    assert not (checkout.folder / ".venv").exists()


def test_python_comes_from_the_uv_on_path(checkout: Checkout) -> None:
    checkout.python("python3", TOO_NEW)
    log = checkout.folder / "asked"
    checkout.program(
        "uv",
        f'echo "$2 $UV_PYTHON_PREFERENCE" >>"{log}"\n'
        f'if [ $2 = install ]; then touch "{log}.installed"; exit; fi\n'
        f'if [ -e "{log}.installed" ]; then echo "{BASE}"; else exit 2; fi',
    )
    assert checkout.make("setup")[0] == 0
    assert checkout.installed()
    asked = [f"{word} only-managed" for word in ("find", "install", "find")]
    assert log.read_text().splitlines() == asked
    assert not (checkout.folder / "build" / "uv").exists()


@pytest.fixture
def newcomer(checkout: Checkout) -> Checkout:
    """Has one Python, which is too new (a real one, where this machine has one), no uv, and the
    package index of this machine."""
    newer = _newer_python()
    checkout.python("python3", "" if newer else TOO_NEW, newer or BASE)
    own = {name: value for name, value in os.environ.items() if HOSTS_OWN.match(name)}
    home = os.environ.get("HOME", "")  # where pip's configuration may be
    checkout.environment = {**own, "PATH": str(checkout.bin), "HOME": home}
    pins = (ROOT / "constraints-dev.txt").read_text()
    editables = re.search(r"^editables==(.*\\\n)*.*\n", pins, re.MULTILINE)
    assert editables is not None
    pins = (ROOT / "constraints-build.txt").read_text() + editables.group()
    (checkout.folder / "constraints-dev.txt").write_text(pins)
    return checkout


def _newer_python() -> Path | None:
    beside = sorted(Path(os.path.expanduser("~/.pyenv/versions")).glob("3.1[3-9]*/bin/python3"))
    found = [shutil.which(f"python3.{minor}") for minor in range(13, 20)]
    for python in [*beside, *map(Path, filter(None, found))]:
        code = "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 13))"
        if subprocess.run([python, "-c", code], capture_output=True).returncode == 0:
            return python
    return None


def test_where_the_only_python_is_too_new_uv_is_installed_and_fetches_one(
    newcomer: Checkout, tmp_path: Path
) -> None:
    """All is real but the place that uv downloads from: an archive of a Python of this machine."""
    downloads = tmp_path / "downloads.json"
    _offer_python(downloads)
    code, told = newcomer.make("setup", UV_PYTHON_DOWNLOADS_JSON_URL=str(downloads))
    assert code == 0, told
    assert newcomer.installed()
    config = (newcomer.folder / ".venv" / "pyvenv.cfg").read_text()
    assert str(newcomer.folder / "build" / "python") in config


def test_where_no_python_can_be_downloaded_set_up_says_what_to_install(
    newcomer: Checkout, tmp_path: Path
) -> None:
    downloads = tmp_path / "downloads.json"
    _offer_python(downloads).unlink()
    code, told = newcomer.make("setup", UV_PYTHON_DOWNLOADS_JSON_URL=str(downloads))
    assert code == 2
    assert "expected uv to download a Python 3.12; it failed as said above. Install Python" in told
    assert not (newcomer.folder / ".venv").exists()


def _offer_python(downloads: Path) -> Path:
    """Write uv's list of downloads, with one archive laid out as uv expects it; the archive."""
    archive = downloads.with_name("cpython.tar.gz")
    major, minor, patch = sys.version_info[:3]

    def needed(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        path = Path(member.name)
        left_out = NOT_NEEDED & set(path.parts) or path.suffix == ".a"
        return None if left_out else member

    with tarfile.open(archive, "w:gz", compresslevel=1) as out:
        out.add(BASE, f"python/bin/python{major}.{minor}")
        stdlib = sysconfig.get_path("stdlib")
        out.add(stdlib, f"python/lib/python{major}.{minor}", filter=needed)
    name = f"cpython-{major}.{minor}.{patch}-linux-{platform.machine()}-gnu"
    offered = {
        "name": "cpython", "arch": {"family": platform.machine(), "variant": None},
        "os": "linux", "libc": "gnu", "major": major, "minor": minor, "patch": patch,
        "prerelease": "", "url": archive.as_uri(), "sha256": None, "variant": None, "build": None,
    }  # fmt: skip
    downloads.write_text(json.dumps({name: offered}))
    return archive
