"""What a training refuses before it begins, and steps at the edges: single rows, averages, settings without effect."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from certkd.config.settings import OptimizerConfig, Recipe
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.resolve import adapted_to
from certkd.objectives import Ibp, Igd, Kdiga, Mtard, Standard
from certkd.training.job import run_training
from certkd.training.step import batches
from tests.certkd.objectives.objective_fixtures import batch_of, network, values
from tests.certkd.training.test_training import CLASSES, configured, fit, plain, samples
from tests.training import train
from verifiers.core.errors import InputError


def test_a_last_batch_of_one_row_joins_the_one_before() -> None:
    sizes = {(9, 4): [4, 5], (8, 4): [4, 4], (10, 4): [4, 4, 2], (1, 4): [1], (3, 1): [1, 1, 1], (129, 128): [129]}
    for (rows, size), expected in sizes.items():
        parts = batches(torch.arange(rows), size)
        assert [len(part) for part in parts] == expected and torch.equal(torch.cat(parts), torch.arange(rows))


def test_batch_normalisation_never_meets_a_single_row() -> None:
    """33 images in batches of 32, and 5 of them in 4 parts: each leaves one row alone unless it joins others."""
    x, y = samples(33)
    for recipe in (Recipe(epochs=1, batch_size=32), Recipe(epochs=1, batch_size=5, accumulate=4)):
        student = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
        result = train(student, (x, y), Standard(), validation=samples(20, 1), recipe=recipe, device="cpu")
        assert math.isfinite(result.history[0]["terms"]["ce"])


def test_the_best_epoch_is_an_averaged_one() -> None:
    recipe = Recipe(epochs=6, batch_size=32, average="swa", average_from=0.5, optimizer=OptimizerConfig(rate=0.05))
    result = fit(plain(), recipe=recipe)
    assert result.best_epoch >= 3, "an epoch before the average began was kept"


def test_a_method_that_weighs_by_steps_takes_no_parts() -> None:
    with pytest.raises(InputError, match="'mtard' weighs its terms by whole steps"):
        fit(plain(), Mtard(eps=0.1), teacher=plain(1), natural_teacher=plain(2), recipe=Recipe(accumulate=2))


def test_refused_before_what_was_there_is_deleted(tmp_path: Path) -> None:
    config = configured(tmp_path, epochs=1)
    run_training(config)
    before = sorted(path.name for path in (tmp_path / "out").iterdir())
    with pytest.raises(InputError, match="natural teacher"):
        run_training(config.model_copy(update={"objective": Igd(eps=0.1)}), overwrite=True)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before, "a refused training deleted another"


def test_finite_differences_are_exact_under_autocast() -> None:
    """Differences of logits are far below bfloat16's resolution."""
    batch = batch_of(network(0).float(), network(1).float())
    batch = replace(batch, x=batch.x.float())
    objective = Kdiga(target="finite_difference", point="random", eps=0.01)
    exact = values(batch, objective)["iga"]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = values(batch, objective)["iga"]
    assert rounded == pytest.approx(exact, rel=1e-3)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eps": 0.1}, "eps 0.1 has no effect"),
        ({"steps": 5}, "steps 5 has no effect"),
        ({"target_temperature": 2}, "target_temperature 2.0 has no effect"),
        ({"target": "finite_difference", "point": "random", "eps": 0.1, "norm": 1}, "norm 1 has no effect"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        Kdiga(**settings)
    with pytest.raises(InputError, match="give a ramp"):
        Ibp(eps=0.1, method="crown-ibp", ramp=0)


def test_a_teacher_of_another_image_size_is_certified_on_its_students_images() -> None:
    small, large = (
        Checkpoint(build(ModelSpec(name="certkd:mlp", classes=3, shape=shape)).eval(), data={"name": name})
        for shape, name in (((1, 4, 4), "small"), ((1, 8, 8), "large"))
    )
    known = adapted_to(small, large)
    x = torch.rand(5, 1, 8, 8)
    resized = F.interpolate(x, size=(4, 4), mode="bilinear", align_corners=False)
    assert torch.equal(known.model(x), small.model(resized)) and known.data == {"name": "large"}
    assert known.sha256 == small.sha256 and adapted_to(small, small) is small
    with pytest.raises(InputError, match="only height and width may differ"):
        adapted_to(Checkpoint(build(ModelSpec(name="certkd:mlp", classes=3, shape=(3, 4, 4)))), large)
