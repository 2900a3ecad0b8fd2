"""Balls around images: their shapes are checked, and parts of them are the balls of those images."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls, norms, off_the_faces, steepest
from verifiers.geometry.boxes import Boxes


@pytest.mark.parametrize("shape", [(), (1,), (6, 1), (6, 1, 1, 1), (2, 6, 6)], ids=str)
def test_eps_is_one_number_per_image(shape: tuple[int, ...]) -> None:
    """Also where the batch is as long as the image's side, so that another shape would broadcast over pixels."""
    plain = getattr(Balls.__init__, "__wrapped__", Balls.__init__)  # as it runs without type checks
    with pytest.raises(ValueError, match="one eps per image"):
        plain(object.__new__(Balls), torch.zeros(6, 2, 6, 6), torch.full(shape, 0.1), Norm.LINF)


@pytest.mark.parametrize("norm", list(Norm), ids=str)
def test_parts_are_the_balls_of_those_images(norm: Norm) -> None:
    x, eps = torch.rand(5, 2, 3), torch.linspace(0.1, 0.5, 5).double()
    balls, order = Balls(x, eps, norm), torch.tensor([3, 0])
    assert [len(part) for part in balls.split(2)] == [2, 2, 1]
    for part, chosen in ((balls.take(order), order), (balls.split(3)[1], torch.tensor([3, 4]))):
        assert torch.equal(part.x, x[chosen]) and torch.equal(part.eps, eps[chosen]) and part.norm is norm
    assert balls.to(torch.float64).x.dtype == torch.float64
    assert torch.equal(Balls.around(x, 0.3, norm).eps, torch.full((5,), 0.3, dtype=torch.float64))


def test_the_bounding_box_lies_in_the_image_box_and_holds_the_image() -> None:
    x = torch.tensor([[0.0, 0.5, 1.0], [0.2, 1.2, -0.1]])
    low, high = Balls.around(x, 0.3, Norm.L2).box()
    assert torch.allclose(low, torch.tensor([[0.0, 0.2, 0.7], [0.0, 0.9, -0.1]]).double())
    assert torch.allclose(high, torch.tensor([[0.3, 0.8, 1.0], [0.5, 1.2, 0.2]]).double())


@pytest.mark.parametrize("eps", [1e-12, 0.01, 10.0])
def test_images_move_off_the_faces_of_the_image_box_by_far_less_than_eps(eps: float) -> None:
    x = torch.tensor([[0.0, 1.0, 0.5, 0.25]], dtype=torch.float64)
    moved = off_the_faces(x, eps)
    assert ((moved > 0) & (moved < 1)).all() and moved[0, 2] == 0.5
    assert all(norms(moved - x, norm) <= 1e-3 * eps for norm in Norm)


# The nearest points of balls cut at the image box


def nearest_in_l1(x: np.ndarray, point: np.ndarray, eps: float) -> np.ndarray:
    """The nearest point in the Euclidean sense, by bisection on the multiplier of the l1 constraint."""

    def at(multiplier: float) -> np.ndarray:
        delta = point - x
        return np.clip(x + np.sign(delta) * np.maximum(np.abs(delta) - multiplier, 0), 0, 1)

    if np.abs(at(0.0) - x).sum() <= eps:
        return at(0.0)
    low, high = 0.0, float(np.abs(point - x).max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if np.abs(at(middle) - x).sum() > eps else (low, middle)
    return at(high)


@settings(max_examples=60, deadline=None)
@given(
    pixels=st.lists(st.tuples(st.sampled_from([0.0, 1.0, 0.3, 0.5, 0.999]), st.floats(-3, 3)), min_size=1, max_size=8),
    eps=st.floats(1e-3, 4),
)
def test_l1_points_move_to_the_nearest_point_of_the_ball_in_the_image_box(
    pixels: list[tuple[float, float]], eps: float
) -> None:
    x, moves = (np.array(values) for values in zip(*pixels, strict=True))
    balls = Balls.around(torch.from_numpy(x)[None], eps, Norm.L1)
    found = balls.nearest(torch.from_numpy(x + moves)[None])[0].numpy()
    np.testing.assert_allclose(found, nearest_in_l1(x, x + moves, eps), atol=1e-7)


def test_no_random_point_of_the_region_is_nearer_in_l1() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(1, 4, generator=generator, dtype=torch.float64)
    balls, point = Balls.around(x, 0.5, Norm.L1), x + torch.randn(1, 4, generator=generator, dtype=torch.float64)
    least = float((balls.nearest(point) - point).norm())
    many = torch.rand(20_000, 4, generator=generator, dtype=torch.float64)
    many = many[norms(many - x, Norm.L1) <= 0.5]
    assert len(many) > 100 and float((many - point).norm(dim=1).min()) >= least


@pytest.mark.parametrize("norm", list(Norm), ids=str)
@pytest.mark.parametrize("eps", [1 / 255, 0.3, 20.0])
def test_nearest_points_of_inner_balls_are_contained_in_float32(norm: Norm, eps: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(16, 3, 8, 8, generator=generator)
    x[0], x[1] = x[0].round(), 1.0
    balls = Balls.around(x, eps, norm)
    for scale in (1e-3, 1.0, 1e3):
        point = balls.inner().nearest(x + scale * torch.randn(x.shape, generator=generator))
        assert point.dtype == torch.float32 and bool(balls.contain(point).all()), f"outside at {scale}"
    far = balls.inner().nearest(x + 1e3 * (0.5 - x))
    assert bool((norms(far.double() - x.double(), norm) >= 0.5 * min(eps, 0.01))[2:].all()), "the ball is not used"


def test_points_outside_ball_or_image_box_are_not_contained() -> None:
    balls = Balls.around(torch.tensor([[0.9, 0.5]] * 4), 0.2, Norm.LINF)
    points = torch.tensor([[0.95, 0.5], [1.05, 0.5], [0.9, 0.75], [0.9, torch.nan]])
    assert balls.contain(points).tolist() == [True, False, False, False]


def test_a_box_contains_its_corners_and_nothing_beyond() -> None:
    boxes = Boxes.between(torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, 3.0]]))
    for point, inside in (([-1.0, 3.0], True), ([1.1, 2.5], False), ([0.0, 1.9], False)):
        assert bool(boxes.contain(torch.tensor([point]))) is inside
    assert boxes.inner() is boxes
    assert boxes.nearest(torch.tensor([[5.0, -5.0]])).tolist() == [[1.0, 2.0]]
    assert torch.equal(torch.stack(boxes.edges()), torch.stack(boxes.box()))


@pytest.mark.parametrize("counts", [[1, 3], [2, 2], [4, 1]])
def test_l1_steps_are_spread_over_as_many_pixels_as_asked(counts: list[int]) -> None:
    gradient = torch.tensor([[3.0, -1.0, 2.0, 0.5], [0.1, 0.2, -0.3, 0.0]])
    found = steepest(gradient, Norm.L1, torch.tensor(counts))
    for row, count in enumerate(counts):
        top = gradient[row].abs().argsort(descending=True)[:count]
        expected = torch.zeros(4)
        expected[top] = gradient[row, top].sign() / count
        assert torch.equal(found[row], expected), f"row {row}: not the {count} largest entries"
