"""Trainings on a GPU against those on the CPU."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from certkd.config.settings import OptimizerConfig, Recipe
from certkd.objectives import Kdiga, Objective
from certkd.objectives.base import Batch, total
from tests.certkd.objectives.objective_cases import ROWS, Row
from tests.certkd.objectives.objective_fixtures import anew, smooth_batch
from tests.certkd.training.test_optimisation import convolutional
from tests.certkd.training.test_training import busy, samples, state_of
from tests.training import train

GENTLE = OptimizerConfig(kind="sgd", rate=0.05, schedule="constant")


def moved(batch: Batch, place: torch.device) -> Batch:
    """A batch and its networks on a device; random numbers are still drawn on the CPU."""
    teachers: dict[str, Any] = {
        name: None if network is None else network.to(place)
        for name, network in (("teacher", batch.teacher), ("natural_teacher", batch.natural_teacher))
    }
    return replace(batch, student=batch.student.to(place), x=batch.x.to(place), y=batch.y.to(place), **teachers)


def gradients(batch: Batch, objective: Objective) -> tuple[float, torch.Tensor]:
    loss = total(objective.terms(anew(batch)))
    loss.backward()
    found = [p.grad.flatten().cpu() for p in batch.student.parameters() if p.grad is not None]
    return float(loss), torch.cat(found)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_objective_has_the_value_and_gradient_of_the_cpu(row: Row, place: torch.device) -> None:
    here, there = gradients(smooth_batch(), row.objective), gradients(moved(smooth_batch(), place), row.objective)
    assert there[0] == pytest.approx(here[0], rel=1e-6)
    assert torch.allclose(there[1], here[1], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("settings", [{}, {"accumulate": 2}, {"average": "ema"}, {"channels_last": True}])
def test_a_training_ends_near_that_of_the_cpu(settings: dict[str, Any], place: torch.device) -> None:
    ends = []
    for where in ("cpu", str(place)):
        student, teacher = convolutional(0), convolutional(1)
        recipe = Recipe(epochs=2, batch_size=32, optimizer=GENTLE, **settings)
        train(student, samples(120), Kdiga(), recipe=recipe, teacher=teacher, device=where)
        ends.append({name: value.cpu() for name, value in state_of(student).items()})
    for name, value in ends[0].items():
        assert torch.allclose(ends[1][name].float(), value.float(), rtol=1e-3, atol=1e-4), name


def test_a_training_on_the_gpu_is_resumed_to_the_same_weights(place: torch.device, tmp_path: Path) -> None:
    def run(out: Path, epochs: int, *, resume: bool = False) -> dict[str, torch.Tensor]:
        student = busy(0)
        recipe = Recipe(epochs=epochs, batch_size=32, optimizer=GENTLE)
        settings: dict[str, Any] = {"recipe": recipe, "teacher": busy(1), "device": str(place), "resume": resume}
        train(student, samples(120), Kdiga(), out=out, **settings)
        return state_of(student)

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "parts", 2)
    parts = run(tmp_path / "parts", 4, resume=True)
    for name, value in whole.items():
        assert torch.allclose(parts[name], value, rtol=1e-4, atol=1e-6), name


def test_bfloat16_trains(place: torch.device) -> None:
    student = convolutional(0)
    recipe = Recipe(epochs=3, batch_size=32, optimizer=GENTLE, precision="bfloat16")
    history = train(student, samples(120), Kdiga(), recipe=recipe, teacher=convolutional(1), device=str(place)).history
    assert history[-1]["terms"]["loss"] < history[0]["terms"]["loss"]
