"""A disagreement that is planted in the ball is refuted or left open, never proved away."""

import pytest
import torch

from tests.marks import MANY
from tests.verifiers.bound_propagation.pairs import broken, matched
from tests.verifiers.bound_propagation.planted import BROKEN, KINDS, planted
from verifiers.bound_propagation.relations import violation
from verifiers.core.relation import Relation
from verifiers.core.status import Status


def check(kind: str, seed: int, relation: Relation) -> None:
    """Decide a property that fails at the planted point."""
    pair, point = planted(kind, seed)
    assert float((point.double() - pair.x[0].double()).abs().max()) <= pair.eps, "the point is outside the ball"
    with torch.no_grad():
        student, teacher, c = pair.student(point[None]), pair.teacher(point[None]), pair.teacher(pair.x).argmax(1)
    fails = float(violation(relation, student.double(), teacher.double(), c)) > 0
    assert fails or not torch.isfinite(student).all(), "nothing is planted at the point"
    columns = matched(pair, relation, time_limit=0.3)
    status = Status(int(columns["status"][0]))
    assert status is not Status.CERTIFIED, "a disagreement inside the ball is proved away"
    if status is Status.FALSIFIED:
        assert broken(pair, relation, columns["counterexample"][0]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_planted_is_never_proved_away(kind: str) -> None:
    place = list(KINDS).index(kind)
    check(kind, place, BROKEN[place % len(BROKEN)])


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 10 + MANY // 10))
@pytest.mark.parametrize("kind", KINDS)
def test_much_that_is_planted_is_never_proved_away(kind: str, seed: int) -> None:
    """350 pairs before a release."""
    check(kind, seed, BROKEN[seed % len(BROKEN)])
