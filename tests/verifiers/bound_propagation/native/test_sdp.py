"""Bounds that follow the l2 ball: every choice of parameters is sound, and the ascent closes most of the gap."""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, NonlinearConstraint, minimize
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import thin
from tests.verifiers.bound_propagation.native.test_noise import coarse, noisy
from tests.zoo import BY_NAME, Kind, mlp
from verifiers.bound_propagation.engine import SDP_CROWN, Memory, Planes
from verifiers.bound_propagation.native import hinges as hinges_module
from verifiers.bound_propagation.native import sdp
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.native.hinges import Hinges, by_crown, follow, least_hinge
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, random_start
from verifiers.geometry.margins import margin_specification, margins

#: Networks with ReLUs that are followed, and with other operators between them.
KINDS = [BY_NAME[name] for name in ("deep mlp", "residual", "average pool", "max pool", "batch norm", "tanh", "leaky")]
MIXED = Kind(
    "relu and tanh", lambda: nn.Sequential(*mlp((6, 10)), nn.ReLU(), nn.Linear(10, 8), nn.Tanh(), *mlp((8, 8, 3))), (6,)
)
EPS = (0.05, 0.3, 1.0)


def balls_of(kind: Kind) -> Balls:
    """Three balls; the second image has black pixels, and the third ball leaves the image box on all sides."""
    x = kind.images(3).double()
    x[1] = torch.where(x[1] < 0.4, 0.0, x[1])
    return Balls(x, torch.tensor(EPS, dtype=torch.float64), Norm.L2)


def rows_of(engine: Native, x: Tensor) -> Tensor:
    with torch.no_grad():
        return margin_specification(engine.model(x).argmax(1), engine.graph.classes, torch.float64)


def prepared(engine: Native, balls: Balls) -> Bounds:
    """Propagated bounds of balls that are cut at the image box."""
    bounds = engine.bounds(balls)
    bounds.cut = True
    with torch.no_grad():
        bounds.propagate(refine=True)
    return bounds


def points_in(balls: Balls, model: nn.Module, rows: Tensor, count: int) -> Iterator[Tensor]:
    """Random points of cut balls, and those where an attack leaves each row lowest."""
    random = torch.Generator().manual_seed(3)
    for i in range(count):
        delta = random_start(balls.x, balls.eps, balls.norm, random)
        yield (balls.x + delta * (1 if i % 2 else 0.5)).clamp(0, 1)
    for row in range(rows.shape[1]):
        yield ascend(lambda z, r=row: -(rows[:, r] * model(z)).sum(1), balls, steps=15)  # type: ignore[misc]


def lowest(balls: Balls, model: nn.Module, rows: Tensor, count: int = 60) -> Tensor:
    """The lowest value found of each row on each ball."""
    with torch.no_grad():
        found = [(rows @ model(point)[:, :, None])[:, :, 0] for point in points_in(balls, model, rows, count)]
    return torch.stack(found).amin(0)


def scattered(ascent: sdp.Ascent, random: torch.Generator) -> None:
    """Put all free parameters at random places, far from where they start."""
    for each, spread in ((ascent.choice.slope, 3.0), (ascent.choice.weight, 2.0), (ascent.choice.split, 1.5)):
        each.add_(spread * torch.randn(each.shape, generator=random, dtype=torch.float64))


# One neuron


def test_the_least_of_a_neuron_against_a_grid() -> None:
    """min c max(z, 0) - g z + w/2 (z - m)^2 over an interval: never above a dense grid's minimum, and near it."""
    random = torch.Generator().manual_seed(0)
    size = (400,)
    c, g, m = (torch.randn(size, generator=random, dtype=torch.float64) for _ in range(3))
    low, high = (torch.rand(size, generator=random, dtype=torch.float64) for _ in range(2))
    weight = torch.exp(2 * torch.randn(size, generator=random, dtype=torch.float64))
    weight[::3] = 0.0
    found = least_hinge(c, g, -low, high, weight, m)
    share = torch.linspace(0, 1, 2001, dtype=torch.float64)[:, None]
    z = -low + share * (low + high)
    least = (c * z.clamp_min(0) - g * z + 0.5 * weight * (z - m).square()).amin(0)
    assert bool((found <= least + 1e-12).all()) and float((least - found).max()) < 1e-3


