"""``certkd cite``."""

import click


@click.command()
@click.argument("file")
def cite(file: str) -> None:
    """Print BibTeX of what a certificate file was made with.

    That is certkd, the papers of the methods that ran, auto-LiRPA where it ran, and the objective that the network was
    trained with, where the file says so.
    """
    from certkd.report.citations import citations
    from verifiers.results.reader import read

    click.echo("\n\n".join(citations(read(file))))
