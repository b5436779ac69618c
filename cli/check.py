"""`forebay check`: whether every byte of a data directory is as it was written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import orjson

from forebay.cli.roots import data_dirs_option, roots_of
from forebay.cli.table import echo_table
from forebay.query.check import Report
from forebay.query.check import check as checked
from forebay.storage.base.disk import Disk


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@data_dirs_option
def check(as_json: bool, data_dirs: tuple[Path, ...]) -> None:
    """Read every byte that counts, while the job runs or not, and say which file is damaged where.
    Exit code 1 if one is.

    After a power loss, logs may lack their end until the job has started again.
    """
    report = Report()
    for root in roots_of(data_dirs):
        report.add(checked(Disk(), root))
    if as_json:
        click.echo(orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))
    else:
        _print(report)
    if report.faults:
        raise SystemExit(1)


def _print(report: Report) -> None:
    rows = [
        (
            fault.file,
            "-" if fault.offset is None else str(fault.offset),
            " ".join(fault.what.split()),
        )
        for fault in report.faults
    ]
    if rows:
        echo_table(("file", "offset", "what"), rows, right=("offset",))
    told = f"{len(rows):,} faults" if rows else "all as written"
    click.echo(f"{report.files:,} files, {report.bytes:,} bytes: {told}")
