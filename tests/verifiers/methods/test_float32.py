"""Radii hold for the network in float32: no point inside one changes the class, in any order of summation."""

import importlib.util
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import MANY, only
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.status import About, Guarantee, Status
from verifiers.geometry.balls import norms
from verifiers.methods.registry import METHODS, find, settings_of

PROOFS = tuple(m for m in METHODS if m.guarantee is Guarantee.DETERMINISTIC)
ALONE = tuple(str(m.model_fields["kind"].default) for m in PROOFS if m.about is About.NETWORK)
PAIRS = tuple(str(m.model_fields["kind"].default) for m in PROOFS if m.about is About.PAIR and not m.relational)
FAST = {"iterations": 3, "steps": 3, "restarts": 1, "shells": 4, "constants": "fast", "time_limit": 5.0}


def fast(*methods: str) -> dict[str, object]:
    """The quick settings that some of these methods have."""
    known = {name for method in methods for name in settings_of(find(method))}
    return {name: value for name, value in FAST.items() if name in known}


Array = np.ndarray
#: A layer as float32 arrays.
Layer = tuple[Array, Array]


# Float32 machines: each adds up the products of a row and its bias in its own order.


def forwards(products: Array, bias: Array) -> Array:
    total = np.broadcast_to(bias, products.shape[:-1]).astype("f4")
    for j in range(products.shape[-1]):
        total = total + products[..., j]
    return total


def backwards(products: Array, bias: Array) -> Array:
    total = np.zeros(products.shape[:-1], "f4")
    for j in reversed(range(products.shape[-1])):
        total = total + products[..., j]
    return total + bias


def pairwise(products: Array, bias: Array) -> Array:
    terms = np.concatenate([products, np.broadcast_to(bias, products.shape[:-1])[..., None]], -1)
    while terms.shape[-1] > 1:
        odd = terms[..., -1:] if terms.shape[-1] % 2 else terms[..., :0]
        terms = np.concatenate([terms[..., 0:-1:2] + terms[..., 1::2], odd], -1)
    return terms[..., 0]


def largest_first(products: Array, bias: Array) -> Array:
    order = np.argsort(-np.abs(products), -1)
    return forwards(np.take_along_axis(products, order, -1), bias)


def once(products: Array, bias: Array) -> Array:
    """Rounded products, summed exactly and rounded once."""
    return (products.astype(np.longdouble).sum(-1) + bias).astype("f4")


def fused(x: Array, layer: Layer) -> Array:
    """Fused multiply-add: the product is not rounded."""
    weight, bias = layer
    total = np.broadcast_to(bias, (len(x), len(bias))).astype("f4")
    for j in range(x.shape[1]):
        total = (x[:, j, None].astype(np.longdouble) * weight[:, j] + total).astype("f4")
    return total


def by(total: Callable[[Array, Array], Array]) -> Callable[[Array, Layer], Array]:
    return lambda x, layer: total(x[:, None, :] * layer[0], layer[1])


MACHINES: dict[str, Callable[[Array, Layer], Array]] = {
    "forwards": by(forwards),
    "backwards": by(backwards),
    "pairwise": by(pairwise),
    "largest first": by(largest_first),
    "once": by(once),
    "fused": fused,
}


def layers_of(network: nn.Module) -> list[Layer]:
    return [
        (layer.weight.detach().numpy(), layer.bias.detach().numpy())
        for layer in network.modules()
        if isinstance(layer, nn.Linear)
    ]


def logits(network: nn.Module, x: Tensor) -> Iterator[tuple[str, Array]]:
    """The logits of every machine, torch's own among them."""
    layers = layers_of(network)
    with torch.no_grad(), np.errstate(all="ignore"):
        yield "torch", network(x).numpy()
        yield "torch, one by one", torch.cat([network(one) for one in x[:64].split(1)]).numpy()
        for name, machine in MACHINES.items():
            value = x.numpy()
            for k, layer in enumerate(layers):
                value = machine(value, layer)
                if k + 1 < len(layers):
                    value = np.where(value < 0, np.float32(0), value)  # keeps nan
            yield name, value


# Networks


def mlp(*sizes: int) -> nn.Sequential:
    parts: list[nn.Module] = []
    for before, after in itertools.pairwise(sizes):
        parts += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*parts[:-1]).eval()


def cancelling(size: float) -> tuple[nn.Module, Tensor]:
    """Hidden values of the given size cancel in the logits; a black pixel hides it at the image."""
    network = mlp(2, 2, 2)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[size, 1.0], [size, 0.0]]))
        network[0].bias.zero_()
        network[2].weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        network[2].bias.copy_(torch.tensor([-0.2, 0.2]))
    return network, torch.tensor([[0.0, 0.9], [0.0, 0.1]])


