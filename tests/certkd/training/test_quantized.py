"""Quantisation-aware training: the loss is that of the rounded network, and what is saved is the network itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from certkd.config.copies import Int8
from certkd.config.settings import OptimizerConfig, Recipe
from certkd.data.keys import keyed_generator
from certkd.networks.copies.int8 import agreement, quantise
from certkd.networks.copies.rounded import computing_in_int8
from certkd.objectives import Adversarial, Kd, Kdiga, Objective, Standard
from certkd.reporter import TrainingReporter
from certkd.training.resume import RESUME
from tests.certkd.networks.copies.originals import original
from tests.training import train
from verifiers.core.errors import InputError

BATCH = 16


def data(count: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    return x, (3 * x.flatten(1).mean(1) * 4).long() % 3


def network() -> Any:
    return original("certkd:mlp", hidden=[8])


def recipe(**settings: Any) -> Recipe:
    return Recipe(quantize="int8", batch_size=BATCH, **{"epochs": 2, **settings})


@pytest.mark.parametrize(
    "objective", [Standard(), Kd(), Kdiga(), Adversarial(eps="0.05", steps=2)], ids=lambda o: o.kind
)
def test_every_objective_trains_the_rounded_network(objective: Objective) -> None:
    student, plain = network().model, network().model
    before = [type(layer) for layer in student.modules()]
    result = train(student, data(), objective, recipe=recipe(), teacher=network().model)
    train(plain, data(), objective, recipe=Recipe(batch_size=BATCH, epochs=2), teacher=network().model)
    assert [type(layer) for layer in student.modules()] == before and len(result.history) == 2
    ours, theirs = student.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys() and not all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(torch.allclose(ours[name], theirs[name], atol=0.02) for name in ours), "gradients pass through"


def train_rows(x: torch.Tensor) -> torch.Tensor:
    """The rows of the training split, in any order: the range of a batch does not depend on it."""
    order = torch.randperm(len(x), generator=keyed_generator(0, 0, 4))
    return order[len(x) // 10 :]


def test_the_loss_is_that_of_the_rounded_network() -> None:
    x, y = data()
    student, still = network().model, OptimizerConfig(rate=1e-12)
    with computing_in_int8(student), torch.no_grad():
        rows = train_rows(x)
        expected = nn.functional.cross_entropy(student(x[rows]), y[rows])
    found = train(
        student, (x, y), Standard(), recipe=recipe(epochs=1, optimizer=still).model_copy(update={"batch_size": 64})
    )
    assert found.history[0]["terms"]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_average_is_measured_rounded_and_saved_as_it_is() -> None:
    student = network().model
    result = train(student, data(), Standard(), recipe=recipe(average="ema"))
    assert type(student.network[-1]) is nn.Linear and "clean" in result.best


def test_a_resumed_training_goes_on_alike(tmp_path: Path) -> None:
    class Stops(TrainingReporter):
        def epoch(self, record: dict[str, Any]) -> None:
            if record["epoch"] == 0:
                raise KeyboardInterrupt

    whole, parts = network().model, network().model
    train(whole, data(), Kdiga(), recipe=recipe(), teacher=network().model)
    with pytest.raises(KeyboardInterrupt):
        train(parts, data(), Kdiga(), recipe=recipe(), teacher=network().model, out=tmp_path, reporter=Stops())
    assert (tmp_path / RESUME).exists() and type(parts.network[-1]) is nn.Linear
    train(parts, data(), Kdiga(), recipe=recipe(), teacher=network().model, out=tmp_path, resume=True)
    assert all(torch.equal(whole.state_dict()[name], value) for name, value in parts.state_dict().items())


def test_a_network_without_layers_to_round_is_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :3] * self.scale

    with pytest.raises(InputError, match="no linear layer or convolution that an int8 copy would round"):
        train(Scaled(), data(), Standard(), recipe=recipe())


def test_the_int8_copy_of_what_was_trained_answers_as_it(tmp_path: Path) -> None:
    trained, (x, y) = network(), data()
    train(trained.model, (x, y), Standard(), recipe=recipe(epochs=4))
    quantise(trained, Int8(), x, tmp_path / "copy.onnx")
    assert agreement(trained, tmp_path / "copy.onnx", x) >= 0.9
