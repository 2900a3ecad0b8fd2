"""Square: its windows and bumps, points inside their regions, and what it finds without gradients."""

import math

import numpy as np
import pytest
import torch

from tests.verifiers.geometry.attacks.subjects import EPS, Staircase, perceptron, pictures, victims
from verifiers.core.quantities import Norm
from verifiers.geometry.attacks import square
from verifiers.geometry.attacks.losses import margin
from verifiers.geometry.attacks.square import Square

every_norm = pytest.mark.parametrize("norm", list(Norm), ids=str)
SHAPES = [(12,), (3, 4), (2, 3, 2), (1, 4, 4), (1, 2, 3, 2)]


def bump(height: int, width: int, power: int) -> np.ndarray:
    """Concentric squares around the middle, laid on one another, as the paper builds them."""
    plane = np.zeros((height, width))
    top, left = height // 2, width // 2
    for k in range(max(height // 2 + 1, width // 2 + 1)):
        plane[max(top - k, 0) : top + k + 1, max(left - k, 0) : left + k + 1] += 1 / (k + 1) ** power
    return plane


@pytest.mark.parametrize(("norm", "power"), [(Norm.L2, 2), (Norm.L1, 4)], ids=str)
@pytest.mark.parametrize(("height", "width"), [(3, 3), (2, 5), (5, 4), (1, 1), (1, 4)])
def test_bumps_are_concentric_squares_above_their_negatives(norm: Norm, power: int, height: int, width: int) -> None:
    np.testing.assert_allclose(square._rectangles(height, width, norm), bump(height, width, power), rtol=1e-12)
    halves = square._halves(height, width, norm).numpy()
    order = 2 if norm is Norm.L2 else 1
    assert (np.abs(halves) ** order).sum() == pytest.approx(1.0), "not of norm 1"
    upper = height // 2
    assert (halves[:upper] > 0).all() and (halves[upper:] < 0).all()


@pytest.mark.parametrize(
    ("side", "extent", "expected"),
    [(3, (5, 5), (3, 3)), (9, (5, 5), (5, 5)), (4, (1, 20), (1, 16)), (4, (20, 2), (8, 2))],
)
def test_windows_keep_their_area_in_narrow_planes(
    side: int, extent: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert square._window(side, *extent) == expected


def test_squares_shrink_as_the_paper_says() -> None:
    attack = Square(5000)
    sides = [attack._side(query, 32 * 32, Norm.LINF) for query in (0, 10, 11, 51, 201, 501, 1001, 2001, 4001, 4999)]
    shares = [0.8 / 2**halvings for halvings in (0, 0, 1, 2, 3, 4, 5, 6, 7, 7)]
    assert sides == [max(round((share * 1024) ** 0.5), 1) for share in shares]
    assert Square(500)._side(400, 1024, Norm.LINF) == attack._side(4000, 1024, Norm.LINF), "fewer queries stretch it"
    assert attack._side(4999, 1024, Norm.L2) == 3, "windows with two halves are at least 3 wide, and odd"


def test_every_corner_of_a_plane_is_within_reach() -> None:
    numbers = torch.linspace(0, 0.9999, 50)
    assert square._corner(numbers, 3).unique().tolist() == [0, 1, 2, 3]
    x = torch.zeros(2, 1, 4, 5)
    mask = square._mask(torch.tensor([[0.0, 0.0], [0.99, 0.99]]), (2, 3), x)
    assert mask[0, 0].nonzero().tolist() == [[i, j] for i in (0, 1) for j in (0, 1, 2)]
    assert mask[1, 0].nonzero().tolist() == [[i, j] for i in (2, 3) for j in (2, 3, 4)]


def test_what_is_cut_is_what_is_marked() -> None:
    delta = torch.arange(40.0).reshape(2, 1, 4, 5)
    numbers, size = torch.tensor([[0.5, 0.0], [0.9, 0.9]]), (2, 3)
    mask = square._mask(numbers, size, delta)
    cut = square._cut(delta, numbers, size)
    assert torch.equal(cut.flatten(), delta[mask]), "another window is cut"
    pasted = square._pasted(delta, torch.full_like(cut, -1.0), numbers, size)
    assert torch.equal(pasted == -1.0, mask) and torch.equal(pasted[~mask], delta[~mask])


@every_norm
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_points_are_inside_whatever_the_shape(norm: Norm, shape: tuple[int, ...]) -> None:
    network, x = perceptron(pixels=math.prod(shape)), pictures(4, shape)
    some = victims(network, x, norm)
    found = Square(25).run(some)
    assert found.point.shape == x.shape and bool(some.balls.contain(found.point).all()), "outside ball or image box"
    with torch.no_grad():
        again = -margin(network(found.point), some.own, some.own)
    torch.testing.assert_close(found.margin, again, rtol=1e-5, atol=1e-6)


@every_norm
def test_queries_only_ever_lessen_the_margin(norm: Norm) -> None:
    some = victims(perceptron(seed=2), pictures(6), norm, EPS[norm] / 2)
    first = Square(0).run(some).margin
    after = Square(60).run(some).margin
    assert bool((after <= first).all()) and bool((after < first).any()), "a worse point was kept, or none was better"


@every_norm
def test_a_sample_depends_on_its_index_and_seed_and_not_on_its_batch(norm: Norm) -> None:
    network, x = perceptron().double(), pictures(3).double()
    indices = [40, 3, 17]
    whole = victims(network, x, norm, indices=indices)
    together = Square(102).run(whole)
    for row in range(3):
        one = whole.take(torch.tensor([row]))
        torch.testing.assert_close(Square(102).run(one).margin, together.margin[row : row + 1], rtol=1e-6, atol=1e-9)
    others = Square(102).run(victims(network, x, norm, indices=[1, 2, 4]))
    assert not torch.equal(others.point, together.point), "indices do not key the search"
    assert not torch.equal(Square(102, number=1).run(whole).point, together.point), "restarts repeat the search"


def test_a_network_without_gradients_is_broken() -> None:
    weight = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    x = torch.full((3, 1, 2, 3), 0.4)
    some = victims(Staircase(weight, 0.6), x, eps=0.2)
    assert (Square(300).run(some).margin < 0).all(), "a counterexample at a corner of the ball was missed"


def test_broken_samples_are_dropped() -> None:
    some = victims(perceptron(), pictures(6), eps=0.3)
    calls = []
    some.model.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    found = Square(200).run(some)
    left = int((found.margin >= 0).sum())
    assert left < 6 and calls[-1] <= max(left + 1, 1) and calls == sorted(calls, reverse=True), calls
