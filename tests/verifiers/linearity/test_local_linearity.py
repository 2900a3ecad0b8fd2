"""gamma on two pixels, where a dense grid knows it: no bound below it, no estimate above it."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal
from torch import Tensor, nn
from torch.nn import functional as F

from tests.certifying import certify
from tests.marks import thin
from tests.zoo import mlp
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee, Status
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, norms
from verifiers.geometry.margins import margin_specification, margins
from verifiers.linearity.certified import measure, of_cross_entropy, smoothed_gamma
from verifiers.linearity.estimates import attacked
from verifiers.lipschitz.jacobians import Linearised
from verifiers.lipschitz.layers import Network
from verifiers.methods.local_linearity import LocalLinearity
from verifiers.results.reader import read

ACTIVATIONS = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "leaky": lambda: nn.LeakyReLU(0.2),
}
RADII = {Norm.LINF: (0.02, 0.2), Norm.L2: (0.03, 0.25), Norm.L1: (0.04, 0.3)}


def network(activation: str, seed: int, scale: float = 4.0) -> nn.Module:
    torch.manual_seed(seed)
    model = mlp((2, 10, 8, 3), ACTIVATIONS[activation]).double().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.weight.data *= scale if module.in_features == 2 else 1.5
    return model


def grid(x: Tensor, eps: float, norm: Norm, side: int = 121) -> Tensor:
    """Points of the ball within the image box around one image of two pixels, its corners among them."""
    steps = torch.linspace(-1, 1, side, dtype=torch.float64)
    square = torch.cartesian_prod(steps, steps)
    length = norms(square, norm)
    inside = torch.cat([square[length <= 1], square[1:] / norms(square[1:], norm).clamp_min(1e-9)[:, None]])
    return (x + eps * inside).clamp(0, 1)


def residuals(model: nn.Module, linear: Linearised, k: int, points: Tensor) -> Tensor:
    """Rows less their linearisations at points, ``(points, rows)``."""
    with torch.no_grad():
        values = model(points) @ linear.rows[k].T
    return values - linear.values[k] - (points - linear.x[k]) @ linear.gradients[k].T


@pytest.mark.parametrize(
    ("activation", "norm"), thin(((activation, norm) for activation in ACTIVATIONS for norm in Norm), every=7)
)
@pytest.mark.thin(3)
def test_no_bound_is_below_gamma_on_a_grid(activation: str, norm: Norm) -> None:
    for seed in range(2):
        model = network(activation, seed)
        x = torch.rand(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad():
            y = model(x).argmax(1)
        rows, prepared = margin_specification(y, 3, torch.float64), Network.prepare(model, x)
        for eps in RADII[norm]:
            found = measure(prepared, x, rows, eps, norm)
            loss = of_cross_entropy(found, eps, norm)
            guesses = attacked(model, x, y, eps, norm, steps=30)
            for k in range(len(x)):
                points = grid(x[k], eps, norm)
                off = residuals(model, found.linear, k, points)
                assert (found.gamma.minus[k] >= -off.amin(0) - 1e-9).all(), (activation, norm, eps)
                assert (found.gamma.plus[k] >= off.amax(0) - 1e-9).all()
                for name, bound in found.techniques.items():
                    assert (bound[k] >= off.abs().amax(0) - 1e-9).all(), f"{name} of {activation}"
                with torch.no_grad():
                    ce = F.cross_entropy(model(points), y[k].expand(len(points)), reduction="none")
                flat = ce - loss.value[k] - (points - x[k]) @ loss.gradient[k]
                assert loss.gamma_minus[k] >= -flat.min() - 1e-9 and loss.gamma_plus[k] >= flat.max() - 1e-9
                assert loss.high[k] >= ce.max() - 1e-9
                rival = int(found.linear.values[k].argmin())  # an attack may end between the points of the grid
                assert guesses.margin[k] <= found.gamma.both[k, rival] + 1e-9
                assert guesses.loss[k] <= max(loss.gamma_minus[k], loss.gamma_plus[k]) + 1e-9


def test_attacks_find_most_of_gamma() -> None:
    model, x = network("relu", 1), torch.tensor([[0.4, 0.6]], dtype=torch.float64)
    y = model(x).argmax(1)
    found = attacked(model, x, y, 0.3, Norm.LINF, steps=40)
    linear = Linearised.at(model, x, margin_specification(y, 3, torch.float64))
    off = residuals(model, linear, 0, grid(x[0], 0.3, Norm.LINF))[:, int(linear.values[0].argmin())]
    assert 0.5 * float(off.abs().max()) <= float(found.margin) <= float(off.abs().max()) * 1.001 + 1e-9


def test_the_cross_entropy_and_its_gradient_are_those_of_torch() -> None:
    model = network("gelu", 2)
    x = torch.rand(5, 2, dtype=torch.float64).requires_grad_(True)
    y = model(x).argmax(1)
    found = measure(
        Network.prepare(model, x.detach()), x.detach(), margin_specification(y, 3, torch.float64), 0.05, Norm.L2
    )
    loss = of_cross_entropy(found, 0.05, Norm.L2)
    expected = F.cross_entropy(model(x), y, reduction="none")
    torch.testing.assert_close(loss.value, expected.detach())
    torch.testing.assert_close(loss.gradient, torch.autograd.grad(expected.sum(), x)[0])


def test_an_affine_network_is_its_own_linearisation() -> None:
    torch.manual_seed(0)
    model, x = mlp((4, 3)).double().eval(), torch.rand(6, 4, dtype=torch.float64)
    rows = margin_specification(model(x).argmax(1), 3, torch.float64)
    for norm in Norm:
        found = measure(Network.prepare(model, x), x, rows, 0.3, norm)
        assert float(found.gamma.both.max()) < 1e-12


def test_within_one_linear_piece_gamma_is_zero_and_at_its_edge_it_is_not() -> None:
    """|x_0 - 1/2| has its kink 0.2 away."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).double().eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([-0.5, 0.5]))
        model[3].weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        model[3].bias.copy_(torch.tensor([1.0, 0.0]))
    x, rows = torch.tensor([[0.7, 0.5]], dtype=torch.float64), torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    prepared = Network.prepare(model, x)
    assert float(measure(prepared, x, rows, 0.19, Norm.LINF).gamma.both) < 1e-12
    beyond = measure(prepared, x, rows, 0.3, Norm.LINF).gamma  # true: rises by 2 x 0.1 above, falls nowhere below
    assert 0.2 <= float(beyond.plus) <= 0.75 and float(beyond.minus) >= 0


