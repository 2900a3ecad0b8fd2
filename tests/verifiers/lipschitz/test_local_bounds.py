"""Bounds of gradients on balls, tried by gradients of the network itself, and the radii that follow from them."""

import math

import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import thin
from tests.zoo import BY_NAME, mlp, planted
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.status import Status
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import DUAL, Balls, norms, random_start
from verifiers.geometry.margins import margin_specification, margins
from verifiers.graph.capture import capture
from verifiers.graph.operators import Interval
from verifiers.lipschitz.jacobians import SlopeRanges, interval_jacobian, jacobian, largest_dual_norm, liplt
from verifiers.lipschitz.layers import written_out
from verifiers.lipschitz.local_bounds import OnBall, bounds_on, integrate, local_constants, slope_ranges

SMOOTH = {
    "hard sigmoid": nn.Hardsigmoid,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
}
KINDS = ["mlp", "deep mlp", "cnn", "batch norm", "residual", *SMOOTH]
RADII = {Norm.LINF: (0.01, 0.1), Norm.L2: (0.05, 0.5), Norm.L1: (0.1, 1.0)}


def network(kind: str, seed: int = 0) -> tuple[nn.Module, Tensor]:
    """A network in float64 with three images."""
    if kind in SMOOTH:
        torch.manual_seed(seed)
        model: nn.Module = mlp((6, 12, 8, 3), SMOOTH[kind]).eval()
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data *= 3
        return model.double(), 0.1 + 0.8 * torch.rand(3, 6, dtype=torch.float64)
    return BY_NAME[kind].network(seed).double(), BY_NAME[kind].images(3, seed).double()


