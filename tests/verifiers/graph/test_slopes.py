"""Ranges of slopes and bounds of curvature against torch's own functions, differentiated and sampled."""

import math
from math import inf, nan, sqrt

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from verifiers.core.errors import Unsupported
from verifiers.graph.relaxations import slopes as module
from verifiers.graph.relaxations.convex import Elu, Exp, Log, Reciprocal, Rsqrt, Softplus, Sqrt, Square
from verifiers.graph.relaxations.gelu import Gelu, Mish, Silu
from verifiers.graph.relaxations.piecewise import Abs, Clamp, HardSigmoid, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.sigmoidal import Sigmoid, Tanh
from verifiers.graph.relaxations.slopes import curvature, jump, slopes

STEEP = math.erf(1) / 2 + math.exp(-1) / sqrt(math.pi)
#: Activations with their slopes over all numbers.
GLOBAL = {
    "relu": (Relu(), 0, 1),
    "leaky": (LeakyRelu(0.1), 0.1, 1),
    "leaky, falling": (LeakyRelu(-0.3), -0.3, 1),
    "leaky, steep": (LeakyRelu(2.5), 1, 2.5),
    "abs": (Abs(), -1, 1),
    "hardtanh": (Clamp(), 0, 1),
    "clamp below": (Clamp(0.5, None), 0, 1),
    "clamp above": (Clamp(None, 0.5), 0, 1),
    "clamp nowhere": (Clamp(None, None), 1, 1),
    "clamp to a point": (Clamp(0.5, 0.5), 0, 0),
    "hardsigmoid": (HardSigmoid(), 0, 1 / 6),
    "hardswish": (HardSwish(), -0.5, 1.5),
    "tanh": (Tanh(), 0, 1),
    "sigmoid": (Sigmoid(), 0, 0.25),
    "softplus": (Softplus(), 0, 1),
    "softplus 5": (Softplus(5.0), 0, 1),
    "softplus 1e-4": (Softplus(1e-4), 0, 1),
    "gelu": (Gelu(), 0.5 - STEEP, 0.5 + STEEP),
    "gelu tanh": (Gelu("tanh"), -0.128993068658772, 1.128993068658772),
    "silu": (Silu(), -0.0998393201288669, 1.0998393201288669),
    "mish": (Mish(), -0.112526122389463, 1.08849816125173),
    "elu": (Elu(), 0, 1),
    "selu": (Elu(1.6732632423543772, 1.0507009873554805), 0, 1.6732632423543772 * 1.0507009873554805),
    "celu": (Elu(0.5, 1.0, 2.0), 0, 1),
    "elu 0.3 2 1.5": (Elu(0.3, 2.0, 1.5), 0, 2),
    "elu 0": (Elu(0.0), 0, 1),
}
#: Activations that are twice differentiable, but for points where the slope still has no jump; greatest |s''|.
CURVED = {
    "tanh": (Tanh(), 4 / (3 * sqrt(3))),
    "sigmoid": (Sigmoid(), 1 / (6 * sqrt(3))),
    "softplus": (Softplus(), 0.25),
    "softplus 5": (Softplus(5.0), 1.25),
    "softplus 1e-4": (Softplus(1e-4), 0.25e-4),
    "gelu": (Gelu(), sqrt(2 / math.pi)),
    "gelu tanh": (Gelu("tanh"), sqrt(2 / math.pi)),
    "silu": (Silu(), 0.5),
    "elu": (Elu(), 1),
    "celu": (Elu(0.5, 1.0, 2.0), 2),
}
#: How fast the curve of some goes by, next to the others.
RATES = {"softplus 5": 5, "celu": 2}
KINKS = np.array([-3, -1, -0.5, 0, 0.5, 1, 3])


