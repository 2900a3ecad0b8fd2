"""Option types and options that several commands share."""

import json
import math
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import click

from verifiers.core.errors import InputError, quoted
from verifiers.core.quantities import Epsilon, parse_number


class EpsilonType(click.ParamType):
    """A positive radius in pixel units, written 8/255 or 0.03."""

    name = "radius"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Epsilon:
        return Epsilon.parse(value)


class Number(click.ParamType):
    """A number, written 1/4 or 0.25."""

    name = "number"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        return _float(value, param.opts[0] if param else "")


class Whole(click.ParamType):
    """A whole number in a range."""

    name = "N"

    def __init__(self, least: int, most: int = 2**63 - 1) -> None:
        self.least, self.most = least, most

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        name = param.opts[0] if param else ""
        with suppress(InputError):
            number = parse_number(value)
            if number.denominator == 1 and self.least <= number <= self.most:
                return int(number)
        top = f" and at most {self.most}" if self.most < 2**63 - 1 else ""
        raise InputError(f"{name} must be a whole number of at least {self.least}{top}, got {quoted(value)}")


class Value(click.ParamType):
    """A method's setting, read as in a YAML file; the method judges it."""

    name = "value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return _value(str(value), f"{param.opts[0] if param else ''} {value!r}")


class Assignment(click.ParamType):
    """key=value, where the value is read as in a YAML file."""

    name = "key=value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, Any]:
        key, separator, text = str(value).partition("=")
        if not separator or not key or not text.strip():
            raise InputError(f"--option {value!r} must look like steps=50")
        return key, _value(text, f"--option {value!r}")


def _value(text: str, given: str) -> Any:
    from certkd.config.reading import value_of

    try:
        value = value_of(text)
    except InputError as error:
        raise InputError(f"{given}: the value is not YAML: {error}") from None
    return text if isinstance(value, float) and not math.isfinite(value) else value  # 1e400 is refused as 1e400


def numbers(text: str | None, name: str) -> tuple[float, ...]:
    """Read comma-separated numbers."""
    return tuple(_float(part, name) for part in text.split(",")) if text else ()


def _float(value: Any, name: str) -> float:
    try:
        return float(parse_number(value, name=name))
    except OverflowError:
        raise InputError(f"{name}: {value!r} is too large") from None


def bare_or_named(bare: str | None, named: str | None, option: str, example: str) -> str:
    """Take a file that is given bare or by its option.

    Raises:
        InputError: both are given, or neither: ``example`` is a command that would do.
    """
    if bare is not None and named is not None:
        listed = "" if Path(bare).exists() else "; lists have no blanks, like --methods ibp,crown"
        raise InputError(f"{bare} and {option} {named} say the same: give one of them{listed}")
    given = named if bare is None else bare
    if given is None:
        raise InputError(f"nothing to work on: give a file, like {example} (or {option})")
    return given


def overrides(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option ``--set key.sub=value``, which may be given several times."""
    return click.option(
        "--set",
        "overrides",
        multiple=True,
        metavar="KEY=VALUE",
        help="Override a setting: objective.lambda_iga=0.3",
    )(command)


def _all(*options: Callable[..., Any]) -> Callable[..., Any]:
    """Make one decorator of several options, which keep their order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return add


#: Who does the work.
workers_options = _all(
    click.option("--workers", type=Whole(1, 1024), default=1, show_default=True, help="Processes that share the work."),
    click.option("--cluster", metavar="WHERE", help="Dask workers do: local:4, tcp://host:8786, slurm:FILE.yaml."),
)
#: The two networks of a pair.
pair_options = _all(
    click.option("--student", metavar="NETWORK", help="The same: checkpoint, .onnx, or source:name."),
    click.option("--teacher", metavar="NETWORK", help="The teacher: checkpoint, .onnx, or source:name."),
)
#: The ball of a question that needs one.
ball_options = _all(
    click.option("--eps", required=True, type=EpsilonType(), help="Radius in pixel units, like 8/255."),
    click.option("--norm", default="linf", show_default=True, help="linf, l2 or l1."),
)
#: The samples of a data set.
sample_options = _all(
    click.option("--data", metavar="NAME", help="Data set.  [default: the network's own]"),
    click.option("--split", default="test", show_default=True, help="train, validation or test."),
    click.option("--limit", type=Whole(1), help="Only the first N samples."),
    click.option("--indices", metavar="I,J-K,...", help="Only these samples of the split, like 3,17,40-99."),
    click.option(
        "--indices-file", metavar="FILE", help="Only the samples that a file lists, an index or range a line."
    ),
)
#: The names of the networks of certificate files.
label_option = click.option(
    "--label",
    "labels",
    multiple=True,
    metavar="NAME",
    help="A network's name: once for each, in their order.  [repeatable]",
)
#: What a command does with files that it writes and that are there.
overwrite_option = click.option("--overwrite", is_flag=True, help="Replace what is written if it is there already.")
#: How a run computes, and what it does with files that are there.
run_options = _all(
    click.option("--overwrite", is_flag=True, help="Begin certificate files again if they are there."),
    click.option(
        "--arithmetic",
        default="float32",
        show_default=True,
        help="float32 proves the network as it runs, with its rounding; real the network over the real numbers.",
    ),
    click.option("--seed", type=Whole(0), default=0, show_default=True, help="Seed of all randomness."),
    click.option("--batch-size", type=Whole(1), help="Samples at a time.  [default: the method's own]"),
    workers_options,
)


def network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that describe a network whose file does not describe it."""
    for option in (
        click.option("--output", metavar="NAME|INDEX", help="The logits among several outputs of an .onnx file."),
        click.option("--layout", help="How an .onnx file arranges images: nchw, nhwc or flat.  [default: nchw]"),
        click.option("--std", metavar="S,...", help="Normalisation that bare weights or an .onnx file expect."),
        click.option("--mean", metavar="M,...", help="Normalisation that bare weights or an .onnx file expect."),
        click.option(
            "--weights-key",
            metavar="KEY",
            help="Weights to take from a file with several, like model_ema or state_dict.0.",
        ),
        click.option(
            "--arch",
            metavar="NAME[,KEY=VALUE]",
            help="Network of bare weights: certkd:resnet,depth=20, or your own file.py:Class,width=8, which is run.",
        ),
    ):
        command = option(command)
    return command


def teacher_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the option that describes a teacher whose file does not describe it."""
    return click.option(
        "--teacher-arch", metavar="NAME[,KEY=VALUE]", help="Network of the teacher's weights.  [default: as --arch]"
    )(command)


def data_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for data sets and the device."""
    return data_places(
        click.option("--device", default=None, help="auto, cpu, cuda or cuda:1.  [default: auto]")(command)
    )


def data_places(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options for data sets."""
    for option in (
        click.option("--download", is_flag=True, help="Fetch data sets and weights that are not here."),
        click.option(
            "--image-size", metavar="H,W", help="Of images in folders, or as-is.  [default: the network's, or 224]"
        ),
        click.option("--data-root", metavar="FOLDER", help="Folder of the data sets.  [default: $CERTKD_DATA]"),
    ):
        command = option(command)
    return command


def with_data_options(overrides: tuple[str, ...], options: dict[str, Any]) -> list[str]:
    """Write the data options as overrides of a configuration."""
    given = {"data.root": "data_root", "data.image_size": "image_size", "device": "device"}
    extra = [f"{key}={json.dumps(options[name])}" for key, name in given.items() if options[name]]  # quoted: not YAML
    return [*overrides, *extra, *(["data.download=true"] if options["download"] else [])]
