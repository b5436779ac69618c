"""`forebay check`: whether every byte of a data directory is as it was written."""

from dataclasses import asdict
from pathlib import Path

import click

from forebay.cli.example import example
from forebay.cli.options import data_dirs_option, json_option
from forebay.cli.output import echo_json, echo_table
from forebay.query.check import Report
from forebay.query.check import check as checked
from forebay.storage.base.disk import Disk
from forebay.storage.base.text import count_text


@click.command(epilog=example("forebay check --json"))
@json_option("As one JSON object.")
@data_dirs_option()
def check(as_json: bool, roots: list[Path]) -> None:
    """Read every byte that counts, whether or not the job runs, and report which files are damaged,
    and where. Exit code 1 if a file is damaged.

    After a power loss, logs may lack their end until the job has started again.
    """
    report = Report()
    for root in roots:
        report.add(checked(Disk(), root))
    if as_json:
        echo_json(asdict(report))
    else:
        rows = [
            (one.file, "-" if one.offset is None else str(one.offset), " ".join(one.what.split()))
            for one in report.faults
        ]
        if rows:
            echo_table(("file", "offset", "what"), rows, right=("offset",))
        found = count_text(len(rows), "fault") if rows else "all as written"
        click.echo(f"{count_text(report.files, 'file')}, {report.bytes:,} bytes: {found}")
    if report.faults:
        raise SystemExit(1)
