"""The command line: one file a command; torch is imported only inside one."""

import errno
import io
import os
import sys
from contextlib import suppress

import click

from certkd.cli.card import card
from certkd.cli.certify import certify
from certkd.cli.cite import cite
from certkd.cli.compare import compare
from certkd.cli.compress import compress
from certkd.cli.export import export
from certkd.cli.figure import figure
from certkd.cli.gate import gate
from certkd.cli.import_log import import_log
from certkd.cli.inspect import inspect
from certkd.cli.match import match
from certkd.cli.methods import methods
from certkd.cli.objectives import objectives
from certkd.cli.output import HELP, finish, start
from certkd.cli.report import report
from certkd.cli.run import run
from certkd.cli.show import show
from certkd.cli.solve import solve
from certkd.cli.sweep import sweep
from certkd.cli.train import train
from certkd.cli.transfer import transfer
from certkd.cli.verify import verify
from certkd.files import NETWORKS
from verifiers import __version__
from verifiers.core.errors import LONGEST_MESSAGE, InputError, one_line, out_of_memory, printable, shortened
from verifiers.core.memory import reuse_memory

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


@click.group(context_settings=HELP)
@click.version_option(__version__, prog_name="certkd")
def cli() -> None:
    """Train students that keep their teacher's robustness, and prove, sample by sample, how much they kept.

    All radii are in pixel units: images are in [0, 1]. Exit codes: 0 done, 1 a check failed, 2 bad input.
    --debug, anywhere, shows the traceback of an error.
    """


_CERTIFICATES = (
    certify,
    transfer,
    match,
    solve,
    import_log,
    show,
    compare,
    gate,
    report,
    figure,
    card,
    cite,
    export,
    verify,
)
for command in (train, compress, inspect, *_CERTIFICATES, run, sweep, methods, objectives):
    cli.add_command(command)


def main() -> None:
    """Run the command line; every error is one line on stderr."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a terminal without the characters of a name
    start()
    reuse_memory()
    try:
        code = cli.main(arguments or ["--help"], prog_name="certkd", standalone_mode=False)
        finish(code if isinstance(code, int) else 0)
        sys.stdout.flush()
    except click.ClickException as error:
        text = _with_advice(error, arguments)
        code = _fail(text, error.exit_code, debug)
    except InputError as error:
        code = _fail(str(error).replace("certkd.Output(network, which)", "--output NAME"), 2, debug)
    except (click.Abort, KeyboardInterrupt):
        code = _fail("interrupted; finished rows are kept: to resume, run the same command again", 130, False)
    except BrokenPipeError:
        _discard_output()
        code = 0
    except Exception as error:  # noqa: BLE001 - the last line of defence says what happened
        text = one_line(error)
        if isinstance(error, OSError) and error.errno in _FULL and error.filename is None:  # of the output itself
            _discard_output()
            code = _fail(f"cannot write the output: {text}; free some space, then run the same command again", 2, debug)
        elif out_of_memory(error):
            code = _fail(f"memory ran out ({text}): take fewer samples at a time, or free some memory", 2, debug)
        else:
            code = _fail(f"this is a bug in certkd ({type(error).__name__}: {text}); --debug shows where", 70, debug)
    sys.exit(code if isinstance(code, int) else 0)


def _with_advice(error: click.ClickException, arguments: list[str]) -> str:
    """Say what to do about a mistake that click found."""
    text = error.format_message()
    if "unexpected extra argument" in text:
        return f"{text.rstrip('.')}: {_extra([word for word in arguments if word in text])}"
    context = error.ctx if isinstance(error, click.UsageError) else None
    command = context.command_path if context else "certkd"
    parameter = error.param if isinstance(error, click.MissingParameter) else None
    if isinstance(parameter, click.Option) and parameter.help:
        return f"{text.rstrip('.')}: {parameter.help[0].lower()}{parameter.help[1:].partition('  [')[0].rstrip('.')}"
    if isinstance(error, click.MissingParameter) and context:
        return f"{text.rstrip('.')}: {' '.join([command, *context.command.collect_usage_pieces(context)])}"
    if "No such" in text and "Did you mean" not in text:
        return f"{text.rstrip('.')}: '{command} --help' lists them"
    return text


def _extra(words: list[str]) -> str:
    """Say what arguments that a command does not take may have been meant as."""
    file = next((word for word in words if os.path.isfile(word)), None)
    if file is None:
        return "numbers and lists have no blanks, like 8/255 and ibp,crown"
    return f"a second network is named by --teacher {file}" if file.endswith(NETWORKS) else "give one file at a time"


def _discard_output() -> None:
    """Have nothing written any more, also when Python ends."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        raise  # the error that is being handled
    with suppress(OSError):  # stderr may be what is full
        click.echo(f"certkd: {shortened(printable(' '.join(message.split())), LONGEST_MESSAGE)}", err=True)
    return code
