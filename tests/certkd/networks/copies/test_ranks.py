"""The rules for ranks, against slow counts and planted ranks."""

import math
from itertools import product

import pytest
import torch

from certkd.networks.builders.changed import RANKS, Form
from certkd.networks.copies.ranks import chosen, most, size, unfoldings, variational
from verifiers.core.errors import InputError

SHAPES = [(6, 4, 3, 2), (16, 1, 4, 4), (3, 16, 3, 3)]


def planted(rows: int, columns: int, rank: int, noise: float) -> torch.Tensor:
    g = torch.Generator().manual_seed(rows + rank)
    left, right = (torch.randn(side, rank, generator=g, dtype=torch.float64) for side in (rows, columns))
    return left @ right.T + noise * torch.randn(rows, columns, generator=g, dtype=torch.float64)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["svd", "tucker", "tt"])
def test_the_largest_ranks_are_those_of_random_weights(shape: tuple[int, ...], form: Form) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert most(shape, form) == tuple(int(torch.linalg.matrix_rank(matrix)) for matrix in unfoldings(weight, form))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", ["svd", "tucker", "cp", "tt"])
def test_a_ratio_takes_as_many_weights_as_it_may(shape: tuple[int, ...], form: Form) -> None:
    weight = torch.randn(shape)
    ranks = chosen(weight, form, "2x")
    assert len(ranks) == RANKS[form] and all(
        1 <= rank <= top for rank, top in zip(ranks, most(shape, form), strict=True)
    )
    assert size(shape, form, ranks) <= weight.numel() / 2 or min(ranks) == 1
    if RANKS[form] == 1:
        more = (ranks[0] + 1,)
        assert size(shape, form, more) > weight.numel() / 2 or more > most(shape, form)


def test_ranks_of_a_train_bound_each_other() -> None:
    for shape, ratio in product(SHAPES, ("2x", "4x", "8x")):
        first, middle, last = chosen(torch.randn(shape), "tt", ratio)
        height, width = shape[2:]
        assert first <= height * middle and middle <= first * height
        assert middle <= width * last and last <= middle * width, (shape, ratio)


@pytest.mark.parametrize(("share", "expected"), [(0.9, 1), (0.91, 2), (0.985, 2), (0.995, 3), (1.0, 3)])
def test_energy_is_of_squared_singular_values(share: float, expected: int) -> None:
    weight = torch.diag(torch.tensor([9.0, 2.84604989415154, 0.9486832980505138]))  # squares 81, 8.1, 0.9
    assert chosen(weight, "svd", f"energy={share}") == (expected,)


@pytest.mark.parametrize("rank", [1, 3, 7])
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (40, 40)])
def test_variational_bayes_finds_a_planted_rank(rank: int, shape: tuple[int, int]) -> None:
    assert variational(planted(*shape, rank, 0.3)) == rank
    assert variational(10 * planted(*shape, rank, 0.3)) == rank, "it does not depend on the scale"


def test_variational_bayes_sees_nothing_in_noise_and_nothing_in_0() -> None:
    assert variational(planted(40, 60, 1, 0.0) * 0) == 0
    g = torch.Generator().manual_seed(0)
    assert variational(torch.randn(60, 80, generator=g, dtype=torch.float64)) == 0
    assert chosen(torch.zeros(4, 5), "svd", "vbmf") == (1,), "a layer keeps one rank"


def test_the_threshold_is_that_of_the_paper() -> None:
    """Just above and below the threshold at the estimated variance, which pure noise has."""
    rows, columns = 60, 80
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    edge = math.sqrt(columns * (1 + tau) * (1 + alpha / tau))
    g = torch.Generator().manual_seed(0)
    left, values, right = torch.linalg.svd(
        torch.randn(rows, columns, generator=g, dtype=torch.float64), full_matrices=False
    )
    for factor, expected in ((0.9, 0), (1.1, 1)):
        changed = values.clone()
        changed[0] = factor * edge
        assert variational((left * changed) @ right) == expected


def test_cp_has_ranks_by_a_ratio_alone() -> None:
    with pytest.raises(InputError, match="give ranks as a ratio of weights, like 2x"):
        chosen(torch.randn(4, 3, 2, 2), "cp", "energy=0.9")
