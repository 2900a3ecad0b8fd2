"""Every elementwise relaxation against the function torch computes: sound without a tolerance, tight, differentiable.

Lines are evaluated in long double, so that a line is judged as stored, not as rounded when used.
"""

from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from math import inf, isinf

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.certifying import certify
from tests.marks import only
from verifiers.core.status import Status
from verifiers.graph.relaxations.convex import NEAR, Elu, Exp, Log, Reciprocal, Rsqrt, Softplus, Sqrt, Square
from verifiers.graph.relaxations.gelu import Gelu, Mish, Silu
from verifiers.graph.relaxations.lines import Activation, Lines
from verifiers.graph.relaxations.piecewise import Abs, Clamp, HardSigmoid, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.sigmoidal import Erf, Sigmoid, Tanh


@dataclass(frozen=True)
class Case:
    """An activation, torch's own function, and where intervals for it are drawn.

    Attributes:
        kinks: where f is not smooth, and its inflection points: places to put intervals at.
        domain: ends of the open domain.
        sharp: the kinks proper, across which the gap shrinks with the width only.
        straight: pieces on which the lines are exact, as (from, to).
    """

    activation: Activation
    reference: object
    kinks: tuple[float, ...] = (0.0,)
    domain: tuple[float, float] = (-inf, inf)
    sharp: tuple[float, ...] = ()
    straight: tuple[tuple[float, float], ...] = ()


def _elu(alpha: float, scale: float, input_scale: float) -> Case:
    activation = Elu(alpha, scale, input_scale)
    return Case(
        activation,
        lambda x: torch.ops.aten.elu(x, alpha, scale, input_scale),
        sharp=(0.0,),
        straight=((0, inf),),
    )


def _leaky(slope: float) -> Case:
    return Case(
        LeakyRelu(slope),
        lambda x: F.leaky_relu(x, slope),
        sharp=(0.0,),
        straight=((-inf, inf),) if slope == 1 else ((-inf, 0), (0, inf)),
    )


def _clamp(low: float | None, high: float | None) -> Case:
    ends = [-inf if low is None else low, inf if high is None else high]
    kinks = tuple(x for x in ends if not isinf(x))
    edges = [-inf, *kinks, inf]
    return Case(
        Clamp(low, high),
        lambda x: x if not kinks else torch.clamp(x, low, high),
        kinks=kinks or (0.0,),
        sharp=kinks,
        straight=tuple(pairwise(edges)),
    )


