"""The search on one region: what decides it, in every norm, for copies and for strangers, and when time is over."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import certkd
from tests.verifiers.bound_propagation.pairs import RELATIONS, Tiny, broken, copied, matched, network, truth
from verifiers.bound_propagation.relations import violation
from verifiers.core.quantities import Norm
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.results.rows import MethodRows
from verifiers.results.summaries.match import Stage

NAMES = [f"{relation.kind}-{relation.threshold:g}" for relation in RELATIONS]


def certified(
    student: nn.Module, teacher: nn.Module, x: torch.Tensor, relation: Relation, norm: Norm, eps: str, **others: Any
) -> MethodRows:
    """Match images through the public door."""
    options = {
        "property": str(relation.kind),
        "tolerance": relation.tolerance,
        "delta": relation.delta,
        "time_limit": 3.0,
        "iterations": 4,
        "steps": 6,
        "restarts": 1,
        **others,
    }
    config = certkd.CertifyConfig(eps=eps, norm=str(norm), methods=["match"], options=options)
    labels = torch.zeros(len(x), dtype=torch.int64)
    return certkd.certify(student.eval(), (x, labels), config, teacher=teacher.eval())["match"]


def sampled(x: torch.Tensor, eps: float, norm: Norm, count: int) -> torch.Tensor:
    """Random points of a ball, a third of them on its surface, cut at the image box."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn((count, *x.shape), generator=generator, dtype=torch.float64)
    order = {Norm.LINF: float("inf"), Norm.L2: 2.0, Norm.L1: 1.0}[norm]
    if norm is Norm.LINF:
        noise = torch.rand((count, *x.shape), generator=generator, dtype=torch.float64) * 2 - 1
        noise[: count // 3] = noise[: count // 3].sign()
    size = noise.flatten(1).norm(order, dim=1).clamp_min(1e-12)
    share = torch.rand(count, generator=generator, dtype=torch.float64)
    share[: count // 3] = 1.0
    shape = (-1, *[1] * x.dim())
    scaled = eps * noise if norm is Norm.LINF else eps * (share / size).reshape(shape) * noise
    return (x.double() + (1 - 1e-6) * scaled).clamp(0.0, 1.0).float()


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)
@pytest.mark.thin(7)
def test_no_sampled_point_breaks_what_is_proved(relation: Relation, norm: Norm) -> None:
    proved = 0
    for seed in range(2):
        rng = np.random.default_rng(seed)
        teacher = network(rng, 3, [6, 5])
        student = copied(rng, teacher, 0.02, 0.1) if seed else network(rng, 3, [5])
        x = torch.from_numpy(rng.random((5, 3))).float()
        rows = certified(student, teacher, x, relation, norm, "0.08")
        with torch.no_grad():
            c = teacher(x).argmax(1)
        for i in np.flatnonzero(rows["status"] == Status.CERTIFIED):
            points = sampled(x[i], 0.08, norm, 600)
            with torch.no_grad():
                found = violation(relation, student(points).double(), teacher(points).double(), c[i].expand(600))
            assert float(found.max()) <= 0, f"seed {seed}, sample {i}: a point breaks it by {float(found.max())}"
            proved += 1
    assert proved >= 1 or relation == Relation(Property.NOT_WORSE), "nothing is proved: the test is of no use"


@pytest.mark.parametrize("activation", [nn.Tanh(), nn.Sigmoid(), nn.LeakyReLU(0.1), nn.GELU()], ids=str)
@pytest.mark.slow
def test_networks_without_relu_are_matched_too(activation: nn.Module) -> None:
    rng = np.random.default_rng(3)
    teacher = network(rng, 3, [6])
    teacher[1] = activation
    student = copied(rng, teacher, 0.001, 0.0)
    x = torch.from_numpy(rng.random((4, 3))).float()
    rows = certified(student, teacher, x, Relation(Property.CLOSE, 0.05), Norm.LINF, "0.05")
    assert set(rows["status"]) == {Status.CERTIFIED}
    rows = certified(student, teacher, x, Relation(Property.CLOSE, 1e-7), Norm.LINF, "0.05")
    assert set(rows["status"]) == {Status.FALSIFIED}


def test_convolutional_copies_are_matched() -> None:
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    student = copied_convolution(teacher)
    x = torch.rand((4, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    rows = certified(student, teacher, x, Relation(Property.CLOSE, 0.02), Norm.LINF, "0.02")
    assert set(rows["status"]) == {Status.CERTIFIED}
    for i in range(4):
        points = sampled(x[i], 0.02, Norm.LINF, 300)
        with torch.no_grad():
            assert float((student(points) - teacher(points)).abs().max()) <= 0.02


def copied_convolution(teacher: nn.Sequential) -> nn.Sequential:
    """A copy whose weights are rounded to half precision."""
    student = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3))
    student.load_state_dict({name: value.half().float() for name, value in teacher.state_dict().items()})
    return student


def hard(seed: int) -> Tiny:
    """Two networks that agree on a ball, which CROWN alone cannot see."""
    rng = np.random.default_rng(seed)
    teacher, student = network(rng, 3, [12, 12], 2.0), network(rng, 3, [12, 12], 2.0)
    with torch.no_grad():
        for net in (teacher, student):
            net[-1].bias[0] += 3.0
    return Tiny(student, teacher, torch.from_numpy(rng.random((1, 3))).float(), 0.3)


@pytest.mark.slow
def test_what_crown_leaves_open_is_decided_by_splits() -> None:
    stages = set()
    for seed in range(5):
        pair = hard(seed)
        columns = matched(pair, Relation())
        status = Status(int(columns["status"][0]))
        worst = truth(pair, Relation())
        if abs(worst) > 1e-4:
            assert status is (Status.FALSIFIED if worst > 0 else Status.CERTIFIED), f"seed {seed}: {worst}"
        stages.add(Stage(int(columns["stage"][0])))
    assert Stage.ALONE in stages, f"no pair needs a split: {stages}"


@pytest.mark.slow
def test_no_time_is_no_wrong_answer() -> None:
    """A limit that is over before the first split leaves samples open, and what it proves is true."""
    found, relation = set(), Relation(Property.NOT_WORSE, 4.0)
    for seed in range(6):
        pair = hard(seed)
        columns = matched(pair, relation, time_limit=1e-9, restarts=1, steps=1)
        found.add(status := Status(int(columns["status"][0])))
        if status is Status.CERTIFIED:
            assert truth(pair, relation) <= 1e-6
    assert Status.TIMEOUT in found and found <= {Status.TIMEOUT, Status.FALSIFIED, Status.CERTIFIED}, found


def test_points_are_stored_with_both_classes() -> None:
    for seed in range(6):
        pair = hard(seed)
        columns = matched(pair, Relation())
        if columns["status"][0] == Status.FALSIFIED:
            assert broken(pair, Relation(), columns["counterexample"][0]) > 0
            assert columns["student_class"][0] != columns["teacher_class"][0]
            assert columns["distance"][0] <= pair.eps and columns["margin"][0] == -columns["violation"][0]
            return
    pytest.fail("no pair disagrees: the test is of no use")


def test_images_that_are_misclassified_are_answered() -> None:
    rng = np.random.default_rng(1)
    teacher = network(rng, 3, [6])
    x = torch.from_numpy(rng.random((6, 3))).float()
    rows = certified(copied(rng, teacher, 1e-4, 0.0), teacher, x, Relation(), Norm.LINF, "0.01")
    assert not rows["correct"].all(), "every label is right: the test is of no use"
    assert set(rows["status"]) <= {Status.CERTIFIED, Status.FALSIFIED}
    assert np.array_equal(rows["certified"] == 1, rows["status"] == Status.CERTIFIED)
