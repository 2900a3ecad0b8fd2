"""``certkd card``."""

from pathlib import Path

import click

from certkd.cli.options import overwrite_option
from certkd.cli.output import Command
from certkd.cli.places import new_file
from verifiers.core.errors import loading


@click.command(cls=Command)
@click.argument("file")
@click.option("--name", metavar="NAME", help="The model's name.  [default: the file's]")
@click.option("--out", metavar="FILE", help="Write it to a file: .md, or .json.  [default: print Markdown]")
@overwrite_option
def card(file: str, name: str | None, out: str | None, overwrite: bool) -> None:
    """Write the robustness section of a model card from a certificate file.

    The Markdown begins with the metadata of Hugging Face's model index; the JSON follows docs/card.schema.json. Both
    state norm, eps, region, arithmetic, method, n, the interval of certified accuracy, and how to verify again.
    """
    import json

    from certkd.comparison.compare import plain
    from certkd.files import write_whole
    from certkd.report.card import card as card_of
    from certkd.report.card import markdown
    from certkd.report.console import display, record
    from verifiers.results.reader import KIND, read

    place = None if out is None else new_file(out, (".md", ".json"), overwrite=overwrite)
    with loading(file, KIND):
        facts = card_of(read(file), name or Path(file).stem)
    record(**plain(facts))
    if place is None:
        display(markdown(facts))
        return
    text = markdown(facts) if place.suffix.lower() == ".md" else json.dumps(plain(facts), indent=2)
    write_whole(place, lambda path: path.write_text(f"{text}\n", encoding="utf-8"))
    display(f"written to {out}")
