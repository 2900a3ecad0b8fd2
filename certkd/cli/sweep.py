"""``certkd sweep``."""

from typing import Any

import click

from certkd.cli.options import data_options, overrides, with_data_options
from certkd.cli.output import Command
from verifiers.core.errors import InputError, quoted


@click.command(cls=Command)
@click.argument("config")
@click.option(
    "--over",
    multiple=True,
    required=True,
    metavar="SETTING=VALUES",
    help="A setting of the students' objectives and its values: objective.alpha=0.1,0.3,1, or of one student: "
    "mtl-ibp.alpha=0.1,1. Given several times: all combinations.",
)
@click.option("--seeds", default="0,1,2", show_default=True, help="The seeds, separated by commas.")
@overrides
@data_options
def sweep(config: str, over: tuple[str, ...], seeds: str, overrides: tuple[str, ...], **options: Any) -> None:
    """Draw each objective's front of clean against certified accuracy.

    CONFIG is an experiment, as for 'certkd run'. Its students are trained with every value of the settings, for each
    seed from a teacher of its own, and all are certified. To resume, or to add values and seeds, run it again.
    """
    from certkd.config.experiment import ExperimentConfig
    from certkd.config.reading import read
    from certkd.config.sweep import Axis
    from certkd.report.console import display, record
    from certkd.report.fronts import table
    from certkd.report.progress import CertifyProgress, TrainProgress
    from certkd.sweep import run
    from certkd.training.ranks import Ranks

    if not Ranks.of_environment().alone:
        raise InputError("certkd sweep certifies too: under torchrun use certkd train for each network")
    axes = [Axis.parse(text) for text in over]
    settings = read(config, ExperimentConfig, with_data_options(overrides, options))
    done = run(settings, axes, _seeds(seeds), training_reporter=TrainProgress, reporter=CertifyProgress)
    display(*table(done.points, done.about))
    record(points=[{**vars(point)} for point in done.points])
    display(f"front.png and sweep.json are in {done.folder}, each seed's experiment is in {done.folder}/seed-N")


def _seeds(text: str) -> list[int]:
    """Read different whole numbers.

    Raises:
        InputError: the text is no list of them.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and len(part) < 19 for part in parts):
        raise InputError(f"--seeds are whole numbers like 0,1,2, got {quoted(text)}")
    seeds = [int(part) for part in parts]
    if len(set(seeds)) < len(seeds):
        raise InputError(f"--seeds {quoted(text)} names a seed twice: drop one of them")
    return seeds