def pair_rows(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = model(x)
    return margin_specification(logits.argmax(1), logits.shape[1], torch.float64)


def steepest_seen(model: nn.Module, x: Tensor, eps: float, norm: Norm, rows: Tensor, points: int = 60) -> Tensor:
    """The largest dual norms of gradients at random points of the ball, half of them on its sphere."""
    generator, limits = torch.Generator().manual_seed(3), torch.full((len(x),), eps, dtype=x.dtype)
    seen = torch.zeros(rows.shape[:2], dtype=x.dtype)
    for _ in range(points):
        point = (x + random_start(x, limits, norm, generator)).clamp(0, 1)
        gradients = torch.einsum("brc,bc...->br...", rows, jacobian(model, point)).flatten(2)
        seen = torch.maximum(seen, torch.linalg.vector_norm(gradients, DUAL[norm], dim=2))
    return seen


@pytest.mark.parametrize(("kind", "norm"), thin(((kind, norm) for kind in KINDS for norm in Norm), every=4))
@pytest.mark.thin(2)
def test_no_gradient_on_the_ball_exceeds_the_local_constant(kind: str, norm: Norm) -> None:
    model, x = network(kind)
    native, rows = Native(model, x), pair_rows(model, x)
    layers = written_out(native.graph)
    for eps in RADII[norm]:
        ranges = slope_ranges(bounds_on(native, x, torch.full((len(x),), eps, dtype=x.dtype), norm), layers)
        seen = steepest_seen(model, x, eps, norm, rows)
        bound = local_constants(ranges, rows, norm)
        assert (bound >= seen).all(), f"{kind} {norm} {eps}: {float((seen - bound).max())} above the constant"
        if norm is Norm.L2:  # each of the two by itself
            assert (liplt(ranges, rows) >= seen).all()
            assert (largest_dual_norm(interval_jacobian(ranges, rows).image, 2.0) >= seen).all()


@pytest.mark.parametrize("kind", thin(KINDS))
def test_without_a_free_slope_the_bounds_are_the_gradient_itself(kind: str) -> None:
    model, x = network(kind)
    graph, rows = capture(model, x[:1]), pair_rows(model, x)
    layers, values = written_out(graph), graph.values(x)
    ranges = SlopeRanges.over(
        layers, [Interval(values[layer.position], values[layer.position]) for layer in layers.hidden]
    )
    exact = torch.einsum("brc,bc...->br...", rows, jacobian(model, x)).flatten(2)
    box = interval_jacobian(ranges, rows).image
    torch.testing.assert_close(box.center, exact, rtol=1e-8, atol=1e-9)
    assert float(box.half_width.max()) < 1e-6
    torch.testing.assert_close(liplt(ranges, rows), exact.norm(dim=2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["deep mlp", "residual", "gelu"])
def test_constants_grow_with_the_ball_up_to_the_global_ones(kind: str) -> None:
    """Those of the interval Jacobian do: wider ranges of slopes hold narrower ones."""
    model, x = network(kind)
    native, rows = Native(model, x), pair_rows(model, x)
    layers = written_out(native.graph)

    def both(ranges: SlopeRanges) -> tuple[Tensor, Tensor]:
        box = interval_jacobian(ranges, rows).image
        return largest_dual_norm(box, 2.0), liplt(ranges, rows)

    anywhere, before = both(SlopeRanges.anywhere(layers)), torch.zeros(rows.shape[:2], dtype=x.dtype)
    for eps in (1e-4, 0.01, 0.1, 1.0, 10.0):
        limits = torch.full((len(x),), eps, dtype=x.dtype)
        interval, through = both(slope_ranges(bounds_on(native, x, limits, Norm.L2), layers))
        assert (before * (1 - 1e-9) <= interval).all() and (interval <= anywhere[0] * (1 + 1e-9)).all()
        assert eps > 0.01 or (through < 0.9 * anywhere[1]).all(), "a small ball gains nothing"
        before = interval


def test_layer_norms_bound_the_jacobians_of_the_layers() -> None:
    model, x = network("deep mlp")
    native = Native(model, x)
    layers = written_out(native.graph)
    limits = torch.full((len(x),), 0.2, dtype=x.dtype)
    bounds = slope_ranges(bounds_on(native, x, limits, Norm.L2), layers).layer_norms
    generator = torch.Generator().manual_seed(0)
    for k, layer in enumerate(layers.hidden):
        for _ in range(30):
            point = (x + random_start(x, limits, Norm.L2, generator)).clamp(0, 1)
            found = torch.stack(
                [
                    torch.linalg.matrix_norm(
                        torch.autograd.functional.jacobian(
                            lambda z, p=layer.position: native.graph.values(z[None])[p][0].flatten(), one
                        ).reshape(-1, one.numel()),
                        2,
                    )
                    for one in point
                ]
            )
            assert (found <= bounds[k]).all()


@pytest.mark.parametrize("norm", list(Norm))
def test_a_linear_network_gets_its_exact_radius(norm: Norm) -> None:
    torch.manual_seed(0)
    model = mlp((6, 4)).eval()
    x = 0.4 + 0.2 * torch.rand(20, 6)
    with torch.no_grad():
        model[1].weight *= 30  # radii stay within the image box
    y = model(x).argmax(1)
    found = certify(model, x, y, eps=0.01, norm=norm, methods=["lipschitz"])["lipschitz"]
    rows = margin_specification(y, 4, torch.float64)
    steep = torch.linalg.vector_norm(rows @ model[1].weight.double(), DUAL[norm], dim=2)
    exact = ((rows @ model(x).double()[:, :, None])[:, :, 0] / steep).amin(1)
    radius = torch.tensor(found["radius"])
    assert (radius <= exact).all()
    assert (radius >= exact - 1e-3 * exact - 1e-4).all()


@pytest.mark.parametrize(
    ("kind", "norm"), thin(((kind, norm) for kind in ("deep mlp", "cnn", "residual", "tanh") for norm in Norm), every=4)
)
@pytest.mark.thin(3)
def test_no_attack_succeeds_inside_a_radius(kind: str, norm: Norm) -> None:
    model, x = network(kind, seed=1)
    x, model = x.float(), model.float()
    with torch.no_grad():
        y = model(x).argmax(1)
    rows = certify(model, x, y, eps=RADII[norm][0], norm=norm, methods=["lipschitz"])["lipschitz"]
    assert (rows["status"] == Status.CERTIFIED).all()
    radius = torch.tensor(rows["radius"])
    radius = radius.float() * (1 - 1e-6)
    attacked = ascend(lambda z: -margins(model(z), y), Balls(x, radius, norm), steps=60)
    assert (model(attacked).argmax(1) == y).all()
    beyond = ascend(lambda z: -margins(model(z), y), Balls(x, radius * 200, norm), steps=60)
    assert (model(beyond).argmax(1) != y).any(), "an attack that never succeeds tells nothing"


@pytest.mark.slow
def test_a_planted_counterexample_is_never_inside_a_radius() -> None:
    for seed in range(2):
        model, x, hidden = planted(4, 0.1, seed)
        for norm in Norm:
            rows = certify(model, x, torch.zeros(1).long(), eps=0.2, norm=norm, methods=["lipschitz"])["lipschitz"]
            assert rows["radius"][0] < float(norms(hidden[None] - x, norm))


@pytest.mark.parametrize(("norm", "whole"), [("linf", 1.0), ("l2", math.sqrt(6)), ("l1", 6.0)])
@pytest.mark.thin(2)
def test_a_ball_that_holds_all_images_can_be_certified(norm: str, whole: float) -> None:
    model, x = mlp((6, 2)).eval(), torch.rand(3, 6)
    with torch.no_grad():
        model[1].weight.mul_(0.01)
        model[1].bias.copy_(torch.tensor([3.0, 0.0]))
    for eps in (0.5, whole) if norm == "linf" else (0.5, whole, 3 * whole):  # linf radii above 1 are refused
        rows = certify(model, x, torch.zeros(3).long(), eps=eps, norm=norm, methods=["lipschitz"])["lipschitz"]
        assert (rows["certified"] == 1).all() and (rows["margin"] > 0).all()


def test_the_shell_integral_is_that_of_a_known_constant() -> None:
    """K(e) = e grows along the way: m - e^2 / 2 is zero at sqrt(2 m); one shell alone would give sqrt(m)."""
    margin = torch.tensor([[0.5], [2.0]], dtype=torch.float64)

    def constants(rows: Tensor, radius: Tensor) -> OnBall:
        return OnBall(radius[:, None], torch.zeros(len(rows), 1))

    exact = (2 * margin).sqrt()[:, 0]
    for shells, share in ((15, 0.95), (200, 0.995)):
        found = integrate(constants, margin, 0.5, 100.0, shells)
        assert (found.radius <= exact).all() and (found.radius >= share * exact).all()
    assert (found.margin <= margin[:, 0] - 0.125).all() and (found.margin >= margin[:, 0] - 0.13).all()


@pytest.mark.parametrize("rounding", [0.0, 0.1, 1.0, math.inf, math.nan])
def test_rounding_that_grows_with_the_ball_shortens_the_radius(rounding: float) -> None:
    """K = 1 and a rounding of r e: m - e - r e is zero at m / (1 + r)."""
    margin = torch.tensor([[0.5], [2.0]], dtype=torch.float64)

    def on_balls(rows: Tensor, radius: Tensor) -> OnBall:
        return OnBall(torch.ones_like(radius)[:, None], rounding * radius[:, None])

    found, exact = integrate(on_balls, margin, 0.25, 100.0, 100), (margin / (1 + rounding))[:, 0].nan_to_num(0.0)
    assert (found.radius <= exact * (1 + 1e-12)).all() and (found.radius >= 0.98 * exact).all()
    expected = margin[:, 0] - 0.25 - rounding * 0.25
    torch.testing.assert_close(found.margin, expected, equal_nan=True)


def test_radius_without_margin_or_with_an_infinite_constant_is_zero() -> None:
    margin = torch.tensor([[-0.5], [0.0], [1.0], [float("nan")]], dtype=torch.float64)
    for value in (1.0, math.inf, math.nan):
        found = integrate(
            lambda rows, e, v=value: OnBall(torch.full((len(rows), 1), v, dtype=e.dtype), torch.zeros(len(rows), 1)),
            margin,
            0.1,
            9.0,
            5,
        )
        assert (found.radius[[0, 1, 3]] == 0).all()
        assert found.radius[2] == (pytest.approx(1.0) if value == 1.0 else 0)


def test_networks_that_cannot_be_written_out_are_refused_by_layer() -> None:
    shared = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Softmax(1), nn.Flatten(), nn.Linear(16, 3)).eval()
    with pytest.raises(Unsupported, match=r"'softmax' at '1' .* bound propagation"):
        written_out(capture(shared, torch.rand(1, 1, 4, 4)))
    wide = nn.Sequential(nn.Flatten(), nn.Linear(3072, 2048), nn.ReLU(), nn.Linear(2048, 3)).eval()
    with pytest.raises(Unsupported, match="would be a matrix of 2048 x 3072 entries"):
        written_out(capture(wide, torch.rand(1, 3, 32, 32)))


@pytest.mark.slow
def test_attention_has_no_constant_and_the_reason_says_what_to_use() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(4, 1, batch_first=True), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.reshape(-1, 4, 4)
            return self.head(self.attention(x, x, x, need_weights=False)[0].flatten(1))

    torch.manual_seed(0)
    model, x = Attention().eval(), torch.rand(4, 1, 4, 4)
    y = model(x).argmax(1)
    for norm in ("l2", "linf"):
        rows = certify(model, x, y, eps=0.01, norm=norm, methods=["lipschitz"])["lipschitz"]
        assert (rows["status"] == Status.UNSUPPORTED).all()
        assert "attention" in str(rows.attributes["reason"]) and "smoothing" in str(rows.attributes["reason"])


def test_a_bound_that_is_useless_is_called_vacuous() -> None:
    """Normalisation is Lipschitz through its eps alone."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.LayerNorm(6, eps=1e-16), nn.Linear(6, 3)).eval()
    x = torch.rand(5, 6)
    rows = certify(model, x, model(x).argmax(1), eps=0.01, norm="l2", methods=["lipschitz"])["lipschitz"]
    assert (rows["status"] == Status.VACUOUS).any()
    assert (rows["radius"][rows["status"] == Status.VACUOUS] == 0).all()


@pytest.mark.parametrize("norm", Norm)
@pytest.mark.parametrize("arithmetic", ["real", "float32"])
@pytest.mark.thin(3)
def test_a_kink_at_a_black_or_white_pixel_contradicts_no_constant(norm: Norm, arithmetic: str) -> None:
    """relu(x1) - relu(x1 + 1) and relu(1 - x1) have fixed slopes on all images; torch gives others at the kinks."""
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, 1.0, 1.0, 0.0]))
        model[2].weight.copy_(torch.tensor([[8.0, -4.0, 4.0, 1.0], [0.0, 0.0, 0.0, 0.0]]))
        model[2].bias.copy_(torch.tensor([0.5, 0.0]))
    x = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    found = certify(model, x, model(x).argmax(1), eps="0.01", norm=norm, methods=["lipschitz"], arithmetic=arithmetic)
    rows = found["lipschitz"]
    assert rows.count(Status.ERROR) == 0, rows.attributes.get("reason")
    assert (rows["gradient"] <= rows["constant"] * (1 + 1e-9)).all() and (rows["gradient"] < 1.5).all()
