"""``certkd train``."""

import click

from certkd.cli.options import data_options, overrides, with_data_options


@click.command()
@click.option("--config", required=True, metavar="FILE", help="YAML file; see configs/.")
@overrides
@data_options
@click.option("--resume", is_flag=True, help="Go on with the training in the output folder.")
@click.option("--overwrite", is_flag=True, help="Delete the training in the output folder first.")
def train(
    config: str,
    overrides: tuple[str, ...],
    data_root: str | None,
    download: bool,
    device: str | None,
    resume: bool,
    overwrite: bool,
) -> int:
    """Train a teacher or a student.

    Writes best.pt (highest validation score), last.pt and log.jsonl into the configuration's out folder. A training
    that was interrupted goes on with --resume and ends with the same weights.
    """
    from certkd.config import TrainConfig, read
    from certkd.experiment import run_training
    from certkd.report.console import TrainProgress, stdout

    settings = read(config, TrainConfig, with_data_options(overrides, data_root, download, device))
    kind = settings.objective.kind  # type: ignore[attr-defined]
    result = run_training(settings, resume=resume, overwrite=overwrite, reporter=TrainProgress(kind))
    best = {name: value for name, value in result.best.items() if name in ("clean", "pgd", "noisy")}
    figures = ", ".join(f"{name} {value:.1%}" for name, value in best.items())
    stdout().print(f"best epoch {result.best_epoch + 1}: validation {figures}; {settings.out}/best.pt", soft_wrap=True)
    return 1 if result.collapsed else 0
