"""Global Lipschitz constants against reference values, exact constants, sampled gradients and a literal LMI."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.marks import thin
from tests.paths import GOLDEN
from tests.verifiers.graph.nets import Fn, Net
from verifiers.core.errors import Unsupported
from verifiers.graph.capture import capture
from verifiers.graph.graph import Graph
from verifiers.lipschitz import chains as module
from verifiers.lipschitz import global_bounds as global_module
from verifiers.lipschitz.chains import certified, eclipse_fast, lipsdp
from verifiers.lipschitz.global_bounds import GlobalBounds, chain_form, global_bounds, liplt_pairs, pair_rows, product
from verifiers.lipschitz.jacobians import SlopeRanges, liplt
from verifiers.lipschitz.layers import Layers, written_out

FOLDER = GOLDEN / "lipschitz" / "exlipbab_exact.npz"
needs_golden = pytest.mark.skipif(not FOLDER.is_file(), reason="the exact constants are not beside the repository")
METHODS = ("product", "liplt", "eclipse-fast", "lipsdp")
Array = np.ndarray


# Networks


def perceptron(weights: Sequence[Array], activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Module:
    """Linear layers without biases, an activation between each two, in float64."""
    parts: list[nn.Module] = []
    for weight in weights:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False).double()
        layer.weight = nn.Parameter(torch.tensor(weight))
        parts += [layer, activation()]
    return nn.Sequential(*parts[:-1])


def random_weights(seed: int, sizes: Sequence[int]) -> list[Array]:
    draw = np.random.RandomState(seed)
    return [draw.standard_normal((after, before)) for before, after in itertools.pairwise(sizes)]


def as_chain(weights: Sequence[Array]) -> list[Tensor]:
    return [torch.tensor(weight) for weight in weights]


def parts_of(network: nn.Module, shape: tuple[int, ...]) -> tuple[Graph, Layers]:
    graph = capture(network, torch.zeros(1, *shape, dtype=torch.float64))
    return graph, written_out(graph)


def bounds_of(network: nn.Module, shape: tuple[int, ...], tight: bool = True) -> GlobalBounds:
    """By every method; matrices where they can be had."""
    graph = capture(network, torch.zeros(1, *shape, dtype=torch.float64))
    try:
        layers = written_out(graph)
    except Unsupported:
        layers = None
    return global_bounds(graph, layers, tight)


def settled(network: nn.Module, shape: tuple[int, ...]) -> nn.Module:
    """Eval mode and float64, with batch norms that have seen data and random scales."""
    network = network.double()
    network.train()
    for module_ in network.modules():
        if isinstance(module_, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module_.weight)
    with torch.no_grad():
        for _ in range(3):
            network(torch.rand(16, *shape, dtype=torch.float64))
    return network.eval().requires_grad_(False)


def steepest(network: nn.Module, shape: tuple[int, ...], samples: int = 300) -> Tensor:
    """The largest sampled gradient norm of every pair of logits, of the torch module itself."""
    x = torch.randn(samples, *shape, dtype=torch.float64) * torch.logspace(-2, 1.5, samples).double().reshape(
        -1, *(1,) * len(shape)
    )
    network.requires_grad_(False)
    jacobian = torch.func.vmap(torch.func.jacrev(lambda image: network(image[None])[0]))(x).flatten(2)
    gram = jacobian @ jacobian.mT
    size = gram.diagonal(dim1=1, dim2=2)
    return (size[:, :, None] + size[:, None, :] - 2 * gram).clamp_min(0).amax(0).sqrt()


# Reference values

TABLE = [
    # seed, sizes, whether all outputs, product, LipLT, ECLipsE-Fast, LipSDP-Neuron, pattern maximum
    (0, (3, 5, 2), True, 13.1708790136, 8.8276919280, 9.5157318869, 6.221688, 6.1898808253),
    (0, (3, 5, 2), False, 16.2339614802, 10.7772782317, 12.0302585307, 8.699901, 8.6999013994),
    (1, (3, 5, 4, 2), True, 19.2178623353, 13.5425564132, 13.4764151673, 10.495071, 10.4950714491),
    (1, (3, 5, 4, 2), False, 26.0021926752, 17.4796989446, 17.4456120129, 12.924858, 12.6287489717),
    (2, (4, 6, 6, 3), True, 53.2755732346, 32.8600491066, 34.5279420801, 17.447175, 16.8424380452),
    (2, (4, 6, 6, 3), False, 29.6724882385, 22.5419365697, 22.1229182942, 17.212676, 17.1689496439),
]


def pattern_maximum(weights: Sequence[Array], row: Array) -> float:
    """The largest norm over all 0/1 patterns of slopes."""
    sizes = [len(weight) for weight in weights[:-1]]
    best = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=sum(sizes)):
        jacobian, rest = weights[0], list(bits)
        for weight, size in zip(weights[1:], sizes, strict=True):
            jacobian, rest = weight * np.array(rest[:size]) @ jacobian, rest[size:]
        best = max(best, float(np.linalg.norm(row @ jacobian, 2)))
    return best


@pytest.mark.parametrize(("seed", "sizes", "whole", "prod", "lip", "eclipse", "sdp", "pattern"), thin(TABLE))
def test_reference_values(
    seed: int, sizes: tuple[int, ...], whole: bool, prod: float, lip: float, eclipse: float, sdp: float, pattern: float
) -> None:
    weights = random_weights(seed, sizes)
    chain = as_chain(weights)
    rows = torch.eye(sizes[-1]).double()[None] if whole else pair_rows(sizes[-1], chain[0])[:1]
    tight = float(lipsdp(chain, rows))
    assert float(eclipse_fast(chain, rows)) == pytest.approx(eclipse, rel=1e-9)
    assert pattern * (1 - 1e-9) <= tight <= sdp * 1.005
    if not whole:
        graph, layers = parts_of(perceptron(weights), sizes[:1])
        assert float(product(graph)[0, 1]) == pytest.approx(prod, rel=1e-5)
        assert float(liplt_pairs(layers)[0, 1]) == pytest.approx(lip, rel=1e-5)
        assert tight == pytest.approx(sdp, rel=1e-4)  # of one row the optimum is reached
        assert {*global_bounds(graph, layers, tight=True).values} == {*METHODS}
    if sum(sizes[1:-1]) <= 9:
        row = np.eye(sizes[-1]) if whole else rows[0].numpy()
        assert pattern_maximum(weights, row) == pytest.approx(pattern, rel=1e-9)


def test_the_absolute_value_and_the_identity_by_two_units() -> None:
    one = np.array([[1.0], [-1.0]])
    for row, fast, exact in ((np.array([[1.0, 1.0]]), 2**0.5, 1.0), (np.array([[1.0, -1.0]]), None, 2.0)):
        chain, rows = as_chain([one, row]), torch.ones(1, 1, 1, dtype=torch.float64)
        assert float(eclipse_fast(chain, rows)) == pytest.approx(fast or exact, rel=1e-9)
        assert exact * (1 - 1e-12) <= float(lipsdp(chain, rows)) <= exact * 1.001
        graph, layers = parts_of(perceptron([one, np.concatenate([row, 0 * row])]), (1,))
        assert float(product(graph)[0, 1]) == pytest.approx(2.0, rel=1e-5)
        assert float(liplt_pairs(layers)[0, 1]) == pytest.approx(exact, rel=1e-5)


@needs_golden
@pytest.mark.parametrize(
    ("name", "exact", "sdp"),
    [("iris", 11.634355, 11.6353), ("abalone", 11.121602, 11.2255), ("wine12", 1.743370, 1.8469)],
)
def test_no_bound_is_below_an_exact_constant(name: str, exact: float, sdp: float) -> None:
    with np.load(FOLDER) as stored:
        weights = [stored[f"{name}_W{k}"].astype(np.float64) for k in (1, 2, 3)]
    chain = as_chain(weights)
    rows = torch.eye(len(weights[-1]), dtype=torch.float64)[None]
    tight, fast = float(lipsdp(chain, rows)), float(eclipse_fast(chain, rows))
    assert exact * (1 - 1e-6) <= tight <= min(sdp * 1.01, fast)
    # as a network of two logits where there is one: its pair is f_0 - 0
    padded = [*weights[:-1], np.concatenate([weights[-1], 0 * weights[-1][:1]])]
    if len(weights[-1]) == 1:
        found = bounds_of(perceptron(padded), weights[0].shape[1:])
        assert {*found.values} == {*METHODS}
        assert all(float(value[0, 1]) >= exact * (1 - 1e-6) for value in found.values.values())
    norms = np.prod([np.linalg.norm(weight, 2) for weight in weights])
    _, layers = parts_of(perceptron(padded), weights[0].shape[1:])
    one_by_one = liplt(SlopeRanges.anywhere(layers), torch.eye(len(padded[-1]), dtype=torch.float64)[None])[0]
    assert min(norms, float(one_by_one.norm())) >= exact


# The statement that LipSDP rests on


def lmi(weights: Sequence[Array], t: Array, row: Array, constant: float) -> Array:
    """The whole matrix, written out: L^2 [I; 2T; -T W] - blkdiag(0, ..., (row W)'(row W))."""
    sizes = [weights[0].shape[1], *(len(weight) for weight in weights[:-1])]
    starts = np.cumsum([0, *sizes])
    q = np.eye(starts[-1])
    for k, weight in enumerate(weights[:-1]):
        after, before = slice(starts[k + 1], starts[k + 2]), slice(starts[k], starts[k + 1])
        multipliers = 1 / t[starts[k + 1] - sizes[0] : starts[k + 2] - sizes[0]]
        q[after, after] = 2 * np.diag(multipliers)
        q[after, before] = -multipliers[:, None] * weight
        q[before, after] = q[after, before].T
    v = row @ weights[-1]
    q *= constant**2
    q[starts[-2] :, starts[-2] :] -= v.T @ v
    return q


def holds(matrix: Array) -> bool:
    n = len(matrix)
    try:
        np.linalg.cholesky(matrix - 2 * 2.0**-53 * (n + 3) * np.trace(matrix) * np.eye(n))
    except np.linalg.LinAlgError:
        return False
    return True


def test_every_feasible_multiplier_is_a_certificate_that_the_written_out_lmi_confirms() -> None:
    generator = torch.Generator().manual_seed(0)
    for seed, sizes, whole, *_, sdp, pattern in TABLE:
        weights = random_weights(seed, sizes)
        chain = as_chain(weights)
        row = torch.eye(sizes[-1]).double() if whole else pair_rows(sizes[-1], chain[0])[0]
        middle, _ = module._by_layers(chain, lambda gram: gram.diagonal().sqrt())
        t = middle * (torch.randn(200, len(middle), generator=generator, dtype=torch.float64)).exp()
        found = certified(chain, t, row.expand(200, 1, *row.shape))[:, 0]
        feasible = found.isfinite()
        assert 5 < int(feasible.sum()) < 200
        assert float(found.min()) >= max(pattern, sdp * (1 - 1e-6))
        for multipliers, constant, fine in zip(t.numpy(), found.tolist(), feasible.tolist(), strict=True):
            if fine:
                assert holds(lmi(weights, multipliers, row.numpy(), constant * (1 + 1e-6)))
                assert not holds(lmi(weights, multipliers, row.numpy(), constant * 0.99))
            else:
                assert not holds(lmi(weights, multipliers, row.numpy(), 100 * pattern))


def test_constants_below_the_truth_that_an_ill_conditioned_inverse_gives_are_caught() -> None:
    """Past the edge of the feasible multipliers a plain inverse still gives numbers, and they are too small."""
    caught = 0
    for seed, sizes in ((0, (3, 5, 2)), (1, (3, 5, 4, 2)), (2, (4, 6, 6, 3))):
        weights = random_weights(seed, sizes)
        chain = as_chain(weights)
        row = pair_rows(sizes[-1], chain[0])[0]
        truth = pattern_maximum(weights, row.numpy())
        middle, _ = module._by_layers(chain, lambda gram: gram.diagonal().sqrt())
        edge = middle * 0.5
        for scale in np.linspace(0.3, 1.2, 60):
            t = edge * scale
            q = lmi(weights, t.numpy(), 0 * row.numpy(), 1.0)
            v = np.zeros(len(q))
            v[-sizes[-2] :] = (row.numpy() @ weights[-1])[0]
            naive = v @ np.linalg.inv(q) @ v
            if 0 < naive < (0.99 * truth) ** 2:
                caught += 1
                assert float(certified(chain, t[None], row[None, None])) == float("inf")
                assert not holds(lmi(weights, t.numpy(), row.numpy(), naive**0.5))
    assert caught > 10


def test_the_shift_keeps_an_optimiser_at_the_edge_sound() -> None:
    """On the very edge, found by bisection, the factorisation without a shift goes through at a singular matrix."""
    weights = random_weights(0, (3, 5, 2))
    chain, rows = as_chain(weights), pair_rows(2, torch.zeros(1, dtype=torch.float64))[None]
    middle, _ = module._by_layers(chain, lambda gram: gram.diagonal().sqrt())
    low, high = 0.1, 1.0
    for _ in range(200):
        scale = (low + high) / 2
        passes = bool(certified(chain, scale * middle[None], rows, shift=0.0).isfinite())
        low, high = (low, scale) if passes else (scale, high)
    gram = weights[0] @ weights[0].T
    scaled = np.eye(5) - gram / np.sqrt(np.outer(high * middle, high * middle)) / 2
    assert np.linalg.eigvalsh(scaled)[0] < 1e-14
    assert float(certified(chain, high * middle[None], rows)) == float("inf")


def test_a_broken_optimiser_costs_tightness_only(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = as_chain(random_weights(1, (3, 5, 4, 2)))
    rows, fast = pair_rows(2, chain[0]), eclipse_fast(chain, pair_rows(2, chain[0]))
    for wrong in (1e-9, 1e9, float("nan")):
        monkeypatch.setattr(module, "_optimized", lambda chain, start, *_, wrong=wrong: start * wrong)
        assert torch.equal(lipsdp(chain, rows), fast)


def test_each_pair_is_at_least_as_good_with_its_own_multipliers(monkeypatch: pytest.MonkeyPatch) -> None:
    chain = as_chain(random_weights(3, (6, 12, 12, 5)))
    rows = pair_rows(5, chain[0])
    own = lipsdp(chain, rows)
    monkeypatch.setattr(module, "ENTRIES", 1)
    assert torch.allclose(lipsdp(chain, rows), own, rtol=1e-4)
    monkeypatch.setattr(module, "ROW_BY_ROW", 10)
    shared = lipsdp(chain, rows)
    assert bool((own <= shared * (1 + 2e-3)).all()) and float((shared / own).mean()) > 1.01
    assert bool((shared <= eclipse_fast(chain, rows)).all())
    monkeypatch.setattr(module, "UNITS", 20)
    with pytest.raises(Unsupported, match="24"):
        lipsdp(chain, rows)


# Soundness on networks


def _residual(net: nn.Module, x: Tensor) -> Tensor:
    y = torch.relu(net.first(x))
    return net.last(torch.relu(y + net.third(torch.relu(net.second(y)))))


def _convolutional(*middle: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 6, 3), *middle, nn.Flatten(), nn.LazyLinear(4))


def _dense(activation: Callable[[], nn.Module]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), activation(), nn.Linear(12, 8), activation(), nn.Linear(8, 4))


