"""The unsafe sets of a pair's properties: written out, as half spaces, and from bounds."""

import itertools
from functools import partial

import pytest
import torch
from torch import Tensor

from tests.verifiers.bound_propagation.pairs import RELATIONS
from verifiers.bound_propagation.relations import least_threshold, screened, screening_rows, unsafe, violation
from verifiers.core.relation import Property, Relation

NAMES = [f"{relation.kind}-{relation.threshold:g}" for relation in RELATIONS]
CLASSES = 4


def logits(points: int, seed: int = 0, apart: float = 0.5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of a student and a teacher that are somewhat alike, and the teacher's classes of other points."""
    generator = torch.Generator().manual_seed(seed)
    teacher = torch.randn((points, CLASSES), generator=generator, dtype=torch.float64)
    size = apart * torch.logspace(0, -1, points, dtype=torch.float64)[:, None]
    student = teacher + size * torch.randn((points, CLASSES), generator=generator, dtype=torch.float64)
    return student, teacher, torch.randint(0, CLASSES, (points,), generator=generator)


def fails(relation: Relation, s: list[float], t: list[float], c: int) -> bool:
    """The definition of each property, in words of Python."""
    others = [k for k in range(CLASSES) if k != c]
    top = max(range(CLASSES), key=lambda k: t[k])
    if relation.kind is Property.CLOSE:
        return any(abs(a - b) > relation.tolerance for a, b in zip(s, t, strict=True))
    if relation.kind is Property.NOT_WORSE:
        m_s, m_t = (v[c] - max(v[k] for k in others) for v in (s, t))
        return m_s < m_t - relation.tolerance
    if relation.kind is Property.TRANSFER:
        return top == c and max(range(CLASSES), key=lambda k: s[k]) != c
    sure = all(t[top] > t[k] + relation.delta for k in range(CLASSES) if k != top)
    return sure and max(range(CLASSES), key=lambda k: s[k]) != top


@pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)
def test_a_violation_is_positive_where_the_property_fails(relation: Relation) -> None:
    student, teacher, c = logits(300, apart=1.0)
    found = violation(relation, student, teacher, c)
    expected = [fails(relation, *row) for row in zip(student.tolist(), teacher.tolist(), c.tolist(), strict=True)]
    assert (found > 0).tolist() == expected
    assert 5 < sum(expected) < 300, "all points are alike: the test is of no use"


@pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)
def test_a_point_is_in_a_case_where_the_property_fails(relation: Relation) -> None:
    student, teacher, _ = logits(300, seed=1)
    for c in range(CLASSES):
        spaces = unsafe(relation, c, CLASSES)
        values = spaces.values(student, torch.cat([student, teacher], 1))
        broken = violation(relation, student, teacher, torch.full((300,), c)) > 0
        assert torch.equal((values <= 0).any(1), broken)


def test_logits_that_are_not_finite_fail_nothing() -> None:
    student, teacher, c = logits(3)
    student[0, 0], student[1, 1], teacher[2, 2] = float("nan"), float("inf"), float("-inf")
    for relation in RELATIONS:
        assert (violation(relation, student, teacher, c) == -torch.inf).all()


@pytest.mark.parametrize("relation", [Relation(), Relation(Property.TRANSFER)], ids=["same-class", "transfer"])
def test_a_tie_is_no_violation(relation: Relation) -> None:
    teacher, c = torch.tensor([[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]), torch.tensor([0, 0])
    student = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 0.0]])
    assert (violation(relation, student, teacher, c) <= 0).all()


def least_of(relation: Relation, student: Tensor, teacher: Tensor, c: int) -> Tensor:
    """The least value of every screening row over points, as a perfect bound gives it."""
    rows = screening_rows(relation, torch.tensor([c]), CLASSES)
    return (torch.cat([student, teacher], 1) @ rows[0].T).amin(0)[None]


@pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)
def test_positive_screens_are_proofs(relation: Relation) -> None:
    """Regions of five points around a sure one: no point violates the property where the bounds prove it."""
    proved = 0
    for seed, spread in itertools.product(range(60), (0.01, 0.1, 1.0)):
        student, teacher, _ = logits(1, seed, apart=0.03)
        student, teacher = 3 * student, 3 * teacher
        noise = torch.randn((2, 5, CLASSES), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        student, teacher = student + spread * noise[0], teacher + spread * noise[0] + 0.01 * noise[1]
        c = int(teacher[0].argmax())
        if float(screened(relation, least_of(relation, student, teacher, c))) > 0:
            proved += 1
            assert not (violation(relation, student, teacher, torch.full((5,), c)) > 0).any()
    assert proved >= 3, "no region is proved: the test is of no use"


@pytest.mark.parametrize("relation", [r for r in RELATIONS if r.kind is not Property.TRANSFER], ids=str)
def test_the_least_threshold_is_where_the_proof_begins(relation: Relation) -> None:
    for seed in range(20):
        student, teacher, _ = logits(1, seed, apart=0.2)
        bounds = least_of(relation, student, teacher, int(teacher[0].argmax()))
        least = float(least_threshold(relation, bounds))
        assert screened(relation.at(least + 1e-6), bounds) > 0
        if least > 1e-3:
            assert screened(relation.at(least - 1e-6), bounds) <= 0


def test_bounds_that_are_not_numbers_prove_nothing() -> None:
    for relation in RELATIONS:
        bounds = torch.full((2, screening_rows(relation, torch.tensor([0]), CLASSES).shape[1]), torch.nan)
        assert (screened(relation, bounds) == -torch.inf).all()
        assert (least_threshold(relation, bounds) == torch.inf).all()


def test_pairs_select_the_cases_of_same_class() -> None:
    every = unsafe(Relation(delta=0.5), 1, CLASSES)
    some = unsafe(Relation(delta=0.5), 1, CLASSES, [(1, 2), (3, 0)])
    assert every.cases == CLASSES * (CLASSES - 1) and some.cases == 2
    student, teacher, _ = logits(200, seed=3)
    y = torch.cat([student, teacher], 1)
    order = [(a, b) for a in range(CLASSES) for b in range(CLASSES) if a != b]
    values, chosen = every.values(student, y), some.values(student, y)
    assert torch.allclose(chosen, values[:, [order.index((1, 2)), order.index((3, 0))]])


def test_the_redundant_value_is_the_sum_of_two_others() -> None:
    spaces = unsafe(Relation(delta=0.5), 0, 3, [(0, 2)])
    own, both, towards, *_ = spaces.outputs
    assert torch.equal(both, own + towards)
    assert spaces.constant.tolist() == [0.0, 0.5, 0.5, 0.5]


def test_violations_can_be_followed_by_their_gradient() -> None:
    student, teacher, c = logits(6, seed=5)
    for relation in RELATIONS:
        given = student.clone().requires_grad_()
        partial(violation, relation)(given, teacher, c).sum().backward()  # type: ignore[no-untyped-call]
        assert given.grad is not None and torch.isfinite(given.grad).all()
