"""The documentation as a site, and what is wrong with it.

    python -m tests.site      # `make docs`: build/site, by Zensical; exit code 1 on any fault

1. pages, and what they link to, are copied to build/site-source, each to its place;
2. Zensical builds the site, strictly: a link to a page or heading that is not there is an error;
3. the HTML is read: every link within the site leads to a file and a heading that are there, no
   page loads anything from another address, and every page is in the navigation.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from typing_extensions import override

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "zensical.toml"
PARTS = (
    "README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "CHANGELOG.md", "REFERENCE.md", "docs",
    "docker", "examples",
)  # fmt: skip
NOT_FOUND = "404.html"
"""Its links begin at the root of a host, for it may be the answer at any depth."""
LOADS = {
    "script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src",
    "audio": "src", "embed": "src", "object": "data",
}  # fmt: skip
LOADING_LINKS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect"}


@dataclass
class Page(HTMLParser):
    """What one HTML page has: ids, links, and addresses that a browser loads by itself."""

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    @classmethod
    def of(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text())
        return page

    @override
    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.ids |= {values[name] for name in ("id", "name") if name in values}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        if tag == "link" and LOADING_LINKS & {*values.get("rel", "").split()}:
            self.loads.append(values.get("href", ""))
        if values.get(LOADS.get(tag, "")):
            self.loads.append(values[LOADS[tag]])


def build(site: Path, command: Path) -> None:
    """Build the site in the folder `site`, which is replaced, by the `zensical` at `command`.

    Raises subprocess.CalledProcessError, with what it said as `output`.
    """
    source = site.parent / f"{site.name}-source"
    for folder in (site, source):
        shutil.rmtree(folder, ignore_errors=True)
    pages = source / "pages"
    pages.mkdir(parents=True)
    for name in PARTS:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, pages / name)
    shutil.copy(ROOT / CONFIG, source / CONFIG)
    subprocess.run(
        [command, "build", "--strict", "--config-file", source / CONFIG],
        check=True,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    (source / "site").rename(site)


def navigation() -> list[str]:
    """The pages in the navigation, in order."""

    def below(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        elif isinstance(entry, dict):
            for one in entry.values():
                yield from below(one)
        elif isinstance(entry, list):
            for one in entry:
                yield from below(one)

    return list(below(tomllib.loads((ROOT / CONFIG).read_text())["project"]["nav"]))


def sources() -> list[str]:
    """The pages that there are."""
    found = [path for name in PARTS for path in (ROOT / name, *(ROOT / name).rglob("*.md"))]
    return sorted(path.relative_to(ROOT).as_posix() for path in found if path.suffix == ".md")


def faults(site: Path) -> list[str]:
    """What is wrong with a site that was built, a line each."""
    pages = {path: Page.of(path) for path in sorted(site.rglob("*.html"))}
    found = [f"{name}: expected in the navigation once" for name in _apart()]
    for path, page in pages.items():
        if path.name == NOT_FOUND:
            continue
        name = path.relative_to(site)
        found += [f"{name}: loads {load}" for load in page.loads if _is_foreign(load)]
        for link in page.links:
            if not _is_foreign(link) and not _leads_somewhere(path, link, pages):
                found.append(f"{name}: expected {link} to lead somewhere")
    return found


def _apart() -> list[str]:
    """Pages that are in the navigation, or there, but not both; or twice."""
    listed, there = navigation(), sources()
    once = [name for name in listed if listed.count(name) == 1]
    return sorted({*listed, *there} - ({*once} & {*there}))


def _is_foreign(address: str) -> bool:
    split = urlsplit(address)
    return bool(split.netloc) or split.scheme not in ("", "data")


def _leads_somewhere(path: Path, link: str, pages: dict[Path, Page]) -> bool:
    split = urlsplit(link)
    target = (path.parent / unquote(split.path)).resolve() if split.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.exists():
        return False
    heading = unquote(split.fragment)
    return not heading or target not in pages or heading in pages[target].ids


def main() -> int:
    site = ROOT / "build" / "site"
    try:
        build(site, Path(sys.executable).with_name("zensical"))
    except subprocess.CalledProcessError as error:
        print(error.output, file=sys.stderr)
        return 1
    wrong = faults(site)
    for line in wrong:
        print(line, file=sys.stderr)
    if not wrong:
        print(f"{len(sources())} pages in build/site; to read them:")
        print("  python3 -m http.server --directory build/site --bind 127.0.0.1 8000")
    return 1 if wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
