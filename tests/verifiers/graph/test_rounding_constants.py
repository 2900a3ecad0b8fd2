"""Errors of statistics of constants: every way to compute them in float32 is within the bound of the exact rational."""

from collections.abc import Callable, Iterator
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.verifiers.graph.float32 import SUMS, Array, deployed, f32, outside
from tests.verifiers.graph.nets import Net
from tests.verifiers.graph.test_rounding_graphs import evaluations
from verifiers.graph.capture import capture
from verifiers.graph.graph import Builder
from verifiers.graph.lowering import LOWERINGS
from verifiers.graph.lowering.constants import fold

aten = torch.ops.aten


def drawn(rows: int = 6, count: int = 12) -> Tensor:
    """Float32 rows: ordinary, shifted far from 0, of odd scales, nearly equal."""
    values = torch.randn(rows, count, generator=torch.Generator().manual_seed(0))
    values[1] += 50.0
    values[2] *= 2.0 ** torch.arange(-count, count, 2.0)
    values[3] = 1.0 + values[3] * 1e-3
    values[4] *= 1e-12
    return values.float().double()


def bound(target: Any, *args: Any, kind: str, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The value and the bound that the graph's builder notes for an operator of float32 constants."""
    builder = Builder(torch.zeros(1, dtype=torch.float64))
    builder.kind = kind
    value = fold(builder, target, args, kwargs, LOWERINGS.get(kind))
    first = value[0] if isinstance(value, tuple) else value
    error = builder.error(first)
    assert error is not None and error.shape == first.shape
    return first, error


# Machines: each computes the variance of a row in its own way, all in float32


def _two_passes(add: Callable[[Array], Array]) -> Callable[[Array, int], Array]:
    def variance(x: Array, less: int) -> Array:
        n = f32(x.shape[1])
        deviation = x - (add(x) / n)[:, None]
        return add(deviation * deviation) / f32(x.shape[1] - less)

    return variance


def _updates(x: Array, less: int) -> Array:
    """Welford's updates."""
    mean, total = np.zeros(len(x), f32), np.zeros(len(x), f32)
    for k, column in enumerate(x.T, 1):
        difference = column - mean
        mean = mean + difference / f32(k)
        total = total + difference * (column - mean)
    return total / f32(x.shape[1] - less)


def _merged(x: Array, less: int) -> Array:
    """Chan's merges of two halves, down to single entries."""

    def parts(some: Array) -> tuple[Array, Array]:
        if some.shape[1] == 1:
            return some[:, 0], np.zeros(len(some), f32)
        half = some.shape[1] // 2
        (m, s), (k, t) = parts(some[:, :half]), parts(some[:, half:])
        a, b, n = f32(half), f32(some.shape[1] - half), f32(some.shape[1])
        apart = k - m
        return m + apart * (b / n), s + t + apart * apart * (a * b / n)

    return parts(x)[1] / f32(x.shape[1] - less)


def _squares(x: Array, less: int) -> Array:
    n = f32(x.shape[1])
    mean, square = SUMS["forward"](x) / n, SUMS["forward"](x * x) / n
    return np.maximum(square - mean * mean, f32(0)) * (n / f32(x.shape[1] - less))


MACHINES = {
    **{f"two passes, {name}": _two_passes(add) for name, add in SUMS.items()},
    "updates": _updates,
    "merges": _merged,
}


def exact_variance(row: Tensor, less: int) -> Fraction:
    values = [Fraction(float(value)) for value in row]
    mean = sum(values, Fraction(0)) / len(values)
    return sum(((value - mean) ** 2 for value in values), Fraction(0)) / (len(values) - less)


@pytest.mark.parametrize("less", [0, 1])
def test_variances_and_deviations_are_within_their_bounds(less: int) -> None:
    x = drawn()
    rows = x.numpy().astype(f32)
    var, var_error = bound(aten.var.correction, x, [1], correction=less, kind="var")
    std, std_error = bound(aten.std.correction, x, [1], correction=less, kind="std")
    finite = [i for i in range(len(x)) if bool(var_error[i].isfinite())]
    assert finite == list(range(len(x))), "every row has a bound"
    with np.errstate(all="ignore"):
        found = {name: machine(rows, less) for name, machine in MACHINES.items()}
    found["torch"] = x.float().var(1, correction=less).numpy()
    for i in finite:
        exact = exact_variance(x[i], less)
        assert abs(Fraction(float(var[i])) - exact) <= Fraction(1, 10**9) * exact
        for name, values in found.items():
            assert abs(Fraction(float(values[i])) - exact) <= Fraction(float(var_error[i])), f"{name}, row {i}"
            root = Fraction(float(np.sqrt(values[i])))  # |root - sqrt(exact)| <= e: between the squares of the ends
            low, high = root - Fraction(float(std_error[i])), root + Fraction(float(std_error[i]))
            assert max(low, Fraction(0)) ** 2 <= exact <= high**2, f"{name}, row {i}"
    assert float((std_error / std)[0]) < 1e-4 and float((var_error / var)[0]) < 1e-4, "an ordinary bound is tight"


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "kind"),
    [
        (aten.std.default, (True,), {}, "std"),
        (aten.std.dim, ([0, 2],), {"keepdim": True}, "std"),
        (aten.var.dim, ([-1],), {"unbiased": False}, "var"),
        (aten.std.correction, ([1, 2],), {"correction": 2, "keepdim": True}, "std"),
        (aten.var_mean.correction, ([1, 2],), {}, "var_mean"),
        (aten.std_mean.correction, (), {}, "std_mean"),
    ],
)
def test_all_forms_of_deviations(target: Any, args: Any, kwargs: Any, kind: str) -> None:
    x = drawn(6, 12).reshape(6, 3, 4)[[0, 5]]
    builder = Builder(torch.zeros(1, dtype=torch.float64))
    builder.kind = kind
    exact = fold(builder, target, (x, *args), kwargs, LOWERINGS[kind])
    found = target(x.float(), *args, **kwargs)
    for one, other in zip(*(part if isinstance(part, tuple) else (part,) for part in (exact, found)), strict=True):
        error = builder.error(one)
        assert error is not None and error.shape == one.shape
        assert bool(((other.double() - one).abs() <= error).all()) and float(error.max()) < 1e-3


