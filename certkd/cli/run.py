"""``certkd run``."""

from typing import Any

import click

from certkd.cli.options import data_options, overrides, with_data_options
from certkd.cli.output import Command
from verifiers.core.errors import InputError


@click.command(cls=Command)
@click.argument("config")
@overrides
@data_options
@click.option("--print-config", is_flag=True, help="Print every setting with its meaning as YAML, and stop.")
@click.option("--overwrite", is_flag=True, help="Delete the experiment in the output folder first.")
def run(config: str, overrides: tuple[str, ...], overwrite: bool, **options: Any) -> int:
    """Train, certify and compare the networks of an experiment.

    CONFIG describes a teacher, its students, compressed copies of them, and the certificates. To resume an
    interrupted experiment, run the same command again. A page, the summary and the plots are written to the folder
    report/ in the configuration's out folder.
    """
    from certkd.config.experiment import ExperimentConfig
    from certkd.config.printing import commented
    from certkd.config.reading import read
    from certkd.experiment import run as run_experiment
    from certkd.report import tables
    from certkd.report.console import display, record
    from certkd.report.progress import CertifyProgress, TrainProgress
    from certkd.training.ranks import Ranks
    from verifiers.core.table import counted
    from verifiers.results.summaries.match import Matched, answers

    if not Ranks.of_environment().alone:
        raise InputError("certkd run certifies too: under torchrun use certkd train for each network")
    settings = read(config, ExperimentConfig, with_data_options(overrides, options))
    if options["print_config"]:
        display(commented(settings).rstrip())
        return 0
    done = run_experiment(settings, overwrite=overwrite, training_reporter=TrainProgress, reporter=CertifyProgress)
    display(*tables.experiment(done.networks, done.comparisons), tables.EXPLANATION)
    if settings.students.copies:
        display(tables.sizes({name: (one.facts, one.file) for name, one in done.deployed.items()}))
    record(files=[{"role": name, **tables.figures(certificates)} for name, certificates in done.networks.items()])
    record(comparisons={name: result.to_dict() for name, result in done.comparisons.items()})
    for name, result in done.comparisons.items():
        lines = [*(tables.kept(result.carried_over) if result.carried_over is not None else [])]
        lines += [result.match.sentence] if result.match is not None else []
        display(*(f"{name}: {line}" for line in lines))
    for name, certificates in done.pairs.items():
        found = [Matched.of(each["match"], each) for each in certificates]
        samples = counted(found[0].samples, "sample")
        display(answers(f"{name}: all properties on the ball of eps {certificates[0].eps_text}, {samples}", found))
        display(*(f"{name}: {one.sentence}" for one in found[1:]))
        record(properties=[{"student": name, **one.to_dict()} for one in found])
    places = done.folder / "report", done.folder / "certificates"
    display(f"report.html, plots and summary.json are in {places[0]}, certificates in {places[1]}")
    return 1 if done.collapsed else 0