THREE = {"kinks": (-3.0, 3.0, -1.5, 0.0), "sharp": (-3.0, 3.0)}
CASES = {
    "relu": Case(Relu(), F.relu, sharp=(0.0,), straight=((-inf, 0), (0, inf))),
    **{f"leaky {slope}": _leaky(slope) for slope in (0.01, 0.3, 0.0, 1.0, 2.5, -0.2, -3.0)},
    "abs": Case(Abs(), torch.abs, sharp=(0.0,), straight=((-inf, 0), (0, inf))),
    "hardtanh": _clamp(-1.0, 1.0),
    "relu6": _clamp(0.0, 6.0),
    "clamp below": _clamp(-0.7, None),
    "clamp above": _clamp(None, 0.1),
    "clamp open": _clamp(None, None),
    "clamp infinite": _clamp(-inf, 2.0),
    "hardsigmoid": Case(HardSigmoid(), F.hardsigmoid, straight=((-inf, -3), (-3, 3), (3, inf)), **THREE),
    "hardswish": Case(HardSwish(), F.hardswish, straight=((-inf, -3), (3, inf)), **THREE),
    "exp": Case(Exp(), torch.exp),
    "softplus": Case(Softplus(), F.softplus, kinks=(0.0, 20.0), sharp=(20.0,), straight=((20, inf),)),
    "softplus 3 1.5": Case(
        Softplus(3.0, 1.5), lambda x: F.softplus(x, 3.0, 1.5), kinks=(0.0, 0.5), sharp=(0.5,), straight=((0.5, inf),)
    ),
    "softplus 0.001 0.01": Case(
        Softplus(1e-3, 0.01),
        lambda x: F.softplus(x, 1e-3, 0.01),
        kinks=(0.0, 10.0),
        sharp=(10.0,),
        straight=((10, inf),),
    ),
    "elu": _elu(1.0, 1.0, 1.0),
    "selu": Case(Elu(1.6732632423543772848, 1.0507009873554804934), F.selu, sharp=(0.0,), straight=((0, inf),)),
    "celu 0.5": Case(Elu(0.5, 1.0, 2.0), lambda x: F.celu(x, 0.5), straight=((0, inf),)),
    "elu 0.3 2 1.5": _elu(0.3, 2.0, 1.5),
    "elu 2 1 4": _elu(2.0, 1.0, 4.0),
    "elu 0": _elu(0.0, 1.0, 1.0),
    "square": Case(Square(), torch.square),
    "log": Case(Log(), torch.log, kinks=(1.0,), domain=(0.0, inf)),
    "sqrt": Case(Sqrt(), torch.sqrt, kinks=(1.0,), domain=(0.0, inf)),
    "rsqrt": Case(Rsqrt(), torch.rsqrt, kinks=(1.0,), domain=(0.0, inf)),
    "reciprocal": Case(Reciprocal(), torch.reciprocal, kinks=(1.0,), domain=(0.0, inf)),
    "reciprocal of negatives": Case(Reciprocal(), torch.reciprocal, kinks=(-1.0,), domain=(-inf, 0.0)),
    "tanh": Case(Tanh(), torch.tanh),
    "sigmoid": Case(Sigmoid(), torch.sigmoid),
    "erf": Case(Erf(), torch.erf),
    "gelu": Case(Gelu(), F.gelu, kinks=(0.0, -(2**0.5), 2**0.5, -0.75)),
    "gelu tanh": Case(Gelu("tanh"), lambda x: F.gelu(x, approximate="tanh"), kinks=(0.0, -1.4185, 1.4185, -0.75)),
    "silu": Case(Silu(), F.silu, kinks=(0.0, -2.39935728, 2.39935728, -1.278)),
    "mish": Case(Mish(), F.mish, kinks=(0.0, -2.2563763963607931, 1.4905711794854284, -1.192)),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
each_dtype = pytest.mark.parametrize("dtype", only([torch.float64], [torch.float64, torch.float32]), ids=["f64", "f32"])
FRACTIONS = torch.cat([torch.linspace(0, 1, 31), torch.logspace(-8, -2, 7), 1 - torch.logspace(-6, -2, 5)]).double()


def intervals(case: Case, dtype: torch.dtype, count: int = 500, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random intervals in the domain: centres of all sizes and at kinks, widths from 1e-14 to 1e4, and width 0."""
    draw = torch.Generator().manual_seed(seed)

    def powers(low: float, high: float) -> torch.Tensor:
        return 10 ** (low + (high - low) * torch.rand(count, generator=draw, dtype=torch.float64))

    kinks = torch.tensor(case.kinks, dtype=torch.float64)
    signs = torch.randint(0, 2, (count,), generator=draw) * 2.0 - 1.0
    kind = torch.randint(0, 4, (count,), generator=draw)
    centre = kinks[torch.randint(0, len(kinks), (count,), generator=draw)]
    centre = torch.where(kind == 0, signs * powers(-12, 4), centre)
    centre = torch.where(kind == 1, 4 * torch.randn(count, generator=draw, dtype=torch.float64), centre)
    width = torch.where(kind == 1, powers(-3, 1), powers(-14, 4))
    share = torch.rand(count, generator=draw, dtype=torch.float64)
    share = torch.where(share < 0.1, 0.0, torch.where(share > 0.9, 1.0, share))
    low, high = centre - share * width, centre + (1 - share) * width
    high = torch.where(torch.rand(count, generator=draw) < 0.05, low, high)
    if not isinf(case.domain[0]):
        low, high = (case.domain[0] + (x - case.domain[0]).abs().clamp_min(1e-12) for x in (low, high))
    if not isinf(case.domain[1]):
        low, high = (case.domain[1] - (x - case.domain[1]).abs().clamp_min(1e-12) for x in (low, high))
    low, high = low.to(dtype), high.to(dtype)
    return torch.minimum(low, high), torch.maximum(low, high)


def points(case: Case, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Points of each interval, in its dtype: dense, at and near the ends, at kinks, and a step beside them."""
    steps = [low, high, torch.nextafter(low, high), torch.nextafter(high, low)]
    for kink in case.kinks:
        at = torch.full_like(low, kink)
        steps += [at, torch.nextafter(at, at - 1), torch.nextafter(at, at + 1)]
    fractions = FRACTIONS[:, None] * (high - low).double() + low.double()
    inside = torch.cat([torch.stack(steps), fractions.to(low.dtype)])
    return torch.minimum(torch.maximum(inside, low), high)


def violation(case: Case, low: torch.Tensor, high: torch.Tensor, lines: Lines) -> tuple[float, str]:
    """By how much, at worst, torch's function leaves the lines, computed in long double; and where."""
    x = points(case, low, high)
    value = case.reference(x)
    wide = [line.detach().double().numpy().astype(np.longdouble) for line in lines]
    at, f = (y.double().numpy().astype(np.longdouble) for y in (x, value))
    with np.errstate(invalid="ignore"):
        below, above = wide[0] * at + wide[1] - f, f - wide[2] * at - wide[3]
    worst = np.fmax(below, above) - np.longdouble(4 * torch.finfo(low.dtype).tiny)
    if isinstance(case.activation, (Relu, LeakyRelu, Clamp, HardSwish)):  # exact lines, where torch's value is rounded
        worst = worst - 2 * torch.finfo(low.dtype).eps * np.abs(f)
    worst = np.where(np.isnan(worst), -inf, worst)
    point, row = np.unravel_index(worst.argmax(), worst.shape)
    where = f"[{low[row].item()!r}, {high[row].item()!r}] at {x[point, row].item()!r}: {[v[row].item() for v in lines]}"
    return float(worst[point, row]), where


def places_of(kind: str, low: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    if kind == "default":
        return None
    if kind == "random":
        draw = torch.Generator().manual_seed(1)
        return tuple(torch.rand(len(low), generator=draw, dtype=low.dtype) for _ in range(2))
    return torch.full_like(low, float(kind)), torch.full_like(low, 1 - float(kind))


@each_case
def test_the_function_is_torchs(case: Case):
    low, high = intervals(case, torch.float64)
    x = points(case, low, high)
    ours, torchs = case.activation(x), case.reference(x)
    assert torch.allclose(ours, torchs, rtol=1e-15, atol=0), f"off by {(ours - torchs).abs().max()}"


@each_dtype
@each_case
@pytest.mark.parametrize("kind", ["default", "random", "0", "1"])
@pytest.mark.thin(2)
def test_lines_enclose_the_function(case: Case, dtype: torch.dtype, kind: str):
    low, high = intervals(case, dtype)
    lines = case.activation.lines(low, high, places_of(kind, low))
    assert not any(line.isnan().any() for line in lines), "a line is nan"
    assert all(line.dtype == dtype for line in lines), "a line has another dtype"
    excess, where = violation(case, low, high, lines)
    assert excess <= 0, f"f leaves its lines by {excess} on {where}"


@each_dtype
@each_case
def test_interval_is_the_range(case: Case, dtype: torch.dtype):
    low, high = intervals(case, dtype)
    least, most = case.activation.interval(low, high)
    value = case.reference(points(case, low, high)).double()
    bottom, top = value.amin(0), value.amax(0)
    if not isinstance(case.activation, (Relu, LeakyRelu, Clamp)):
        assert (least <= bottom).all() and (most >= top).all(), "f leaves its range"
    finite = top < inf
    least, most, bottom, top, low, high = (x[finite] for x in (least, most, bottom, top, low, high))
    slack = 64 * torch.finfo(dtype).eps * (1 + bottom.abs().maximum(top.abs()))
    sampled = 1e-3 * (top - bottom) + slack
    looser = ((bottom - least > sampled) | (most - top > sampled)) & ~(at_a_jump(case, low) | at_a_jump(case, high))
    assert (least <= bottom + slack).all() and (most >= top - slack).all(), "f leaves its range by more than rounding"
    assert not looser.any(), f"the range is loose on {low[looser][:3]}, {high[looser][:3]}"


def crosses(case: Case, low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    inside = sum(((low <= kink) & (high >= kink) for kink in case.sharp), torch.zeros_like(low, dtype=torch.bool))
    return inside | at_a_jump(case, low) | at_a_jump(case, high)


def at_a_jump(case: Case, x: torch.Tensor) -> torch.Tensor:
    """Where softplus may be either of its branches, for all that is known of rounding."""
    if not isinstance(case.activation, Softplus):
        return torch.zeros_like(x, dtype=torch.bool)
    edge = case.activation.threshold / case.activation.beta
    return (x - edge).abs() <= 1.1 * NEAR * edge


@each_case
@pytest.mark.parametrize("kind", ["default", "0", "1"])
def test_gap_vanishes_with_the_square_of_the_width(case: Case, kind: str):
    low, high = intervals(case, torch.float64, count=4000)
    chosen = (high - low < 0.1) & (low.abs() < 30) & ~crosses(case, low, high)
    if any(np.isfinite(case.domain)):
        chosen &= (low.abs() > 0.1) & (high.abs() > 0.1)
    low, high = low[chosen], high[chosen]
    lines = case.activation.lines(low, high, places_of(kind, low))
    size = 1 + low.abs().maximum(high.abs()) + case.reference(low).abs().maximum(case.reference(high).abs())
    for x in (low, high):
        gap = (lines.upper_slope - lines.lower_slope) * x + lines.upper_offset - lines.lower_offset
        curvature = 2e3 if any(np.isfinite(case.domain)) else 20 * size
        loose = gap > curvature * (high - low) ** 2 + 1e-13 * size**2
        assert not loose.any(), f"gap {gap[loose][:3]} on {low[loose][:3]}, {high[loose][:3]}"


@each_case
def test_straight_pieces_have_the_exact_line(case: Case):
    low, high = intervals(case, torch.float64)
    straight = torch.zeros_like(low, dtype=torch.bool)
    for left, right in case.straight:
        straight |= (low >= left) & (high <= right)
        if isinstance(case.activation, Softplus):
            straight &= low > left * (1 + NEAR)
    lines = case.activation.lines(low, high)
    size = low.abs().maximum(high.abs())[straight]
    for x in (low, high):
        gap = ((lines.upper_slope - lines.lower_slope) * x + lines.upper_offset - lines.lower_offset)[straight]
        assert (gap.abs() <= 1e-13 * (1 + size)).all(), f"gap {gap.abs().max()} on a straight piece"
    nonlinear = case.activation.is_nonlinear(low, high)
    expected = (low < high) & ~straight
    wrong = nonlinear != expected
    assert not wrong.any(), f"is_nonlinear is wrong on {low[wrong][:3]}, {high[wrong][:3]}"


@each_dtype
@each_case
@pytest.mark.parametrize("kind", ["default", "random", "0"])
@pytest.mark.thin(2)
def test_gradients_are_finite(case: Case, dtype: torch.dtype, kind: str):
    low, high = (x.requires_grad_() for x in intervals(case, dtype))
    places = places_of(kind, low.detach())
    leaves = [low, high] if places is None else [low, high, *(p.requires_grad_() for p in places)]
    results = {**case.activation.lines(low, high, places)._asdict()}
    results |= dict(zip(("least", "most"), case.activation.interval(low, high), strict=True))
    for name, result in results.items():
        if not result.requires_grad:
            continue
        overflowed = result.isinf()
        seed = (~overflowed).to(dtype)
        gradients = torch.autograd.grad(result, leaves, seed, retain_graph=True, materialize_grads=True)
        for leaf, gradient in zip(("low", "high", "place", "place"), gradients, strict=False):
            bad = ~gradient.isfinite()
            assert not bad.any(), f"d {name} / d {leaf} on {low[bad][:3]}, {high[bad][:3]}: {gradient[bad][:3]}"


@pytest.mark.parametrize("name", ["exp", "square", "log", "sqrt", "rsqrt", "reciprocal", "tanh", "gelu", "celu 0.5"])
def test_gradients_are_right(name: str):
    """Against differences, where the lines are smooth: on one side of the inflection points."""
    activation, places = CASES[name].activation, (torch.tensor([0.3]).double(), torch.tensor([0.6]).double())
    low, high = torch.tensor([0.2]).double().requires_grad_(), torch.tensor([0.7]).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda *ends: tuple(activation.lines(*ends, places)), (low, high)), name


@each_case
@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.thin(5)
def test_places_move_lines_continuously(case: Case, side: int):
    low, high = intervals(case, torch.float64, count=200)
    keep = (low.abs() < 20) & (high - low < 2) & ~crosses(case, low, high)
    if any(np.isfinite(case.domain)):
        keep &= (low.abs() > 0.5) & (high.abs() > 0.5)
    low, high = low[keep], high[keep]
    slopes = []
    for place in np.linspace(0, 1, 25):
        places = torch.full_like(low, place), torch.full_like(low, place)
        slopes.append(case.activation.lines(low, high, places)[2 * side])
    jumps = torch.stack(slopes).diff(dim=0).abs().amax(0)
    whole = torch.stack(slopes).amax(0) - torch.stack(slopes).amin(0)
    assert (jumps <= 0.4 * whole + 0.1).all(), f"a slope jumps by {jumps.max()}"


def best_area(case: Case, low: float, high: float) -> float:
    """The area between the best two lines on an interval, by the convex hull of many points."""
    x = np.linspace(low, high, 2001)
    f = case.reference(torch.from_numpy(x)).numpy()
    middle, area = (low + high) / 2, 0.0
    for sign in (1, -1):
        slopes = np.linspace(-3, 3, 601)
        offsets = np.array([(sign * f - slope * x).min() for slope in slopes])
        area -= (slopes * middle + offsets).max()
    return area


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "gelu", "gelu tanh", "silu", "mish", "hardswish", "hardtanh"])
@pytest.mark.thin(2)
def test_default_lines_are_nearly_the_best(name: str):
    case = CASES[name]
    draw = np.random.default_rng(0)
    for _ in range(20):
        low = draw.uniform(-6, 4)
        high = low + draw.uniform(0.3, 8)
        ends = torch.tensor([low]).double(), torch.tensor([high]).double()
        lines = case.activation.lines(*ends)
        middle = (low + high) / 2
        area = (lines.upper_slope - lines.lower_slope) * middle + lines.upper_offset - lines.lower_offset
        best = best_area(case, low, high)
        assert area.item() <= 1.02 * best + 5e-3, f"[{low}, {high}]: {area.item()} against {best}"


@each_dtype
def test_relu_defaults(dtype: torch.dtype):
    low = torch.tensor([-1.0, -2.0, -1.0, 1.0, -3.0, 0.0, -1.0, 0.0], dtype=dtype)
    high = torch.tensor([2.0, 1.0, 1.0, 2.0, -1.0, 0.0, 0.0, 1.0], dtype=dtype)
    for activation, left in ((Relu(), 0.0), (LeakyRelu(0.1), 0.1)):
        lines = activation.lines(low, high)
        expected = torch.tensor([1, left, left, 1, left, left, left, 1], dtype=dtype)
        assert torch.equal(lines.lower_slope, expected), f"{activation}: lower slopes {lines.lower_slope}"
        assert (lines.lower_offset == 0).all(), f"{activation}: lower offsets {lines.lower_offset}"
        chord = (high - left * low)[:3] / (high - low)[:3]
        assert torch.allclose(lines.upper_slope[:3], chord, rtol=1e-5), f"{activation}: not the chord"
        stable = torch.tensor([False] * 3 + [True] * 5)
        assert torch.equal(lines.upper_slope[stable], expected[stable]), f"{activation}: stable neurons are not exact"
        assert (lines.upper_offset[stable] == 0).all(), f"{activation}: stable neurons are not exact"
    place = torch.full_like(low, 0.25)
    slopes = Relu().lines(low, high, (place, place)).lower_slope
    assert torch.equal(slopes[:5], torch.tensor([0.25, 0.25, 0.25, 1, 0], dtype=dtype)), "place is not the lower slope"


def test_prelu_broadcasts_its_slopes():
    slope = torch.tensor([0.2, -0.5, 1.7]).double()
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0)).double()
    activation = LeakyRelu(slope[:, None, None])
    assert torch.equal(activation(x), F.prelu(x, slope)), "not torch's prelu"
    lines = activation.lines(x - 1, x + 1)
    for channel in range(3):
        alone = LeakyRelu(slope[channel].item()).lines((x - 1)[:, channel], (x + 1)[:, channel])
        for line, other in zip(lines, alone, strict=True):
            assert torch.equal(line[:, channel], other), f"channel {channel} is not its own leaky relu"


