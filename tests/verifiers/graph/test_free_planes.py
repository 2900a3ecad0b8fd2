"""Planes of products that are chosen term by term, and convolutions that are products of matrices."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from verifiers.graph.affine import Convolution
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.products import FREE, Product
from verifiers.graph.rows import Rows

SHAPES = {
    "entrywise": (torch.mul, (2, 3), (2, 3), (2, 3)),
    "broadcast": (torch.mul, (2, 1), (4, 2, 3), (4, 2, 3)),
    "matrices": (torch.matmul, (2, 3, 4), (2, 4, 3), (2, 3, 3)),
    "shared matrix": (torch.matmul, (2, 3, 4), (4, 2), (2, 3, 2)),
}


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def boxes(left: tuple[int, ...], right: tuple[int, ...], batch: int) -> list[Interval]:
    found = []
    for seed, shape in enumerate((left, right)):
        center, half = random(batch, *shape, seed=seed), random(batch, *shape, seed=seed + 7).abs()
        found.append(Interval(center - half, center + half))
    return found


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("batch", [1, 2])
def test_every_mixture_of_planes_encloses_the_product(name: str, batch: int) -> None:
    product = Product(*SHAPES[name])
    sides = boxes(product.left, product.right, batch)
    rows = Rows(random(6, *product.after, seed=3))
    samples = torch.arange(6) % batch if batch > 1 else torch.zeros(6, dtype=torch.long)
    for seed in range(4):
        alpha = tuple(
            torch.rand(batch, *product.terms, generator=torch.Generator().manual_seed(9 + seed)).double() for _ in "ab"
        )
        alpha = tuple(side.round() for side in alpha) if seed == 0 else alpha
        pushed = product.relax(sides, alpha).push(rows, samples)
        for trial in range(30):
            weight = [
                torch.rand(box.low.shape, generator=torch.Generator().manual_seed(40 * seed + trial)).double()
                for box in sides
            ]
            weight = [w.round() for w in weight] if trial % 2 else weight
            a, b = (box.low + w * (box.high - box.low) for box, w in zip(sides, weight, strict=True))
            true = (rows.values * product.forward(a, b)[samples]).flatten(1).sum(1)
            below = sum(
                (part.values * x[samples]).flatten(1).sum(1) for part, x in zip(pushed.inputs, (a, b), strict=True)
            )
            assert (below + pushed.constant <= true + 1e-9).all()


@pytest.mark.parametrize("name", SHAPES)
def test_the_middle_mixture_is_the_default(name: str) -> None:
    product = Product(*SHAPES[name])
    sides, rows, samples = (
        boxes(product.left, product.right, 1),
        Rows(random(4, *product.after, seed=1)),
        torch.zeros(4, dtype=torch.long),
    )
    half = torch.full((1, *product.terms), 0.5, dtype=torch.float64)
    found, default = product.relax(sides, (half, half)).push(rows, samples), product.relax(sides).push(rows, samples)
    for one, other in zip(found.inputs, default.inputs, strict=True):
        torch.testing.assert_close(one.values, other.values)
    torch.testing.assert_close(found.constant, default.constant)


def test_a_corner_of_the_box_is_exact() -> None:
    """With t = 1 the lower plane touches where both factors are least: 2 * 3 at a = 2, b = 3."""
    product = Product(torch.mul, (1,), (1,), (1,))
    sides = [
        Interval(torch.tensor([[2.0]]), torch.tensor([[5.0]])),
        Interval(torch.tensor([[3.0]]), torch.tensor([[4.0]])),
    ]
    pushed = product.relax(sides, (torch.ones(1, 1), torch.ones(1, 1))).push(
        Rows(torch.ones(1, 1)), torch.zeros(1, dtype=torch.long)
    )
    assert [float(part.values) for part in pushed.inputs] == [3.0, 2.0]
    assert float(pushed.constant) == -6.0


def test_products_of_many_terms_have_no_free_planes() -> None:
    assert Product(torch.matmul, (16, 16), (16, 16), (16, 16)).free
    assert not Product(torch.matmul, (16, 16), (16, 17), (16, 17)).free
    assert FREE == 16**3


@pytest.mark.parametrize(
    ("weight", "stride", "padding", "groups", "side"),
    [
        ((5, 3, 2, 2), (2, 2), (0, 0), 1, 6),
        ((5, 3, 2, 3), (2, 3), (0, 0), 1, 6),
        ((3, 1, 1, 1), (1, 1), (0, 0), 3, 6),
        ((5, 3, 1, 1), (1, 1), (0, 0), 1, 6),
        ((5, 3, 2, 2), (2, 2), (0, 0), 1, 7),
        ((6, 1, 1, 1), (1, 1), (0, 0), 3, 6),
        ((5, 3, 2, 2), (2, 2), (1, 1), 1, 6),
    ],
    ids=str,
)
def test_rows_of_convolutions_are_their_transpose(
    weight: tuple[int, ...], stride: tuple[int, int], padding: tuple[int, int], groups: int, side: int
) -> None:
    kernel, bias, x = random(*weight, seed=1), random(weight[0], seed=2), random(2, 3, side, side, seed=3)
    y = F.conv2d(x, kernel, bias, stride, padding, (1, 1), groups)
    operator = Convolution(kernel, bias, stride, padding, (1, 1), groups, (1, 3, side, side), (1, *y.shape[1:]))
    rows = random(2, 1, *y.shape[1:], seed=4)
    pushed = operator.push(Rows(rows), torch.arange(2))
    found = (pushed.inputs[0].dense(operator.before).values[:, 0] * x).flatten(1).sum(1) + pushed.constant
    torch.testing.assert_close(found, (rows[:, 0] * y).flatten(1).sum(1))
