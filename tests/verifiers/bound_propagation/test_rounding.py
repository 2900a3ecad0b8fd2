"""What float32 does to a certificate, and what tells two networks and two orders of methods apart."""

import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.verifiers.methods.test_float32 import tent
from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.checks import attack_bounds, check_sandwich
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Contradiction, InputError
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls

needs_auto_lirpa = pytest.mark.skipif(
    compat.version() is None and importlib.util.find_spec("auto_LiRPA") is None, reason="auto-LiRPA is not installed"
)


def cancelling(bias: float) -> nn.Module:
    """Hidden values as large as the bias cancel in the logits; in float32 their rounding stays."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    with torch.no_grad():
        network[0].bias.fill_(bias)
        weight = network[2].weight
        weight -= weight.mean(1, keepdim=True)
        network[2].bias.copy_(-weight.sum(1) * bias)
    return network.eval()


@needs_auto_lirpa
@pytest.mark.parametrize("bias", [0.0, 1e3, 1e4, 1e5, 1e6])
@pytest.mark.thin(2)
def test_no_float32_point_inside_a_radius_changes_the_class(bias: float) -> None:
    network = cancelling(bias)
    x = torch.rand(60, 8, generator=torch.Generator().manual_seed(1)) * 0.8 + 0.1
    predicted = network(x).argmax(1)
    try:
        rows = certify(network, x, predicted, eps=0.02, methods=("crown",))["crown"]
    except InputError as refusal:
        assert bias >= 1e4 and "float32 is too coarse" in str(refusal)
        return
    radius = torch.tensor(rows["radius"]).float()
    if bias == 0.0:
        assert (radius > 0).all(), "an ordinary network lost its certificates"
    generator = torch.Generator().manual_seed(2)
    for _ in range(300):
        noise = torch.rand(x.shape, generator=generator) * 2 - 1
        point = (x + 0.999 * radius[:, None] * noise).clamp(0, 1)
        changed = (network(point).argmax(1) != predicted) & (radius > 0)
        assert not changed.any(), f"{int(changed.sum())} certified rows have a counterexample in float32"


class Scaled(nn.Module):
    """The same weights and layers make another function for another plain attribute."""

    def __init__(self, sign: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.sign = nn.Linear(4, 3), sign

    def forward(self, x: Tensor) -> Tensor:
        return self.sign * self.layer(x)


def test_rows_of_another_function_are_not_taken_over(tmp_path: Path) -> None:
    x = torch.rand(20, 4, generator=torch.Generator().manual_seed(0))
    labels = Scaled(1.0)(x).argmax(1)
    certify(Scaled(1.0), x, labels, eps=0.01, methods=("pgd",), out=tmp_path / "a.h5")
    with pytest.raises(InputError, match="another program_sha256"):
        certify(Scaled(-1.0), x, labels, eps=0.01, methods=("pgd",), out=tmp_path / "a.h5")


@needs_auto_lirpa
def test_attacks_run_first_whatever_the_order() -> None:
    network, x = cancelling(0.0), torch.rand(6, 8, generator=torch.Generator().manual_seed(3))
    labels = network(x).argmax(1)
    result = certify(network, x, labels, eps=0.3, methods=("crown", "pgd"))
    assert list(result.methods) == ["pgd", "crown"]
    contradicted = result["crown"]["radius"] >= np.nan_to_num(result["pgd"]["distance"], nan=np.inf)
    assert not contradicted.any() and (result["pgd"]["status"] == Status.FALSIFIED).any()


@pytest.mark.parametrize("options", [{"restarts": 0.5}, {"steps": 2.5}])
def test_counts_are_whole_numbers(options: dict[str, float]) -> None:
    network, x = cancelling(0.0), torch.rand(2, 8)
    with pytest.raises(InputError, match="whole number"):
        certify(network, x, network(x).argmax(1), eps=0.1, methods=("pgd",), options=options)


@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_bounds_are_held_by_the_network_in_float32(arithmetic: Arithmetic) -> None:
    """A program that is another function in float32 than in float64 breaks bounds for float32."""
    torch.manual_seed(0)
    network, x = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), torch.full((1, 2), 0.4)
    engine = Native(network, x, arithmetic=arithmetic)
    attack_bounds(engine, x, 0.1, norm=Norm.LINF, method="crown")
    assert (engine.deployed is None) == (arithmetic is Arithmetic.REAL)
    balls, shifted = Balls.around(x.double(), 0.1, Norm.L2), copy.deepcopy(network).requires_grad_(False)
    shifted[2].bias += 10.0
    if engine.deployed is not None:
        engine.deployed = shifted
        with pytest.raises(Contradiction, match="the network in float32 breaks a bound of engine native by"):
            check_sandwich(engine.model, engine, balls, "crown")
        engine.deployed = nn.Sequential(shifted, nn.Threshold(1e9, float("nan")))
        with pytest.raises(Contradiction, match="breaks a bound of engine native"):
            check_sandwich(engine.model, engine, balls, "crown")


def test_nothing_is_held_where_values_may_overflow() -> None:
    network, x = tent(1e30, 1e20)
    engine = Native(network, x, arithmetic=Arithmetic.FLOAT32)
    attack_bounds(engine, x, 0.3, norm=Norm.LINF, method="crown")
    near = torch.full((1, 2), 0.525)
    assert engine.deployed is not None and not engine.deployed(near).isfinite().all(), "the network overflows there"