FLAT, IMAGE = (6,), (2, 5, 5)
CHAINS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module]]] = {
    "relu": (FLAT, lambda: _dense(nn.ReLU)),
    "leaky relu": (FLAT, lambda: _dense(lambda: nn.LeakyReLU(0.2))),
    "leaky relu of slope 2": (FLAT, lambda: _dense(lambda: nn.LeakyReLU(2.0))),
    "tanh": (FLAT, lambda: _dense(nn.Tanh)),
    "sigmoid": (FLAT, lambda: _dense(nn.Sigmoid)),
    "softplus": (FLAT, lambda: _dense(lambda: nn.Softplus(2.0))),
    "affine": (FLAT, lambda: nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))),
    "batch norm": (
        FLAT,
        lambda: nn.Sequential(
            nn.BatchNorm1d(6), nn.Linear(6, 9), nn.BatchNorm1d(9), nn.ReLU(), nn.Linear(9, 4), nn.BatchNorm1d(4)
        ),
    ),
    "convolutions": (IMAGE, lambda: _convolutional(nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 2, 1), nn.ReLU())),
    "grouped convolutions": (
        IMAGE,
        lambda: _convolutional(nn.ReLU(), nn.Conv2d(6, 9, 3, 2, 1, groups=3), nn.BatchNorm2d(9), nn.ReLU()),
    ),
    "depthwise convolutions": (
        IMAGE,
        lambda: _convolutional(nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6, padding=2, dilation=2), nn.ReLU()),
    ),
    "average pool": (IMAGE, lambda: _convolutional(nn.ReLU(), nn.AvgPool2d(2, 1), nn.Conv2d(6, 3, 2), nn.ReLU())),
}
OTHERS: dict[str, tuple[tuple[int, ...], Callable[[], nn.Module], tuple[str, ...]]] = {
    "residual": (
        FLAT,
        lambda: Net(
            _residual, first=nn.Linear(6, 8), second=nn.Linear(8, 7), third=nn.Linear(7, 8), last=nn.Linear(8, 4)
        ),
        ("product", "liplt"),
    ),
    "gelu": (FLAT, lambda: _dense(nn.GELU), ("product", "liplt")),
    "silu": (FLAT, lambda: _dense(nn.SiLU), ("product", "liplt")),
    "leaky relu of slope -0.5": (FLAT, lambda: _dense(lambda: nn.LeakyReLU(-0.5)), ("product", "liplt")),
    "overlapping max pool": (IMAGE, lambda: _convolutional(nn.MaxPool2d(2, 1), nn.ReLU()), ("product",)),
    "max pool of stride 1": (IMAGE, lambda: _convolutional(nn.MaxPool2d(3, 1, 1)), ("product",)),
    "max pool": (IMAGE, lambda: _convolutional(nn.ReLU(), nn.MaxPool2d(2, ceil_mode=True)), ("product",)),
    "layer norm": (FLAT, lambda: nn.Sequential(nn.LayerNorm(6, eps=1e-2), _dense(nn.ReLU)), ("product",)),
    "group norm": (IMAGE, lambda: _convolutional(nn.GroupNorm(2, 6), nn.ReLU()), ("product",)),
    "softmax": (FLAT, lambda: nn.Sequential(nn.Linear(6, 4), nn.Softmax(-1)), ("product",)),
    "concatenation": (
        FLAT,
        lambda: Net(lambda n, x: n.b(torch.cat([x, torch.relu(n.a(x)), x], 1)), a=nn.Linear(6, 5), b=nn.Linear(17, 4)),
        ("product", "liplt"),
    ),
}