@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
@pytest.mark.parametrize("values", [torch.full((2, 4), 1e30), torch.ones(2, 1), torch.tensor(2.0)])
def test_nothing_is_known_of_huge_and_single_values(values: Tensor) -> None:
    dims = list(range(values.dim()))[1:]
    for kind in ("std", "var"):
        _, error = bound(getattr(aten, kind).correction, values.double(), dims, correction=1, kind=kind)
        assert bool(error.isinf().all())


@pytest.mark.parametrize("value", [0.0, 0.1, 1.0, 1234.5, 1e-20])
def test_deviations_of_equal_values_are_rounding(value: float) -> None:
    values = torch.full((1, 7), value).double()
    rows = values.numpy().astype(f32)
    std, error = bound(aten.std.correction, values, [1], correction=1, kind="std")
    assert 0 <= float(std) <= 1e-12 * value and float(error) <= 1e-4 * max(value, 1e-15)
    for name, machine in MACHINES.items():
        assert float(np.sqrt(machine(rows, 1))[0]) <= float(std + error), name


def _standard(x: Array, eps: float, gain: Array, shift: Array) -> Iterator[tuple[str, Array]]:
    """Standardise rows in every way, with scale and shift apart and merged."""
    for name, machine in {**MACHINES, "squares": _squares}.items():
        mean = SUMS["forward"](x) / f32(x.shape[1])
        scale = f32(1) / np.sqrt(machine(x, 0) + f32(eps))
        yield name, (x - mean[:, None]) * scale[:, None] * gain[:, None] + shift[:, None]
        factor = gain * scale
        yield f"{name}, merged", x * factor[:, None] + (shift - mean * factor)[:, None]


def test_standardised_weights_are_within_their_bounds() -> None:
    x, eps = drawn(), 1e-5
    gain, shift = (torch.randn(6, generator=torch.Generator().manual_seed(k)).double() for k in (1, 2))
    gain, shift = gain.float().double(), shift.float().double()
    args = (x[None], gain, shift, None, None, True, 0.0, eps, False)
    value, error = bound(aten.batch_norm.default, *args, kind="batch_norm")
    found = dict(_standard(x.numpy().astype(f32), eps, gain.numpy().astype(f32), shift.numpy().astype(f32)))
    found["torch"] = aten.batch_norm.default(*(a.float() if isinstance(a, Tensor) else a for a in args))[0].numpy()
    exact = [[Fraction(float(v)) for v in row] for row in x]
    for i, row in enumerate(exact):
        mean, variance = sum(row, Fraction(0)) / len(row), exact_variance(x[i], 0) + Fraction(eps)
        for j, entry in enumerate(row):
            # y = g (x - m) / s + b, so ((y - b) / g)^2 s^2 = (x - m)^2: checks the float64 value without a root
            scaled = (Fraction(float(value[0, i, j])) - Fraction(float(shift[i]))) / Fraction(float(gain[i]))
            assert abs(scaled**2 * variance - (entry - mean) ** 2) <= Fraction(1, 10**9) * (variance + entry**2)
        for name, values in found.items():
            off = np.abs(values[i].astype(np.float64) - value[0, i].numpy())
            assert (off <= error[0, i].numpy() + 1e-13).all(), f"{name}, row {i}: {off.max():.3g}"
    assert float(error[0, 0].max()) < 1e-4, "an ordinary bound is tight"


