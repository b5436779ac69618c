"""The peers: which ones there are, and how each is installed, run and checked.

Each has an environment of its own in build/bench/venv-NAME, made at its first use, and the jars of
its pom, if it has one, in build/bench/jars-NAME. One that can't be installed or run is absent, with
the reason; nothing takes its place.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.measure import BUILD, ROOT, Child, Failed, Usage
from benchmarks.topic import Topic

POMS = Path(__file__).resolve().parent / "peers"
MAVEN = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies"
TIMEOUT_S = 3_600.0
KAFKA = "confluent-kafka>=2.6,<3"
ARROW = ("pyarrow>=23,<27", "arro3-core>=0.9,<0.10", "arro3-io>=0.9,<0.10")


@dataclass(frozen=True)
class Peer:
    """`name` is the module in `peers`, and the end of the ratio's name."""

    name: str
    requirements: tuple[str, ...]

    def install(self) -> None:
        """Make its environment, unless it exists. Raises Failed."""
        pom = POMS / f"{self.name}.pom.xml"
        needs = [*self.requirements, pom.read_text() if pom.is_file() else ""]
        stamp = hashlib.sha256("\n".join(needs).encode()).hexdigest()
        done = self._venv / "stamp"
        if done.is_file() and done.read_text() == stamp:
            return
        shutil.rmtree(self._venv, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(self._venv)])
        _run([self.python, "-m", "pip", "install", "-q", *self.requirements])
        if pom.is_file():
            jars = BUILD / f"jars-{self.name}"
            shutil.rmtree(jars, ignore_errors=True)
            goal = [MAVEN, f"-DoutputDirectory={jars}", "-DincludeScope=runtime"]
            _run(["mvn", "-B", "-q", "-f", str(pom), *goal])
        done.write_text(stamp)

    def ingest(self, topic: Topic, folder: Path, environment: dict[str, str]) -> Usage:
        """Take the topic in, measured. Raises Failed."""
        task = ["ingest", topic.bootstrap, topic.name, str(topic.messages), str(folder)]
        return Child([*self._command, *task], folder / "log", environment).wait(TIMEOUT_S)

    def unique(self, folder: Path) -> int:
        """How many events it kept. Raises Failed."""
        return int(_run([*self._command, "count", str(folder)]).split()[-1])

    @property
    def _venv(self) -> Path:
        return BUILD / f"venv-{self.name}"

    @property
    def python(self) -> str:
        return str(self._venv / "bin" / "python")

    @property
    def _command(self) -> list[str]:
        return [self.python, "-m", "benchmarks.peers", self.name]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failed(str(error)) from error
    if done.returncode:
        told = (done.stderr or done.stdout).strip()[-500:]
        raise Failed(f"{Path(command[0]).name} ended with {done.returncode}: {told}")
    return done.stdout


PEERS = {
    peer.name: peer
    for peer in (
        Peer("duckdb", ("duckdb>=1.4,<3", KAFKA, *ARROW)),
        Peer("chdb", ("chdb>=4.4,<5", KAFKA, *ARROW)),
        Peer("bytewax", ("bytewax[kafka]>=0.21.1,<0.22", KAFKA)),
        Peer("pathway", ("pathway>=0.33,<0.34",)),
        Peer("quix", ("quixstreams>=3.28,<4", "pyarrow>=23,<27")),
        Peer("spark", ("pyspark==4.2.0",)),
        Peer("flink", ("apache-flink==2.3.0",)),
    )
}
