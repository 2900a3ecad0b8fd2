"""The native engine on a table of tiny networks, one or more per operator: attacks, planes, small balls, batches.

Every network is bounded once, in a batch of as many samples as an image's side, each with its own eps.
"""

import itertools
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.marks import MANY, thin
from tests.verifiers.graph.nets import CASES
from tests.zoo import BY_NAME, Kind, images, mlp, planted
from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.engine import BOUND_METHODS, Memory, Planes
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, norms, per_sample, project, random_start

EPS = torch.tensor([1e-8, 1e-3, 0.02, 0.06, 0.2, 0.5], dtype=torch.float64)
SCALE = {Norm.LINF: 1.0, Norm.L2: 1.5, Norm.L1: 3.0}
#: Methods, and whether intervals are intersected.
ASKED = (("ibp", True), ("crown-ibp", True), ("crown", True), ("crown", False), ("alpha-crown", True))

#: Networks with functions whose domain is a half-line, which plain CROWN's intervals may leave.
PARTIAL = ("sqrt", "rsqrt", "reciprocal", "powers", "log", "log1p", "quotient")

every_case = pytest.mark.parametrize("name", thin(CASES, every=5))
#: The largest norm for all networks, and one of the others for every sixth.
every_ball = pytest.mark.parametrize(
    ("name", "norm"),
    [
        *thin(((name, Norm.LINF) for name in CASES), every=5),
        *thin(((name, (Norm.L2, Norm.L1)[i % 2]) for i, name in enumerate(list(CASES)[::6]))),
    ],
    ids=str,
)


@dataclass(frozen=True)
class Subject:
    """A network with images, the rows e_k and -e_k, and its engine."""

    engine: Native
    x: Tensor
    rows: Tensor

    def values(self, points: Tensor) -> Tensor:
        """Rows of the network's logits at points (batch, count, *shape), as (batch, count, rows)."""
        with torch.no_grad():
            logits = self.engine.model(points.flatten(0, 1))
        return logits.unflatten(0, points.shape[:2]) @ self.rows[0].T

    def planes(self, norm: Norm, method: str, intersect: bool = True, only: slice = slice(None)) -> Planes:
        self.engine.intersect = intersect
        eps = SCALE[norm] * EPS
        return self.engine.ask(Balls(self.x, eps, norm).take(only), self.rows[only], method, iterations=2)


@cache
def subject(name: str) -> Subject:
    kind = CASES[name] if name in CASES else BY_NAME[name]
    x = kind.images(len(EPS)).double()
    engine = Native(kind.network(), x[:2].float())
    with torch.no_grad():
        classes = engine.model(x[:1]).shape[1]
    eye = torch.eye(classes, dtype=x.dtype)
    return Subject(engine, x, torch.cat([eye, -eye]).expand(len(x), -1, -1))


@cache
def planes(name: str, norm: Norm, method: str, intersect: bool) -> Planes:
    return subject(name).planes(norm, method, intersect)


@cache
def attacked(name: str, norm: Norm) -> tuple[Tensor, Tensor]:
    """Points of the balls, (batch, count, *shape), and the rows there, (batch, count, rows)."""
    net = subject(name)
    points = torch.cat([_sampled(net.x, SCALE[norm] * EPS, norm), _ascended(net, SCALE[norm] * EPS, norm)], 1)
    return points, net.values(points)