@each_dtype
@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("log", -1.0, 1.0), ("log", 0.0, 1.0), ("log", -2.0, -1.0),
        ("sqrt", -1e-9, 1.0), ("sqrt", -2.0, -1.0),
        ("rsqrt", 0.0, 1.0), ("rsqrt", -1.0, 1.0), ("rsqrt", 0.0, 0.0),
        ("reciprocal", -1.0, 1.0), ("reciprocal", 0.0, 1.0), ("reciprocal", -1.0, 0.0), ("reciprocal", 0.0, 0.0),
    ],
)  # fmt: skip
def test_nothing_is_claimed_outside_the_domain(name: str, low: float, high: float, dtype: torch.dtype):
    ends = [torch.tensor([x, 1.0], dtype=dtype).requires_grad_() for x in (low, high)]
    least, most = CASES[name].activation.interval(*ends)
    assert (least[0], most[0]) == (-inf, inf), "the range is not infinite"
    lines = CASES[name].activation.lines(*ends)
    assert [line[0].item() for line in lines] == [0, -inf, 0, inf], f"lines {lines}"
    for result in (least, most, *lines):
        gradients = torch.autograd.grad(result[1], ends, retain_graph=True)
        assert all(gradient.isfinite().all() for gradient in gradients), "the gradient is not finite"


