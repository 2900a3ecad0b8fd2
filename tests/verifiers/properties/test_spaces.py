"""Float64 values that are never above the exact ones."""

from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.verifiers.properties.milp import box
from verifiers.core.errors import Unsupported
from verifiers.properties.property import Box, Case, Inequality
from verifiers.properties.spaces import half_spaces

BOX = box([-2.0, 0.0], [1.0, 4.0])


def drawn(seed: int) -> list[Case]:
    """Decimal coefficients and constants of many sizes."""
    rng = np.random.default_rng(seed)

    def number() -> Fraction:
        return Fraction(int(rng.integers(-(10**6), 10**6)), 10 ** int(rng.integers(0, 8)))

    def one() -> Inequality:
        outputs = tuple((i, number()) for i in range(3))
        inputs = tuple((i, number()) for i in range(2)) if rng.random() < 0.5 else ()
        return Inequality(outputs, inputs, number() * Fraction(10) ** int(rng.integers(-3, 4)))

    return [Case(BOX, tuple(one() for _ in range(rng.integers(1, 4)))) for _ in range(rng.integers(1, 4))]


@pytest.mark.parametrize("seed", range(20))
def test_values_are_below_the_exact_ones_and_near(seed: int) -> None:
    """In exact arithmetic, up to the whole factor by which an inequality was scaled."""
    cases, rng = drawn(seed), np.random.default_rng(seed)
    spaces = half_spaces(cases, 2, 3)
    inequalities = [each for case in cases for each in case.inequalities]
    assert spaces.case.tolist() == [number for number, case in enumerate(cases) for _ in case.inequalities]
    for row, each in enumerate(inequalities):
        y = [Fraction(float(v)) for v in rng.normal(size=3).astype("float32")]
        x = [Fraction(float(v)) for v in rng.uniform([-2, 0], [1, 4]).astype("float32")]
        exact = each.constant + sum(c * y[i] for i, c in each.outputs) + sum(c * x[i] for i, c in each.inputs)
        scale = Fraction(float(spaces.outputs[row, 0])) / each.outputs[0][1] if each.outputs[0][1] else None
        found = Fraction(float(spaces.constant[row])) + sum(
            Fraction(float(c)) * v for c, v in zip(spaces.outputs[row], y, strict=True)
        )
        if spaces.inputs is not None:
            found += sum(Fraction(float(c)) * v for c, v in zip(spaces.inputs[row], x, strict=True))
        if scale is not None:
            assert scale > 0 and found <= scale * exact
            size = abs(each.constant) + sum(4 * abs(c) for _, c in each.inputs)
            assert scale * exact - found <= scale * size * Fraction(1, 2**20), "hardly lower"


def test_margins_are_exact() -> None:
    spaces = half_spaces([Case(BOX, (Inequality(((0, Fraction(1)), (2, Fraction(-1))), (), Fraction(0)),))], 2, 3)
    assert spaces.outputs.tolist() == [[1.0, 0.0, -1.0]] and spaces.constant.tolist() == [0.0]
    assert spaces.inputs is None and spaces.outputs.dtype == torch.float64


def test_constants_are_lowered_to_the_next_float32_number() -> None:
    """A proof must hold for a reader that rounds 0.1 to float32 first: with it the value is lower."""
    spaces = half_spaces([Case(BOX, (Inequality(((0, Fraction(1)),), (), Fraction(-1, 10)),))], 2, 3)
    assert float(spaces.constant) < float(np.float32(-0.1)) and float(spaces.constant) < -0.1
    assert float(spaces.constant) > -0.1 - 1e-7


def test_points_between_float32_numbers_are_not_excluded() -> None:
    """y = x for the input that the network gets; at the point 0.1 that is larger, by more than 1e-9."""
    larger = Inequality(((0, Fraction(-1)),), ((0, Fraction(1)),), Fraction(1, 10**9))
    point, image = Fraction(1, 10), Fraction(float(np.float32(0.1)))
    assert larger.holds([point], [image])
    for ends in ((point, point), (Fraction(0), Fraction(1))):
        spaces = half_spaces([Case(Box(ends[:1], ends[1:]), (larger,))], 1, 1)
        x = torch.tensor([[float(image)]])
        assert float(spaces.values(x, x)) <= 0
    exact = half_spaces([Case(Box((Fraction(1, 2),), (Fraction(1, 2),)), (larger,))], 1, 1)
    assert float(exact.values(torch.tensor([[0.5]]), torch.tensor([[0.5]]))) > 0, "0.5 is a float32 number"


@pytest.mark.parametrize(
    ("inequalities", "said"),
    [
        ((), "no condition on outputs"),
        ((Inequality(((0, Fraction(1)), (1, Fraction(1, 3**40))), (), Fraction(0)),), "more digits"),
        ((Inequality(((0, Fraction(1)),), (), Fraction(10) ** 400),), "beyond float64"),
    ],
)
def test_what_float64_does_not_hold_is_unsupported(inequalities: tuple[Inequality, ...], said: str) -> None:
    with pytest.raises(Unsupported, match=said):
        half_spaces([Case(BOX, inequalities)], 2, 3)
