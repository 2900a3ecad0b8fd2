"""Moves onto planes within a box, against linear programs and bisection."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.optimize import linprog

from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.planes import onto_planes

PIXELS = 5
EDGES = (torch.zeros(()).double(), torch.ones(()).double())
Array = np.ndarray


def by_program(point: Array, slopes: Array, value: float, norm: Norm) -> Array:
    """The shortest move by a linear program in the move and its length, or its lengths by pixel."""
    lengths = 1 if norm is Norm.LINF else PIXELS
    rows = np.zeros((2 * PIXELS, PIXELS + lengths))
    for i, sign in product(range(PIXELS), (1, -1)):
        row = 2 * i + (sign < 0)
        rows[row, i], rows[row, PIXELS + (0 if lengths == 1 else i)] = sign, -1.0
    found = linprog(
        np.r_[np.zeros(PIXELS), np.ones(lengths)],
        A_ub=rows,
        b_ub=np.zeros(2 * PIXELS),
        A_eq=np.r_[slopes, np.zeros(lengths)][None],
        b_eq=[value],
        bounds=[*zip(-point, 1 - point, strict=True), *[(0, None)] * lengths],
    )
    return found.x[:PIXELS] if found.status == 0 else np.full(PIXELS, np.nan)


def by_bisection(point: Array, slopes: Array, value: float) -> Array:
    """The shortest move in l2: the multiplier of the plane, by bisection."""

    def moved(multiplier: float) -> Array:
        return np.clip(multiplier * slopes, -point, 1 - point)

    low, high = (0.0, 1e6) if value > 0 else (-1e6, 0.0)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if slopes @ moved(middle) < value else (low, middle)
    return moved(high)


@pytest.mark.parametrize("norm", list(Norm), ids=str)
def test_moves_are_the_shortest(norm: Norm) -> None:
    generator = np.random.default_rng(0)
    points = generator.random((12, PIXELS))
    points[0, :2] = 0.0, 1.0
    slopes, values = generator.normal(size=(12, PIXELS)), 0.15 * generator.normal(size=12)
    slopes[1, 0] = 0.0
    found = onto_planes(*map(torch.from_numpy, (points, slopes, values)), EDGES, norm).numpy()
    order = {Norm.LINF: np.inf, Norm.L2: 2, Norm.L1: 1}[norm]
    for i in range(12):
        if norm is Norm.L2:
            expected = by_bisection(points[i], slopes[i], values[i])
        else:
            expected = by_program(points[i], slopes[i], values[i], norm)
        assert not np.isnan(expected).any(), "the plane misses the box: choose another seed"
        assert slopes[i] @ found[i] == pytest.approx(values[i], abs=1e-9), f"move {i} does not reach its plane"
        length = np.linalg.norm(found[i], order)
        assert length == pytest.approx(np.linalg.norm(expected, order), abs=1e-6), f"move {i} is not the shortest"
        assert ((points[i] + found[i] >= -1e-12) & (points[i] + found[i] <= 1 + 1e-12)).all(), "outside the box"


@pytest.mark.parametrize("norm", list(Norm), ids=str)
def test_a_plane_beyond_the_box_is_approached_at_its_corner(norm: Norm) -> None:
    point, slopes = torch.tensor([[0.25, 0.5, 1.0]]).double(), torch.tensor([[1.0, -2.0, 0.0]]).double()
    found = onto_planes(point, slopes, torch.tensor([50.0]).double(), EDGES, norm)
    assert (point + found).tolist() == [[1.0, 0.0, 1.0]], "not the corner, or an idle pixel moved"


@pytest.mark.parametrize("norm", list(Norm), ids=str)
def test_a_point_on_its_plane_and_a_flat_function_stay(norm: Norm) -> None:
    point = torch.full((2, 3), 0.5).double()
    slopes = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]).double()
    found = onto_planes(point, slopes, torch.tensor([0.0, 1.0]).double(), EDGES, norm)
    assert found.abs().max() == 0.0


def test_any_box_may_take_the_place_of_the_images() -> None:
    point, slopes = torch.tensor([[2.0, -1.0]]).double(), torch.tensor([[1.0, 1.0]]).double()
    edges = (torch.tensor([[1.0, -2.0]]).double(), torch.tensor([[2.5, 4.0]]).double())
    found = onto_planes(point, slopes, torch.tensor([2.0]).double(), edges, Norm.LINF)
    assert found[0].tolist() == [0.5, 1.5]
