"""The configurations that ship: each is valid, short, names files that exist, and every objective has one."""

from pathlib import Path

import pytest

from certkd.config.experiment import ExperimentConfig
from certkd.config.reading import read
from certkd.config.settings import TrainJob
from certkd.objectives import OBJECTIVES
from tests.paths import ROOT
from verifiers.core.errors import InputError

FILES = sorted((ROOT / "configs").rglob("*.yaml"))


def settings(path: Path) -> TrainJob | ExperimentConfig:
    try:
        return read(path, TrainJob)
    except InputError:
        return read(path, ExperimentConfig)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_configuration_is_valid_and_fits_a_screen(path: Path) -> None:
    found, lines = settings(path), path.read_text().splitlines()
    assert lines[0].startswith("# "), "the first line says what it is for"
    assert len(lines) <= 40, f"{len(lines)} lines"
    for name in (getattr(found, "natural_teacher", None), getattr(found, "teacher", None)):
        if isinstance(name, str) and "reference" in name:
            assert (ROOT / name).exists(), f"{name} is not part of the repository"


def test_outputs_do_not_meet() -> None:
    outs = [settings(path).out for path in FILES]
    assert len(set(outs)) == len(outs), sorted(out for out in outs if outs.count(out) > 1)


def test_the_objectives_have_configurations() -> None:
    """A new one needs none: ``--set objective.kind=...`` puts it into any of these."""
    trainings = [found for found in map(settings, FILES) if isinstance(found, TrainJob)]
    kinds = {found.objective.kind for found in trainings if found.data.name == "digits"}
    assert len(kinds) >= 21 and kinds <= {objective.model_fields["kind"].default for objective in OBJECTIVES}
