"""A real Apache Spark on this machine, for tests of the batch layer's Iceberg table.

Spark has a Python environment of its own, `build/spark/venv`, and its jars for Iceberg come from
Maven by `tests/spark/pom.xml`, into `build/spark/lib`: both once for each content of that file and
of PACKAGES. Run as a script, in that environment, this module is the session: it reads a request in
JSON from standard input and writes the answers, one a statement, to the file that it names.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "spark"
POM = Path(__file__).resolve().parent / "spark" / "pom.xml"
PACKAGES = ("pyspark==3.5.9", "py4j==0.10.9.7", "setuptools<81")
PYTHON = BUILD / "venv" / "bin" / "python"
CATALOG = "forebay"
TAIL = 4000
SESSION = {
    "spark.driver.memory": "1g",
    "spark.ui.enabled": "false",
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.shuffle.partitions": "1",
    "spark.sql.extensions": "org.apache.iceberg.spark.extensions.IcebergSparkSessionExtensions",
    f"spark.sql.catalog.{CATALOG}": "org.apache.iceberg.spark.SparkCatalog",
    f"spark.sql.catalog.{CATALOG}.type": "jdbc",
    f"spark.sql.catalog.{CATALOG}.jdbc.schema-version": "V1",
}


def missing() -> str | None:
    """One line naming what Spark needs and this machine lacks; None if nothing."""
    lacking = [tool for tool in ("java", "mvn") if shutil.which(tool) is None]
    return f"spark: expected {' and '.join(lacking)} on PATH, found none" if lacking else None


def sql(data: Path, *statements: str) -> list[list[dict[str, Any]]]:
    """The rows that each statement gives, in turn, over the table of a data directory. CATALOG is
    the name of its own catalog, and no other would do: it is in the catalog's rows. Values that
    JSON does not have are text."""
    _make()
    folder = data.resolve() / "batch"
    with tempfile.TemporaryDirectory() as work:
        answers = Path(work) / "answers"
        request = {
            "catalog": f"jdbc:sqlite:{folder / 'catalog.db'}",
            "warehouse": str(folder / "warehouse"),
            "statements": statements,
            "answers": str(answers),
        }
        done = subprocess.run(
            [str(PYTHON), __file__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            cwd=work,
        )
        assert done.returncode == 0, done.stderr[-TAIL:]
        found: list[list[dict[str, Any]]] = json.loads(answers.read_text())
    return found


def _make() -> None:
    """The environment and the jars, unless they are there."""
    stamp = hashlib.sha256(POM.read_bytes() + repr(PACKAGES).encode()).hexdigest()
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        made = BUILD / "stamp"
        if made.is_file() and made.read_text() == stamp:
            return
        shutil.rmtree(BUILD / "lib", ignore_errors=True)
        copy = ["dependency:copy-dependencies", f"-DoutputDirectory={BUILD / 'lib'}"]
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(BUILD / "venv")],
            [str(PYTHON), "-m", "pip", "install", "-q", *PACKAGES],
            ["mvn", "-B", "-q", "-f", str(POM), *copy],
        ):
            _run(command)
        made.write_text(stamp)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command[0]} ended {done.returncode}: {done.stderr[-TAIL:]}"


def main() -> None:
    """The session."""
    from pyspark.sql import SparkSession

    request = json.load(sys.stdin)
    builder = SparkSession.builder.master("local[1]")
    settings = {
        **SESSION,
        "spark.jars": ",".join(str(path) for path in (BUILD / "lib").glob("*.jar")),
        f"spark.sql.catalog.{CATALOG}.uri": request["catalog"],
        f"spark.sql.catalog.{CATALOG}.warehouse": request["warehouse"],
    }
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    found = [[row.asDict() for row in spark.sql(one).collect()] for one in request["statements"]]
    Path(request["answers"]).write_text(json.dumps(found, default=str))
    spark.stop()


if __name__ == "__main__":
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    main()
