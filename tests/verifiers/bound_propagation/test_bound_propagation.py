"""Bounds against literal versions, exact minima, closed forms and attacks; radii against attacks, for every norm."""

import copy
import itertools
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.certifying import answers, prepared
from tests.marks import thin
from tests.zoo import BY_NAME, ZOO, Kind, images, mlp, normalize, planted
from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.core.quantities import Norm, whole_box
from verifiers.core.status import Status
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, norms, project, random_start, reachable
from verifiers.geometry.margins import margin_specification, margins
from verifiers.methods.base import Method
from verifiers.methods.crown import Crown, Ibp

pytestmark = pytest.mark.skipif(compat.version() is None, reason="auto-LiRPA is not installed")

ALL_NORMS = tuple(Norm)
METHODS = ("ibp", "crown")
IBP, CROWN = (method(engine="auto-lirpa", cross_check=0) for method in (Ibp, Crown))
TOLERANCE = CROWN.tolerance
#: Radius that suits each norm on images of a few dozen pixels.
EPS = {Norm.LINF: 0.03, Norm.L2: 0.1, Norm.L1: 0.2}

every_norm = pytest.mark.parametrize("norm", ALL_NORMS, ids=str)
every_method = pytest.mark.parametrize("method", METHODS)
every_kind = pytest.mark.parametrize("kind", thin(ZOO), ids=lambda kind: kind.name)


@cache
def engine_of(name: str) -> AutoLirpa:
    kind = BY_NAME[name]
    return AutoLirpa(kind.network(), kind.images(2))


def margin_rows(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        logits = network(x)
    return margin_specification(logits.argmax(1), logits.shape[1], torch.float64)


def same_eps(value: float, count: int) -> Tensor:
    return torch.full((count,), value, dtype=torch.float64)


def certify(method: Method, network: nn.Module, x: Tensor, norm: Norm, eps: float | str = 0.01) -> dict:
    return answers(prepared(method, network, x, eps=eps, norm=norm), network, x)


def radii(method: Method, network: nn.Module, x: Tensor, norm: Norm, eps: float | str = 0.01) -> Tensor:
    return torch.from_numpy(certify(method, network, x, norm, eps)["radius"])


def bounds(
    network: nn.Module, x: Tensor, eps: float, rows: Tensor, norm: Norm, method: str, engine: AutoLirpa | None = None
) -> np.ndarray:
    engine = engine or AutoLirpa(network, x)
    return engine.ask(Balls.around(x, eps, norm), rows, method).bound.numpy()


# Exact minima and second implementations


@pytest.mark.parametrize("sizes", [(2, 4, 3), (3, 3, 3, 3), (2, 6, 2)], ids=str)
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L1], ids=str)
@pytest.mark.thin(2)
def test_bounds_stay_below_the_exact_minimum(sizes: tuple[int, ...], norm: Norm) -> None:
    network, x = Kind("", lambda: mlp(sizes), sizes[:1]).network(seed=1), images(sizes[:1], 1, seed=1)
    layers, rows = oracles.layers_of(network), margin_rows(network, x)
    engine = AutoLirpa(network, x)
    for eps in (0.05, 0.3):
        exact = [oracles.exact_minimum(layers, x[0].double().numpy(), eps, norm.value, row) for row in rows[0].numpy()]
        for method in METHODS:
            lower = bounds(network, x, eps, rows, norm, method, engine)[0]
            assert (lower <= np.array(exact) + 1e-8).all(), f"{method} {norm} {eps}: {lower} above the minimum {exact}"
        sampled = sampled_minimum(network, x, eps, norm, rows[0])
        assert (np.array(exact) <= sampled + 1e-9).all(), "the oracle's minimum is not the smallest value found"
        assert (sampled - np.array(exact) < 0.15 * (1 + np.abs(exact))).all(), (
            "the oracle's minimum is nowhere attained"
        )


def sampled_minimum(network: nn.Module, x: Tensor, eps: float, norm: Norm, rows: Tensor) -> np.ndarray:
    points = inside_points(x[0].double(), eps, norm, count=4000)
    with torch.no_grad():
        values = copy.deepcopy(network).double()(points) @ rows.T
    return values.amin(0).numpy()


