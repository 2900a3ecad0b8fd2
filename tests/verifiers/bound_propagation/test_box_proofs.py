"""Proofs on one box: planted least values, and every way in which a proof can end."""

import time

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation import Ended, HalfSpaces, InputSplitting, Native, by_neurons, native_engine
from verifiers.bound_propagation.boxes import splitting
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes

LATER = 900.0
BOX = (torch.tensor([[-1.0, -1.0]]).double(), torch.tensor([[1.0, 3.0]]).double())


class Valley(nn.Module):
    """|x0 - 1/4| + |x1 - 2| and x0: the first is least, 0, at one point inside of the box."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(2, 6), nn.Linear(6, 2, bias=False)
        signs = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [1.0, 0.0], [-1.0, 0.0]])
        with torch.no_grad():
            self.inner.weight.copy_(signs)
            self.inner.bias.copy_(torch.tensor([-0.25, 0.25, -2.0, 2.0, 0.0, 0.0]))
            self.outer.weight.copy_(torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0, -1.0]]))

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(self.inner(x).relu())


@pytest.fixture(scope="module")
def native() -> Native:
    return native_engine(Valley().eval(), torch.rand(2, 2), Arithmetic.FLOAT32)


def spaces(*values: tuple[list[float], float, int]) -> HalfSpaces:
    """Values as coefficients of outputs, constant and case."""
    rows, constants, cases = zip(*values, strict=True)
    return HalfSpaces(
        torch.tensor(rows).double(), None, torch.tensor(constants).double(), torch.tensor(cases, dtype=torch.long)
    )


class Points:
    """Record the points that are tried; a point is a hit where a case holds."""

    def __init__(self, native: Native, asked: HalfSpaces) -> None:
        self.native, self.asked, self.count = native, asked, 0
        self.hit: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        self.count += len(z)
        assert bool(((z >= BOX[0]) & (z <= BOX[1])).all()), "outside of the box"
        hits = (self.asked.values(z, self.native.model(z)) <= 0).any(1)
        if hits.any():
            self.hit = z[hits][0]
        return hits


def run(way: str, native: Native, asked: HalfSpaces, seconds: float = LATER) -> tuple[Ended, Points]:
    points, deadline = Points(native, asked), time.monotonic() + seconds
    if way == "inputs":
        return InputSplitting(native, asked, deadline=deadline, tries=points).run(Boxes.between(*BOX)), points
    return by_neurons(native, asked, Boxes.between(*BOX), iterations=4, deadline=deadline, tries=points), points


WAYS = pytest.mark.parametrize("way", ["inputs", "neurons"])


@WAYS
@pytest.mark.parametrize("level", [0.05, 1.0])
@pytest.mark.thin(2)
def test_a_value_that_is_least_at_one_point(way: str, level: float, native: Native) -> None:
    """The unsafe set y0 <= -level is empty for every level above 0, and y0 <= level is not."""
    end, points = run(way, native, spaces(([1.0, 0.0], level, 0)))
    assert end.proved and not end.late and not end.reason and points.hit is None
    end, points = run(way, native, spaces(([1.0, 0.0], -level, 0)))
    assert not end.proved and points.hit is not None
    assert float((points.hit - torch.tensor([0.25, 2.0])).abs().sum()) <= level + 1e-9


@WAYS
def test_two_conditions_that_exclude_each_other_alone_together(way: str, native: Native) -> None:
    """y0 <= 0.1 needs x0 near 1/4, y1 >= 0.5 needs it at 1/2: either can hold, both cannot."""
    both = [([1.0, 0.0], -0.1, 0), ([0.0, -1.0], 0.5, 0)]
    assert run(way, native, spaces(*both))[0].proved
    apart = [(row, constant, case) for case, (row, constant, _) in enumerate(both)]
    end, points = run(way, native, spaces(*apart))
    assert not end.proved and points.hit is not None, "as two cases one is enough"
    reached = spaces(([1.0, 0.0], -0.26, 0), ([0.0, -1.0], 0.5, 0))
    end, points = run(way, native, reached)
    assert not end.proved and points.hit is not None
    assert abs(float(points.hit[0]) - 0.5) < 0.02 and abs(float(points.hit[1]) - 2.0) < 0.02


@WAYS
def test_several_cases_are_all_refuted(way: str, native: Native) -> None:
    some = spaces(([0.0, 1.0], 1.5, 1), ([1.0, 0.0], 0.25, 0), ([0.0, -1.0], 0.75, 2), ([1.0, 0.0], -0.1, 2))
    assert run(way, native, some)[0].proved
    assert not run(way, native, spaces(([0.0, 1.0], 0.5, 1), ([1.0, 0.0], 0.01, 0)))[0].proved


@WAYS
def test_no_time_is_late(way: str, native: Native) -> None:
    end, _ = run(way, native, spaces(([1.0, 0.0], 0.0001, 0)), seconds=-1.0)
    assert end.late and not end.proved


def test_memory_is_a_reason(native: Native, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splitting, "WAITING", 2)
    end, _ = run("inputs", native, spaces(([1.0, 0.0], 0.0001, 0)))
    assert not end.proved and "memory" in end.reason


def test_a_box_is_halved_along_the_side_that_matters(native: Native) -> None:
    """y1 = x0: cuts of x1 would be wasted."""
    end, _ = run("inputs", native, spaces(([0.0, 1.0], 1.001, 0)))
    assert end.proved and end.parts <= 7, f"{end.parts} parts for a function of one input"


def test_values_that_may_overflow_prove_nothing() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(2) * 3e38)
        network[2].weight.copy_(torch.eye(2) * 10)
        network[2].bias.copy_(torch.ones(2) * 5)
    native = native_engine(network, torch.zeros(2, 2), Arithmetic.FLOAT32)
    asked = HalfSpaces(torch.eye(2).double()[:1], None, torch.ones(1).double(), torch.zeros(1, dtype=torch.long))
    boxes = Boxes.between(torch.zeros(1, 2).double(), 4 * torch.ones(1, 2).double())
    end = by_neurons(
        native,
        asked,
        boxes,
        iterations=2,
        deadline=time.monotonic() + LATER,
        tries=lambda z: torch.zeros(len(z)).bool(),
    )
    assert not end.proved and "overflow" in end.reason
