"""``certkd cite``."""

import click


@click.command()
@click.argument("file")
def cite(file: str) -> None:
    """Print the BibTeX entries to cite for a certificate file.

    The entries are certkd, the papers of the methods that ran, auto-LiRPA if it ran, and the paper of the training
    objective if the file names it.
    """
    from certkd.report.citations import citations
    from verifiers.results.reader import read

    click.echo("\n\n".join(citations(read(file))))