@pytest.mark.parametrize("pixels", [2, 3])
@every_method
def test_linear_network_is_bounded_exactly_on_its_corners(pixels: int, method: str) -> None:
    network, x = Kind("", lambda: mlp((pixels, 3)), (pixels,)).network(), images((pixels,), 1)
    rows, eps = margin_rows(network, x), 0.2
    corners = oracles.corners(x[0].double().numpy(), eps)
    values = [rows[0].numpy() @ oracles.forward(oracles.layers_of(network), corner) for corner in corners]
    lower = bounds(network, x, eps, rows, Norm.LINF, method)[0]
    np.testing.assert_allclose(lower, np.min(values, axis=0), atol=1e-12, err_msg="not the smallest corner")


@pytest.mark.parametrize("sizes", [(3, 5, 3), (6, 9, 7, 4), (4, 6, 6, 6, 3)], ids=str)
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.6])
def test_ibp_is_the_literal_interval_arithmetic(sizes: tuple[int, ...], eps: float) -> None:
    network, x = Kind("", lambda: mlp(sizes), sizes[:1]).network(), images(sizes[:1], 3)
    rows, layers = margin_rows(network, x), oracles.layers_of(network)
    expected = [
        oracles.interval_minimum(layers, image, eps, row)
        for image, row in zip(x.double().numpy(), rows.numpy(), strict=True)
    ]
    np.testing.assert_allclose(bounds(network, x, eps, rows, Norm.LINF, "ibp"), expected, atol=1e-9)


@pytest.mark.parametrize(
    "sizes",
    [(6, 9, 7, 4), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((3, 5, 3), (4, 6, 6, 6, 3)))],
    ids=str,
)
@every_norm
@pytest.mark.parametrize("eps", [1e-3, 0.05, 0.6])
def test_crown_is_the_second_implementation(sizes: tuple[int, ...], norm: Norm, eps: float) -> None:
    network, x = Kind("", lambda: mlp(sizes), sizes[:1]).network(), images(sizes[:1], 3)
    rows, layers = margin_rows(network, x), oracles.layers_of(network)
    expected = [
        oracles.crown_minimum(layers, image, eps, norm.value, row)
        for image, row in zip(x.double().numpy(), rows.numpy(), strict=True)
    ]
    np.testing.assert_allclose(bounds(network, x, eps, rows, norm, "crown"), expected, atol=1e-9)


# Batches and an eps per sample


@pytest.mark.parametrize("name", ["mlp", "cnn"])
@every_norm
@every_method
def test_eps_per_sample_where_the_batch_is_the_image_side(name: str, norm: Norm, method: str) -> None:
    network = Kind("", _eight_by_eight(name), (1, 8, 8)).network()
    x, rows = images((1, 8, 8), 8), None
    rows = margin_rows(network, x)
    engine = AutoLirpa(network, x)
    engine.batch_size = 8
    eps = EPS[norm] * torch.logspace(-2, 0.5, 8, dtype=torch.float64)
    together = engine.ask(Balls(x, eps, norm), rows, method).bound
    for i in range(8):
        alone = engine.ask(Balls(x[i : i + 1], eps[i : i + 1], norm), rows[i : i + 1], method).bound[0]
        difference = float((together[i] - alone).abs().max())
        assert difference < 1e-9, f"sample {i}: {method} {norm} changes by {difference:.3g} in a batch of 8"


def _eight_by_eight(name: str):
    if name == "mlp":
        return lambda: mlp((64, 8, 8, 3))
    return lambda: nn.Sequential(
        nn.Conv2d(1, 2, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)
    )


