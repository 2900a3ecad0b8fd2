"""Weights of certified training: their deviation, what they leave alone, and the width of intervals."""

import math

import pytest
import torch
from torch import nn

from certkd.config.settings import DataConfig, ModelConfig
from certkd.data import sources
from certkd.networks.initial import draw_for_intervals
from certkd.networks.resolve import for_training
from verifiers.bound_propagation import activation_boxes, ball
from verifiers.core.errors import InputError

DEEP = ModelConfig(options={"hidden": [200] * 5}, normalize=False)


def test_deviations_and_what_is_left_alone() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 5), nn.BatchNorm2d(64), nn.ReLU(), nn.Flatten(), nn.Linear(64, 10))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    draw_for_intervals(model)
    assert float(model[0].weight.detach().std()) == pytest.approx(math.sqrt(2 * math.pi) / 75, rel=0.05)
    changed = [name for name, value in model.state_dict().items() if not torch.equal(value, before[name])]
    assert changed == ["0.weight"]


def test_intervals_keep_their_width_through_many_layers() -> None:
    data = sources.load(DataConfig())
    x = data.splits["test"].images[torch.arange(8)]
    widths = {}
    for initial in ("torch", "ibp"):
        model = for_training(DEEP.model_copy(update={"initial": initial}), data, seed=1)
        found = [float((high - low).mean().detach()) for low, high in activation_boxes(model, ball(x, 0.02))]
        widths[initial] = found[-1] / found[0]
    assert 0.5 < widths["ibp"] < 2, "IBP's width should stay"
    assert widths["torch"] > 10 * widths["ibp"]


def test_the_seed_decides_the_weights() -> None:
    data, config = sources.load(DataConfig()), ModelConfig(initial="ibp")
    states = [for_training(config, data, seed=seed).state_dict() for seed in (1, 1, 2)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())


def test_given_weights_are_not_drawn_over() -> None:
    data = sources.load(DataConfig())
    with pytest.raises(InputError, match="initial ibp draws the first weights, and others are given"):
        for_training(ModelConfig(name="timm:resnet18", pretrained=True, initial="ibp"), data, seed=0)
