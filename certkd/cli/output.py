"""What every command has: --json, --quiet, and options that are given once."""

import json
from typing import Any

import click

from certkd.report.console import Mode, begin, current

HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Command(click.Command):
    """A command with --json and --quiet, unless it has its own, that takes no option twice."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, **{"context_settings": HELP, **settings})
        taken = {flag for parameter in self.params for flag in parameter.opts}
        for flag, text in (
            ("--json", "Print the results as one JSON document."),
            ("--quiet", "Print results and warnings, no progress."),
        ):
            if flag not in taken:
                self.params.append(click.Option([flag], is_flag=True, help=text, expose_value=False, callback=_set))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Refuse an option that is given twice, of which click takes the last in silence."""
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        once = [parameter for parameter in order if isinstance(parameter, click.Option) and not parameter.multiple]
        again = next((option for option in once if once.count(option) > 1 and not option.is_flag), None)
        if again is not None:
            raise click.UsageError(f"{' or '.join(again.opts)} is given {once.count(again)} times: give it once", ctx)
        return super().parse_args(ctx, args)


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