def _sampled(x: Tensor, eps: Tensor, norm: Norm, count: int = 36) -> Tensor:
    """Points inside, corners or points of the sphere, and points that differ in one or two pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for kind in range(count):
        delta = random_start(x, eps, norm, generator)
        if kind % 3 == 1:
            delta = delta.sign() * per_sample(eps, x) if norm is Norm.LINF else project(delta * 1e3, eps, norm)
        if kind % 3 == 2:
            keep = torch.rand(x.flatten(1).shape, generator=generator).argsort(1) < 1 + kind % 2
            kept = (delta.flatten(1) * keep).reshape(x.shape)
            delta = project(kept.sign() * 2 * per_sample(eps, x), eps, norm)
        found.append((x + delta).clamp(0.0, 1.0))
    return torch.stack(found, 1)


def _ascended(net: Subject, eps: Tensor, norm: Norm) -> Tensor:
    """Attacks on every row: one long step, which is best on a linear function, and many from a random start."""
    count = net.rows.shape[1]
    x, radius = net.x.repeat_interleave(count, 0), eps.repeat_interleave(count)
    rows = net.rows.flatten(0, 1)
    start = random_start(x, radius, norm, torch.Generator().manual_seed(1))

    def objective(z: Tensor) -> Tensor:
        return -(rows * net.engine.model(z)).sum(1)

    once = ascend(objective, Balls(x, radius, norm), steps=1, step_size=1.0)
    often = ascend(objective, Balls(x, radius, norm), steps=5, start=start)
    return torch.stack([once, often], 1).reshape(len(eps), -1, *x.shape[1:])


def _clean(name: str) -> Tensor:
    net = subject(name)
    return net.values(net.x[:, None])[:, 0]


# Soundness


@every_case
@pytest.mark.thin(5)
def test_the_graph_is_the_network_on_a_batch(name: str) -> None:
    net = subject(name)
    with torch.no_grad():
        apart = float((net.engine.graph(net.x) - net.engine.model(net.x)).abs().max())
    assert apart < 1e-10, f"logits differ by {apart:.3g}"


@every_ball
@pytest.mark.thin(5)
def test_no_point_of_the_ball_breaks_a_bound(name: str, norm: Norm) -> None:
    least = attacked(name, norm)[1].amin(1)
    for method, intersect in ASKED[: 5 if norm is Norm.LINF else 3]:
        bound = planes(name, norm, method, intersect).bound
        slack = 1e-9 * bound.abs().nan_to_num(0.0, 0.0, 0.0).clamp_min(1.0)
        worst = (bound - least - slack).amax(1)
        known = ~bound.isnan().any(1)
        assert known.all() or (name in PARTIAL and not intersect), f"{method}, {intersect}: nan for eps {EPS[~known]}"
        assert not (worst > 0).any(), f"{method}, intersect={intersect}: broken by {worst} for eps {EPS}"
    helped = _after_a_larger_ball(subject(name), norm)
    slack = 1e-9 * helped.abs().nan_to_num(0.0, 0.0, 0.0).clamp_min(1.0)
    assert not (helped - least > slack).any(), (
        f"after a larger ball: broken by {(helped - least).amax(1)} for eps {EPS}"
    )


def _after_a_larger_ball(net: Subject, norm: Norm, method: str = "crown", times: float = 1.3) -> Tensor:
    """A method's bounds when the same was asked before in larger balls."""
    net.engine.intersect = True
    eps, memory = SCALE[norm] * EPS, Memory(len(EPS))
    for radii in (times * eps, eps):
        found = net.engine.ask(Balls(net.x, radii, norm), net.rows, method, iterations=2, memory=memory)
    return found.bound


