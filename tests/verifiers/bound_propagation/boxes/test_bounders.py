"""Bounds of small networks by matrices: those of the native engine, below every sampled value."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.bound_propagation.boxes.nets import (
    CLASSES,
    INPUTS,
    boxes_of,
    close,
    mlp,
    noisy,
    points_of,
    pruned,
    values_of,
)
from verifiers.bound_propagation import HalfSpaces, JointEngine, Native, lower_values
from verifiers.bound_propagation.boxes import bounders
from verifiers.bound_propagation.boxes.bounders import (
    Active,
    Bounded,
    Bounder,
    ByEngine,
    ByMatrices,
    PairByMatrices,
    best,
    bounder_of,
    pair_bounder_of,
)
from verifiers.bound_propagation.boxes.chains import Chain
from verifiers.bound_propagation.boxes.pair import Relations
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes

WIDTHS = (2.0, 0.5, 0.05)
COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "noise": lambda network: noisy(network, 0.02),
    "much noise": lambda network: noisy(network, 0.5),
    "pruned": lambda network: pruned(network, 0.3),
    "another network": lambda network: mlp(9),
    "itself": lambda network: network,
}


@pytest.fixture(scope="module", params=list(Arithmetic), ids=lambda each: each.value)
def native(request: pytest.FixtureRequest) -> Native:
    return Native(mlp(), torch.rand(2, INPUTS), arithmetic=request.param)


@pytest.fixture(scope="module", params=list(COPIES))
def pair(request: pytest.FixtureRequest) -> JointEngine:
    teacher = mlp()
    return JointEngine(COPIES[request.param](teacher), teacher, torch.rand(2, INPUTS), Arithmetic.FLOAT32)


def unknown(bounder: Bounder, count: int) -> Tensor:
    return torch.zeros((count, bounder.neurons), dtype=torch.int8)


def bound(bounder: Bounder, low: Tensor, high: Tensor) -> Bounded:
    return bounder(low, high, unknown(bounder, len(low)))[0]


def sampled(model: nn.Module, spaces: HalfSpaces, points: Tensor) -> Tensor:
    """The values of every case at points of every box."""
    found = spaces.values(points.flatten(0, 1), model(points.flatten(0, 1)))
    return found.unflatten(0, points.shape[:2])


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("inputs", [True, False])
def test_bounds_of_one_network_are_those_of_the_native_engine(native: Native, width: float, inputs: bool) -> None:
    spaces, (low, high) = values_of(6, CLASSES, inputs=inputs), boxes_of(9, width)
    bounder = bounder_of(native, spaces)
    assert isinstance(bounder, ByMatrices), "the network is a chain"
    found = bound(bounder, low, high)
    values, slopes = lower_values(native, Boxes.between(low, high), spaces)
    exact = native.arithmetic is Arithmetic.REAL
    torch.testing.assert_close(found.values, values, rtol=0, atol=1e-12 if exact else 1e-4)
    torch.testing.assert_close(found.slopes, slopes, rtol=0, atol=1e-12 if exact else 1e-4)
    lowest = sampled(native.model, spaces, points_of(low, high)).amin(0)
    assert bool((found.values <= lowest + 1e-12).all()), "a bound is above a sampled value"


def test_the_rounding_of_several_boxes_is_at_least_each_ones_own() -> None:
    native = Native(mlp(), torch.rand(2, INPUTS), arithmetic=Arithmetic.FLOAT32)
    spaces, (low, high) = values_of(6, CLASSES, inputs=True), boxes_of(9, 0.5)
    bounder = bounder_of(native, spaces)
    together = bound(bounder, low, high).values
    for i in range(len(low)):
        alone = bound(bounder, low[i : i + 1], high[i : i + 1]).values
        values, _ = lower_values(native, Boxes.between(low[i : i + 1], high[i : i + 1]), spaces)
        assert bool((alone <= values).all()), "rows in float32 lose less than those in float64"
        assert bool((together[i] <= alone + 1e-7).all()), "a box gains by the company of others"


@pytest.mark.parametrize("width", WIDTHS)
def test_bounds_of_a_pair_are_below_every_value(pair: JointEngine, width: float) -> None:
    low, high = boxes_of(7, width)
    for spaces in (close(0.05), values_of(5, 2 * CLASSES, inputs=True)):
        lowest = sampled(pair.model, spaces, points_of(low, high)).amin(0)
        bounder = pair_bounder_of(pair, spaces)
        assert isinstance(bounder, PairByMatrices), "both networks are chains"
        for relations in Relations:
            bounder.relations = relations
            found = bound(bounder, low, high)
            above = float((found.values - lowest).max())
            assert above <= 1e-12, f"{relations}: a bound is above a sampled value by {above:.3g}"


@pytest.mark.parametrize("width", WIDTHS)
def test_bounds_of_a_pair_are_at_least_the_joint_graphs(pair: JointEngine, width: float) -> None:
    low, high = boxes_of(7, width)
    spaces = close(0.05)
    bounder = pair_bounder_of(pair, spaces)
    assert isinstance(bounder, PairByMatrices)
    joint = lower_values(pair.engines[0], Boxes.between(low, high), spaces)[0]
    slack = 1e-4 * joint.abs().clamp_min(1.0)
    assert bool((bound(bounder, low, high).values >= joint - slack).all()), "looser than the joint graph"
    bounder.relations = Relations.JOINT
    torch.testing.assert_close(bound(bounder, low, high).values, joint, rtol=0, atol=1e-4)


def test_the_slopes_are_of_functions_below_the_values(pair: JointEngine) -> None:
    """Each bound is the least value over the box of a function with these slopes, which is below the value itself."""
    spaces, (low, high) = close(0.05), boxes_of(7, 0.3)
    found, points = bound(pair_bounder_of(pair, spaces), low, high), points_of(low, high)
    corner = torch.where(found.slopes > 0, low[:, None], high[:, None])
    lines = found.values + (found.slopes * (points[:, :, None] - corner)).sum(-1)
    above = float((lines - sampled(pair.model, spaces, points)).max())
    assert above <= 1e-9, f"a function is above the value that it bounds by {above:.3g}"


def hidden(chains: Sequence[Chain], points: Tensor) -> Tensor:
    """The inputs of all ReLUs of all networks at points."""
    found = []
    for chain in chains:
        values = points
        for layer in chain.layers[:-1]:
            found.append(values @ layer.weight.T + layer.bias)
            values = found[-1].relu()
    return torch.cat(found, -1)


def halves(low: Tensor, high: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The lower halves of boxes, then the upper halves."""
    lower, upper, middle = high.clone(), low.clone(), (low + high) / 2
    lower[:, side], upper[:, side] = middle[:, side], middle[:, side]
    return torch.cat([low, upper]), torch.cat([lower, high])


