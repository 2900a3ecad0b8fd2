"""Boxes in the place of balls."""

import pytest
import torch

from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.boxes import Boxes

LOW, HIGH = torch.tensor([[-2.0, 0.5], [3.0, 3.0]]), torch.tensor([[-1.0, 4.5], [3.0, 7.0]])


def test_a_box_has_a_centre_and_its_corners() -> None:
    boxes = Boxes.between(LOW, HIGH)
    assert boxes.x.tolist() == [[-1.5, 2.5], [3.0, 5.0]] and boxes.eps.tolist() == [2.0, 2.0]
    assert boxes.norm is Norm.LINF and len(boxes) == 2
    assert torch.equal(torch.stack(boxes.box()), torch.stack([LOW, HIGH])), "not cut at [0, 1]"


def test_parts_are_boxes() -> None:
    boxes = Boxes.between(LOW, HIGH)
    assert torch.equal(boxes.take(torch.tensor([1])).low, LOW[1:])
    assert [type(part) for part in boxes.split(1)] == [Boxes, Boxes]
    assert torch.equal(torch.cat([part.box()[1] for part in boxes.split(1)]), HIGH)
    assert boxes.to(torch.float64).high.dtype == torch.float64


@pytest.mark.parametrize(("low", "high"), [([1.0], [0.0]), ([-torch.inf], [0.0]), ([0.0], [torch.nan])])
def test_empty_and_endless_boxes_are_refused(low: list[float], high: list[float]) -> None:
    with pytest.raises(ValueError, match="finite corners"):
        Boxes.between(torch.tensor([low]), torch.tensor([high]))


def test_the_lowest_point_of_a_linear_function() -> None:
    slopes = torch.tensor([[1.0, 1.0], [-1.0, 2.0], [0.0, -3.0]])
    box = Boxes.between(LOW[:1], HIGH[:1])
    assert box.lowest(slopes).tolist() == [[-2.0, 0.5], [-1.0, 0.5], [-1.0, 4.5]]
    ball = Balls.around(torch.tensor([[0.5, 0.5]], dtype=torch.float64), 0.25, Norm.LINF)
    assert ball.lowest(slopes.double())[:2].tolist() == [[0.25, 0.25], [0.75, 0.25]]


def test_points_are_moved_inside() -> None:
    points = torch.tensor([[-9.0, 9.0], [-1.5, 2.0]])
    assert Boxes.between(LOW[:1], HIGH[:1]).inside(points).tolist() == [[-2.0, 4.5], [-1.5, 2.0]]
    ball = Balls.around(torch.tensor([[0.1, 0.5]], dtype=torch.float64), 0.25, Norm.LINF)
    inside = ball.inside(points.double())
    assert float(inside[0, 0]) == 0.0 and 0.7499 < float(inside[0, 1]) < 0.75, "within ball and image box"
