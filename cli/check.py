"""`forebay check`: whether every byte of a data directory is as it was written."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click
import orjson

from flows.settings import load
from query.check import Report
from query.check import check as checked
from storage.files import Files


@click.command()
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
@click.option(
    "--data-dir", "data_dirs", multiple=True, type=click.Path(path_type=Path),
    help="Repeat for several nodes.  [default: that of the settings]",
)  # fmt: skip
def check(as_json: bool, data_dirs: tuple[Path, ...]) -> None:
    """Read every byte that counts, while the job runs or not, and say which file is damaged where.
    Exit code 1 if one is.

    After a power loss, logs may lack their end until the job has started again.
    """
    report = Report()
    for root in data_dirs or [load().data_dir]:
        report.add(checked(Files(), root))
    if as_json:
        click.echo(orjson.dumps(asdict(report), option=orjson.OPT_INDENT_2))
    else:
        _print(report)
    if report.faults:
        raise SystemExit(1)


def _print(report: Report) -> None:
    rows = [("file", "offset", "what")] if report.faults else []
    for fault in report.faults:
        offset = "-" if fault.offset is None else str(fault.offset)
        rows.append((fault.file, offset, " ".join(fault.what.split())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        click.echo("  ".join(padded).rstrip())
    told = f"{len(report.faults)} faults" if report.faults else "all as written"
    click.echo(f"{report.files:,} files, {report.bytes:,} bytes: {told}")
