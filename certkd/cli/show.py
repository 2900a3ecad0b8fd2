"""``certkd show``."""

import csv
import sys

import click

from certkd.cli.output import Command
from verifiers.core.errors import InputError, did_you_mean, loading


@click.command(cls=Command)
@click.argument("file")
@click.option("--csv", "method", metavar="METHOD", help="Print that method's rows as CSV instead.")
def show(file: str, method: str | None) -> None:
    """Print a certificate file, finished or still being written."""
    from certkd.report import tables
    from certkd.report.console import current, display, record
    from verifiers.results.reader import KIND, read

    certificates = read(file)
    if method is None:
        with loading(file, KIND):
            parts = [*tables.answer(certificates), *tables.contents(certificates), *tables.summaries(certificates)]
            parts.append(tables.facts(certificates))
            record(files=[tables.figures(certificates)])
        display(*parts)
        return
    if current().plain:
        raise InputError(f"--csv {method} and --json are two formats: give one of them")
    if method not in certificates.methods:
        raise InputError(f"{file} has no method {method!r}.{did_you_mean(method, list(certificates.methods))}")
    columns = certificates.to_dict()[method]
    writer = csv.writer(sys.stdout, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(zip(*(values.tolist() for values in columns.values()), strict=True))