@pytest.mark.parametrize("relations", list(Relations))
def test_parts_of_boxes_are_bounded_from_the_functions_of_the_boxes(pair: JointEngine, relations: Relations) -> None:
    spaces, (low, high) = close(0.05), boxes_of(7, 0.8)
    bounder = pair_bounder_of(pair, spaces)
    assert isinstance(bounder, PairByMatrices)
    bounder.relations = relations
    found, inner = bounder(low, high, unknown(bounder, len(low)))
    parents = torch.tensor([5, 0, 3, 3])
    small = halves(low[parents], high[parents], 1)
    parts = inner(parents.repeat(2), *small)
    points = points_of(*small)
    lowest = sampled(pair.model, spaces, points).amin(0)
    assert bool((parts.values <= lowest + 1e-12).all()), "a bound is above a sampled value"
    assert bool((parts.values >= found.values[parents.repeat(2)] - 0.02).all()), "looser than on the whole boxes"
    assert float((parts.values - found.values[parents.repeat(2)]).mean()) > 0, "parts gain nothing"
    values = hidden(bounder.chains, points)
    assert not bool((values * parts.signs < -1e-12).any()), "a sign is wrong at a point"
    assert bool((parts.signs != 0).any()) and bool((parts.signs == 0).any()), "all or none of the signs are known"
    known, anew = bounder(*small, parts.signs)[0], bound(bounder, *small)
    assert bool((known.values <= lowest + 1e-12).all()), "a bound with known signs is above a sampled value"
    assert float((anew.values - known.values).max()) < 0.02, "known signs loosen bounds"


