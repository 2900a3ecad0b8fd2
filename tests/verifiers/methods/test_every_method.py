"""One table of all certificate methods, and what holds for each of them."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from tests.certifying import certify
from tests.zoo import images, mlp
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.status import About, Guarantee, Status
from verifiers.geometry.balls import random_start
from verifiers.methods.base import Method
from verifiers.methods.complete import Complete
from verifiers.methods.crown import AlphaCrown, Crown, CrownIbp, Ibp
from verifiers.methods.diagnostics import Diagnostics
from verifiers.methods.joint import Joint
from verifiers.methods.lipschitz import Lipschitz
from verifiers.methods.local_linearity import LocalLinearity
from verifiers.methods.pgd import Pgd
from verifiers.methods.registry import METHODS, parse
from verifiers.methods.smoothing import Smoothing
from verifiers.methods.transfer import Transfer
from verifiers.results.rows import Certificates, MethodRows

ROWS: tuple[Method, ...] = (
    Pgd(steps=5, restarts=1),
    Ibp(),
    CrownIbp(),
    Crown(tolerance=0.02),
    AlphaCrown(iterations=3),
    Complete(time_limit=20),
    Joint(),
    Lipschitz(shells=4, constants="fast"),
    LocalLinearity(steps=3),
    Transfer(steps=3),
    Diagnostics(steps=3, restarts=1),
    Smoothing(sigma=0.25, n=500),
)
CASES = [
    pytest.param(method, norm, id=f"{method.kind}-{norm}", marks=[pytest.mark.slow] if number else [])
    for method in ROWS
    for number, norm in enumerate(method.norms)
]
EPS, SAMPLES, SHAPE = {Norm.LINF: "0.02", Norm.L2: "0.05", Norm.L1: "0.1"}, 7, (2, 4)


@dataclass(frozen=True)
class Case:
    """A small student, its teacher, and images of which some are misclassified."""

    student: nn.Module
    teacher: nn.Module
    x: torch.Tensor
    y: torch.Tensor


@cache
def case() -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        student, teacher = (mlp((8, 10, 3)).eval() for _ in "st")
    x = images(SHAPE, SAMPLES)
    y = student(x).argmax(1)
    y[-1] = (y[-1] + 1) % 3
    return Case(student, teacher, x, y)


@cache
def done(method: Method, norm: Norm, batch_size: int | None = None) -> Certificates:
    known = case()
    methods, teacher = [method], known.teacher if method.about is About.PAIR else None
    return certify(
        known.student, known.x, known.y, eps=EPS[norm], norm=norm, methods=methods, teacher=teacher,
        batch_size=batch_size,
    )  # fmt: skip


def rows_of(method: Method, norm: Norm) -> MethodRows:
    return done(method, norm)[method.kind]


def test_every_method_has_a_row() -> None:
    assert [type(method) for method in ROWS] == list(METHODS)


@pytest.mark.parametrize("method", ROWS, ids=lambda method: method.kind)
def test_settings_survive_as_plain_values(method: Method) -> None:
    assert parse(method.kind, method.options) == method
    with pytest.raises(InputError, match="nonsense"):
        parse(method.kind, {**method.options, "nonsense": 1})


@pytest.mark.parametrize("method", ROWS, ids=lambda method: method.kind)
def test_facts_are_stated(method: Method) -> None:
    assert method.claim and method.paper and method.cost and type(method).__doc__ and method.norms
    names = [column.name for column in method.columns]
    assert len(set(names)) == len(names) and all(column.description for column in method.columns)


@pytest.mark.parametrize(("method", "norm"), CASES)
def test_every_row_has_one_answer(method: Method, norm: Norm) -> None:
    rows = rows_of(method, norm)
    status, radius = rows["status"], rows["radius"]
    assert len(rows) == SAMPLES and rows.answered, [Status(value).name for value in status]
    assert ((radius > 0) == (status == Status.CERTIFIED)).all(), "a radius without a certificate, or the reverse"
    assert np.isfinite(radius).all() and (radius >= 0).all()
    proved = rows["correct"].astype(bool) & (radius >= rows.eps)
    assert (rows["certified"].astype(bool) == proved).all()
    assert (rows["seconds"] >= 0).all()


@pytest.mark.parametrize(("method", "norm"), CASES)
def test_columns_are_those_that_it_lists(method: Method, norm: Norm) -> None:
    rows = rows_of(method, norm)
    for column in method.columns:
        if not column.axes:
            assert rows[column.name].dtype == np.dtype(column.dtype), column.name


@pytest.mark.parametrize(("method", "norm"), CASES)
def test_no_sampled_point_leaves_the_class_inside_a_radius(method: Method, norm: Norm) -> None:
    rows, known = rows_of(method, norm), case()
    if method.guarantee is Guarantee.ESTIMATE:
        assert not rows["radius"].any(), "an estimate has no radius"
        return
    if method.about is About.SMOOTHED:
        return
    radius = torch.tensor(rows["radius"])
    predicted, generator = torch.tensor(rows["predicted"]), torch.Generator().manual_seed(0)
    for _ in range(300):
        point = (known.x.double() + random_start(known.x.double(), radius, norm, generator)).clamp(0, 1)
        here = known.student(point.float()).argmax(1)
        broken = (here != predicted) & (radius > 0)
        assert not broken.any(), f"{method.kind}, {norm}: a point of the ball of sample {int(broken.nonzero()[0])}"


@pytest.mark.parametrize(("method", "norm"), CASES)
def test_answers_do_not_depend_on_the_batch(method: Method, norm: Norm) -> None:
    whole, parts = rows_of(method, norm), done(method, norm, 3)[method.kind]
    assert (whole["status"] == parts["status"]).all()
    np.testing.assert_allclose(parts["radius"], whole["radius"], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("method", [m for m in ROWS if len(m.norms) < len(Norm)], ids=lambda method: method.kind)
def test_other_norms_are_refused(method: Method) -> None:
    known, other = case(), next(norm for norm in Norm if norm not in method.norms)
    with pytest.raises(InputError, match=str(other)):
        certify(known.student, known.x, known.y, eps="0.1", norm=other, methods=[method])