@each_dtype
def test_sqrt_from_zero(dtype: torch.dtype):
    """The domain's closed end, where the derivative is infinite: lines hold, are no constants, and have gradients."""
    low = torch.zeros(4, dtype=dtype).requires_grad_()
    high = torch.tensor([0.0, 1e-9, 1.0, 1e6], dtype=dtype).requires_grad_()
    for kind in ("default", "0", "1"):
        lines = Sqrt().lines(low, high, places_of(kind, low))
        excess, where = violation(CASES["sqrt"], low.detach(), high.detach(), lines)
        assert excess <= 0, f"{kind}: sqrt leaves its lines by {excess} on {where}"
        assert (lines.lower_slope[1:] > 0).all() and (lines.upper_slope[1:] > 0).all(), "the lines are constants"
        for result in (*lines, *Sqrt().interval(low, high)):
            gradients = torch.autograd.grad(result.sum(), (low, high), retain_graph=True)
            assert all(gradient.isfinite().all() for gradient in gradients), f"{kind}: the gradient is not finite"


@each_dtype
@each_case
@pytest.mark.thin(2)
def test_extreme_intervals(case: Case, dtype: torch.dtype):
    """Denormal, huge, one unit wide at kinks, and empty intervals: no nan, and still enclosed."""
    info = torch.finfo(dtype)
    ends = [0.0, info.tiny, 1e-40, info.tiny * 3, 1e-20, 1.0, 88.0, 200.0, 745.0, 3000.0, 1e4, 1e8, 1e12, 1e18]
    ends = torch.tensor([*(-x for x in ends), *ends, *case.kinks], dtype=dtype)
    ends = torch.cat([ends, torch.nextafter(ends, ends + 1), torch.nextafter(ends, ends - 1)]).unique()
    low, high = torch.meshgrid(ends, ends, indexing="ij")
    keep = (low <= high) & (low >= case.domain[0]) & (high <= case.domain[1])
    low, high = low[keep], high[keep]
    for kind in ("default", "1"):
        lines = case.activation.lines(low, high, places_of(kind, low))
        assert not any(line.isnan().any() for line in lines), f"a line is nan, {kind}"
        excess, where = violation(case, low, high, lines)
        assert excess <= 0, f"{kind}: f leaves its lines by {excess} on {where}"
    least, most = case.activation.interval(low, high)
    assert not (least.isnan().any() or most.isnan().any()), "a range is nan"
    assert (least <= most).all(), "a range is empty"


