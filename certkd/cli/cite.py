"""``certkd cite``."""

import click

from certkd.cli.output import Command
from verifiers.core.errors import loading


@click.command(cls=Command)
@click.argument("file")
def cite(file: str) -> None:
    """Print the BibTeX entries to cite for a certificate file.

    The entries are certkd, the papers of the methods that ran, auto-LiRPA if it ran, and the paper of the training
    objective if the file names it.
    """
    from certkd.report.citations import citations
    from certkd.report.console import display
    from verifiers.results.reader import KIND, read

    with loading(file, KIND):
        found = "\n\n".join(citations(read(file)))
    display(found)
