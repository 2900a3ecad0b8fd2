"""Steps end before the deadline: time is a counter here, which every CROWN pass moves."""

import time
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation.native import alpha
from verifiers.bound_propagation.native.alpha import WITH_GRADIENT, optimized
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls

#: Seconds that a CROWN pass takes on the clock of these tests.
PASS = 10.0


class Clock:
    """Seconds that pass only where a network is bounded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.passes = 0.0, 0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        propagate = Bounds.propagate

        def slow(bounds: Bounds, **settings: bool) -> None:
            self.now, self.passes = self.now + PASS, self.passes + 1
            propagate(bounds, **settings)

        monkeypatch.setattr(alpha.Bounds, "propagate", slow)


@pytest.fixture(scope="module")
def bounds() -> Bounds:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    native = Native(network, torch.rand(2, 2))
    return native.bounds(Balls.around(torch.full((1, 2), 0.5).double(), 0.4, Norm.LINF))


ROWS = torch.tensor([[[1.0, -1.0], [-1.0, 1.0]]]).double()


def fresh(bounds: Bounds) -> Bounds:
    return replace(bounds, intervals=[], refined=[], relaxations={})


@pytest.mark.parametrize(
    ("deadline", "passes"),
    [
        (0.0, 1),  # CROWN alone
        (PASS * (3 + WITH_GRADIENT) - 1, 1),  # a first step and the two proofs could end too late
        (PASS * (3 + WITH_GRADIENT) + 1, 6),  # it takes one pass: so do the next ones, until one would end too late
        (PASS * 8 + 1, 8),
        (1e9, 10),
    ],
)
def test_no_step_of_alpha_crown_ends_after_the_deadline(
    deadline: float, passes: int, bounds: Bounds, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(monkeypatch)
    optimized(fresh(bounds), ROWS, 7, deadline)
    assert clock.passes == passes and (clock.now <= deadline or passes == 1)


def test_the_best_bound_so_far_is_kept(bounds: Bounds, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    found = [optimized(fresh(bounds), ROWS, 7, end).bound for end in (0.0, clock.now + 60.0, 1e9)]
    assert bool((found[0] <= found[1]).all()) and bool((found[1] <= found[2] + 1e-12).all())


@pytest.mark.parametrize("late", [True, False])
def test_branch_and_bound_begins_nothing_after_the_deadline(late: bool, bounds: Bounds) -> None:
    own = fresh(bounds)
    proved = optimized(own, ROWS, 0).bound[0]

    def broken(points: Tensor) -> Tensor:
        return torch.zeros(len(points), dtype=torch.bool)

    goal = float(proved.amax()) + 1e-3  # above what CROWN proves
    end = BranchAndBound(
        own, ROWS, proved, goal, deadline=time.monotonic() + (-1.0 if late else 900.0), broken=broken
    ).run()
    assert end.late is late and (end.domains == 0) is late
    if late:
        assert end.bound == float(proved.amin()) and not end.finished