def test_stable_neurons_add_nothing() -> None:
    one = torch.ones(2, dtype=torch.float64)
    low, high = torch.tensor([0.0, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    assert bool((least_hinge(one, one * low.ge(0), low, high, 0 * one, 0 * one) == 0).all())


def test_crowns_slopes_without_multipliers_are_crown() -> None:
    """The chord for negative coefficients, 0 or 1 for positive ones: then the neuron adds what CROWN's line adds."""
    low, high = torch.tensor([[-1.0, -3.0]], dtype=torch.float64), torch.tensor([[2.0, 1.0]], dtype=torch.float64)
    zero = torch.zeros_like(low)
    for sign, offsets in ((1.0, (0.0, 0.0)), (-1.0, (-2 / 3, -3 / 4))):
        row = torch.full_like(low, sign)
        found = least_hinge(row, row * by_crown(row, low, high), low, high, zero, zero)
        torch.testing.assert_close(found, torch.tensor([offsets], dtype=torch.float64), atol=1e-9, rtol=0)


# Networks


@pytest.mark.parametrize("kind", thin([*KINDS, MIXED], every=3), ids=lambda kind: kind.name)
@pytest.mark.thin(3)
def test_no_point_is_below_a_bound_whatever_the_parameters(kind: Kind) -> None:
    engine, balls = Native(kind.network(), kind.images(2)), balls_of(kind)
    rows, random = rows_of(engine, balls.x), torch.Generator().manual_seed(1)
    least, bounds = lowest(balls, engine.model, rows), prepared(engine, balls)
    with torch.no_grad():
        ascent = sdp.Ascent.start(bounds, rows)
        if ascent is None:  # no ReLU: CROWN's bound
            assert kind.name in ("tanh", "leaky")
            assert torch.equal(sdp.followed_ball(bounds, rows, 3).bound, bounds.by_rows(rows).bound)
            return
        for _ in range(6):
            planes, towards = ascent.bound()
            assert bool((planes.bound <= least).all()), f"{float((planes.bound - least).max()):.3g} above a point"
            assert bool(torch.isfinite(towards).all())
            scattered(ascent, random)


@pytest.mark.parametrize("kind", thin([*KINDS, MIXED], every=3), ids=lambda kind: kind.name)
@pytest.mark.thin(3)
def test_it_is_never_looser_than_crown_and_holds_on_smaller_balls(kind: Kind) -> None:
    engine, balls = Native(kind.network(), kind.images(2)), balls_of(kind)
    rows = rows_of(engine, balls.x)
    crown, found = engine.ask(balls, rows, "crown"), engine.ask(balls, rows, SDP_CROWN, iterations=5)
    assert bool((found.bound >= crown.bound).all()), "a row is looser than CROWN's"
    assert bool((found.bound <= lowest(balls, engine.model, rows)).all())
    for share in (0.2, 0.7):
        smaller = Balls(balls.x, share * balls.eps, balls.norm)
        at = found.value - smaller.eps[:, None] * found.steepness
        assert bool((at <= lowest(smaller, engine.model, rows) + 1e-9).all()), "a plane fails on a smaller ball"


def test_neurons_follow_the_image() -> None:
    """z = m + a d + e with |e| <= E at points of the ball; E is 0 up to rounding where z is affine in the image."""
    kind = BY_NAME["deep mlp"]
    engine, balls = Native(kind.network(), kind.images(2)), balls_of(kind)
    bounds = prepared(engine, balls)
    with torch.no_grad():
        hinges = Hinges.of(bounds)
        followed = follow(bounds, hinges, torch.ones_like(hinges.low))
        valid = followed.valid.bool()
        assert bool((valid.sum(1) == hinges.open.sum(1)).all()) and bool(valid.any(1).all())
        affine = valid & (followed.index < hinges.readers[1][2])
        assert bool((followed.rest[affine] < 1e-12).all()) and bool((followed.rest[valid & ~affine] > 1e-6).any())
        for point in points_in(balls, engine.model, rows_of(engine, balls.x), 40):
            values = engine.graph.values(point)
            z = torch.cat([values[read].flatten(1) for _, read, _ in hinges.readers], 1).gather(1, followed.index)
            d = (point - balls.x).flatten(1)
            rest = z - followed.middle - (followed.directions.rows @ d[:, :, None])[:, :, 0]
            assert bool((rest.abs() <= followed.rest + 1e-12)[valid].all())


def test_few_neurons_are_the_costliest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With fewer multipliers than unstable neurons bounds are sound, and no looser than CROWN's."""
    kind = BY_NAME["deep mlp"]
    engine, balls = Native(kind.network(), kind.images(2)), balls_of(kind)
    rows = rows_of(engine, balls.x)
    monkeypatch.setattr(hinges_module, "MOST", 3)
    few, crown = engine.ask(balls, rows, SDP_CROWN, iterations=8).bound, engine.ask(balls, rows, "crown").bound
    assert bool((few <= lowest(balls, engine.model, rows)).all())
    assert bool((few >= crown).all()) and float(few.mean()) > float(crown.mean())
    bounds = prepared(engine, balls)
    with torch.no_grad():
        hinges, random = Hinges.of(bounds), torch.Generator().manual_seed(0)
        cost = torch.rand(hinges.low.shape, generator=random, dtype=torch.float64)
        followed = follow(bounds, hinges, cost)
    left = cost.masked_fill(~hinges.open, -1.0).scatter(1, followed.index, -1.0)
    assert followed.index.shape[1] == 3
    assert bool((left.amax(1) <= cost.gather(1, followed.index).amin(1)).all()), "a costlier neuron is left out"


# Exact minima of tiny networks


def exact(network: nn.Sequential, row: Tensor, x: Tensor, eps: float) -> float:
    """The minimum of a row over a cut ball, by all activation patterns of one hidden layer: a convex problem each."""
    hidden, last = (module for module in network if isinstance(module, nn.Linear))
    a, b = hidden.weight.detach().double().numpy(), hidden.bias.detach().double().numpy()
    out, centre = (row @ last.weight.detach().double()).numpy(), x.flatten().numpy()
    least = math.inf
    for signs in itertools.product((0.0, 1.0), repeat=len(b)):
        on = np.array(signs)
        slope, constant = (out * on) @ a, float((out * on) @ b + row.numpy() @ last.bias.detach().double().numpy())
        faces = LinearConstraint((2 * on - 1)[:, None] * a, -(2 * on - 1) * b, np.inf)
        ball = NonlinearConstraint(lambda z: (z - centre) @ (z - centre), 0, eps**2, jac=lambda z: 2 * (z - centre))
        found = minimize(
            lambda z, s=slope, c=constant: s @ z + c,
            centre,
            jac=lambda z, s=slope: s,
            bounds=[(0.0, 1.0)] * len(centre),
            constraints=[faces, ball],
            method="SLSQP",
            options={"maxiter": 100},
        )
        inside = ((found.x - centre) ** 2).sum() <= eps**2 + 1e-6
        if inside and ((2 * on - 1) * (a @ found.x + b) >= -1e-6).all():
            least = min(least, float(found.fun))
    return least


@pytest.mark.slow
def test_exact_minima_of_tiny_networks() -> None:
    """No bound is above the exact minimum, and on average at least half of CROWN's gap is closed."""
    gaps = []
    for seed in range(4):
        kind = Kind("tiny", lambda: mlp((3, 4, 3)), (3,))
        network, x = kind.network(seed), kind.images(2, seed).double()
        engine, balls = Native(network, x.float()), Balls.around(x, 0.5, Norm.L2)
        rows = rows_of(engine, x)
        crown, found = (engine.ask(balls, rows, m, iterations=60).bound for m in ("crown", SDP_CROWN))
        for i, j in itertools.product(range(2), range(2)):
            truth = exact(network, rows[i, j], x[i], 0.5)
            assert float(found[i, j]) <= truth + 1e-6, f"seed {seed}: {float(found[i, j])} is above {truth}"
            gaps.append((truth - float(crown[i, j]), truth - float(found[i, j])))
    before, after = (float(np.sum(each)) for each in zip(*gaps, strict=True))
    assert after < 0.5 * before, f"CROWN's gaps add up to {before:.3g}, and {after:.3g} is left"


# Float32, radii, mistakes


def test_bounds_hold_for_a_network_with_noise() -> None:
    """A float32 with shorter numbers: values are off by their largest errors, with random signs."""
    kind = BY_NAME["deep mlp"]
    engine, balls = coarse(kind.network(), kind.images(2)), balls_of(kind)
    balls = Balls(balls.x, balls.eps / 3, balls.norm)
    rows, random = rows_of(engine, balls.x), torch.Generator().manual_seed(0)
    bounds = prepared(engine, balls)
    found = sdp.followed_ball(bounds, rows, 5)
    free = Native(kind.network(), kind.images(2)).ask(balls, rows, SDP_CROWN, iterations=5)
    assert bool((found.bound < free.bound).all()) and bool((found.rounding > 0).all()), "noise costs nothing"
    for point in points_in(balls, engine.model, rows, 40):
        logits = noisy(bounds, point, random)[-1].flatten(1)
        assert bool(((rows @ logits[:, :, None])[:, :, 0] >= found.bound).all())


def test_overflow_proves_nothing() -> None:
    network = mlp((3, 4, 2))
    with torch.no_grad():
        network[1].weight.mul_(1e38)
        network[3].weight.mul_(1e38)
    x = torch.full((2, 3), 0.5)
    engine = Native(network.eval(), x, arithmetic=Arithmetic.FLOAT32)
    found = engine.ask(Balls.around(x.double(), 0.4, Norm.L2), torch.eye(2).double().expand(2, 2, 2), SDP_CROWN)
    assert not bool((found.bound > -math.inf).any())


@pytest.mark.slow
def test_radii_are_larger_than_crowns_and_withstand_attack() -> None:
    kind = BY_NAME["deep mlp"]
    network, x = kind.network(), kind.images(6)[[2, 4, 5]]
    with torch.no_grad():
        predicted = network(x).argmax(1)
    options = {"tolerance": 0.02, "iterations": 8}
    found = certify(network, x, predicted, eps="1/10", norm="l2", methods=("crown", "sdp-crown"), options=options)
    crown, radius = (torch.from_numpy(found[method]["radius"]) for method in ("crown", "sdp-crown"))
    assert bool((radius >= crown).all()) and float(radius.mean()) > 1.01 * float(crown.mean())
    balls = Balls(x, radius.float() * (1 - 1e-6), Norm.L2)
    for point in (
        ascend(lambda z: -margins(network(z), predicted), balls, steps=30),
        *(x + random_start(x, balls.eps, Norm.L2, torch.Generator().manual_seed(i)) for i in range(30)),
    ):
        with torch.no_grad():
            assert torch.equal(network(point.clamp(0, 1)).argmax(1), predicted)


def test_a_planted_counterexample_is_never_inside() -> None:
    """Two branches that meet at 0.3 from the image: the radius ends below."""
    network = mlp((2, 2, 2))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
        network[1].bias.copy_(torch.tensor([-0.5, -0.5]))
        network[3].weight.copy_(torch.tensor([[0.0, 0.0], [5.0, 5.0]]))
        network[3].bias.copy_(torch.tensor([1.0, 0.0]))
    x, label = torch.tensor([[0.4, 0.4], [0.1, 0.5]]), torch.tensor([0, 0])
    found = certify(
        network.eval(), x, label, eps="1/20", norm="l2", methods=("sdp-crown",), iterations=25, tolerance=0.05
    )
    radius = found["sdp-crown"]["radius"]
    # max(a - 1/2, 0) + max(b - 1/2, 0) = 1/5 is first met where a + b = 6/5, or where one of them is 7/10
    truth = [0.2 * 2**0.5, 0.2]
    assert (radius <= truth).all() and (radius >= 0.8 * np.array(truth)).all(), radius


def test_other_balls_are_refused() -> None:
    kind = BY_NAME["mlp"]
    engine = Native(kind.network(), kind.images(2))
    balls = Balls.around(kind.images(2).double(), 0.1, Norm.LINF)
    with pytest.raises(Unsupported, match=r"^sdp-crown follows l2 balls, and these are linf balls; use crown"):
        engine.ask(balls, rows_of(engine, balls.x), SDP_CROWN)


def test_large_networks_are_followed_one_sample_at_a_time() -> None:
    small, large = (BY_NAME["deep mlp"], Kind("wide", lambda: mlp((6, 400, 3)), (6,)))
    sizes = [sdp.samples_at_once(Native(k.network(), k.images(2)).graph, 9) for k in (small, large)]
    assert sizes == [sdp.SAMPLES, 1]


def test_a_deadline_and_a_goal_end_the_ascent() -> None:
    kind = BY_NAME["deep mlp"]
    engine, balls = Native(kind.network(), kind.images(2)), balls_of(kind)
    bounds, rows = prepared(engine, balls), rows_of(engine, balls.x)
    crown: Planes = bounds.by_rows(rows)
    assert torch.equal(sdp.followed_ball(bounds, rows, 50, deadline=-math.inf).bound, crown.bound)
    assert torch.equal(sdp.followed_ball(bounds, rows, 50, goal=-math.inf).bound, crown.bound)


def test_memory_changes_no_bound_for_the_worse() -> None:
    """Intervals from a larger ball start a question at a smaller one."""
    kind = BY_NAME["deep mlp"]
    engine, balls = Native(kind.network(), kind.images(2)), balls_of(kind)
    rows, memory = rows_of(engine, balls.x), Memory(3)
    engine.ask(Balls(balls.x, 2 * balls.eps, balls.norm), rows, SDP_CROWN, iterations=2, memory=memory)
    found = engine.ask(balls, rows, SDP_CROWN, iterations=2, memory=memory)
    assert bool((found.bound <= lowest(balls, engine.model, rows)).all())
    assert bool((found.bound >= engine.ask(balls, rows, "crown").bound).all())


def test_a_neuron_without_an_interval_has_no_bound() -> None:
    """Not 0, as if it were stable."""
    c, slope, nan, zero = (torch.tensor(value, dtype=torch.float64) for value in (-1.0, -0.5, math.nan, 0.0))
    assert least_hinge(c, slope, nan, nan, zero, zero).isnan() and least_hinge(c, slope, nan, -c, zero, zero).isnan()
    assert least_hinge(c, slope, zero, -c, zero, zero) == 0
