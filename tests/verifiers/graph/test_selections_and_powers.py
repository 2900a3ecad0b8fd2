"""Relaxations of powers, roots, comparisons and choices hold; variances round as their bound says."""

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.verifiers.graph.nets import Fn
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.lowering.statistics import Variance
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.powers import OddPower, Power, Root
from verifiers.graph.relaxations.selection import Select, Step
from verifiers.graph.relaxations.sign import Sign
from verifiers.graph.rows import Rows

ACTIVATIONS: dict[str, tuple[Activation, bool]] = {
    "root": (Root(), False),
    "x^3": (OddPower(3), False),
    "x^5": (OddPower(5), False),
    "x^4": (Power(4.0), False),
    "x^2.5": (Power(2.5), True),
    "x^0.3": (Power(0.3), True),
    "x^-2": (Power(-2.0), True),
    "step": (Step(0.1), False),
    "step or equal": (Step(0.25, strict=False), False),
}


def intervals(positive: bool, count: int = 400) -> tuple[Tensor, Tensor]:
    """Wide and narrow intervals around 0 and elsewhere, some of no width."""
    generator = torch.Generator().manual_seed(0)
    middle = 2 * torch.randn(count, generator=generator, dtype=torch.float64)
    width = 10 ** (5 * torch.rand(count, generator=generator, dtype=torch.float64) - 4)
    width = torch.where(torch.rand(count, generator=generator) < 0.1, 0.0, width)
    low, high = middle - width, middle + width
    return (low.abs().clamp_min(1e-3), low.abs().clamp_min(1e-3) + 2 * width) if positive else (low, high)


@pytest.mark.parametrize("alpha", [None, 0.0, 0.4, 1.0])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_lines_and_ranges_hold(name: str, alpha: float | None) -> None:
    activation, positive = ACTIVATIONS[name]
    low, high = intervals(positive)
    free = None if alpha is None else (torch.full_like(low, alpha), torch.full_like(low, alpha))
    lines, (least, most) = activation.lines(low, high, free), activation.interval(low, high)
    x = torch.lerp(low, high, torch.linspace(0, 1, 101, dtype=torch.float64)[:, None])
    x = torch.cat([x, torch.zeros_like(low).clamp(low, high)[None]])
    value = activation(x)
    slack = 1e-12 * (1 + value.abs() + (lines.lower_slope * x).abs() + (lines.upper_slope * x).abs())
    assert bool((lines.lower_slope * x + lines.lower_offset <= value + slack).all()), "the lower line is above"
    assert bool((lines.upper_slope * x + lines.upper_offset >= value - slack).all()), "the upper line is below"
    assert bool((least <= value + slack).all()) and bool((most >= value - slack).all()), "a value is out of range"


def test_narrow_intervals_have_tight_lines() -> None:
    """Between the lines there is at most what the curve bends."""
    for name in ("root", "x^3", "x^4", "x^2.5", "x^0.3", "x^-2"):
        activation, _ = ACTIVATIONS[name]
        low = torch.linspace(0.5, 2.0, 20, dtype=torch.float64)
        high, middle = low + 1e-3, low + 5e-4
        lines = activation.lines(low, high)
        upper = lines.upper_slope * middle + lines.upper_offset
        gap = upper - lines.lower_slope * middle - lines.lower_offset
        assert float(gap.max()) < 1e-4, f"{name}: {float(gap.max())}"


def test_a_step_is_known_beside_its_threshold() -> None:
    """0.1 is no float32 number: between it and the nearest one the step may be either."""
    edge = float(np.float32(0.1))
    low = torch.tensor([0.0, 0.2, 0.05, 0.1, edge], dtype=torch.float64)
    high = torch.tensor([0.09, 0.3, 0.15, edge, 0.2], dtype=torch.float64)
    least, most = Step(0.1).interval(low, high)
    assert least.tolist() == [0, 1, 0, 0, 0] and most.tolist() == [0, 1, 1, 1, 1]
    assert Step(0.0)(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 0, 1]
    assert Step(0.0, strict=False)(torch.tensor([-1.0, 0.0, 1.0])).tolist() == [0, 1, 1]


# Choices


