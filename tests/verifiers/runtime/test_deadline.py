"""Deadlines by a clock of the test's own, and methods that keep their time limits by it."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.certifying import certify
from tests.marks import only
from verifiers.bound_propagation.radius import Evaluation, RadiusSearch
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.runtime import deadline
from verifiers.runtime.deadline import TimeUp, check, left, within


class Clock:
    """A clock that goes on by ``step`` whenever it is read."""

    def __init__(self, step: float = 0.0) -> None:
        self.time, self.step = 100.0, step

    def __call__(self) -> float:
        self.time += self.step
        return self.time


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(deadline.time, "monotonic", made)
    return made


def test_without_a_deadline_nothing_ends(clock: Clock) -> None:
    clock.time = 1e12
    check()
    assert left() == math.inf


def test_time_is_up_after_the_limit_and_not_before(clock: Clock) -> None:
    with within(5.0):
        clock.time += 5.0
        check()
        assert left() == 0.0
        clock.time += 0.5
        with pytest.raises(TimeUp):
            check()
        assert left() == -0.5
    check()


def test_the_earliest_deadline_counts(clock: Clock) -> None:
    with within(5.0):
        with within(60.0):
            assert left() == 5.0
        with within(1.0):
            assert left() == 1.0
            clock.time += 2.0
            with pytest.raises(TimeUp):
                check()
        assert left() == 3.0, "the deadline inside is forgotten"
    with pytest.raises(ZeroDivisionError), within(1.0):
        raise ZeroDivisionError
    assert left() == math.inf, "an error leaves no deadline behind"


def test_a_search_keeps_what_it_proved_before_its_time_is_up(clock: Clock) -> None:
    """The third evaluation never ends; the radius of the first two stays, and the search is not finished."""
    calls: list[float] = []

    def bound(rows: torch.Tensor, eps: torch.Tensor) -> Evaluation:
        calls.append(float(eps[0]))
        clock.time += 1.0 if len(calls) < 3 else 100.0
        check()
        return Evaluation(1.0 - eps, torch.zeros_like(eps))

    found = RadiusSearch(0.1, 10.0, 0.001, seconds=50.0)(bound, torch.ones(1, dtype=torch.float64))
    assert len(calls) == 3 and not bool(found.finished[0])
    assert float(found.radius[0]) == pytest.approx(max(e for e in calls[:2] if e < 1), rel=1e-9)


# Methods ------------------------------------------------------------------------------------------------------------


def network(shift: float = 0.0) -> nn.Sequential:
    made, generator = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.Generator()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator.manual_seed(weight.numel())) + shift)
    return made.eval()


NET, TEACHER = network(), network(0.01)
IMAGES = torch.rand(3, 1, 2, 3, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    LABELS = NET(IMAGES).argmax(1)
#: Settings with which a method takes long.
METHODS: dict[str, dict[str, Any]] = {
    "ibp": {"tolerance": 1e-9},
    "crown": {"tolerance": 1e-9},
    "alpha-crown": {"iterations": 1000},
    "sdp-crown": {"iterations": 1000},
    "complete": {"iterations": 1000, "steps": 400},
    "joint": {"tolerance": 1e-9},
    "match": {"steps": 1000},
    "transfer": {},
    "lipschitz": {"shells": 200},
    "local-linearity": {},
    "smoothing": {"sigma": 0.25, "n": 100_000, "question": "full"},
    "pgd": {"steps": 100_000},
    "autoattack": {"steps": 100_000},
}


@pytest.mark.parametrize("kind", only(["crown", "pgd", "complete"], METHODS))
def test_a_method_ends_within_its_time(kind: str, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the clock takes a second; whatever is not decided in time is a TIMEOUT, and no row takes longer.

    A method whose whole work takes fewer looks than its limit has an answer: then there is nothing to interrupt.
    """
    clock.step = 1.0
    options: dict[str, Any] = {**METHODS[kind], "time_limit": 40.0}
    if kind in ("ibp", "crown", "alpha-crown", "sdp-crown"):
        options["cross_check"] = 0
    pair = kind in ("joint", "match", "transfer")
    began = clock.time
    found = certify(
        NET,
        IMAGES,
        LABELS,
        eps="0.05",
        norm="l2",
        methods=(kind,),
        options=options,
        **({"teacher": TEACHER} if pair else {}),
    )[kind]
    ends = {Status(int(status)) for status in found["status"]}
    assert ends <= {Status.TIMEOUT, Status.CERTIFIED, Status.FALSIFIED, Status.NOT_CERTIFIED, Status.VACUOUS}, ends
    assert clock.time - began <= 1.1 * 40 * len(IMAGES) + 15, f"{kind} took {clock.time - began:.0f} s: {ends}"
    if kind in ("pgd", "smoothing", "autoattack"):
        assert ends <= {Status.TIMEOUT, Status.FALSIFIED}, f"{kind} cannot have ended: {ends}"
    assert not (found["radius"][found["status"] == Status.TIMEOUT] > 0).any(), "a TIMEOUT has no radius"


def test_preparation_is_part_of_the_time(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One sample, ten seconds: preparation takes eight, so that the batch has two left."""
    from verifiers.methods.crown import Crown

    prepare, given = Crown.prepare, list[float]()

    def slow(method: Crown, *more: Any) -> Any:
        certifier = prepare(method, *more)
        clock.time += 8.0

        class Asked:
            batch_size, notes = 4, certifier.notes

            def __call__(self, batch: Any) -> Any:
                given.append(left())
                return certifier(batch)

        return Asked()

    monkeypatch.setattr(Crown, "prepare", slow)
    options = {"time_limit": 10.0, "cross_check": 0}
    certify(NET, IMAGES[:1], LABELS[:1], eps="0.05", methods=("crown",), options=options)
    assert given == [pytest.approx(2.0)]
    options["time_limit"] = 5.0
    found = certify(NET, IMAGES[:1], LABELS[:1], eps="0.05", methods=("crown",), options=options)["crown"]
    assert found["status"].tolist() == [Status.TIMEOUT]


def test_preparation_that_never_ends_is_a_timeout(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    from verifiers.methods.crown import Crown

    def endless(method: Crown, *more: Any) -> Any:
        while True:
            clock.time += 1.0
            check()

    monkeypatch.setattr(Crown, "prepare", endless)
    with pytest.warns(UserWarning, match="preparation alone takes longer than 5 s a sample"):
        options = {"time_limit": 5.0}
        found = certify(NET, IMAGES, LABELS, eps="0.05", methods=("crown",), options=options)["crown"]
    assert set(found["status"]) == {Status.TIMEOUT} and np.isnan(found["margin"]).all()
    assert clock.time - 100 <= 5 * 3 * 1.1


def test_balls_need_no_clock(clock: Clock) -> None:
    """Bounds without a time limit do not read the clock at all, so that they cost nothing more."""
    from verifiers.bound_propagation.native.engine import Native
    from verifiers.core.quantities import Norm

    native = Native(NET, IMAGES)
    clock.step = 1.0
    native.ask(
        Balls.around(IMAGES.double(), 0.1, Norm.LINF), torch.eye(3, dtype=torch.float64).repeat(3, 1, 1), "crown"
    )
    assert clock.time == 100.0