@every_kind
@pytest.mark.thin(2)
def test_a_sample_does_not_notice_its_batch(kind: Kind) -> None:
    engine, x = engine_of(kind.name), kind.images(4)
    rows = margin_rows(kind.network(), x)
    eps = torch.linspace(0.001, 0.1, 4, dtype=torch.float64)
    order = torch.tensor([3, 0, 2, 1])
    for norm, method in itertools.product((Norm.LINF, Norm.L2), METHODS):
        together = engine.ask(Balls(x, eps, norm), rows, method).bound
        shuffled = engine.ask(Balls(x[order], eps[order], norm), rows[order], method).bound
        alone = engine.ask(Balls(x[2:3], eps[2:3], norm), rows[2:3], method).bound
        torch.testing.assert_close(shuffled, together[order], rtol=0, atol=1e-9, msg=f"{method} {norm}: order matters")
        torch.testing.assert_close(alone, together[2:3], rtol=0, atol=1e-9, msg=f"{method} {norm}: neighbours matter")


@pytest.mark.parametrize("name", ["mlp", "residual"])
@pytest.mark.slow
def test_an_evaluation_leaves_nothing_behind_for_the_next(name: str) -> None:
    kind = BY_NAME[name]
    x = kind.images(2)
    rows, fresh = margin_rows(kind.network(), x), AutoLirpa(kind.network(), x)
    for norm, method in itertools.product(ALL_NORMS, METHODS):
        expected = bounds(kind.network(), x, 0.05, rows, norm, method, AutoLirpa(kind.network(), x))
        bounds(kind.network(), x, 0.4, rows, Norm.L1, "crown", fresh)
        again = bounds(kind.network(), x, 0.05, rows, norm, method, fresh)
        np.testing.assert_allclose(again, expected, atol=1e-12, err_msg=f"{method} {norm} remembers another call")


# Regions


@every_kind
@every_method
def test_bounds_tend_to_the_margins_as_eps_vanishes(kind: Kind, method: str) -> None:
    engine, x = engine_of(kind.name), kind.images(3)
    rows = margin_rows(kind.network(), x)
    with torch.no_grad():
        clean = (rows @ engine.model(x.double())[:, :, None]).squeeze(2)
    for norm, eps in itertools.product(ALL_NORMS, (1e-12, 1e-9, 1e-7)):
        lower = engine.ask(Balls.around(x, eps, norm), rows, method).bound
        assert bool((lower <= clean + 1e-12).all()), f"{norm} {eps}: the bound exceeds the clean margin"
        assert bool((lower >= clean - 1e-3).all()), f"{norm} {eps}: the bound does not tend to the clean margin"


@every_method
def test_the_box_cuts_the_ball_off_at_black_and_white(method: str) -> None:
    network, x = Kind("", lambda: mlp((4, 5, 3)), (4,)).network(), torch.tensor([[0.0, 1.0, 0.02, 0.97]])
    layers, rows = oracles.layers_of(network), margin_rows(network, x)
    oracle = {"ibp": oracles.interval_minimum, "crown": _crown_linf}[method]
    expected = oracle(layers, x[0].double().numpy(), 0.1, rows[0].numpy())
    np.testing.assert_allclose(bounds(network, x, 0.1, rows, Norm.LINF, method)[0], expected, atol=1e-9)


def _crown_linf(layers: oracles.Layers, x: np.ndarray, eps: float, rows: np.ndarray) -> np.ndarray:
    return oracles.crown_minimum(layers, x, eps, "linf", rows)


@every_norm
@pytest.mark.parametrize("method", [IBP, CROWN], ids=lambda m: m.kind)
def test_a_prediction_that_only_leaving_the_box_would_change_is_certified_everywhere(
    norm: Norm, method: Method
) -> None:
    network = mlp((3, 2)).eval()
    with torch.no_grad():
        network[1].weight.copy_(torch.tensor([[1.0, 1.0, 1.0], [-1.0, -1.0, -1.0]]))
        network[1].bias.copy_(torch.tensor([0.1, 0.0]))
    x = torch.zeros(2, 3)  # black: the margin 0.1 can only grow
    limit = whole_box(norm, 3)
    found = radii(method, network, x, norm)
    if norm is Norm.LINF or method is CROWN:
        assert bool((found > limit * (1 - 1e-9)).all()), f"the image box is not used: radius {found} of {limit}"
    assert bool((found <= limit).all()), "a radius beyond the whole image box"


# Radii


