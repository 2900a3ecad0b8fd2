"""``certkd train``."""

import json
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.options import bare_or_named, data_options, overrides, with_data_options
from certkd.cli.output import Command
from verifiers.core.errors import InputError

if TYPE_CHECKING:
    from certkd.config.settings import TrainJob


@click.command(cls=Command)
@click.argument("bare", metavar="[CONFIG]", required=False)
@click.option("--config", metavar="FILE", help="The same: a YAML file; see configs/.")
@click.option("--student", metavar="NETWORK", help="The network to train, or a checkpoint, such as a pruned copy.")
@click.option("--teacher", metavar="FILE", help="The teacher's checkpoint.  [default: the configuration's]")
@click.option(
    "--teacher-arch", metavar="NAME[,KEY=VALUE]", help="Network of the teacher's weights, or your file.py:Class."
)
@click.option("--out", metavar="DIR", help="Output folder.  [default: the configuration's]")
@click.option("--data", metavar="NAME", help="Data set.  [default: the configuration's, or the teacher's own]")
@overrides
@data_options
@click.option("--print-config", is_flag=True, help="Print every setting with its meaning as YAML, and stop.")
@click.option("--resume", is_flag=True, help="Continue the training in the output folder.")
@click.option("--overwrite", is_flag=True, help="Delete the training in the output folder first.")
def train(config: str | None, teacher: str | None, out: str | None, data: str | None, **options: Any) -> int:
    """Train a teacher or a student.

    CONFIG describes the training. With --teacher and --out alone, a small student is trained by KDIGA on the
    teacher's data. Writes best.pt (highest validation score), last.pt and log.jsonl into the output folder. To
    resume an interrupted training, add --resume; it ends with the same weights.
    """
    from certkd.config.printing import commented
    from certkd.report.console import display, record
    from certkd.report.progress import TrainProgress
    from certkd.training.job import run_training
    from certkd.training.ranks import Ranks

    if options["bare"] is not None:
        config = bare_or_named(options["bare"], config, "--config", "")
    if options["resume"] and options["overwrite"]:
        raise InputError("--resume continues the training that --overwrite deletes: give one of them")
    arch = options["teacher_arch"]
    given = {"teacher": teacher, "teacher_arch": arch, "out": out, "data.name": data if config is not None else None}
    given["model.name"] = options["student"]
    extra = [f"{key}={json.dumps(value)}" for key, value in given.items() if value is not None]  # quoted: not YAML
    extra = with_data_options((*options["overrides"], *extra), options)
    if config is None and options["print_config"]:
        settings = _template(teacher, data, extra)
    else:
        settings = _default_student((teacher, arch), out, data, extra) if config is None else _from_file(config, extra)
    if options["print_config"]:
        display(commented(settings).rstrip())
        return 0
    kind = settings.objective.kind
    result = run_training(
        settings, resume=options["resume"], overwrite=options["overwrite"], reporter=TrainProgress(kind)
    )
    if not Ranks.of_environment().first:
        return 0
    best = {name: value for name, value in result.best.items() if name in ("clean", "pgd", "noisy")}
    figures = ", ".join(f"{name} {value:.1%}" for name, value in best.items())
    display(f"best epoch {result.best_epoch + 1}: validation {figures}; {settings.out}/best.pt")
    record(best_epoch=result.best_epoch + 1, validation=best, checkpoint=f"{settings.out}/best.pt")
    return 1 if result.collapsed else 0


def _from_file(path: str, overrides: list[str]) -> "TrainJob":
    from certkd.config.reading import read
    from certkd.config.settings import TrainJob

    return read(path, TrainJob, overrides)


def _template(teacher: str | None, data: str | None, overrides: list[str]) -> "TrainJob":
    """Configure a training to begin with: a student of the teacher, or without one a network by itself."""
    from certkd.config.reading import read
    from certkd.config.settings import TrainJob

    defaults = {"out": "runs/first", "objective": {"kind": "standard" if teacher is None else "kdiga"}}
    return read(None, TrainJob, overrides, defaults={**defaults, **({} if data is None else {"data": {"name": data}})})


def _default_student(
    teacher: tuple[str | None, str | None], out: str | None, data: str | None, overrides: list[str]
) -> "TrainJob":
    """Configure KDIGA with the default settings, on the teacher's own data unless another data set is named."""
    name, arch = teacher
    if name is None or out is None:
        raise InputError(
            "nothing to train: give a configuration (--config FILE, or bare), or --teacher CHECKPOINT and --out DIR"
        )
    from certkd.config.reading import read
    from certkd.config.settings import DataConfig, TrainJob
    from certkd.networks import resolve as networks

    known = networks.data_of(
        networks.load(name, architecture=arch), DataConfig() if data is None else DataConfig(name=data)
    )
    defaults = {"data": known.model_dump(mode="json", exclude_none=True), "objective": {"kind": "kdiga"}}
    return read(None, TrainJob, overrides, defaults=defaults)