@pytest.mark.slow
def test_curvature_bounds_smooth_networks_alone() -> None:
    x = torch.rand(2, 2, dtype=torch.float64)
    for activation, known in (("tanh", True), ("relu", False), ("leaky", False)):
        model = network(activation, 0, scale=1.0)
        rows = margin_specification(model(x).argmax(1), 3, torch.float64)
        for norm in Norm:
            techniques = measure(Network.prepare(model, x), x, rows, 0.05, norm).techniques
            assert ("curvature" in techniques) == (known and norm is not Norm.LINF)
    small, large = (
        measure(Network.prepare(network("tanh", 0), x), x, rows, e, Norm.L2).techniques for e in (1e-3, 1e-2)
    )
    ratio = large["curvature"] / small["curvature"]
    assert (ratio > 90).all() and (ratio < 200).all(), "curvature grows with the square of eps"
    assert (small["curvature"] < small["interval"]).all()


def test_the_constant_of_smoothing_is_attained() -> None:
    """g = 1{|z| > 1}: h(t) = P(|t + sigma z| > sigma) has h''(0) = 2 phi(1) / sigma^2, the largest there is."""
    sigma = 0.25

    def h(t: float) -> float:
        return float(normal.sf((sigma - t) / sigma) + normal.cdf((-sigma - t) / sigma))

    for eps in (1e-3, 1e-2, 0.1):
        assert abs(h(eps) - h(0.0)) <= smoothed_gamma(eps, sigma)
    assert abs(h(1e-3) - h(0.0)) == pytest.approx(smoothed_gamma(1e-3, sigma), rel=1e-4)
    assert smoothed_gamma(0.5, 1.0) == pytest.approx(0.24197 * 0.25, rel=1e-4)
    for eps, wrong in ((-0.1, 1.0), (0.1, 0.0)):
        with pytest.raises(ValueError, match="need eps >= 0 and sigma > 0"):
            smoothed_gamma(eps, wrong)


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.thin(2)
def test_no_attack_succeeds_inside_a_radius(norm: Norm) -> None:
    model = network("relu", 3, scale=2.0).float()
    x = torch.rand(40, 2)
    y = model(x).argmax(1)
    rows = certify(model, x, y, eps=RADII[norm][1], norm=norm, methods=["local-linearity"])["local-linearity"]
    sure = rows["status"] == Status.CERTIFIED
    assert sure.sum() > 5 and (rows["radius"] <= RADII[norm][1]).all()
    radius = torch.tensor(rows["radius"]).float() * (1 - 1e-6)
    attacked_at = ascend(lambda z: -margins(model(z), y), Balls(x, radius, norm), steps=60)
    assert (model(attacked_at).argmax(1) == y)[torch.tensor(sure)].all()


