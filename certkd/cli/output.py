"""The options --json and --quiet, which every command has."""

import json
from typing import Any

import click

from certkd.report.console import Mode, begin, current


def add_output_options(command: click.Command) -> None:
    """Give a command --json and --quiet, unless it has its own."""
    taken = {flag for parameter in command.params for flag in parameter.opts}
    for flag, text in (
        ("--json", "Print the results as one JSON document."),
        ("--quiet", "Print results and warnings, no progress."),
    ):
        if flag not in taken:
            command.params.append(click.Option([flag], is_flag=True, help=text, expose_value=False, callback=_set))


def start() -> None:
    """Print text and progress until an option says otherwise."""
    begin(Mode())


def finish(code: int) -> None:
    """Print the JSON document, if one is wanted."""
    if current().plain:
        click.echo(json.dumps({"exit_code": code, **current().document()}, indent=1))


def _set(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    mode = current()
    if value and parameter.name == "json":
        begin(Mode(mode.quiet, plain=True, parts=mode.parts, values=mode.values))
    elif value:
        begin(Mode(quiet=True, plain=mode.plain, parts=mode.parts, values=mode.values))