@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_parts_of_boxes_of_one_network(arithmetic: Arithmetic) -> None:
    native = Native(mlp(), torch.rand(2, INPUTS), arithmetic=arithmetic)
    spaces, (low, high) = values_of(6, CLASSES, inputs=True), boxes_of(5, 0.8)
    bounder = bounder_of(native, spaces)
    assert isinstance(bounder, ByMatrices)
    _, inner = bounder(low, high, unknown(bounder, len(low)))
    small, parents = halves(low, high, 0), torch.arange(5).repeat(2)
    parts = inner(parents, *small)
    points = points_of(*small)
    assert bool((parts.values <= sampled(native.model, spaces, points).amin(0) + 1e-12).all())
    assert not bool((hidden([bounder.chain], points) * parts.signs < -1e-12).any()), "a sign is wrong at a point"


def test_many_parts_are_bounded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    native = Native(mlp(), torch.rand(2, INPUTS))
    spaces, (low, high) = values_of(6, CLASSES, inputs=True), boxes_of(5, 0.8)
    bounder = bounder_of(native, spaces)
    _, inner = bounder(low, high, unknown(bounder, len(low)))
    assert inner is not None
    small, parents = halves(low, high, 0), torch.arange(5).repeat(2)
    whole = inner(parents, *small)
    monkeypatch.setattr(bounders, "MATRIX_BOXES", 3)
    torch.testing.assert_close(inner(parents, *small), whole, rtol=0, atol=1e-12)


def test_neurons_that_are_0_on_all_boxes_are_left_out() -> None:
    """A strip of neurons is off; the bounds are the same with and without them."""
    teacher = mlp()
    with torch.no_grad():
        teacher[0].bias[:3] = -9.0
        teacher[2].bias[5] = -9.0
    engine = JointEngine(noisy(teacher, 0.02), teacher, torch.rand(2, INPUTS), Arithmetic.FLOAT32)
    spaces, (low, high) = close(0.05), boxes_of(4, 0.5)
    bounder = pair_bounder_of(engine, spaces)
    assert isinstance(bounder, PairByMatrices)
    found = bound(bounder, low, high)
    active = Active.of(bounder.chains, found.signs)
    assert max(active.chains[0].shape[1], active.chains[1].shape[1]) <= 5 and active.chains[0].shape[2] <= 6
    again = bounder(low, high, found.signs)[0]
    torch.testing.assert_close(again.values, found.values, rtol=0, atol=1e-5)
    assert torch.equal(again.signs[:, found.signs[0] < 0], found.signs[:, found.signs[0] < 0])
    part = Active.of(bounder.chains, torch.cat([found.signs, torch.ones_like(found.signs)]))
    assert part.chains[0].shape == bounder.chains[0].shape, "one box where a neuron is on keeps it"


def test_the_better_bound_counts_and_nan_does_not() -> None:
    nan = torch.nan
    one = torch.tensor([[1.0, nan, 3.0, nan]]), torch.zeros(1, 4, 2)
    other = torch.tensor([[2.0, 5.0, nan, nan]]), torch.ones(1, 4, 2)
    values, slopes = best([one, other])
    assert values[0, :3].tolist() == [2.0, 5.0, 3.0] and bool(values[0, 3].isnan())
    assert slopes[0, :3, 0].tolist() == [1.0, 1.0, 0.0]


@pytest.mark.parametrize(
    "network",
    [
        nn.Sequential(nn.Linear(INPUTS, 4), nn.Tanh(), nn.Linear(4, CLASSES)),
        nn.Sequential(nn.Linear(INPUTS, 600), nn.ReLU(), nn.Linear(600, CLASSES)),
        nn.Sequential(nn.Linear(INPUTS, CLASSES), nn.ReLU()),
    ],
    ids=["smooth", "wide", "ends in a ReLU"],
)
def test_other_networks_are_bounded_by_the_engine(network: nn.Module) -> None:
    spaces, (low, high) = values_of(3, CLASSES, inputs=True), boxes_of(2, 0.3)
    native = Native(network.eval(), torch.rand(2, INPUTS))
    bounder = bounder_of(native, spaces)
    assert isinstance(bounder, ByEngine)
    values, slopes = lower_values(native, Boxes.between(low, high), spaces)
    found = bound(bounder, low, high)
    assert torch.equal(found.values, values) and torch.equal(found.slopes, slopes)