def boxes(shapes: tuple[tuple[int, ...], ...], known: float) -> list[Interval]:
    """A mask, of which a share is known, and two values."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for i, shape in enumerate(shapes):
        middle = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
        half = torch.rand(3, *shape, generator=generator, dtype=torch.float64)
        if i == 0:
            sure = torch.rand(3, *shape, generator=generator) < known
            least = torch.where(sure, (middle > 0).double(), 0.0)
            found.append(Interval(least, torch.where(sure, least, 1.0)))
        else:
            found.append(Interval(middle - half, middle + half))
    return found


@pytest.mark.parametrize("known", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("shapes", [((1, 4), (1, 4), (1, 4)), ((1, 1), (1, 4), (4,)), ((2, 1), (1, 3), (2, 3))])
def test_a_choice_is_between_its_planes(shapes: tuple[tuple[int, ...], ...], known: float) -> None:
    after = tuple(torch.broadcast_shapes(*shapes))
    select, given = Select(shapes, after), boxes(shapes, known)
    span, relaxed = select.interval(*given), select.relax(given)
    generator = torch.Generator().manual_seed(2)
    weights = torch.randn(3, *after, generator=generator, dtype=torch.float64)
    pushed = relaxed.push(Rows(weights), torch.arange(3))
    assert pushed.inputs[0] is None and pushed.constant is not None
    for _ in range(200):
        values = [
            torch.lerp(box.low, box.high, torch.rand(box.low.shape, generator=generator).double()) for box in given
        ]
        values[0] = torch.where(given[0].low == given[0].high, given[0].low, values[0].round())
        out = select.forward(*values)
        assert bool((span.low <= out).all()) and bool((out <= span.high).all())
        row = (weights * out).flatten(1).sum(1)
        parts = zip(pushed.inputs[1:], values[1:], strict=True)
        below = pushed.constant + sum(
            (part.values * value).flatten(1).sum(1) for part, value in parts if part is not None
        )
        assert bool((below <= row + 1e-9).all()), float((below - row).max())
    masks = select.inputs_to_tighten(given)
    assert masks[0] is None and all(mask.shape == box.low.shape for mask, box in zip(masks[1:], given[1:], strict=True))  # type: ignore[union-attr]
    assert known < 1 or not any(bool(mask.any()) for mask in masks[1:] if mask is not None)


# Variances in float32


def two_passes(x: np.ndarray) -> np.ndarray:
    mean = np.float32(0)
    for value in x.T:
        mean = mean + value
    mean = mean / np.float32(x.shape[1])
    total = np.float32(0)
    for value in x.T:
        total = total + (value - mean) * (value - mean)
    return total


def updated(x: np.ndarray) -> np.ndarray:
    """Welford's updates."""
    mean, total = np.zeros(len(x), np.float32), np.zeros(len(x), np.float32)
    for count, value in enumerate(x.T, start=1):
        difference = value - mean
        mean = mean + difference / np.float32(count)
        total = total + difference * (value - mean)
    return total


@pytest.mark.parametrize("shift", [0.0, 1.0, 1000.0])
@pytest.mark.parametrize("correction", [0, 1])
def test_every_way_to_a_variance_is_within_the_bound(shift: float, correction: int) -> None:
    """Far from 0 the deviations lose digits, and the bound says so."""
    generator = np.random.default_rng(0)
    x = (generator.random((300, 7), dtype=np.float32) * np.float32(0.1) + np.float32(shift)).astype(np.float32)
    exact = torch.from_numpy(x).double()
    operator = Variance([0], correction, (7,), torch.zeros(1, dtype=torch.float64), keepdim=False)
    squares = (exact - exact.mean(1, keepdim=True)).square()
    variance = operator.forward(squares, exact)
    torch.testing.assert_close(variance, exact.var(1, correction=correction), rtol=1e-9, atol=1e-15)
    bound = operator.error([squares, exact.abs()], variance)
    share = np.float32(7 - correction)
    for found in (two_passes(x) / share, updated(x) / share, torch.from_numpy(x).var(1, correction=correction).numpy()):
        gap = (torch.from_numpy(np.asarray(found)).double() - variance).abs()
        assert bool((gap <= bound).all()), float((gap / bound).max())
    assert float(bound.max()) < 0.05 * float(variance.max()) or shift == 1000.0


@pytest.mark.parametrize("exponent", [0.4545, 1.5, 2.5])
def test_powers_may_begin_at_zero(exponent: float) -> None:
    """Gammas of pixels: the range and the lines on [0, 0.3], [0, 1] and at 0; 1 / x^2 stays unbounded there."""
    low, high = torch.zeros(3, dtype=torch.float64), torch.tensor([0.3, 1.0, 0.0], dtype=torch.float64)
    least, most = Power(exponent).interval(low, high)
    assert least.abs().max() == 0
    torch.testing.assert_close(most, high**exponent)
    lines = Power(exponent).lines(low, high)
    assert bool(torch.stack(lines).isfinite().all())
    for share in (0.0, 1e-9, 0.1, 0.5, 1.0):
        x = share * high
        value = x**exponent
        assert bool((lines.lower_slope * x + lines.lower_offset <= value + 1e-15).all()), share
        assert bool((lines.upper_slope * x + lines.upper_offset >= value - 1e-15).all()), share
    assert Power(-2.0).interval(low, high)[1].isinf().all()


def test_ends_that_are_nan_are_unknown() -> None:
    """Infinite ends of one operator make nan of the next, which says nothing about an inequality or a sign."""
    unknown, three = torch.full((1,), torch.nan, dtype=torch.float64), torch.full((1,), 3.0, dtype=torch.float64)
    for strict in (True, False):
        for low, high in ((unknown, unknown), (unknown, three), (-three, unknown)):
            assert Step(0.1, strict=strict).interval(low, high) == (0.0, 1.0)
            assert Sign().interval(low, high) == (-1.0, 1.0) and bool(Sign().is_nonlinear(low, high))


def test_an_inequality_behind_a_logarithm_of_black_is_not_known() -> None:
    """log x + log y > -3 is false at (0.01, 1) and true at (0.06, 1); the ball holds x = 0 too."""
    network = Fn(lambda x: torch.cat([(x.log().sum(1, keepdim=True) > -3).float(), 0.5 * x[:, 1:]], 1)).eval()
    image, point = torch.tensor([[0.01, 1.0]]), torch.tensor([[0.06, 1.0]])
    assert network(image).argmax() == 1 and network(point).argmax() == 0
    ball = Balls.around(image.double(), 0.051, Norm.LINF)
    rows = torch.tensor([[[-1.0, 1.0]]], dtype=torch.float64)
    for arithmetic in Arithmetic:
        for method in ("ibp", "crown"):
            bound = float(Native(network, image, arithmetic=arithmetic).ask(ball, rows, method).bound)
            assert not bound > -0.5, f"{method} in {arithmetic} says {bound}, and the point has -0.5"
