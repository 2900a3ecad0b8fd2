"""Features: what the last layer sees, in one forward pass that leaves no hook; the link of an attacked box."""

import pytest
import torch
from torch import nn

from certkd.objectives import CcDist, Taps
from certkd.objectives.features import with_features
from tests.certkd.objectives.objective_fixtures import anew, batch_of, network
from verifiers.core.errors import InputError


class Compiled(nn.Module):
    """What torch.compile makes of a network: its code calls no hooks that come later."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._orig_mod = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise AssertionError("compiled code was run")


def test_features_are_the_input_of_the_last_layer_that_runs() -> None:
    model = network(0)
    x = batch_of(model, model).x
    logits, features = with_features(model, x)
    assert torch.equal(logits, model(x)) and torch.equal(features, model[:3](x))
    assert torch.equal(features, with_features(Compiled(model), x)[1])
    assert not any(module._forward_pre_hooks for module in model.modules()), "a hook was left"


def test_a_network_without_layers_has_no_features() -> None:
    with pytest.raises(InputError, match="this network has none"):
        with_features(nn.Sequential(nn.Flatten(), nn.ReLU()), torch.rand(2, 1, 2, 2))


def test_features_of_other_width_are_refused() -> None:
    wide = nn.Sequential(nn.Flatten(), nn.Linear(6, 9), nn.Tanh(), nn.Linear(9, 4)).double()
    with pytest.raises(InputError, match="the student and the teacher have 7 and 9 features"):
        CcDist(eps=0.1).terms(anew(batch_of(network(0), wide)))


@pytest.mark.parametrize(
    ("place", "moved"),
    [(0.0, (1.0, 0.0)), (0.25, (0.5, 0.0)), (0.5, (0.0, 0.0)), (0.9, (0.0, 0.8)), (1.0, (0.0, 1.0))],
)
def test_a_point_moves_with_the_end_of_the_box_that_it_is_near(place: float, moved: tuple[float, float]) -> None:
    low, high = torch.zeros(1, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)
    linked = Taps(eps=0.1)._linked(torch.full((1, 1, 1), place), (low, high))
    assert float(linked.detach()) == pytest.approx(place)
    found = torch.autograd.grad(linked.sum(), (low, high))
    assert [float(each) for each in found] == pytest.approx(list(moved))


def test_a_point_of_a_box_without_width_moves_with_it() -> None:
    end = torch.full((1, 1), 0.3, requires_grad=True)
    linked = Taps(eps=0.1)._linked(torch.full((1, 1, 1), 0.3), (end, end))
    assert float(torch.autograd.grad(linked.sum(), end)[0]) == 1