def test_running_sums_and_extremes_are_within_their_bounds() -> None:
    x = drawn()
    value, error = bound(aten.cumsum.default, x, 1, kind="cumsum")
    for name, add in SUMS.items():
        for k in range(1, x.shape[1] + 1):
            off = add(x[:, :k].numpy().astype(f32)).astype(np.float64) - value[:, k - 1].numpy()
            assert (np.abs(off) <= error[:, k - 1].numpy()).all(), f"{name}: {k} terms"
    assert float((error[0] / x[0].abs().sum()).max()) < 1e-5
    value, error = bound(aten.amax.default, x, [1], kind="amax")
    assert torch.equal(value, x.amax(1)) and not bool(error.any()), "a maximum of float32 numbers is exact"


def test_errors_of_the_entries_count() -> None:
    """The statistic of a computed constant is off by what the constant is off by."""
    x = drawn()[[0, 3]]
    for target, args, kind in ((aten.amax.default, ([1],), "amax"), (aten.cumsum.default, (1,), "cumsum")):
        builder = Builder(torch.zeros(1, dtype=torch.float64))
        builder.kind = kind
        builder.note(x, torch.full_like(x, 1e-3))
        found = builder.error(fold(builder, target, (x, *args), {}, None))
        assert found is not None and bool((found >= 1e-3).all())
    builder.kind = "std"
    value = fold(builder, aten.std.correction, (x, [1]), {"correction": 1}, LOWERINGS["std"])
    found = builder.error(value)
    assert found is not None
    for sign in (-1, 1):
        moved = x + sign * 1e-3 * (x - x.mean(1, keepdim=True)).sign()
        assert bool(((moved.std(1) - value).abs() <= found).all())
    assert float(found[0]) < 0.01


# Whole networks


class Standardised(nn.Conv2d):
    """A convolution whose weights are standardised in the usual way, by timm's code."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0, eps=1e-6).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


def _by_std(net: nn.Module, x: Tensor) -> Tensor:
    weight = net.weight - net.weight.mean(1, keepdim=True)
    return F.linear(x, weight / (weight.std(1, keepdim=True) + 1e-5), net.bias)


def _by_largest(net: nn.Module, x: Tensor) -> Tensor:
    return F.linear(x, net.weight / net.weight.abs().amax(), net.bias.cumsum(0))


def networks() -> Iterator[tuple[str, nn.Module, Tensor]]:
    torch.manual_seed(0)
    convolutions = nn.Sequential(Standardised(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    yield "convolution", convolutions.eval(), torch.rand(4, 2, 4, 4)
    for function in (_by_std, _by_largest):
        net = Net(function, weight=torch.randn(3, 6), bias=torch.randn(3)).eval()
        yield function.__name__, net, torch.rand(4, 6)


def test_networks_that_standardise_their_weights_have_float32_bounds() -> None:
    for name, network, x in networks():
        graph = capture(network, x[:1])
        box, exact = deployed(graph, x, x), graph(x.double())
        assert outside(box, exact) <= 1 and float(box.half_width.max()) < 1e-3, name
        for how, logits in evaluations(network, x):
            assert outside(box, logits) <= 1, f"{name}, {how}"


@pytest.mark.parametrize("biased", [True, False])
def test_a_linear_layer_at_a_constant_is_within_its_bound_in_any_order(biased: bool) -> None:
    x, weight = drawn(), drawn(8)
    bias = drawn(8)[:, 0] if biased else torch.zeros(8, dtype=torch.float64)
    value, error = bound(F.linear, x, weight, *([bias] if biased else []), kind="linear")
    products = f32(x.numpy())[:, None] * f32(weight.numpy())[None]
    terms = np.concatenate([products, np.broadcast_to(f32(bias.numpy())[None, :, None], (6, 8, 1))], 2)
    orders = np.random.default_rng(0)
    for add in SUMS.values() if isinstance(SUMS, dict) else SUMS:
        for _ in range(4):
            found = add(terms[..., orders.permutation(13)].reshape(48, 13)).reshape(6, 8)
            assert (np.abs(found.astype(float) - value.numpy()) <= error.numpy()).all()
    fused = F.linear(x.float(), weight.float(), bias.float() if biased else None).double()
    assert bool(((fused - value).abs() <= error).all())
    size = F.linear(x.abs(), weight.abs()) + bias.abs()
    assert bool((error <= 3e-6 * size + 1e-40).all()), "the bound is loose"
