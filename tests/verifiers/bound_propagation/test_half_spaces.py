"""Cases of linear inequalities over boxes: values, bounds, and the graph of the largest values."""

import time

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation import HalfSpaces, InputSplitting, Native, by_neurons, lower_values, native_engine
from verifiers.bound_propagation.half_spaces import largest_values
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes

INPUTS, OUTPUTS = 3, 2
LOW, HIGH = torch.tensor([[-1.0, 0.0, 2.0]]).double(), torch.tensor([[0.5, 3.0, 2.0]]).double()


@pytest.fixture(scope="module")
def native() -> Native:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(INPUTS, 5), nn.ReLU(), nn.Linear(5, OUTPUTS)).eval()
    return native_engine(network, torch.rand(2, INPUTS), Arithmetic.FLOAT32)


@pytest.fixture(scope="module")
def spaces() -> HalfSpaces:
    """Cases of 1, 3 and 2 values, not in order."""
    torch.manual_seed(1)
    case = torch.tensor([1, 0, 1, 2, 1, 2])
    return HalfSpaces(torch.randn(6, OUTPUTS).double(), torch.randn(6, INPUTS).double(), torch.randn(6).double(), case)


def points(count: int = 200) -> Tensor:
    torch.manual_seed(2)
    return LOW + (HIGH - LOW) * torch.rand(count, INPUTS).double()


def test_a_case_has_the_largest_of_its_values() -> None:
    spaces = HalfSpaces(
        torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]).double(),
        None,
        torch.tensor([0.0, 1.0, 0.5]).double(),
        torch.tensor([0, 0, 1]),
    )
    y = torch.tensor([[3.0, 1.0], [torch.nan, 0.0]])
    assert spaces.values(torch.zeros(2, 3), y).tolist() == [[3.0, -2.5], [torch.inf, torch.inf]], "nan never holds"
    assert spaces.largest(torch.tensor([[torch.nan, 1.0, torch.nan]])).tolist() == [[1.0, -torch.inf]], "nor proves"


def test_cases_are_selected(spaces: HalfSpaces) -> None:
    some, x = spaces.take(torch.tensor([2, 0])), points(5)
    y = torch.randn(5, OUTPUTS)
    assert some.cases == 2
    torch.testing.assert_close(some.values(x, y), spaces.values(x, y)[:, [2, 0]])


def test_bounds_are_below_the_values_at_every_point(native: Native, spaces: HalfSpaces) -> None:
    values, slopes = lower_values(native, Boxes.between(LOW, HIGH), spaces)
    x = points()
    found = native.model(x) @ spaces.outputs.T + x @ spaces.inputs.T + spaces.constant  # type: ignore[union-attr]
    assert slopes.shape == (1, 6, INPUTS) and bool((values <= found).all()), "a point is below a bound"
    center = Boxes.between(LOW / 2 + HIGH / 2, LOW / 2 + HIGH / 2)
    at, _ = lower_values(native, center, spaces)
    exact = native.model(center.x) @ spaces.outputs.T + center.x @ spaces.inputs.T + spaces.constant  # type: ignore[union-attr]
    torch.testing.assert_close(at, exact, rtol=1e-5, atol=1e-5)


def test_the_graph_computes_the_largest_values(native: Native, spaces: HalfSpaces) -> None:
    x = points(50)
    for some in (
        spaces,
        spaces.take(torch.tensor([0])),
        HalfSpaces(spaces.outputs, None, spaces.constant, spaces.case),
    ):
        torch.testing.assert_close(largest_values(native.graph, some)(x), some.values(x, native.model(x)))


@pytest.mark.parametrize("way", ["inputs", "neurons"])
def test_a_box_is_refuted_where_the_least_value_is_positive(way: str, native: Native, spaces: HalfSpaces) -> None:
    """Shift the constants so that the least of the largest values over many points is just above 0, and just below."""
    boxes, x = Boxes.between(LOW, HIGH), points(20000)
    least = spaces.values(x, native.model(x)).amin(0)
    deadline = time.monotonic() + 900

    def run(shift: float) -> tuple[bool, int]:
        constant = spaces.constant - least[spaces.case] + shift
        moved, hits = HalfSpaces(spaces.outputs, spaces.inputs, constant, spaces.case), []

        def tries(z: Tensor) -> Tensor:
            assert bool(((z >= LOW) & (z <= HIGH)).all()), "a point outside of the box"
            found = (moved.values(z, native.model(z)) <= 0).any(1)
            hits.append(bool(found.any()))
            return found

        if way == "inputs":
            end = InputSplitting(native, moved, deadline=deadline, tries=tries).run(boxes)
        else:
            end = by_neurons(native, moved, boxes, iterations=5, deadline=deadline, tries=tries)
        return end.proved, sum(hits)

    assert run(0.2) == (True, 0)
    proved, hits = run(-0.05)
    assert not proved and hits == 1


def test_a_small_box_ends_in_a_reason(native: Native) -> None:
    """Where a value is 0 everywhere no splitting helps."""
    spaces = HalfSpaces(torch.zeros(1, OUTPUTS).double(), None, torch.zeros(1).double(), torch.tensor([0]))
    tiny = Boxes.between(LOW, LOW + 1e-7)
    end = InputSplitting(
        native, spaces, deadline=time.monotonic() + 900, tries=lambda z: torch.zeros(len(z)).bool()
    ).run(tiny)
    assert not end.proved and "too small" in end.reason and not end.late