def _sound(found: GlobalBounds, network: nn.Module, shape: tuple[int, ...]) -> None:
    sampled = steepest(network, shape)
    assert float(sampled.max()) > 0
    for name, value in found.values.items():
        assert value.dtype == torch.float64 and torch.equal(value, value.T) and not bool(value.diagonal().any())
        assert bool((value >= sampled).all()), name
        assert bool((found.best <= value).all())


@pytest.mark.parametrize("name", thin(CHAINS))
def test_no_bound_of_a_chain_is_below_a_sampled_gradient(name: str) -> None:
    torch.manual_seed(1)
    shape, build = CHAINS[name]
    network = settled(build(), shape)
    found = bounds_of(network, shape)
    assert {*found.values} == {*METHODS} and not found.reasons
    _sound(found, network, shape)
    values = found.values
    assert bool((values["lipsdp"] <= values["eclipse-fast"]).all())
    assert bool((values["liplt"] <= values["product"] * (1 + 1e-5)).all())


@pytest.mark.parametrize("name", thin(OTHERS))
def test_no_bound_of_another_network_is_below_a_sampled_gradient(name: str) -> None:
    torch.manual_seed(1)
    shape, build, methods = OTHERS[name]
    network = settled(build(), shape)
    found = bounds_of(network, shape)
    assert {*found.values} == {*methods}
    _sound(found, network, shape)


