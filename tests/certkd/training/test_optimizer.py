"""The optimiser and the rate of every step."""

from itertools import pairwise
from typing import Any

import pytest
import timm
import torch
from torch import nn

from certkd.config.settings import OptimizerConfig, Recipe
from certkd.training.optimizer import optimizer_of, rate_of, schedule_of
from tests.certkd.training.test_training import fit, plain
from verifiers.core.errors import InputError


def rates(config: OptimizerConfig, epochs: int, steps: int = 1) -> list[float]:
    """The rate of every step."""
    optimizer = optimizer_of(nn.Linear(2, 2), config)
    schedule, found = schedule_of(optimizer, config, epochs, steps), []
    for number in range(epochs * steps):
        schedule.step_update(number)
        found.append(rate_of(optimizer))
    return found


def vision_transformer() -> nn.Module:
    torch.manual_seed(0)
    name = "vit_tiny_patch16_224"
    return timm.create_model(name, img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=2, num_classes=4)


def test_rate_after_the_second_milestone_is_dropped_twice() -> None:
    config = OptimizerConfig(rate=0.1, schedule="steps", milestones=(0.5, 0.75), drop=0.1)
    assert rates(config, 20) == pytest.approx([0.1] * 10 + [0.01] * 5 + [0.001] * 5)
    assert rates(config, 4, 3) == pytest.approx([0.1] * 6 + [0.01] * 3 + [0.001] * 3)


@pytest.mark.parametrize(
    ("epochs", "expected"), [(1, [1.0]), (2, [1.0, 0.1]), (3, [1.0, 1.0, 0.1]), (4, [1.0, 1.0, 0.1, 0.01])]
)
def test_short_trainings_drop_in_the_first_epoch_after_the_share(epochs: int, expected: list[float]) -> None:
    config = OptimizerConfig(rate=1.0, milestones=(0.5, 0.75))
    assert rates(config, epochs) == pytest.approx(expected)
    assert rates(config, epochs, 5)[::5] == rates(config, epochs, 5)[4::5] == rates(config, epochs)


def test_a_share_that_a_float_misses_by_its_last_digit() -> None:
    config = OptimizerConfig(rate=1.0, milestones=(0.7,))  # 0.7 * 10 is 7.000000000000001 in some orders
    for epochs in (10, 20, 100, 1000):
        found = rates(config, epochs)
        assert found.count(1.0) == 7 * epochs // 10, f"of {epochs}: {found.count(1.0)} before the drop"


def test_cosine_falls_step_by_step_from_the_rate_to_almost_nothing() -> None:
    found = rates(OptimizerConfig(rate=0.1, schedule="cosine"), 25, 4)
    assert found[0] == pytest.approx(0.1) and found[50] == pytest.approx(0.05) and 0 < found[-1] < 1e-4
    assert all(later < earlier for earlier, later in pairwise(found))


def test_constant_rate_stays() -> None:
    assert set(rates(OptimizerConfig(rate=0.03, schedule="constant"), 7, 2)) == {0.03}


@pytest.mark.parametrize("schedule", ["constant", "steps", "cosine"])
def test_the_rate_rises_in_every_step_of_the_warm_up(schedule: Any) -> None:
    cold, warm = (OptimizerConfig(rate=0.1, schedule=schedule, warmup=w) for w in (0, 1.5))
    found = rates(warm, 5, 4)
    assert found[:6] == pytest.approx([0.1 * (step + 1) / 7 for step in range(6)])
    assert found[6:] == pytest.approx(rates(cold, 5, 4)[6:])


@pytest.mark.parametrize("kind", ["adam", "adamw", "sgd", "lamb"])
def test_a_training_takes_the_rate_of_each_epoch(kind: str) -> None:
    config = OptimizerConfig(kind=kind, rate=0.1, milestones=(0.3, 0.6))
    result = fit(plain(), recipe=Recipe(epochs=3, batch_size=60, optimizer=config))
    assert [record["rate"] for record in result.history] == pytest.approx([0.1, 0.01, 0.001])


@pytest.mark.parametrize(
    ("kind", "reference"),
    [
        ("adam", lambda weights: torch.optim.Adam(weights, 0.1, weight_decay=0.01)),
        ("adamw", lambda weights: torch.optim.AdamW(weights, 0.1, weight_decay=0.01)),
        ("sgd", lambda weights: torch.optim.SGD(weights, 0.1, 0.9, weight_decay=0.01, nesterov=True)),
    ],
)
def test_usual_names_are_torchs_optimisers(kind: str, reference: Any) -> None:
    networks = [nn.Linear(3, 2), nn.Linear(3, 2)]
    networks[1].load_state_dict(networks[0].state_dict())
    ours = optimizer_of(networks[0], OptimizerConfig(kind=kind, rate=0.1, weight_decay=0.01))
    for optimizer, network in ((ours, networks[0]), (reference(networks[1].parameters()), networks[1])):
        for step in range(3):
            optimizer.zero_grad()
            network(torch.full((1, 3), step + 1.0)).square().sum().backward()
            optimizer.step()
    assert torch.equal(networks[0].weight, networks[1].weight) and torch.equal(networks[0].bias, networks[1].bias)


def test_layers_of_a_vision_transformer_move_less_the_earlier_they_are() -> None:
    network = nn.Sequential(nn.Identity(), vision_transformer())
    config = OptimizerConfig(kind="adamw", rate=1.0, weight_decay=0.05, layer_decay=0.5, schedule="constant")
    optimizer = optimizer_of(network, config)
    schedule_of(optimizer, config, 1, 1).step_update(0)
    rate = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    body = network[1]
    found = [rate[id(p)] for p in (body.patch_embed.proj.weight, *(b.mlp.fc1.weight for b in body.blocks))]
    assert found == pytest.approx([0.0625, 0.125, 0.25, 0.5]) and rate[id(body.head.weight)] == 1.0
    assert len(rate) == sum(1 for _ in network.parameters()) and rate_of(optimizer) == 1.0


def test_biases_and_norms_may_be_left_out_of_weight_decay() -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
    for everything in (True, False):
        optimizer = optimizer_of(network, OptimizerConfig(weight_decay=0.1, decay_norms=everything))
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decay[id(network[0].weight)] == 0.1
        assert {decay[id(p)] for p in (network[0].bias, network[1].weight)} == ({0.1} if everything else {0.0})


def test_frozen_weights_have_no_optimiser() -> None:
    network = nn.Sequential(nn.Linear(2, 3).requires_grad_(False), nn.Linear(3, 2))
    assert sum(len(group["params"]) for group in optimizer_of(network, OptimizerConfig()).param_groups) == 2
    with pytest.raises(InputError, match="no weights to train"):
        optimizer_of(plain().requires_grad_(False), OptimizerConfig())


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(InputError, match=r"^optimizer\.layer_decay needs a network of timm"):
        optimizer_of(plain(), OptimizerConfig(layer_decay=0.7))
    with pytest.raises(InputError, match=r"^kind: unknown optimizer 'adamm'\. Did you mean 'adam'\?$"):
        OptimizerConfig.parse({"kind": "adamm"})
    with pytest.raises(InputError, match=r"^decay_norms False has no effect with the other settings: drop it$"):
        OptimizerConfig.parse({"decay_norms": False})