@every_norm
@pytest.mark.parametrize("method", [IBP, CROWN], ids=lambda m: m.kind)
def test_radius_of_a_linear_classifier(norm: Norm, method: Method) -> None:
    network = Kind("", lambda: mlp((6, 4)), (6,)).network(seed=3)
    x = 0.45 + 0.1 * images((6,), 8)  # away from the faces of the box
    with torch.no_grad():
        network[1].bias.copy_(-network[1].weight @ x.mean(0))
    (layer,) = oracles.layers_of(network)
    exact = np.array([oracles.linear_radius(*layer, image, norm.value) for image in x.double().numpy()])
    assert exact.max() < 0.4, "the image box would cut these balls off"
    found = radii(method, network, x, norm).numpy()
    assert (found <= exact).all(), f"a radius above the exact one: {found - exact}"
    if method is CROWN or norm is Norm.LINF:
        assert (found >= exact * (1 - TOLERANCE) - 1e-5).all(), f"{found / exact} of the exact radius"
    else:
        assert (found > 0.3 * exact).all(), "far below the exact radius"


@every_norm
@pytest.mark.thin(2)
def test_radius_does_not_change_with_the_scale_of_the_logits(norm: Norm) -> None:
    kind = BY_NAME["mlp"]
    network, x = kind.network(), kind.images(4)
    doubled = copy.deepcopy(network)
    with torch.no_grad():
        doubled[-1].weight.mul_(2), doubled[-1].bias.mul_(2)
    one, two = radii(CROWN, network, x, norm), radii(CROWN, doubled, x, norm)
    torch.testing.assert_close(two, one, rtol=2 * TOLERANCE, atol=1e-4, msg=f"{one} against {two} for doubled logits")


@every_norm
@every_method
def test_normalisation_may_be_a_layer_or_part_of_the_weights(norm: Norm, method: str) -> None:
    mean, std = (0.5, 0.3), (0.2, 0.3)
    kind = Kind("", lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(48, 3)), (2, 6, 6))
    plain = kind.network().double()
    absorbed = copy.deepcopy(plain)
    with torch.no_grad():
        scale, shift = 1 / torch.tensor(std).double(), torch.tensor(mean).double() / torch.tensor(std).double()
        absorbed[0].bias.sub_((plain[0].weight * shift[None, :, None, None]).sum((1, 2, 3)))
        absorbed[0].weight.mul_(scale[None, :, None, None])
    layered = nn.Sequential(normalize(mean, std).double(), *plain).eval()
    with torch.no_grad():
        layered[0].weight.copy_(scale[:, None, None, None]), layered[0].bias.copy_(-shift)
    x = kind.images(2).double()
    rows = margin_rows(layered, x)
    one, two = (bounds(net, x, EPS[norm], rows, norm, method) for net in (layered, absorbed))
    if norm is Norm.LINF or method == "crown":
        np.testing.assert_allclose(one, two, atol=1e-9, err_msg="the normalisation layer changes the bounds")
    else:
        assert (np.abs(one - two) < 1e-9).all(), "interval bounds lose the first affine layers"