def test_pooling_by_one_would_be_too_small() -> None:
    """Windows that overlap count a pixel several times."""
    network = Fn(lambda x: F.max_pool2d(x, 3, 1, 1).flatten(1)[:, 24:25] * torch.tensor([[1.0, -1.0]]).double())
    whole = Fn(lambda x: F.max_pool2d(x, 3, 1).flatten(1).sum(1, keepdim=True) * torch.tensor([[1.0, -1.0]]).double())
    for model in (network, whole):
        peak = torch.zeros(1, 5, 5, dtype=torch.float64)
        peak[0, 2, 2] = 1.0
        gradient = torch.func.jacrev(lambda image, model=model: model(image[None])[0])(peak).flatten(1)
        assert float(bounds_of(model, (1, 5, 5)).best[0, 1]) >= float((gradient[0] - gradient[1]).norm())
    assert float((gradient[0] - gradient[1]).norm()) == pytest.approx(18.0)


def test_every_pair_of_more_logits_than_pushed_rows_share() -> None:
    """The merged tail is the one of the pair: norms of rows of the product of the last affine maps."""
    torch.manual_seed(0)
    network = settled(
        nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        ),
        (1, 6, 6),
    )
    graph, layers = parts_of(network, (1, 6, 6))
    last, first = layers.output.weights[1], layers.hidden[0].weights[0]
    expected = torch.cdist(last, last, compute_mode="donot_use_mm_for_euclid_dist") * torch.linalg.matrix_norm(first, 2)
    assert torch.allclose(product(graph), expected, rtol=1e-5)


