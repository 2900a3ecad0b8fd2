"""Values held as integers: what they are as real numbers, and as codes of another scale."""

import numpy as np
import pytest
import torch
from torch import Tensor

from certkd.networks.onnx.codes import Added, Averaged, Codes, Joined, Lazy, Reals, Target, quantized

F = np.float32
BYTES = Target(F(0.5), 3, -3.0, 252.0)


def codes(*values: float, zero: int = 3, low: float = -3.0, high: float = 252.0) -> Codes:
    return Codes(torch.tensor([values]), zero, low, high)


def reals(*values: float, scale: float = 0.5, **settings: float) -> Reals:
    source = codes(*values)
    return Reals(source.values, np.asarray(scale, F), source=source, **settings)


def listed(value: Tensor) -> list[float]:
    assert value.shape[0] == 1
    found: list[float] = value[0].tolist()
    return found


def test_codes_move_to_another_zero_point() -> None:
    moved = codes(-3.0, 7.0).around(5)
    assert listed(moved.values) == [-5, 5] and (moved.zero, moved.low, moved.high) == (5, -5, 250)
    own = codes(1.0)
    assert own.around(3) is own
    dynamic = Codes(torch.ones(1, 1), None, -255.0, 255.0)
    assert dynamic.around(9) is dynamic


def test_real_numbers_are_codes_times_their_scale() -> None:
    assert listed(reals(-3.0, 8.0).real()) == [-1.5, 4]
    weights = torch.tensor([[1, -2], [3, 4]], dtype=torch.int8)
    assert Reals(weights, np.array([0.5, 2.0], F), 0).real().tolist() == [[0.5, -1], [6, 8]]
    assert Reals(weights, np.array([0.5, 2.0], F), 1).real().tolist() == [[0.5, -4], [1.5, 8]]
    assert Reals(weights, np.array([0.5, 2.0], F), -1).real().tolist() == [[0.5, -4], [1.5, 8]]
    assert Reals(torch.tensor([[8.0]]), np.asarray(0.5, F), count=4).real().tolist() == [[1]]
    assert listed(reals(-3.0, 1.0, 9.0).limited(0.0, 2.0).real()) == [0, 0.5, 2]
    assert listed(reals(-3.0, 1.0, 9.0).limited(0.0, np.inf).real()) == [0, 0.5, 4.5]


def test_limits_meet() -> None:
    value = reals(1.0).limited(0.0, 6.0).limited(-1.0, 5.0)
    assert (value.least, value.most, value.plain) == (0.0, 5.0, False)
    assert reals(1.0).plain and not Reals(torch.ones(2, 2), np.ones(2, F)).plain


def test_codes_of_the_same_scale_stay_as_they_are() -> None:
    value = reals(-3.0, 8.0)
    assert value.quantized(BYTES) is value.values, "a value that is a code is rounded again"
    assert listed(value.limited(0.0, 3.0).quantized(BYTES)) == [0, 6]
    assert value.quantized(Target(F(0.5), 3, 0.0, 5.0)).tolist() == [[0, 5]]


@pytest.mark.parametrize("scale", [0.25, 0.3, 1.7])
def test_codes_of_another_scale_are_dequantised_and_rounded(scale: float) -> None:
    given = np.arange(-3, 60, dtype=F)
    target = Target(F(scale), 10, -10.0, 245.0)
    expected = np.clip(np.rint(given * F(0.5) / F(scale)), -10, 245)
    assert listed(reals(*given.tolist()).quantized(target)) == expected.tolist()
    floats = torch.from_numpy(given * F(0.5))[None]
    assert listed(quantized(floats, target)) == expected.tolist()


def test_sums_are_multiplied_once() -> None:
    """By scale / (target scale x count), in float32: not by the scale first."""
    sums = np.arange(-4000, 4000, 7, dtype=F)
    scale, count = F(0.0123), 9
    value = Reals(torch.from_numpy(sums)[None], np.asarray(scale), count=count)
    factor = F(scale / F(BYTES.scale * F(count)))
    assert listed(value.quantized(BYTES)) == np.clip(np.rint(sums * factor), -3, 252).tolist()


def test_sums_with_a_scale_for_each_channel() -> None:
    sums = np.array([[[[10.0, 20.0]], [[10.0, 20.0]]]], F)
    value = Reals(torch.from_numpy(sums), np.array([0.5, 0.1], F), 1)
    factors = np.array([0.5, 0.1], F) / BYTES.scale
    expected = np.rint(sums * factors[:, None, None])
    np.testing.assert_array_equal(value.quantized(BYTES).numpy(), expected)
    flat = Reals(torch.tensor([[10.0, 20.0]]), np.array([0.5, 0.1], F), -1)
    assert listed(flat.quantized(BYTES)) == [10, 4]


def test_a_clamp_before_rounding_is_one_of_codes() -> None:
    """As rounding is monotone: round(min(max(x, 0), 6) / s) is clamped at round(6 / s)."""
    x = np.linspace(-2, 9, 500, dtype=F)
    target = Target(F(0.07), 0, 0.0, 255.0)
    value = Reals(torch.from_numpy(x / F(0.01)).round()[None], np.asarray(0.01, F)).limited(0.0, 6.0)
    expected = np.rint(np.clip(np.rint(x / F(0.01)) * F(0.01), 0, 6) / target.scale)
    found = np.array(listed(value.quantized(target)))
    assert np.abs(found - expected).max() <= 1 and (found != expected).mean() < 0.01
    assert found.max() == np.rint(F(6) / target.scale) and found.min() == 0


def test_sums_of_two_values() -> None:
    left, right = reals(2.0, 9.0, scale=0.5), reals(4.0, -3.0, scale=0.25)
    value = Added(left, right)
    assert listed(value.real()) == [2, 3.75]
    assert listed(value.quantized(BYTES)) == [4, 7] or listed(value.quantized(BYTES)) == [4, 8]
    assert listed(value.limited(0.0, 3.0).real()) == [2, 3]
    assert listed(value.limited(0.0, 3.0).quantized(BYTES)) == [4, 6]


def test_parts_are_rounded_one_by_one() -> None:
    value = Joined((reals(2.0, 9.0), torch.tensor([[0.3, 0.8]])), 1)
    np.testing.assert_allclose(listed(value.real()), [1, 4.5, 0.3, 0.8], rtol=1e-6)
    assert listed(value.quantized(BYTES)) == [2, 9, 1, 2]


def test_means_add_the_zero_point_before_they_are_rounded() -> None:
    """With an odd zero point halves go to odd codes: 0.25 / 0.5 + 3 is 3.5, which is rounded to 4."""
    value = Averaged(torch.tensor([[0.25, 0.75, 1.0]]))
    assert listed(value.quantized(BYTES)) == [1, 1, 2]
    assert listed(quantized(value.real(), BYTES)) == [0, 2, 2]


@pytest.mark.parametrize(
    "value", [reals(1.0), Added(reals(1.0), reals(2.0)), Joined((), 1), Averaged(torch.ones(1, 1))]
)
def test_all_of_them_are_lazy(value: object) -> None:
    assert isinstance(value, Lazy) and not isinstance(codes(1.0), Lazy)
