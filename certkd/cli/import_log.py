"""``certkd import-log``."""

from pathlib import Path
from typing import Any

import click

from certkd.cli.options import EpsilonType, Number, Whole
from certkd.cli.output import Command
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon


@click.command("import-log", cls=Command)
@click.argument("file")
@click.option("--n", required=True, type=Whole(1, 10**9), help="Noisy copies of a sample.")
@click.option("--alpha", required=True, type=Number(), help="Error probability of a sample, one-sided.")
@click.option("--sigma", required=True, type=Number(), help="Standard deviation of the noise, pixel units.")
@click.option("--n0", type=Whole(1), default=100, show_default=True, help="Copies that selected the class.")
@click.option("--noise", default="gaussian", show_default=True, help="gaussian (l2 radii) or uniform (l1 radii).")
@click.option("--eps", default="0.5", show_default=True, type=EpsilonType(), help="Radius of the certified accuracy.")
@click.option("--out", metavar="FILE.h5", help="Certificate file.  [default: in the folder of the log]")
@click.option("--data", default="", metavar="NAME", help="Data set that the log is about.")
def import_log(file: str, out: str | None, eps: Epsilon, data: str, **settings: Any) -> None:
    """Read a published smoothing log into a certificate file.

    FILE is a .tsv or .tsv.gz file. Each line has idx, label, predict (-1: abstained), radius, correct and perhaps
    time, separated by tabs. Printed radii are rounded. The file stores the exact radius of the smallest count of
    votes that prints the same, which is never more than was certified. If no count gives a radius, n, alpha or
    sigma is wrong, and nothing is written.
    """
    from certkd.report import tables
    from certkd.report.console import display, stderr
    from verifiers.smoothing import logs

    if not Path(file).is_file():
        raise InputError(f"no log at {file}")
    vote = logs.Vote(**settings)
    certificates = logs.import_log(file, vote, eps=eps, out=out or _default_out(Path(file)), data=data)
    notes = certificates[logs.METHOD].attributes
    display(*tables.contents(certificates), f"radii: {notes['radii']}", f"written to {certificates.path}")
    if "doubt" in notes:
        stderr().print(f"warning: {notes['doubt']}")


def _default_out(log: Path) -> Path:
    return log.with_name(f"{log.name.removesuffix('.gz').removesuffix('.tsv')}.h5")