def tent(height: float, factor: float) -> tuple[nn.Module, Tensor]:
    """A hidden tent is zero at the image and at most corners, and as high as given between them."""
    network = mlp(2, 4, 2, 2, 2)
    start, width = 0.5, 0.05
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.bias.zero_()
        network[0].weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        network[0].bias.copy_(torch.tensor([-start, -(start + width / 2), -(start + width), 0.0]))
        network[2].weight.copy_(torch.tensor([[height, -2 * height, height, 0.0], [0.0, 0.0, 0.0, 1.0]]))
        network[4].weight.copy_(torch.tensor([[factor, 0.0], [0.0, 1.0]]))
        network[6].weight.copy_(torch.tensor([[0.0, 1.0], [0.0, -1.0]]))
        network[6].bias.copy_(torch.tensor([-0.2, 0.2]))
    return network, torch.tensor([[0.3, 0.7], [0.2, 0.05]])


def odd(seed: int) -> tuple[nn.Module, Tensor]:
    """Random layers whose units have scales from 1e-4 to 1e4, some of them undone by the next layer."""
    random = torch.Generator().manual_seed(seed)
    sizes = [int(torch.randint(2, 4 if i == 0 else 12, (), generator=random)) for i in range(3)]
    network = mlp(*sizes, 3)
    scale = torch.ones(sizes[0])
    with torch.no_grad():
        for layer in network:
            if isinstance(layer, nn.Linear):
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=random) / layer.in_features**0.5 / scale)
                scale = 10.0 ** (8 * torch.rand(len(layer.bias), generator=random) - 4)
                scale = torch.ones(3) if len(layer.bias) == 3 and layer is network[-1] else scale
                layer.weight *= scale[:, None]
                layer.bias.copy_(torch.randn(len(layer.bias), generator=random) * scale / 2)
    x = torch.rand(4, sizes[0], generator=random)
    return network, torch.where(torch.rand(x.shape, generator=random) < 0.2, 0.0, x)


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    **{f"cancelling {size:g}": lambda s=size: cancelling(s) for size in (1e4, 1e6, 1e7, 1e8, 1e12)},
    **{f"tent {h:g} {f:g}": lambda h=h, f=f: tent(h, f) for h, f in ((1e30, 1e20), (1e20, 1.0), (1e30, 1e-20))},
    **{f"odd {seed}": lambda s=seed: odd(s) for seed in range(3)},
}


# Points inside a radius


def inside(x: Tensor, points: Tensor, radius: float, norm: Norm) -> Tensor:
    points = points.clamp(0.0, 1.0)
    return points[norms(points.double() - x.double(), norm) <= radius]


def tried(network: nn.Module, x: Tensor, radius: float, norm: Norm, predicted: int) -> Tensor:
    """Random points and corners of a ball, and all float32 neighbours of the weakest of them."""
    random = torch.Generator().manual_seed(0)
    delta = 2 * torch.rand((1000, x.shape[1]), generator=random) - 1
    corners = delta.sign() if norm is Norm.LINF else delta / norms(delta, norm)[:, None]
    axes = torch.cat([torch.eye(x.shape[1]), -torch.eye(x.shape[1])])
    points = inside(x, x + radius * torch.cat([delta, corners, axes, 0.5 * axes]) * (1 - 1e-7), radius, norm)
    points = torch.cat([x, points])
    with torch.no_grad():
        exact = network.double()(points.double())
        network.float()
    others = exact.masked_fill(torch.eye(exact.shape[1], dtype=torch.bool)[predicted], -torch.inf).amax(1)
    weakest = points[(exact[:, predicted] - others).nan_to_num(-torch.inf).argsort()[:2]]
    steps = torch.cartesian_prod(*[torch.arange(-4, 5)] * x.shape[1])
    neighbours = torch.cat([ulps(point, steps) for point in weakest])
    return torch.cat([points, inside(x, neighbours, radius, norm)])


def ulps(point: Tensor, steps: Tensor) -> Tensor:
    """Move a point by a number of float32 numbers along each axis."""
    return (point.clamp_min(1e-6).view(torch.int32) + steps.to(torch.int32)).view(torch.float32)


def violations(network: nn.Module, x: Tensor, radius: float, norm: Norm, predicted: int) -> list[str]:
    points = tried(network, x, radius, norm, predicted)
    found = []
    for machine, values in logits(network, points):
        rivals = np.delete(values, predicted, 1).max(1)
        wrong = ~(values[:, predicted] >= rivals)  # a tie is no other class
        if wrong.any():
            found.append(f"{machine}: {int(wrong.sum())} of {len(wrong)} points within {radius:.4g}")
    return found