def test_pairs_of_different_structure_take_the_better_of_their_graphs() -> None:
    spaces, (low, high) = values_of(4, 2 * CLASSES, inputs=False), boxes_of(3, 0.3)
    other = mlp(5, (INPUTS, 9, CLASSES))
    engine = JointEngine(other, mlp(), torch.rand(2, INPUTS))
    bounder = pair_bounder_of(engine, spaces)
    assert isinstance(bounder, ByEngine)
    found = bound(bounder, low, high).values
    assert bool((found <= sampled(engine.model, spaces, points_of(low, high)).amin(0) + 1e-12).all())


def test_values_that_may_overflow_prove_nothing() -> None:
    network = mlp()
    with torch.no_grad():
        network[0].weight.fill_(1e37)
        network[2].weight.fill_(0.01)
    native = Native(network, torch.zeros(2, INPUTS), arithmetic=Arithmetic.FLOAT32)
    spaces = values_of(2, CLASSES, inputs=False)
    low, high = torch.zeros(2, INPUTS).double(), torch.tensor([[40.0] * INPUTS, [0.0] * INPUTS]).double()
    found = bound(bounder_of(native, spaces), low, high).values
    assert bool(found[0].isnan().all()) and bool(found[1].isfinite().all()), "the second box is one point"


def test_layers_of_several_operators_are_one_matrix() -> None:
    """Shift and scale of the inputs, as a normalisation does."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x: Tensor) -> Tensor:
            return self.net(((x - 0.25) / torch.tensor([0.5, 3.0, 0.7])).flatten(1))

    for arithmetic in Arithmetic:
        native = Native(Scaled().eval(), torch.rand(2, INPUTS), arithmetic=arithmetic)
        spaces, (low, high) = values_of(4, CLASSES, inputs=True), boxes_of(4, 0.5)
        bounder = bounder_of(native, spaces)
        assert isinstance(bounder, ByMatrices)
        found, (values, _) = bound(bounder, low, high), lower_values(native, Boxes.between(low, high), spaces)
        torch.testing.assert_close(found.values, values, rtol=0, atol=1e-12 if arithmetic is Arithmetic.REAL else 1e-5)


def test_many_boxes_share_the_signs_of_their_hull(pair: JointEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds are those without, and hold; boxes with signs of their own keep these."""
    low, high = boxes_of(12, 0.05)
    spaces = close(0.05)
    bounder = pair_bounder_of(pair, spaces)
    before = bound(bounder, low, high)
    asked: list[int] = []
    known = Active.known

    def counted(active: Active, signs: Tensor) -> Tensor:
        asked.append(len(signs))
        return known(active, signs)

    monkeypatch.setattr(bounders, "MANY", 12)
    monkeypatch.setattr(Active, "known", counted)
    found = bound(bounder, low, high)
    assert asked == [1, 12], "the hull is one box"
    lowest = sampled(pair.model, spaces, points_of(low, high)).amin(0)
    assert bool((found.values <= lowest + 1e-12).all()), "a bound is above a sampled value"
    assert bool((found.values >= before.values - 1e-4).all()), "known signs loosen bounds"
    assert not bool((found.signs * before.signs < 0).any()), "the hull has other signs than its boxes"
    bounder(low, high, found.signs)
    assert asked[2:] == [12]


def test_no_sign_is_known_where_values_may_overflow() -> None:
    """Their rounding is not bounded there, and parts would inherit the signs."""
    network = mlp()
    with torch.no_grad():
        network[0].weight.mul_(1e38)
        network[2].weight.mul_(1e10)
    engine = JointEngine(network, network, torch.rand(2, INPUTS) * 1e-30, Arithmetic.FLOAT32)
    found = bound(pair_bounder_of(engine, close(0.05)), *boxes_of(2, 2.0))
    assert bool(found.values.isnan().all()) and not bool(found.signs.any())