def test_a_moved_offset_is_noticed():
    """The measure itself: lines moved by a millionth are caught by :func:`violation`."""
    for case in CASES.values():
        low, high = intervals(case, torch.float64, count=600)
        lines = case.activation.lines(low, high)
        for moved in (
            lines._replace(lower_offset=lines.lower_offset + 1e-6),
            lines._replace(upper_offset=lines.upper_offset - 1e-6),
        ):
            assert violation(case, low, high, moved)[0] > 5e-7, f"{case.activation}: a moved line passes"


@pytest.mark.slow
def test_softplus_jumps_by_its_own_size_in_float64() -> None:
    """A steep layer after the jump: a lower line that is too high by 1e-5 of 700 is a false certificate."""
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(1, 1), nn.Softplus(1e-3, 0.01), nn.Linear(1, 1), nn.Hardtanh(), nn.Linear(1, 2)
    )
    weights = ([[1e-4]], [9.99999], [[100.0]], [-1000.0003], [[1.0], [0.0]], [0.0, 0.0])
    for parameter, value in zip(network.parameters(), weights, strict=True):
        parameter.data = torch.tensor(value)
    points = torch.linspace(0, 1, 20001)[:, None]
    with torch.no_grad():
        flips = [
            float(points[m(p)[:, 0] <= 0].min())
            for m, p in ((network, points), (deepcopy(network).double(), points.double()))
        ]
    for method in ("ibp", "crown-ibp", "crown", "alpha-crown"):
        options = {"iterations": 3} if method == "alpha-crown" else {}
        rows = certify(
            network,
            torch.zeros(1, 1),
            torch.zeros(1).long(),
            eps=1e-3,
            methods=[method],
            engine="native",
            options=options,
        )[method]
        assert rows.count(Status.ERROR) == 0 and float(rows["radius"][0]) < min(flips), (
            f"{method}: {rows['radius']}, flips at {flips}"
        )