# Refusals


def test_slopes_below_zero_are_refused_in_chain_form_where_it_would_be_wrong() -> None:
    """s(x) - s(x + 10) with slopes in [-1/2, 1] has gradient -3/2 at -5; the chain of slopes in [0, 1] says sqrt(2)."""
    weights = [np.array([[1.0], [1.0]]), np.array([[1.0, -1.0], [0.0, 0.0]])]
    network = perceptron(weights, lambda: nn.LeakyReLU(-0.5))
    network[0].bias = nn.Parameter(torch.tensor([0.0, 10.0]).double())
    truth = float(steepest(network, (1,)).max())
    assert truth == pytest.approx(1.5)
    rows = pair_rows(2, torch.zeros(1, dtype=torch.float64))
    assert float(eclipse_fast(as_chain(weights), rows)) == pytest.approx(2**0.5)
    assert float(lipsdp(as_chain(weights), rows)) < 1.01
    found = bounds_of(network, (1,))
    assert {*found.values} == {"product", "liplt"} and float(found.best[0, 1]) >= truth
    for activation in (nn.GELU, nn.SiLU, lambda: nn.LeakyReLU(-0.5)):
        reasons = bounds_of(_dense(activation).double(), FLAT).reasons
        assert {*reasons} == {"eclipse-fast", "lipsdp"}
        assert all("'1'" in reason and "below 0" in reason for reason in reasons.values())


