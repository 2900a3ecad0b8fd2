"""The losses of attacks, each against the formula of its paper, one sample at a time."""

import math

import pytest
import torch
from torch import Tensor

from verifiers.geometry.attacks import losses

LOGITS = torch.tensor(
    [[3.0, 1.0, 0.5, -2.0, 0.0], [0.0, 2.0, 1.9, 1.5, -1.0], [5.0, 5.0, 1.0, 0.0, 2.0]], dtype=torch.float64
)
OWN, TARGET = torch.tensor([0, 1, 1]), torch.tensor([2, 3, 0])


def test_cross_entropy_is_the_negative_logarithm_of_the_own_probability() -> None:
    found = losses.cross_entropy(LOGITS, OWN, TARGET)
    for i, row in enumerate(LOGITS.tolist()):
        expected = -math.log(math.exp(row[OWN[i]]) / sum(map(math.exp, row)))
        assert float(found[i]) == pytest.approx(expected, rel=1e-12)


def test_margin_is_the_best_other_logit_less_the_own() -> None:
    assert losses.margin(LOGITS, OWN, TARGET).tolist() == pytest.approx([-2.0, -0.1, 0.0])
    assert losses.targeted_margin(LOGITS, OWN, TARGET).tolist() == pytest.approx([-2.5, -0.5, 0.0])


def ratio(row: list[float], own: int, target: int) -> float:
    """The targeted ratio as the paper writes it: -(z_y - z_t) / (z_1 - (z_3 + z_4) / 2)."""
    first, _, third, fourth, *_ = sorted(row, reverse=True)
    return -(row[own] - row[target]) / (first - (third + fourth) / 2)


@pytest.mark.parametrize("classes", [4, 5])
def test_the_ratio_divides_by_the_spread_of_the_largest_logits(classes: int) -> None:
    logits, own, target = LOGITS[:2, :classes], torch.tensor([0, 1]), torch.tensor([2, 0])
    found = losses.targeted_ratio(logits, own, target)
    expected = [ratio(row, int(a), int(b)) for row, a, b in zip(logits.tolist(), own, target, strict=True)]
    assert found.tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("between", [[], [0.2]], ids=["two", "three"])
def test_fewer_than_four_classes_have_the_margin_instead_of_the_ratio(between: list[float]) -> None:
    logits = torch.tensor([[2.0, *between, -1.0], [0.3, *between, 0.1]], requires_grad=True)
    own, target = torch.tensor([0, 0]), torch.full((2,), 1 + len(between))
    found = losses.targeted_ratio(logits, own, target)
    assert found.tolist() == pytest.approx([-3.0, -0.2])
    (slopes,) = torch.autograd.grad(found.sum(), logits)
    assert slopes.tolist() == [[-1.0, *[0.0] * len(between), 1.0]] * 2, "such a ratio would be constant here"


@pytest.mark.parametrize("scale", [1e-3, 7.0, 1e4])
def test_the_ratio_depends_neither_on_scale_nor_on_shift(scale: float) -> None:
    plain = losses.targeted_ratio(LOGITS, OWN, TARGET)
    moved = losses.targeted_ratio(scale * LOGITS + 3.0, OWN, TARGET)
    torch.testing.assert_close(moved, plain, rtol=1e-6, atol=1e-9)


def test_equal_logits_keep_the_ratio_finite() -> None:
    logits = torch.zeros(2, 5, requires_grad=True)
    found = losses.targeted_ratio(logits, torch.tensor([0, 1]), torch.tensor([1, 2]))
    assert found.isfinite().all() and found.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(("most", "expected"), [(2, [[1, 2], [2, 3]]), (9, [[1, 2, 4, 3], [2, 3, 0, 4]])])
def test_targets_are_the_other_classes_by_falling_logit(most: int, expected: list[list[int]]) -> None:
    assert losses.ranked(LOGITS[:2], OWN[:2], most).tolist() == expected


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin, losses.targeted_margin, losses.targeted_ratio])
def test_a_sample_has_the_same_loss_in_any_batch(loss: losses.Loss) -> None:
    whole = loss(LOGITS, OWN, TARGET)
    for i in range(len(LOGITS)):
        alone: Tensor = loss(LOGITS[i : i + 1], OWN[i : i + 1], TARGET[i : i + 1])
        assert float(alone) == pytest.approx(float(whole[i]), rel=1e-12)
