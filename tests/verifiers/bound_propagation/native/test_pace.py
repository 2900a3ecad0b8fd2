"""The pace of a search and its deadline."""

import pytest

from verifiers.bound_propagation.native import pace
from verifiers.bound_propagation.native.pace import Pace


class Clock:
    """A clock that is moved by hand."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(pace, "time", found)
    return found


def test_nothing_is_late_before_it_is_measured(clock: Clock) -> None:
    own = Pace(101.0)
    assert not own.late() and not own.late(1000, 1000)
    clock.now = 101.5
    assert own.late()


def test_steps_and_proofs_count_by_domain(clock: Clock) -> None:
    own = Pace(110.0)
    with own.of_step(4):
        clock.now += 2.0
    with own.of_proof(2):
        clock.now += 3.0
    assert (own.step, own.proof) == (0.5, 1.5)  # five seconds are left
    assert not own.late(10) and own.late(11)
    assert not own.late(4, 2) and own.late(5, 2)