def test_a_layer_without_a_constant_is_refused_with_its_path() -> None:
    def gated(net: nn.Module, x: Tensor) -> Tensor:
        return net.out(net.gate(x) * net.body(x))

    class Square(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x**2

    network = Net(gated, gate=nn.Linear(6, 5), body=nn.Linear(6, 5), out=nn.Linear(5, 4)).double()
    found = bounds_of(network, FLAT)
    assert not found.values and "mul" in found.reasons["product"]
    assert float(found.best[0, 1]) == float("inf") and float(found.best[1, 1]) == 0
    squared = nn.Sequential(nn.Linear(6, 5), Square(), nn.Linear(5, 4)).double()
    reasons = bounds_of(squared, FLAT).reasons
    assert {*reasons} == {*METHODS} and all("'1'" in reason and "slope" in reason for reason in reasons.values())
    attention = Net(
        lambda n, x: n.out(F.scaled_dot_product_attention(n.a(x), n.a(x), n.b(x)).flatten(1)),
        a=nn.Linear(6, 3),
        b=nn.Linear(6, 3),
        out=nn.Linear(12, 4),
    ).double()
    assert "product" in bounds_of(attention, (4, 6)).reasons
    normal = nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5, eps=0.0), nn.Linear(5, 4)).double()
    assert "'1'" in bounds_of(normal, FLAT).reasons["product"]