def test_a_slope_without_a_bound_takes_away_one_technique_and_not_the_certificate() -> None:
    """torch's softplus jumps at its threshold; with a low one the jump is no rounding."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 4), nn.Softplus(1.0, 5.0), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[1].weight.mul_(0.1)
        model[1].bias.fill_(5.0)
        model[3].bias.copy_(torch.tensor([30.0, 0.0]))
    x = torch.rand(3, 2)
    rows = certify(model, x, torch.zeros(3).long(), eps=0.5, methods=["local-linearity"])["local-linearity"]
    assert (rows["status"] == Status.CERTIFIED).all()
    assert np.isnan(rows["gamma_interval"]).all() and np.isfinite(rows["gamma_relaxation"]).all()


def test_bounds_and_estimates_are_told_apart_in_the_file(tmp_path: "object") -> None:
    path = f"{tmp_path}/c.h5"
    model, x = network("tanh", 0).float(), torch.rand(6, 2)
    certify(model, x, model(x).argmax(1), eps=0.05, norm="l2", methods=["local-linearity"], out=path)
    import h5py

    with h5py.File(path) as file:
        stored = {name: data.attrs.get("guarantee", b"") for name, data in file["local-linearity"].items()}
    worth = {name: bytes(value).decode() for name, value in stored.items()}
    assert worth["gamma_minus"] == worth["ce_gamma_plus"] == Guarantee.DETERMINISTIC
    assert worth["gamma_attack"] == worth["ce_gamma_attack"] == worth["ce_llm"] == Guarantee.ESTIMATE
    assert {c.name for c in LocalLinearity.columns if c.guarantee} <= set(worth)
    rows = read(path)["local-linearity"]
    assert np.isfinite(rows["gamma_curvature"]).all() and np.isnan(rows["ce_llm"]).all()
    best = np.minimum(np.minimum(rows["gamma_relaxation"], rows["gamma_interval"]), rows["gamma_curvature"])
    assert (np.maximum(rows["gamma_minus"], rows["gamma_plus"]) <= best * (1 + 1e-12)).all()


def test_the_published_protocol_hops_between_corners_and_is_signed() -> None:
    model, x = network("relu", 4), torch.rand(8, 2, dtype=torch.float64)
    y = model(x).argmax(1)
    found = attacked(model, x, y, 8 / 255, Norm.LINF, steps=20)
    assert (found.protocol <= found.loss + 0.2).all()
    assert attacked(model, x, y, 0.1, Norm.L2, steps=2).protocol.isnan().all()
    affine = mlp((2, 3)).double().eval()  # the cross-entropy of affine logits is convex: never below its linearisation
    assert (attacked(affine, x, affine(x).argmax(1), 0.1, Norm.LINF, steps=5).protocol >= -1e-12).all()
    assert math.isclose(
        float(attacked(affine, x, y * 0, 1e-9, Norm.LINF, steps=5).protocol.abs().max()), 0, abs_tol=1e-9
    )
