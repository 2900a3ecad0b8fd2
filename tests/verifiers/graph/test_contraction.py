"""Einsum, interpolations and reductions as graphs: equal to torch's, for every form of their arguments."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.verifiers.graph.nets import Fn
from verifiers.graph.capture import capture
from verifiers.graph.graph import Builder, Graph, Ref
from verifiers.graph.lowering import LOWERINGS
from verifiers.graph.lowering.contraction import einsum
from verifiers.graph.lowering.resampling import Separable

SIZES = {"a": 1, "b": 2, "i": 2, "j": 3, "k": 4, "l": 2}


def value_of(function: Callable[[Builder, Ref], Ref], x: Tensor) -> Tensor:
    """Compute a lowered function of one value."""
    builder = Builder(x)
    out = function(builder, Ref(0, tuple(x.shape)))
    return Graph(builder.nodes[: out.node + 1], x).values(x[None])[-1][0]


def operand(letters: str, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn([SIZES[letter] for letter in letters], generator=generator, dtype=torch.float64)


CONSTANT = (
    "aij,kj->aik",
    "aij,kj->ka",
    "aij,ij->a",
    "aij,aij->aij",
    "aij->aji",
    "aij->a",
    "aij,kj,k->ai",
    "aij, jk",
    "aijj->ai",
)


@pytest.mark.parametrize("equation", CONSTANT)
def test_einsum_with_constants_is_linear(equation: str) -> None:
    first, *others = equation.replace(" ", "").partition("->")[0].split(",")
    x, constants = operand(first, 0), [operand(letters, 1 + i) for i, letters in enumerate(others)]
    found = value_of(lambda builder, ref: einsum(builder, equation, [ref, *constants]), x)
    torch.testing.assert_close(found, torch.einsum(equation, x, *constants))


@pytest.mark.parametrize(
    "equation",
    ["aij,akj->aik", "aij,aij->a", "aij,aij->aij", "aij,akl->ai", "aij,ajk->ka", "aij,aj->ai", "aij,akl->ajl"],
)
def test_einsum_of_two_values_is_a_product_of_matrices(equation: str) -> None:
    """Both are functions of one image: x itself, and a linear function of it."""
    left, right = equation.partition("->")[0].split(",")
    x, weights = operand(left, 0), torch.randn(operand(right, 1).numel(), operand(left, 0).numel(), dtype=torch.float64)

    def second(value: Tensor) -> Tensor:
        return (weights @ value.flatten()).reshape([SIZES[letter] for letter in right])

    def function(builder: Builder, ref: Ref) -> Ref:
        flat = LOWERINGS["reshape"](builder, ref, [1, x.numel()])
        other = LOWERINGS["reshape"](builder, LOWERINGS["linear"](builder, flat, weights), list(second(x).shape))
        return einsum(builder, equation, [ref, other])

    torch.testing.assert_close(value_of(function, x), torch.einsum(equation, x, second(x)))


RESIZED: dict[str, Callable[[Tensor], Tensor]] = {
    "smaller": lambda x: F.interpolate(x, size=(3, 5), mode="bilinear", antialias=True),
    "larger": lambda x: F.interpolate(x, size=(9, 8), mode="bilinear", antialias=True),
    "one row": lambda x: F.interpolate(x, size=(1, 4), mode="bilinear", antialias=True),
    "bicubic": lambda x: F.interpolate(x, size=(4, 9), mode="bicubic"),
    "bicubic, smoothed": lambda x: F.interpolate(x, size=(3, 3), mode="bicubic", antialias=True),
    "bicubic with corners": lambda x: F.interpolate(x, size=(4, 9), mode="bicubic", align_corners=True),
}


@pytest.mark.parametrize("name", RESIZED)
def test_interpolations_round_as_their_bound_says(name: str) -> None:
    network = Fn(RESIZED[name])
    x = torch.rand(4, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    graph = capture(nn.Sequential(network, nn.Flatten()), x[:1])
    operator = graph.nodes[1].operator
    assert isinstance(operator, Separable)
    values = operator.forward(x.double()[:, None])
    torch.testing.assert_close(values[:, 0], RESIZED[name](x.double()), rtol=1e-10, atol=1e-12)
    bound = operator.error([x.double()[:, None].abs()], values.abs())
    gap = (values[:, 0] - RESIZED[name](x).double()).abs()
    assert bool((gap <= bound[:, 0]).all()), float((gap / bound[:, 0]).max())
    assert float(bound.max()) < 1e-3, "the bound says nothing"


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.amax(),
        lambda x: x.amax(-1),
        lambda x: x.amax((1, 3), keepdim=True),
        lambda x: x.amin((2, 3)),
        lambda x: x.max(2).values,
        lambda x: x.min(1, keepdim=True).values,
        lambda x: x.std((2, 3)),
        lambda x: x.var(1, unbiased=False, keepdim=True),
        lambda x: torch.var_mean(x, (1, 2))[0],
        lambda x: torch.std_mean(x, 3)[1],
        lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
        lambda x: x.norm(p=1, dim=1),
        lambda x: F.adaptive_max_pool2d(x, (2, 3)),
        lambda x: F.max_pool1d(x[:, 0], 3, 2, padding=1),
        lambda x: F.glu(x, 1),
        lambda x: x.cumsum(3),
    ],
)
def test_reductions_are_those_of_torch(function: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(0))
    graph = capture(Fn(lambda given: function(given).reshape(1, -1)), x[:1])
    expected = torch.cat([function(image[None]).reshape(1, -1) for image in x.double()])
    torch.testing.assert_close(graph(x.double()), expected, rtol=1e-9, atol=1e-11)
