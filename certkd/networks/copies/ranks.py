"""Choose the ranks of a layer's product: by a ratio of weights, by energy, or by variational Bayes."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.optimize import minimize_scalar
from torch import Tensor

from certkd.networks.builders.changed import Form
from verifiers.core.errors import InputError
from verifiers.core.quantities import parse_number


def unfoldings(weight: Float[Tensor, "out in ..."], form: Form) -> list[Float[Tensor, "rows columns"]]:
    """Return the matrix whose rank bounds each rank of a form.

    Raises:
        InputError: CP has none.
    """
    if form == "svd":
        return [weight.flatten(1)]
    if form == "tucker":
        return [weight.transpose(0, 1).flatten(1), weight.flatten(1)]
    if form == "tt":
        ordered = weight.permute(1, 2, 3, 0)  # in, height, width, out
        return [ordered.flatten(0, i).flatten(1) for i in range(3)]
    raise InputError("the rank of CP follows from no matrix: give ranks as a ratio of weights, like 2x")


def most(shape: tuple[int, ...], form: Form) -> tuple[int, ...]:
    """Return the ranks at which a form is exact."""
    out, inner, sides = shape[0], shape[1], shape[2:]
    if form == "svd":
        return (min(out, inner * math.prod(sides)),)
    height, width = sides
    if form == "tucker":
        return min(inner, out * height * width), min(out, inner * height * width)
    if form == "tt":
        middle = min(inner * height, width * out)
        return min(inner, height * width * out), middle, min(inner * height * width, out)
    return (math.prod(shape) // max(out, inner),)


def size(shape: tuple[int, ...], form: Form, ranks: tuple[int, ...]) -> int:
    """Count the weights of a layer's product, without the bias."""
    out, inner, sides = shape[0], shape[1], shape[2:]
    if form == "svd":
        return ranks[0] * (inner * math.prod(sides) + out)
    height, width = sides
    if form == "tucker":
        return inner * ranks[0] + ranks[0] * ranks[1] * height * width + ranks[1] * out
    if form == "cp":
        return ranks[0] * (inner + height + width + out)
    return inner * ranks[0] + ranks[0] * height * ranks[1] + ranks[1] * width * ranks[2] + ranks[2] * out


def chosen(weight: Float[Tensor, "out in ..."], form: Form, rule: str) -> tuple[int, ...]:
    """Choose the ranks of a layer by a rule, ``2x``, ``energy=0.95`` or ``vbmf``; each is at least 1.

    Raises:
        InputError: the form has no ranks by this rule.
    """
    if rule.endswith("x"):
        return _by_size(tuple(weight.shape), form, float(parse_number(rule[:-1])))
    matrices = unfoldings(weight.detach().double(), form)
    limits = most(tuple(weight.shape), form)
    if rule == "vbmf":
        found = [variational(matrix) for matrix in matrices]
    else:
        share = float(parse_number(rule.partition("=")[2]))
        found = [_by_energy(matrix, share) for matrix in matrices]
    return _fitted(tuple(weight.shape), form, [max(1, min(pair)) for pair in zip(found, limits, strict=True)])


def _fitted(shape: tuple[int, ...], form: Form, ranks: Sequence[int]) -> tuple[int, ...]:
    """Lower the ranks of a tensor train where one next to them bounds them."""
    if form != "tt":
        return tuple(ranks)
    (height, width), (first, middle, last) = shape[2:], ranks
    middle = min(middle, first * height, width * last)
    return min(first, height * middle), middle, min(last, middle * width)


def _by_size(shape: tuple[int, ...], form: Form, ratio: float) -> tuple[int, ...]:
    """Take the largest ranks, in the proportions of the exact ones, that have few enough weights."""
    limits, wanted = most(shape, form), math.prod(shape) / ratio
    steps = max(limits)
    best = (1,) * len(limits)
    for step in range(1, steps + 1):
        ranks = _fitted(shape, form, [max(1, limit * step // steps) for limit in limits])
        if size(shape, form, ranks) > wanted:
            break
        best = ranks
    return best


def _by_energy(matrix: Float[Tensor, "rows columns"], share: float) -> int:
    """Return the smallest rank that keeps a share of the squared singular values; a share of 1 keeps all."""
    squares = torch.linalg.svdvals(matrix).square()
    if share >= 1:
        return len(squares)
    return int((squares.cumsum(0) < share * squares.sum()).sum()) + 1


def variational(matrix: Float[Tensor, "rows columns"]) -> int:
    """Return the rank that analytic empirical variational Bayes gives a matrix with noise of unknown variance.

    Source: Nakajima et al., Global analytic solution of fully-observed variational Bayesian matrix factorization, JMLR
    2013; the threshold of the singular values at its theorem 2, and the variance that minimises the free energy.
    """
    rows, columns = sorted(matrix.shape)
    singular = torch.linalg.svdvals(matrix).numpy()
    alpha = rows / columns
    tau = 2.5129 * math.sqrt(alpha)
    least = (1 + tau) * (1 + alpha / tau)
    total = float((singular**2).sum())
    if total == 0:
        return 0

    def energy(variance: float) -> float:
        x = singular**2 / (columns * variance)
        above, below = x[x > least], x[x <= least]
        shifted = above - (1 + alpha)
        t = 0.5 * (shifted + np.sqrt(shifted**2 - 4 * alpha))
        noise = float((below - np.log(np.maximum(below, 1e-300))).sum())
        signal = float((above - t + np.log((t + 1) / above) + alpha * np.log(t / alpha + 1)).sum())
        return noise + signal

    kept = min(math.ceil(rows / (1 + alpha)) - 1, rows - 1)
    lower = max(float(singular[kept]) ** 2 / (columns * least), float((singular[kept:] ** 2).mean()) / columns)
    upper = total / (rows * columns)
    if not lower < upper:
        return rows
    variance = float(minimize_scalar(energy, bounds=(lower, upper), method="bounded").x)
    return int((singular > math.sqrt(columns * variance * least)).sum())
