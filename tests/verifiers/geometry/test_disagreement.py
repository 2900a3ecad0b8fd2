"""The attack on a pair: points where two networks disagree, inside the ball, in float32."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from verifiers.bound_propagation.relations import violation
from verifiers.core.quantities import Norm
from verifiers.core.relation import Property, Relation
from verifiers.geometry.balls import norms
from verifiers.geometry.disagreement import PairAttack

SAME = partial(violation, Relation())


def linear(*rows: tuple[float, float], bias: tuple[float, ...] = (0.0, 0.0)) -> nn.Linear:
    layer = nn.Linear(2, len(rows))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor(rows))
        layer.bias.copy_(torch.tensor(bias))
    return layer


#: Class 0 left of a first pixel of 0.5, and left of 0.5001.
TEACHER = linear((-1.0, 0.0), (1.0, 0.0), bias=(0.5, -0.5))
STUDENT = linear((-1.0, 0.0), (1.0, 0.0), bias=(0.5001, -0.5001))
X = torch.tensor([[0.4, 0.5], [0.1, 0.5], [0.9, 0.2]])


def random_pair(seed: int) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(seed)
    pair = [nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 3)).eval() for _ in range(2)]
    return pair[0], pair[1]


@pytest.mark.parametrize("norm", list(Norm))
def test_a_slit_between_two_boundaries_is_found(norm: Norm) -> None:
    """The networks disagree on a slit 1e-4 wide: PGD steps over it, and the way back meets it."""
    found = PairAttack(STUDENT, TEACHER, SAME, 0.2, norm)(X, [0, 1, 2])
    assert found.found.tolist() == [True, False, False], "the others' balls are too small"
    assert 0.5 < float(found.point[0, 0]) < 0.5001
    assert found.violation[0] > 0 and found.violation[1:].isnan().all() and found.point[1:].isnan().all()
    distance = norms(found.point[:1].double() - X[:1].double(), norm)
    assert found.distance[0] == distance[0] <= 0.2


def test_no_start_begins_after_the_deadline() -> None:
    """Stored points are tried all the same."""
    late = PairAttack(STUDENT, TEACHER, SAME, 0.2, Norm.LINF, deadline=0.0)
    assert not late(X, [0, 1, 2]).found.any()
    known = torch.where(torch.tensor([[True], [False], [False]]), torch.tensor([0.6, 0.5]), torch.nan)
    assert late(X, [0, 1, 2], [known]).found.tolist() == [True, False, False]


def test_the_same_network_never_disagrees() -> None:
    found = PairAttack(TEACHER, TEACHER, SAME, 0.3, Norm.LINF)(X, [0, 1, 2])
    assert not found.found.any()


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize(
    "relation", [Relation(), Relation(Property.CLOSE, 0.2), Relation(Property.NOT_WORSE, 0.1)], ids=str
)
def test_points_are_inside_and_break_the_relation_alone(norm: Norm, relation: Relation) -> None:
    broken = partial(violation, relation)
    count = 0
    for seed in range(4):
        student, teacher = random_pair(seed)
        x = torch.rand((6, 2), generator=torch.Generator().manual_seed(seed))
        attack = PairAttack(student, teacher, broken, 0.15, norm, steps=8, restarts=2)
        found = attack(x, list(range(6)))
        for i in found.found.nonzero().flatten().tolist():
            point = found.point[i : i + 1]
            with torch.no_grad():
                c = teacher(x[i : i + 1]).argmax(1)
                value = float(broken(student(point).double(), teacher(point).double(), c))
            assert value > 0 and value == float(found.violation[i])
            assert float(norms(point.double() - x[i : i + 1].double(), norm)) <= 0.15
            assert float(point.min()) >= 0 and float(point.max()) <= 1
            count += 1
    assert count >= 4, "hardly a point: the test is of no use"


def test_it_does_not_depend_on_the_batch() -> None:
    student, teacher = random_pair(1)
    x = torch.rand((5, 2), generator=torch.Generator().manual_seed(1))
    attack = PairAttack(student, teacher, SAME, 0.2, Norm.LINF, steps=8, restarts=2)
    together = attack(x, [3, 4, 5, 6, 7])
    for i in range(5):
        alone = attack(x[i : i + 1], [3 + i])
        assert bool(alone.found) == bool(together.found[i])
        if alone.found:
            assert torch.allclose(alone.point[0], together.point[i], atol=1e-5)


def test_a_way_follows_both_networks_back() -> None:
    attack = PairAttack(STUDENT, TEACHER, SAME, 0.2, Norm.LINF)
    point, value = attack.along(X[:1], torch.tensor([[0.6, 0.5]]), torch.tensor([0]))
    assert value > 0 and 0.5 < float(point[0, 0]) < 0.5001
    point, value = attack.along(X[1:2], torch.tensor([[0.2, 0.5]]), torch.tensor([0]))
    assert value <= 0, "no network changes its class on this way"


def test_ends_outside_of_the_ball_are_no_points() -> None:
    attack = PairAttack(STUDENT, TEACHER, SAME, 0.05, Norm.LINF)
    _, value = attack.along(X[:1], torch.tensor([[0.5002, 0.5]]), torch.tensor([0]))
    assert value == -np.inf or value <= 0


class Unsure(nn.Module):
    """Gives nan beyond a first pixel of 0.45."""

    def forward(self, x: Tensor) -> Tensor:
        return TEACHER(x) + torch.where(x[:, :1] > 0.45, torch.nan, 0.0)


def test_logits_that_are_not_finite_are_no_disagreement() -> None:
    found = PairAttack(Unsure(), TEACHER, SAME, 0.3, Norm.LINF, steps=8, restarts=2)(X[:1], [0])
    assert not found.found.any()


def test_known_counterexamples_are_tried_first() -> None:
    """Without steps worth the name PGD stays at the image; a counterexample of one network leads to the slit."""
    lazy = PairAttack(STUDENT, TEACHER, SAME, 0.2, Norm.LINF, steps=1, restarts=0)
    assert not lazy(X, [0, 1, 2]).found.any()
    known = torch.full_like(X, torch.nan)
    known[0], known[2] = torch.tensor([0.6, 0.5]), torch.tensor([0.1, 0.2])  # the last one is outside of its ball
    assert lazy(X, [0, 1, 2], [torch.full_like(X, torch.nan), known]).found.tolist() == [True, False, False]
