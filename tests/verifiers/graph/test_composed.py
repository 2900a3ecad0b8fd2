"""Products of layers as one: the same map, at least the error of its parts, and copies related neuron by neuron."""

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation.joint import JointEngine, with_difference
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.affine import Convolution, Dense
from verifiers.graph.composed import ComposedConvolution, ComposedDense, composed
from verifiers.graph.difference import same_structure
from verifiers.graph.operators import Interval
from verifiers.graph.program import Program

SHAPE = (2, 6, 5)
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


def network(*layers: nn.Module) -> nn.Module:
    """The layers with fixed weights, and a linear head."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)  # ReLUs of both signs
        for layer in layers:
            if isinstance(layer, nn.Conv2d | nn.Linear):
                layer.reset_parameters()
        width = nn.Sequential(*layers)(X).flatten(1).shape[1]
        return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(width, 3)).eval()


def kinds(network: nn.Module) -> list[str]:
    return [type(node.operator).__name__ for node in composed(Program(network).graph(X)).nodes[1:]]


PRODUCTS = {
    "two matrices": [nn.Flatten(), nn.Linear(60, 3, bias=False), nn.Linear(3, 7)],
    "three matrices with biases": [nn.Flatten(), nn.Linear(60, 3), nn.Linear(3, 4), nn.Linear(4, 7)],
    "svd": [nn.Conv2d(2, 3, 3, 2, 1, bias=False), nn.Conv2d(3, 4, 1)],
    "tucker": [nn.Conv2d(2, 1, 1, bias=False), nn.Conv2d(1, 3, (3, 2), (2, 1), (1, 0), bias=False), nn.Conv2d(3, 4, 1)],
    "cp": [
        nn.Conv2d(2, 3, 1, bias=False),
        nn.Conv2d(3, 3, (3, 1), (2, 1), (1, 0), groups=3, bias=False),
        nn.Conv2d(3, 3, (1, 2), (1, 2), (0, 1), (1, 2), groups=3, bias=False),
        nn.Conv2d(3, 4, 1),
    ],
    "bias before a plain one": [nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 1)],
}
APART = {
    "two kernels": [nn.Conv2d(2, 3, 3, bias=False), nn.Conv2d(3, 4, 2)],
    "a bias that meets padding": [nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 3, padding=1)],
    "an activation between": [nn.Conv2d(2, 3, 1, bias=False), nn.ReLU(), nn.Conv2d(3, 4, 1)],
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_a_product_is_one_operator_and_the_same_map(name: str) -> None:
    made = network(*PRODUCTS[name])
    graph = composed(Program(made).graph(X))
    assert sum(kind.startswith("Composed") for kind in kinds(made)) == 1
    found, expected = graph(X.double()), made.double()(X.double())
    made.float()
    assert torch.allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", APART)
def test_layers_that_are_no_product_stay_apart(name: str) -> None:
    made = network(*APART[name])
    assert not any(kind.startswith("Composed") for kind in kinds(made))
    assert torch.allclose(composed(Program(made).graph(X))(X.double()), Program(made).graph(X)(X.double()))


def test_a_value_that_is_used_twice_stays() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(60, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.one(x.flatten(1))
            return self.two(hidden) + hidden

    assert "ComposedDense" not in kinds(Branches().eval())


def test_a_layer_with_an_error_in_its_constants_stays_apart() -> None:
    """Its error would be lost in a product."""
    graph = Program(network(*PRODUCTS["two matrices"])).graph(X)
    first = next(node.operator for node in graph.nodes if isinstance(node.operator, Dense))
    assert "ComposedDense" in [type(node.operator).__name__ for node in composed(graph).nodes]
    first.perturbation = lambda size: torch.full_like(size, torch.inf)
    found = [node.operator for node in composed(graph).nodes]
    assert first in found and "ComposedDense" not in [type(each).__name__ for each in found][:3]


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_error_covers_float32_in_parts(name: str) -> None:
    made = network(*PRODUCTS[name])
    graph = composed(Program(made).graph(X))
    place = next(i for i, n in enumerate(graph.nodes) if isinstance(n.operator, ComposedDense | ComposedConvolution))
    operator = graph.nodes[place].operator
    assert isinstance(operator, Dense | Convolution)
    inputs = graph.values(X.double())[graph.nodes[place].inputs[0]]
    layers = nn.Sequential(*[layer for layer in PRODUCTS[name] if not isinstance(layer, nn.Flatten)])
    scaled = 1e3 * inputs
    box = Interval(scaled, scaled)
    error = operator.rounding([box], operator.interval(box))
    with torch.no_grad():
        exact = operator.forward(scaled.float().double())
        images = scaled.float().reshape(-1, *X.shape[1:]) if isinstance(operator, Convolution) else scaled.float()
        seen = (layers(images).double().reshape(exact.shape) - exact).abs()
    assert error is not None and bool((seen <= error).all())
    parts = [part.error([scaled.abs()], scaled) for part in operator.parts[:1]]
    assert float(error.max()) < 0.1 and len(parts) == 1
    beyond = Interval(scaled * 0 + 1e42, scaled * 0 + 1e42)
    assert bool(operator.rounding([beyond], operator.interval(beyond)).isinf().any()), "a part may overflow"


@pytest.mark.parametrize("arithmetic", [Arithmetic.REAL, Arithmetic.FLOAT32])
@pytest.mark.parametrize("name", ["two matrices", "tucker", "cp"])
def test_a_low_rank_copy_is_related_to_its_original_neuron_by_neuron(name: str, arithmetic: Arithmetic) -> None:
    copy = network(*PRODUCTS[name])
    dense = composed(Program(copy).graph(X))
    layer = next(n.operator for n in dense.nodes if isinstance(n.operator, ComposedDense | ComposedConvolution))
    first: nn.Module
    if isinstance(layer, ComposedDense):
        first = nn.Linear(60, 7)
    else:
        sides = layer.stride, layer.padding, layer.dilation
        first = nn.Conv2d(2, 4, tuple(layer.weight.shape[2:]), *sides)
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        first.weight.copy_(layer.weight + 1e-3 * torch.randn(layer.weight.shape, generator=noise))
        first.bias.copy_(layer.bias)
    flat = [nn.Flatten()] if isinstance(first, nn.Linear) else []
    whole = nn.Sequential(*flat, first, *list(copy)[-3:]).eval()
    assert not same_structure(Program(copy).graph(X), Program(whole).graph(X))
    engine = JointEngine(copy, whole, X, arithmetic)
    assert engine.copies
    eye = torch.eye(3, dtype=torch.float64)
    rows = torch.cat([torch.cat([eye, -eye], 1), torch.cat([-eye, eye], 1)]).expand(4, -1, -1)
    balls = Balls.around(X.double(), 0.1, Norm.LINF)
    bounds = engine.ask(balls, rows, "crown").bound
    joint = engine.joint.ask(balls, rows, "crown").bound
    assert engine.coupled is not None
    relations = engine.coupled.ask(balls, with_difference(rows), "crown").bound
    assert torch.equal(bounds, torch.maximum(joint, relations)), "at least as tight as the joint graph"
    assert float(relations.mean()) > 1.001 * float(joint.mean()), "relations are no looser here"
    points = (X + 0.1 * (2 * torch.rand(500, 1, *SHAPE, generator=noise) - 1)).clamp(0, 1).flatten(0, 1)
    apart = (copy(points).double() - whole(points).double()).detach().reshape(500, 4, 3)
    least = torch.cat([apart.amin(0), (-apart).amin(0)], 1)
    assert bool((bounds <= least).all()), f"a point breaks a bound by {float((bounds - least).max())}"
