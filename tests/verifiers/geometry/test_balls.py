"""Balls around images: their shapes are checked, and parts of them are the balls of those images."""

import pytest
import torch

from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls, norms, off_the_faces


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
