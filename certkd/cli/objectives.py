"""``certkd objectives``."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from certkd.cli.output import Command

if TYPE_CHECKING:
    from certkd.catalogue import Description


@click.command(cls=Command)
@click.argument("kind", required=False)
def objectives(kind: str | None) -> None:
    """List the training objectives, or describe one.

    KIND is an objective's name, like kdiga; its formula and its settings with their choices are printed.
    """
    from certkd.catalogue import describe, descriptions
    from certkd.report.console import display

    if kind is not None:
        lines = _described(describe(kind))
    else:
        lines = (line for known in descriptions().values() for line in _listed(known))
    display(*lines)
    if kind is None:
        display("'certkd objectives KIND' describes one: its formula and settings.")


def _listed(description: "Description") -> Iterator[str]:
    yield f"{description.kind}: {description.summary}"
    if description.paper:
        yield f"    {description.paper}"


def _described(description: "Description") -> Iterator[str]:
    """Yield the docstrings of an objective and its bases, then its settings."""
    for text in description.texts:
        yield f"{text}\n"
    if description.paper:
        yield f"Source: {description.paper}\n"
    for setting in description.settings:
        default = "(needed)" if setting.default is None else setting.default
        choices = f"   of {', '.join(setting.choices)}" if setting.choices else ""
        yield f"  {setting.name}: {default}{choices}"