def intervals(count=400, seed=0):
    """Ends of random intervals of widths from 1e-3 to 30, some that start, end or lie at kinks."""
    random = np.random.RandomState(seed)
    middle, width = 4 * random.standard_normal(count), 10 ** random.uniform(-3, 1.5, count)
    low, high = middle - width / 2, middle + width / 2
    low[: count // 4] = random.choice(KINKS, count // 4)
    high[: count // 4] = low[: count // 4] + width[: count // 4]
    high[count // 4 : count // 2] = random.choice(KINKS, count // 4)
    low[count // 4 : count // 2] = high[count // 4 : count // 2] - width[count // 4 : count // 2]
    return torch.from_numpy(low), torch.from_numpy(high)


def inside(low, high, points=1001):
    """Points strictly inside each interval, some next to its ends and on both sides of the kinks."""
    low, high = low[:, None], high[:, None]
    near = 1e-9 * (high - low)
    kinks = torch.from_numpy(KINKS).clamp(low + near, high - near)
    kinks = torch.cat([kinks - near / 2, kinks + near / 2], 1)
    even = low + (high - low) * torch.linspace(0, 1, points + 2, dtype=torch.float64)[1:-1]
    return torch.cat([low + near, high - near, kinks, even], 1).sort(1).values


def unsampled(low, high, size):
    """How far an extreme between points may be from what they show."""
    return size * (1e-8 + 1e-5 * (high - low) ** 2)


def derivatives(activation, x, order=1):
    """Derivatives by automatic differentiation of what the network computes."""
    x = x.clone().requires_grad_()
    found = [activation(x)]
    for _ in range(order):
        found += torch.autograd.grad(found[-1].sum(), x, create_graph=True)
    return [value.detach() for value in found[1:]]


@pytest.mark.parametrize("name", GLOBAL)
def test_slopes_enclose_derivatives_and_are_attained(name):
    activation, low, high = GLOBAL[name][0], *intervals()
    lower, upper = slopes(activation, low, high)
    first = derivatives(activation, inside(low, high))[0]
    noise = 1e-8 if name == "hardsigmoid" else 1e-15  # whose gradient torch rounds to single precision
    assert (first >= lower[:, None] - noise).all() and (first <= upper[:, None] + noise).all()
    gap = unsampled(low, high, max(1, upper.abs().max()))
    assert (first.amin(1) - lower <= gap).all() and (upper - first.amax(1) <= gap).all()


@pytest.mark.parametrize("name", GLOBAL)
def test_slopes_enclose_quotients(name):
    activation, low, high = GLOBAL[name][0], *intervals(seed=1)
    lower, upper = slopes(activation, low, high)
    x = inside(low, high, 41)
    rise, run = (v[:, :, None] - v[:, None, :] for v in (activation(x), x))
    noise = 1e-14 * (1 + x.abs() + activation(x).abs()).amax(1)[:, None, None] + jump(activation)
    under, over = rise - lower[:, None, None] * run, upper[:, None, None] * run - rise
    assert (torch.where(run > 0, under, 0) >= -noise).all() and (torch.where(run > 0, over, 0) >= -noise).all()


@pytest.mark.parametrize("name", GLOBAL)
def test_slopes_over_all_numbers(name):
    activation, least, greatest = GLOBAL[name]
    ends = torch.tensor([inf, 0.0, nan, 1.0], dtype=torch.float64)
    lower, upper = slopes(activation, -ends, ends)
    slack = 1e-8 if name == "hardsigmoid" else 1e-13  # whose sixth in torch is one of single precision
    for i in (0, 2):
        assert least - 1e-13 <= lower[i] <= least + 3e-15 and greatest - 3e-15 <= upper[i] <= greatest + slack
    assert (lower >= lower[0]).all() and (upper <= upper[0]).all()
    wide = torch.tensor([1e6, 1e300], dtype=torch.float64)
    for low, high in ((-wide, wide), (-wide, torch.zeros(2)), (torch.zeros(2), wide)):
        for bound, over in zip(slopes(activation, low, high), (lower[0], upper[0]), strict=True):
            assert torch.isfinite(bound).all() and ((over - 1e-12 <= bound) | (bound <= over + 1e-12)).all()


def test_known_extremes():
    ends = torch.tensor([inf], dtype=torch.float64)
    lower, upper = slopes(Gelu(), -ends, ends)
    assert (round(float(lower), 6), round(float(upper), 6)) == (-0.128904, 1.128904)
    lower, upper = slopes(Silu(), -ends, ends)
    assert (round(float(lower), 4), round(float(upper), 4)) == (-0.0998, 1.0998)
    assert float(curvature(Tanh(), -ends, ends)) == pytest.approx(0.7698003589, abs=1e-10)
    for activation in (Relu(), LeakyRelu(0.1), Tanh(), Sigmoid(), Softplus(), Clamp()):  # for bounds that need [0, b]
        lower, upper = slopes(activation, -ends, ends)
        assert float(lower) >= 0 and float(upper) in (1, 0.25)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (Relu(), [(0, 0), (0, 0), (0, 1), (0, 1), (1, 1), (1, 1), (0, 0), (1, 1)]),
        (LeakyRelu(2.0), [(2, 2), (2, 2), (1, 2), (1, 2), (1, 1), (1, 1), (2, 2), (1, 1)]),
        (Abs(), [(-1, -1), (-1, -1), (-1, 1), (-1, 1), (1, 1), (1, 1), (-1, -1), (1, 1)]),
        (Elu(0.0, 3.0), [(0, 0), (0, 0), (0, 3), (0, 3), (3, 3), (3, 3), (0, 0), (3, 3)]),
        (Clamp(0.0, 1.0), [(0, 0), (0, 0), (0, 1), (0, 1), (1, 1), (0, 1), (0, 0), (0, 0)]),
    ],
    ids=str,
)
def test_kinks_belong_to_both_sides(activation, expected):
    """An interval that ends at a kink has one slope; a kink on its own has both."""
    low = torch.tensor([-2, -2, -2, 0, 0, 0, -inf, inf], dtype=torch.float64)
    high = torch.tensor([-1, 0, 1, 0, 1, 2, -inf, inf], dtype=torch.float64)
    found = list(zip(*(bound.tolist() for bound in slopes(activation, low, high)), strict=True))
    assert found == expected


def test_tensor_slopes_single_precision_and_order():
    slope = torch.tensor([0.1, -2.0, 3.0], dtype=torch.float64)[:, None]
    ends = torch.ones(2, 3, 4, dtype=torch.float64)
    lower, upper = slopes(LeakyRelu(slope), -ends, ends)
    assert lower.shape == ends.shape
    assert lower[0, :, 0].tolist() == [0.1, -2.0, 1.0] and upper[1, :, 2].tolist() == [1.0, 1.0, 3.0]
    for activation in (Gelu(), Elu(), Relu()):
        reversed_ends, found = slopes(activation, ends.float(), -ends.float()), slopes(activation, -ends, ends)
        for bound, same in zip(reversed_ends, found, strict=True):
            assert bound.dtype == torch.float64 and torch.equal(bound, same)


@pytest.mark.parametrize("name", CURVED)
def test_curvature_bounds_second_derivatives_and_is_attained(name):
    activation, low, high = CURVED[name][0], *intervals(seed=2)
    bound = curvature(activation, low, high)
    size = CURVED[name][1]
    if isinstance(activation, Softplus):  # its kink is where the function is replaced by x, up to rounding
        low, high = low.clamp_max(20 / activation.beta), high.clamp_max(20 / activation.beta)
    first, second = derivatives(activation, inside(low, high), 2)
    second = second.abs().amax(1)
    assert (second <= bound + 1e-14 * size).all()
    assert (bound - second <= unsampled(low, high, size * RATES.get(name, 1) ** 2)).all()
    x, slack = inside(low, high), 1e-13
    rise = (first[:, 1:] - first[:, :-1]).abs()
    assert (rise <= bound[:, None] * (x[:, 1:] - x[:, :-1]) + slack).all()


@pytest.mark.parametrize("name", CURVED)
def test_curvature_over_all_numbers(name):
    activation, greatest = CURVED[name]
    ends = torch.tensor([inf, nan, 1e300, 0.0], dtype=torch.float64)
    assert curvature(activation, -ends, ends)[:3].tolist() == pytest.approx([greatest] * 3, rel=1e-12)
    assert (curvature(activation, -ends, ends) >= derivatives(activation, torch.zeros(1).double(), 2)[1].abs()).all()


def test_critical_points_are_zeros_of_the_next_derivative():
    """Found again by bisection; and there are no others, by the signs on a fine grid."""

    def derivative(activation, order):
        def value(x):
            x = torch.as_tensor(x, dtype=torch.float64).requires_grad_()
            y = activation(x)
            for _ in range(order):
                (y,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            return y.detach().numpy()

        return value

    known = {
        **{(activation, 2): module._bends(activation) for activation in (Gelu(), Gelu("tanh"), Silu())},
        (Tanh(), 2): (0.0,),
        (Sigmoid(), 2): (0.0,),
        (Tanh(), 3): (-math.atanh(1 / sqrt(3)), math.atanh(1 / sqrt(3))),
        (Sigmoid(), 3): (-2 * math.atanh(1 / sqrt(3)), 2 * math.atanh(1 / sqrt(3))),
        (Gelu(), 3): (-2.0, 0.0, 2.0),
        (Gelu("tanh"), 3): (-2.0134807246242579, 0.0, 2.0134807246242579),
        (Silu(), 3): (-3.4358409935351107, 0.0, 3.4358409935351107),
    }
    for (activation, order), points in known.items():
        f, grid = derivative(activation, order), np.linspace(-7.0003, 6.9998, 1401)
        signs = np.sign(f(grid))
        changes = np.flatnonzero(signs[:-1] * signs[1:] < 0)
        found = [brentq(lambda x, f=f: float(f(x)), grid[i], grid[i + 1], xtol=1e-14) for i in changes]
        np.testing.assert_allclose(found, points, atol=2e-13)


def test_square_and_exp_on_bounded_intervals():
    low, high = torch.tensor([-1.0, 2.0]).double(), torch.tensor([3.0, 2.0]).double()
    lower, upper = slopes(Square(), low, high)
    assert (lower.tolist(), upper.tolist()) == ([-2, 4], [6, 4])
    lower, upper = slopes(Exp(), low, high)
    assert (lower < low.exp()).all() and (upper > high.exp()).all()
    np.testing.assert_allclose(lower, low.exp(), rtol=1e-13)
    np.testing.assert_allclose(upper, high.exp(), rtol=1e-13)
    assert curvature(Square(), -high * inf, high * inf).tolist() == [2, 2]
    np.testing.assert_allclose(curvature(Exp(), low, high), upper)
    for activation in (Square(), Exp()):
        with pytest.raises(Unsupported, match="no bounded slope where its input is unbounded"):
            slopes(activation, low, high * inf)


def test_softplus_that_jumps():
    """At its threshold torch's softplus falls to x: negligible at 20, refused where it is more than rounding."""
    low, high = torch.tensor([0.0, 2.0]).double(), torch.tensor([0.5, 3.0]).double()
    steep = Softplus(2.0, 3.0)
    lower, upper = slopes(steep, low, high)
    assert lower[1] == upper[1] == 1 and curvature(steep, low, high)[1] == 0
    edge = torch.tensor([1.5], dtype=torch.float64)
    fall = float(steep(edge) - steep(edge + 1e-12))
    assert fall == pytest.approx(jump(steep), abs=1e-11) and fall > 0.02
    for bound in (slopes, curvature):
        with pytest.raises(Unsupported, match=r"softplus falls by 2\.4e-02 at its threshold"):
            bound(steep, low, high + 1.1)
    assert jump(Softplus()) == pytest.approx(2.06e-9, rel=1e-3) and jump(Tanh()) == 0
    assert jump(Softplus(1.0, -1000.0)) == pytest.approx(1000.0)


def test_refusals():
    ends = torch.ones(2, dtype=torch.float64)
    for activation in (Log(), Sqrt(), Rsqrt(), Reciprocal()):
        for bound in (slopes, curvature):
            with pytest.raises(Unsupported, match=f"no bound of .* {type(activation).__name__.lower()} is known"):
                bound(activation, ends, ends + 1)
    kinked = (Relu(), LeakyRelu(), Abs(), Clamp(), HardSigmoid(), HardSwish(), Elu(1.5))
    for activation in kinked:
        with pytest.raises(Unsupported, match="has kinks, so it has no curvature"):
            curvature(activation, ends, ends + 1)
    with pytest.raises(Unsupported, match="curvature of mish"):
        curvature(Mish(), ends, ends + 1)

    class Doubled(Tanh):
        """An unknown activation is not taken for the one it is made from."""

        def __call__(self, x):
            return 2 * torch.tanh(x)

    with pytest.raises(Unsupported, match="slope of doubled"):
        slopes(Doubled(), ends, ends)