def test_a_network_that_is_no_chain_is_refused_in_chain_form() -> None:
    shape, build, _ = OTHERS["residual"]
    _, layers = parts_of(build().double(), shape)
    with pytest.raises(Unsupported, match="no chain"):
        chain_form(layers)


# Other properties


def test_constants_scale_with_the_logits_and_notice_a_transposed_matrix() -> None:
    weights = random_weights(5, (4, 6, 6, 3))
    found, twice = (bounds_of(perceptron([*weights[:-1], c * weights[-1]]), (4,)) for c in (1.0, 2.0))
    turned = bounds_of(perceptron([weights[0], weights[1].T.copy(), weights[2]]), (4,))
    for name in METHODS:
        assert torch.allclose(twice.values[name], 2 * found.values[name], rtol=1e-4)
        if name != "product":  # transposition keeps the norm of a factor
            assert float((turned.values[name] / found.values[name] - 1).abs().nan_to_num().max()) > 1e-2
    _, layers = parts_of(perceptron(weights), (4,))
    assert [tuple(w.shape) for w in chain_form(layers)] == [(6, 4), (6, 6), (3, 6)]


def test_logits_that_are_the_same_have_a_constant_of_zero_and_leave_the_others_alone() -> None:
    weights = random_weights(5, (4, 6, 6, 2))
    doubled = [*weights[:-1], np.concatenate([weights[-1], weights[-1][:1]])]
    alone, found = bounds_of(perceptron(weights), (4,)), bounds_of(perceptron(doubled), (4,))
    for name in METHODS:
        assert float(found.values[name][0, 2]) == 0
        assert float(found.values[name][0, 1]) == pytest.approx(float(alone.values[name][0, 1]), rel=1e-4)


def test_slopes_up_to_b_multiply_the_next_matrix() -> None:
    weights = random_weights(6, (4, 6, 5, 3))
    leaky = bounds_of(perceptron(weights, lambda: nn.LeakyReLU(3.0)), (4,))
    plain = bounds_of(perceptron([weights[0], 3 * weights[1], 3 * weights[2]]), (4,))
    for name in ("eclipse-fast", "lipsdp"):
        assert torch.allclose(leaky.values[name], plain.values[name], rtol=1e-4)


def test_layers_of_zeros_and_weights_that_overflow() -> None:
    weights = random_weights(6, (4, 6, 5, 3))
    nothing = bounds_of(perceptron([weights[0], 0 * weights[1], weights[2]]), (4,))
    assert float(nothing.best.max()) < 1e-12
    huge = bounds_of(perceptron([1e200 * weights[0], 1e200 * weights[1], weights[2]]), (4,))
    assert float(huge.best[0, 1]) == float("inf") and not bool(huge.best.isnan().any())


def test_all_pairs_of_a_convolutional_network() -> None:
    torch.manual_seed(0)
    network = settled(
        nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, 2, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 32),
            nn.ReLU(),
            nn.Linear(32, 10),
        ),
        (1, 8, 8),
    )
    graph, layers = parts_of(network, (1, 8, 8))
    found = global_bounds(graph, layers, tight=False)
    assert {*found.values} == {"product", "liplt", "eclipse-fast"}
    _sound(found, network, (1, 8, 8))
    assert {*global_bounds(graph, None, tight=True).values} == {"product"}


def test_many_classes_are_worked_off_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 12)).eval(), torch.rand(1, 6)
    graph = capture(model, x)
    whole = global_bounds(graph, written_out(graph), tight=False)
    monkeypatch.setattr(global_module, "PAIRS", 7)
    parts = global_bounds(graph, written_out(graph), tight=False)
    for name, value in whole.values.items():
        torch.testing.assert_close(parts.values[name], value, rtol=1e-9, atol=0.0)
    monkeypatch.setattr(module, "CLASSES", 11)
    assert "up to 11 classes" in global_bounds(graph, written_out(graph), tight=True).reasons["lipsdp"]
