"""Graphs read as chains of matrices."""

import pytest
import torch
from torch import Tensor

from tests.verifiers.bound_propagation.boxes.nets import chain, run
from verifiers.bound_propagation.boxes.chains import Layer, chain_of, without
from verifiers.graph.affine import Affine, Convolution, Dense, Reshape, Scale, Sum
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Elementwise, Operator
from verifiers.graph.relaxations.piecewise import LeakyRelu, Relu
from verifiers.graph.rounding import LARGEST

LIKE = torch.zeros(1, 4, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def graph(*parts: tuple[Operator, tuple[int, ...]], first: tuple[int, ...] = (1, 4)) -> Graph:
    """Operators one after the other, with the shapes of their outputs."""
    nodes = [Node(None, (), first, "", "image")]
    for operator, shape in parts:
        nodes.append(Node(operator, (len(nodes) - 1,), shape, "", ""))
    return Graph(nodes, torch.zeros(first, dtype=torch.float64))


def dense(before: int, after: int, seed: int = 0) -> tuple[Dense, tuple[int, int]]:
    return Dense(drawn(after, before, seed=seed), drawn(after, seed=seed + 9), (1, after)), (1, after)


def relu(width: int) -> tuple[Elementwise, tuple[int, int]]:
    return Elementwise(Relu()), (1, width)


def test_layers_are_the_operators_between_relus() -> None:
    scale = Scale(drawn(4, seed=3), drawn(4, seed=4), (1, 4))
    made = graph(
        (scale, (1, 4)),
        dense(4, 6),
        relu(6),
        (Reshape((1, 6), (1, 2, 3)), (1, 2, 3)),
        (Reshape((1, 2, 3), (1, 6)), (1, 6)),
        dense(6, 2),
    )
    found = chain_of(made)
    assert found is not None and found.shape == [4, 6, 2] and found.hidden == 6
    x = drawn(20, 4, seed=7)
    torch.testing.assert_close(run(found, x), made(x))


def test_convolutions_are_matrices_too() -> None:
    weight = drawn(2, 1, 2, 2)
    conv = Convolution(weight, drawn(2), (1, 1), (0, 0), (1, 1), 1, before=(1, 1, 3, 3), after=(1, 2, 2, 2))
    made = graph(
        (conv, (1, 2, 2, 2)),
        (Elementwise(Relu()), (1, 2, 2, 2)),
        (Reshape((1, 2, 2, 2), (1, 8)), (1, 8)),
        dense(8, 3),
        first=(1, 1, 3, 3),
    )
    found = chain_of(made)
    assert found is not None and found.shape == [9, 8, 3]
    x = drawn(5, 9, seed=2)
    torch.testing.assert_close(run(found, x), made(x.reshape(5, 1, 3, 3)))


@pytest.mark.parametrize(
    "parts",
    [
        pytest.param([dense(4, 3)], id="has no ReLU"),
        pytest.param([dense(4, 3), relu(3)], id="ends in a ReLU"),
        pytest.param([relu(4), dense(4, 3)], id="starts with one"),
        pytest.param([dense(4, 3), relu(3), relu(3), dense(3, 2)], id="two in a row"),
        pytest.param([dense(4, 3), (Elementwise(LeakyRelu()), (1, 3)), dense(3, 2)], id="another activation"),
        pytest.param([dense(4, 513), relu(513), dense(513, 2)], id="wide"),
        pytest.param([], id="nothing"),
    ],
)
def test_other_graphs_are_no_chains(parts: list[tuple[Operator, tuple[int, ...]]]) -> None:
    assert chain_of(graph(*parts)) is None


def test_branches_are_no_chains() -> None:
    one, shape = dense(4, 4)
    nodes = [
        Node(None, (), (1, 4), "", "image"),
        Node(one, (0,), shape, "", ""),
        Node(Sum([1, 1]), (0, 1), shape, "", ""),
    ]
    assert chain_of(Graph(nodes, LIKE)) is None


def test_operators_with_rounded_constants_are_no_chains() -> None:
    operator, shape = dense(4, 3)
    operator.perturbation = lambda x: x
    assert chain_of(graph((operator, shape))) is None


def interval(layer: Layer, width: float, *, rounded: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    low = drawn(3, 4, seed=5)
    (least, most), error, over = layer.interval(low, low + width, rounded=rounded)
    return least, most, error, over


def test_intervals_are_those_of_the_operators() -> None:
    operators: list[Affine] = [Scale(drawn(4, seed=3), drawn(4, seed=4), (1, 4)), dense(4, 6)[0]]
    layer = Layer.of(operators, (1, 4), LIKE)
    exact, rounded = (interval(layer, 0.3, rounded=each) for each in (False, True))
    x = drawn(3, 4, seed=5)[:, None] + 0.3 * torch.rand(3, 100, 4, generator=torch.Generator().manual_seed(1)).double()
    y = x @ layer.weight.T + layer.bias
    assert bool((exact[0][:, None] <= y + 1e-12).all()) and bool((exact[1][:, None] >= y - 1e-12).all())
    assert not bool(exact[2].any()) and bool((rounded[2] > 0).all()) and not bool(rounded[3].any())
    assert bool((rounded[0] <= exact[0] - rounded[2] * 0.999).all()) and bool(
        (rounded[1] >= exact[1] + rounded[2] * 0.999).all()
    )
    single = (x.float() * operators[0].scale.float() + operators[0].shift[0].float()) @ layer.operators[
        1
    ].weight.float().T  # type: ignore[attr-defined]
    apart = (single.double() + layer.operators[1].bias - y).abs().amax(1)  # type: ignore[attr-defined]
    assert bool((apart <= rounded[2] + 1e-6).all()), "a float32 machine is farther off than the error allows"


def test_values_that_may_overflow_are_marked() -> None:
    layer = Layer.of([Dense(torch.full((1, 4), LARGEST).double(), None, (1, 1))], (1, 4), LIKE)
    least, most, error, over = interval(layer, 3.0, rounded=True)
    assert bool(over.all()) and not bool(error.any())
    assert bool(least.isfinite().all()) and bool(most.isfinite().all())
    assert not bool(interval(layer, 3.0, rounded=False)[3].any()), "real numbers do not overflow"


def test_neurons_that_are_left_out_were_0() -> None:
    whole = chain((3, 7, 6, 2), 1)
    kept = [torch.tensor([0, 2, 5]), torch.tensor([1, 3])]
    part = without(whole, kept)
    assert part is not None and part.shape == [3, 3, 2, 2]
    for layer, left in zip(whole.layers[:-1], kept, strict=True):
        off = torch.ones(len(layer.bias), dtype=torch.bool)
        off[left] = False
        layer.weight[off], layer.bias[off] = 0.0, -1.0
    x = drawn(30, 3, seed=8)
    torch.testing.assert_close(run(part, x), run(whole, x))
    for layer, low in ((part.layers[1], torch.zeros(2, 3).double()),):
        error = layer.interval(low, low + 1, rounded=True)[1]
        full = whole.layers[1].interval(torch.zeros(2, 7).double(), torch.ones(2, 7).double(), rounded=True)[1]
        assert bool((error <= full[:, kept[1]]).all()), "fewer terms round more"


def test_layers_of_several_operators_keep_all_neurons() -> None:
    scale = Scale(drawn(4, seed=3), None, (1, 4))
    whole = chain_of(graph((scale, (1, 4)), dense(4, 6), relu(6), dense(6, 2)))
    assert whole is not None and without(whole, [torch.arange(3)]) is None


def test_weights_are_cast_once() -> None:
    layer = chain((3, 4, 2), 0).layers[0]
    single, double = layer.cast(torch.float32), layer.cast(torch.float64)
    assert single[0].dtype == torch.float32 and single[0] is layer.cast(torch.float32)[0]
    assert double[0] is layer.weight