#: One norm for each network, all three before a release.
VERY_MANY = [
    (name, norm) for i, name in enumerate(CASES) for norm in (list(Norm) if MANY > 60 else [list(Norm)[i % 3]])
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norm"), VERY_MANY, ids=str)
def test_no_point_of_very_many_breaks_a_bound_of_any_method(name: str, norm: Norm) -> None:
    """Every operator, norm and method, also after larger balls, against 10,000 points of six balls and the attacks."""
    net, eps = subject(name), SCALE[norm] * EPS
    least = net.values(_sampled(net.x, eps, norm, 10_000 // len(EPS))).amin(1).minimum(attacked(name, norm)[1].amin(1))
    bounds = {f"{method}, {intersect}": planes(name, norm, method, intersect).bound for method, intersect in ASKED}
    for method, times in (("crown", 2.0), ("alpha-crown", 1.3), ("crown-ibp", 1.1)):
        bounds[f"{method} after {times}"] = _after_a_larger_ball(net, norm, method, times)
    for asked, bound in bounds.items():
        slack = 1e-9 * bound.abs().nan_to_num(0.0, 0.0, 0.0).clamp_min(1.0)
        worst = (bound - least - slack).amax(1)
        assert not (worst > 0).any(), f"{asked}: broken by {worst} for eps {EPS}"


@every_ball
def test_planes_bound_every_smaller_ball(name: str, norm: Norm) -> None:
    points, values = attacked(name, norm)
    x = subject(name).x
    distance = norms((points - x[:, None]).flatten(0, 1), norm).reshape(values.shape[:2])
    for method in ("crown-ibp", "crown", "alpha-crown")[: 3 if norm is Norm.LINF else 2]:
        found = planes(name, norm, method, True)
        below = found.value[:, None] - distance[:, :, None] * found.steepness[:, None]
        slack = 1e-9 * values.abs().amax().clamp_min(1.0)
        worst = (below - values - slack).amax((1, 2))
        assert not (worst > 0).any(), f"{method}: a plane is above the network by {worst} for eps {EPS}"
        drop = found.value - SCALE[norm] * EPS[:, None] * found.steepness - found.bound
        assert not (drop > 1e-9).any(), f"{method}: the bound is below its own plane by {drop.amax(1)}"


# Tightness


#: Networks with kinks that every image lies on: two windows share their largest entry, y - y is not known to be 0.
KINKED = {"max pool of relu": BOUND_METHODS, "cancellation": ("crown-ibp",)}


@every_ball
def test_bounds_are_those_of_the_linear_function_on_a_tiny_ball(name: str, norm: Norm) -> None:
    """Attacks of one step are exact there (but for l1), so bounds may not fall by more than the network does."""
    if norm is Norm.L1:
        return
    clean, least = _clean(name)[0], attacked(name, norm)[1][0].amin(0)
    fall = clean - least
    for method in ("crown-ibp", "crown", "alpha-crown")[: 3 if norm is Norm.LINF else 2]:
        if method not in KINKED.get(name, ()):
            gap = clean - planes(name, norm, method, True).bound[0]
            excess = float((gap - 1.01 * fall).max())
            assert excess < 1e-11 * clean.abs().max().clamp_min(1.0), (
                f"{method}: {gap} where the network falls by {fall}"
            )


@every_case
def test_methods_are_in_order(name: str) -> None:
    crown, alpha = (planes(name, Norm.LINF, method, True).bound for method in ("crown", "alpha-crown"))
    lost = float((crown - alpha).amax())
    assert not lost > 1e-9, f"alpha-CROWN is below CROWN by {lost:.3g}"


@every_ball
@pytest.mark.thin(2)
def test_a_batch_gives_what_each_sample_gives_alone(name: str, norm: Norm) -> None:
    for i, method in ((3, "crown"), (4, "ibp")):
        together = planes(name, norm, method, True).bound
        alone = subject(name).planes(norm, method, True, slice(i, i + 1)).bound[0]
        apart = (together[i] - alone).abs() / alone.abs().clamp_min(1.0)
        same = (together[i] == alone) | (apart < 1e-9)
        assert same.all(), f"sample {i} changes by {apart.max():.3g} by {method} in a batch of {len(EPS)}"


# Other implementations, exact minima and hidden counterexamples


#: Networks of affine operators and ReLU, on which both engines are one algorithm; those that auto-LiRPA takes.
SAME = ("deep mlp", "grouped cnn", "residual", "average pool", "global average", "batch norm")


@pytest.mark.skipif(compat.version() is None, reason="auto-LiRPA is not installed")
@pytest.mark.parametrize("kind", [BY_NAME[name] for name in SAME], ids=lambda kind: kind.name)
@pytest.mark.thin(3)
def test_plain_bounds_are_those_of_auto_lirpa(kind: Kind) -> None:
    network, x = kind.network(), kind.images(2)
    native, lirpa = Native(network, x, intersect=False), AutoLirpa(network, x)
    rows = torch.eye(network(x).shape[1], dtype=torch.float64)
    rows = torch.cat([rows, -rows])[None]
    for eps, method in itertools.product((1e-3, 0.05, 0.4), ("ibp", "crown")):
        ball = Balls.around(x[:1].double(), eps, Norm.LINF)
        ours, theirs = (engine.ask(ball, rows, method).bound for engine in (native, lirpa))
        apart = float((ours - theirs).abs().max())
        assert apart < 1e-9 * float(theirs.abs().max().clamp_min(1.0)), f"{method} at {eps}: {apart:.3g} apart"


@pytest.mark.parametrize("sizes", [(2, 4, 3), (3, 3, 3, 3)], ids=str)
@pytest.mark.parametrize("norm", [Norm.LINF, Norm.L1], ids=str)
@pytest.mark.thin(2)
def test_bounds_stay_below_the_exact_minimum(sizes: tuple[int, ...], norm: Norm) -> None:
    network, x = Kind("", lambda: mlp(sizes), sizes[:1]).network(seed=1), images(sizes[:1], 2, seed=1)
    engine, layers = Native(network, x), oracles.layers_of(network)
    row = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    for eps in (0.05, 0.3):
        exact = oracles.exact_minimum(layers, x[0].double().numpy(), eps, norm.value, row.numpy())
        ball, rows = Balls.around(x[:1].double(), eps, norm), row[None, None]
        found = {method: float(engine.ask(ball, rows, method, iterations=10).bound) for method in BOUND_METHODS}
        assert max(found.values()) <= exact + 1e-9, f"{found} above the minimum {exact} for eps {eps}"
        assert found["crown"] >= exact - 1.5, f"{found} far below the minimum {exact} for eps {eps}"


class _OnMaps(nn.Module):
    """A network of flat images behind convolutions that only move its pixels."""

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.shift = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
        self.shift.weight = nn.Parameter(torch.eye(9)[0].reshape(1, 1, 3, 3))
        self.back = nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular", bias=False)
        self.back.weight = nn.Parameter(torch.eye(9)[8].reshape(1, 1, 3, 3))
        self.network, self.side = network, side

    def forward(self, x: Tensor) -> Tensor:
        maps = x.reshape(-1, 1, self.side, self.side)
        return self.network(self.back(torch.relu(self.shift(maps))).flatten(1))


@pytest.mark.parametrize("method", BOUND_METHODS)
@pytest.mark.parametrize("maps", [False, True], ids=["flat", "maps"])
@pytest.mark.thin(3)
def test_a_planted_counterexample_is_never_certified(method: str, maps: bool) -> None:
    network, x, hidden = planted(9, reach=0.05)
    network = _OnMaps(network, 3).eval() if maps else network
    with torch.no_grad():
        assert network(x).argmax() == 0 and network(hidden[None]).argmax() == 1, "nothing is planted"
    engine = Native(network, x.repeat(2, 1))
    row = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64)
    for norm in Norm:
        distance = norms((hidden - x[0])[None].double(), norm)
        bound = engine.ask(Balls(x.double(), distance + 1e-6, norm), row, method, iterations=5).bound
        assert not bool((bound > 0).any()), f"{method} {norm}: certified by {float(bound):.3g} beyond a counterexample"