def check(network: nn.Module, teacher: nn.Module | None, x: Tensor, norm: Norm, **more: object) -> int:
    """Certify by all methods and try to break every radius; return the number of radii."""
    predicted = network(x).argmax(1)
    methods = more.pop("methods", ALONE if teacher is None else PAIRS)
    methods = tuple(method for method in methods if norm in find(method).norms)
    try:
        result = certify(
            network,
            x,
            predicted,
            eps="0.01",
            norm=norm,
            methods=methods,
            teacher=teacher,
            options=fast(*methods),
            **more,
        )
    except InputError as refusal:
        assert "float32 is too coarse" in str(refusal)
        return 0
    count = 0
    for rows in result:
        assert rows.count(Status.ERROR) == 0, f"{rows.name}: {rows.attributes.get('reason')}"
        both = (network, teacher) if rows.name == "joint" else (network,)
        for i in np.flatnonzero(rows["radius"] > 0):
            count += 1
            for each in both:
                assert each is not None
                found = violations(each, x[i : i + 1], float(rows["radius"][i]), norm, int(predicted[i]))
                assert not found, f"{rows.name}, image {i}: {'; '.join(found)}"
    return count


@pytest.mark.parametrize(
    ("name", "norm"),
    only(
        [("cancelling 1e+07", Norm.LINF), ("odd 0", Norm.L2)],
        [(name, norm) for name in NETWORKS for norm in Norm],
    ),
)
@pytest.mark.thin(2)
def test_no_float32_machine_breaks_a_radius(name: str, norm: Norm) -> None:
    network, x = NETWORKS[name]()
    count = check(network, None, x, norm)
    assert count or not name.startswith("odd"), "nothing was proved"


@pytest.mark.slow
@pytest.mark.parametrize("block", range(MANY // 20))
def test_no_float32_machine_breaks_a_radius_of_many_networks(block: int) -> None:
    count = 0
    for seed in range(20 * block, 20 * block + 20):
        network, x = odd(seed + 1000)
        count += check(network, None, x, list(Norm)[seed % 3], methods=("ibp", "crown", "lipschitz", "local-linearity"))
    assert count > 20, f"{count} radii in 20 networks"


def copy_of(network: nn.Module, size: float) -> nn.Module:
    copy = mlp(*[network[0].in_features, *(layer.out_features for layer in network if isinstance(layer, nn.Linear))])
    copy.load_state_dict({name: value * (1 + size * torch.sin(value)) for name, value in network.state_dict().items()})
    return copy


@pytest.mark.parametrize("name", only(["odd 1"], ["cancelling 1e+06", "odd 1"]))
@pytest.mark.slow
def test_no_float32_machine_breaks_a_radius_of_a_pair(name: str) -> None:
    network, x = NETWORKS[name]()
    check(network, copy_of(network, 0.0 if "cancel" in name else 1e-3), x, Norm.LINF)


@pytest.mark.skipif(importlib.util.find_spec("auto_LiRPA") is None, reason="auto-LiRPA is not installed")
@pytest.mark.parametrize("name", only(["cancelling 1e+07"], ["cancelling 1e+07", "odd 2"]))
def test_no_float32_machine_breaks_a_radius_of_the_other_engine(name: str) -> None:
    network, x = NETWORKS[name]()
    check(network, None, x, Norm.LINF, methods=("ibp", "crown"), engine="auto-lirpa")


def test_the_machines_are_float32_and_differ() -> None:
    network, x = cancelling(1e7)
    found = dict(logits(network, torch.tensor([[0.3, 0.9]])))
    assert all(values.dtype == np.float32 for values in found.values())
    assert len({values.tobytes() for values in found.values()}) > 1, "all machines round alike"
    assert violations(network, x[:1], 0.69, Norm.LINF, 0), "the radius over the real numbers withstands float32"


def test_overflow_inside_a_ball_proves_nothing() -> None:
    network, x = tent(1e30, 1e20)
    predicted = network(x).argmax(1)
    methods = ("ibp", "crown", "lipschitz")
    result = certify(network, x, predicted, eps="0.3", methods=methods, options=fast(*methods))
    for rows in result:
        assert not rows["certified"].any(), f"{rows.name} certifies a ball with an overflow"
        assert (rows["radius"] < 0.3).all() and np.isinf(rows["rounding"][0])
    real = certify(network, x, predicted, eps="0.1", methods=("crown",), arithmetic="real")["crown"]
    assert (real["rounding"] == 0).all() and real["radius"][0] > 0.4, "the real network has a large radius"