@pytest.mark.parametrize("points", [2_000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("pixels", [4, 16])
@every_norm
@pytest.mark.parametrize("method", [IBP, CROWN], ids=lambda m: m.kind)
@pytest.mark.thin(5)
def test_a_planted_counterexample_is_never_certified(pixels: int, norm: Norm, method: Method, points: int) -> None:
    network, x, hidden = planted(pixels, reach=0.1)
    distance = float(norms((hidden - x[0])[None].double(), norm))
    eps = 1.01 * distance
    with torch.no_grad():
        assert int(network(x).argmax()) == 0 and int(network(hidden[None]).argmax()) == 1, "the plant does not bloom"
        hits = int((network(inside_points(x[0], eps, norm, points)).argmax(1) == 1).sum())
    assert hits == 0 or pixels == 4, "the counterexample is not hidden from random points"
    row = certify(method, network, x, norm, eps)
    assert row["status"][0] != Status.CERTIFIED or row["radius"][0] < distance, "certified beyond the counterexample"
    assert row["radius"][0] < distance and not row["margin"][0] > 0, f"{row} with a counterexample at {distance}"


def inside_points(x: Tensor, eps: float, norm: Norm, count: int) -> Tensor:
    """Random points of the ball within the image box, points of its surface, and corners of its bounding box."""
    generator = torch.Generator().manual_seed(0)
    many = x.double().expand(count, *x.shape)
    radius = torch.full((count,), reachable(eps, norm, x[None]), dtype=torch.float64)
    delta = random_start(many, radius, norm, generator)
    third = count // 3
    delta[:third] = project(delta[:third].sign() * (1 if norm is Norm.LINF else 1e3), radius[:third], norm)
    sparse = delta[third : 2 * third]
    keep = torch.rand(sparse.shape, generator=generator) < 2 / x.numel()
    delta[third : 2 * third] = project(sparse * keep * 1e3, radius[third : 2 * third], norm)
    points = (many + delta).clamp(0, 1).to(x.dtype)
    outside = norms(points.double() - many.double(), norm).max() > eps
    assert not bool(outside), "the attack leaves the ball"
    return points


def attacked(network: nn.Module, x: Tensor, radius: Tensor, norm: Norm, steps: int = 15, starts: int = 2) -> Tensor:
    """Smallest margins found by PGD inside balls of these radii, in the network's own arithmetic."""
    reach = torch.tensor([reachable(float(r), norm, x) for r in radius], dtype=x.dtype)
    with torch.no_grad():
        predicted = network(x).argmax(1)
    worst = torch.full((len(x),), float("inf"))
    for seed in range(starts):
        start = random_start(x, reach, norm, torch.Generator().manual_seed(seed)) if seed else None
        found = ascend(lambda z: -margins(network(z), predicted), Balls(x, reach, norm), steps=steps, start=start)
        with torch.no_grad():
            worst = torch.minimum(worst, margins(network(found), predicted))
    return worst


def smallest_attack(network: nn.Module, x: Tensor, limit: float, norm: Norm) -> Tensor:
    """Radius per sample at which PGD succeeds, by bisection; infinite where it never does."""
    high = torch.full((len(x),), limit, dtype=torch.float64)
    high[attacked(network, x, high, norm, steps=6, starts=1) > 0] = float("inf")
    low, top = torch.zeros_like(high), high.clamp_max(limit)
    for _ in range(5):
        middle = (low + top) / 2
        fooled = attacked(network, x, middle, norm, steps=6, starts=1) <= 0
        top, low = torch.where(fooled, middle, top), torch.where(fooled, low, middle)
    return torch.where(torch.isfinite(high), top, high)


BALLS = [(kind, norm) for kind in ZOO for norm in ALL_NORMS]


@pytest.mark.parametrize(
    ("kind", "norm", "points"),
    [
        *((*ball, 2_000) for ball in BALLS[::7]),
        *(pytest.param(*ball, 10_000, marks=pytest.mark.slow) for ball in BALLS),
    ],
    ids=lambda part: part.name if isinstance(part, Kind) else str(part),
)
@pytest.mark.thin(5)
def test_no_attack_inside_a_certified_radius_changes_the_class(kind: Kind, norm: Norm, points: int) -> None:
    network, x = kind.network(), kind.images(2)
    with torch.no_grad():
        predicted = network(x).argmax(1)
    found = {method.kind: radii(method, network, x, norm) for method in (IBP, CROWN)}
    largest = torch.stack(list(found.values())).amax(0)
    assert bool((largest > 0).any()), "nothing is certified, so nothing is tested"
    for i in range(2):
        with torch.no_grad():
            classes = network(inside_points(x[i], float(largest[i]), norm, points)).argmax(1)
        changed = int((classes != predicted[i]).sum())
        assert changed == 0, f"sample {i}: {changed} random points within {largest[i]} change the class; {found}"
    worst = attacked(network, x, largest, norm)
    assert bool((worst > 0).all()), f"PGD inside the certified radius changes the class: margins {worst}; {found}"
    attack = smallest_attack(network, x, whole_box(norm, x[0].numel()) / 2, norm)
    assert bool((largest <= attack).all()), f"radii {largest} above the attacks {attack}"
