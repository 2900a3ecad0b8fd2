"""One table of all training objectives through the same invariants."""

from dataclasses import replace

import pytest
import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

import certkd.objectives.attacks
from certkd.objectives import OBJECTIVES, AnyObjective
from certkd.objectives.base import Batch, total
from tests.certkd.objectives.objective_cases import ROWS, Row
from tests.certkd.objectives.objective_fixtures import (
    CLASSES,
    anew,
    batch_of,
    loss_of,
    network,
    smooth_batch,
    values,
    weights_of,
)
from tests.marks import thin
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import random_start

every_objective = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)


def test_every_objective_has_a_row() -> None:
    missing = set(OBJECTIVES) - {type(row.objective) for row in ROWS}
    assert not missing, f"give each new objective a row in ROWS: {missing}"


def test_every_kind_reaches_its_own_objective() -> None:
    kinds = [objective.model_fields["kind"].default for objective in OBJECTIVES]
    assert len(set(kinds)) == len(kinds), f"two objectives share a kind: {kinds}"
    for row in ROWS:
        parsed = TypeAdapter(AnyObjective).validate_python(row.objective.model_dump())
        assert type(parsed) is type(row.objective) and parsed == row.objective, f"{row.objective.kind} became {parsed}"


@every_objective
@pytest.mark.thin(2)
def test_terms_equal_a_literal_double_loop(row: Row) -> None:
    batch = smooth_batch()
    assert values(batch, row.objective) == pytest.approx(row.oracle(batch), rel=1e-9)


@every_objective
def test_terms_equal_the_literal_loop_on_a_relu_network(row: Row) -> None:
    batch = batch_of(network(4, nn.ReLU), network(5, nn.ReLU))
    assert values(batch, row.objective) == pytest.approx(row.oracle(batch), rel=1e-9)


@every_objective
@pytest.mark.thin(2)
def test_weighted_terms_sum_to_the_scalar(row: Row) -> None:
    batch = smooth_batch()
    terms = row.objective.terms(anew(batch))
    assert {name: term.weight for name, term in terms.items()} == pytest.approx(row.weights)
    scalar = total(terms)
    expected = sum(row.weights[name] * float(term.value.detach()) for name, term in terms.items())
    assert float(scalar.detach()) == pytest.approx(expected, rel=1e-12)
    assert scalar.shape == (), "the scalar that is back-propagated has a shape"


@every_objective
@pytest.mark.thin(2)
def test_back_propagated_gradient_is_that_of_every_weighted_term(row: Row) -> None:
    batch = smooth_batch()
    weights = weights_of(batch.student)
    expected = [torch.zeros_like(weight) for weight in weights]
    for name in row.weights:
        term = row.objective.terms(anew(batch))[name]
        parts = torch.autograd.grad(term.value, weights, materialize_grads=True)
        assert any(bool((part != 0).any()) for part in parts), f"{name} has no gradient in the student's weights"
        expected = [sum_ + row.weights[name] * part for sum_, part in zip(expected, parts, strict=True)]
    loss_of(batch, row.objective).backward()
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("row", thin(ROWS, every=5), ids=lambda row: row.name)
@pytest.mark.thin(2)
def test_parameter_gradient_equals_finite_differences(row: Row) -> None:
    batch = smooth_batch()
    weights = weights_of(batch.student)
    gradients = torch.autograd.grad(loss_of(batch, row.objective), weights)
    step = 1e-6
    for weight, gradient in zip(weights, gradients, strict=True):
        for entry in range(0, weight.numel(), max(1, weight.numel() // 3)):
            flat, kept = weight.data.view(-1), float(weight.data.view(-1)[entry])
            flat[entry] = kept + step
            above = float(loss_of(batch, row.objective).detach())
            flat[entry] = kept - step
            below = float(loss_of(batch, row.objective).detach())
            flat[entry] = kept
            assert float(gradient.view(-1)[entry]) == pytest.approx((above - below) / (2 * step), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("frozen", [True, False], ids=["frozen teacher", "trainable teacher"])
@every_objective
@pytest.mark.thin(2)
def test_gradient_reaches_the_student_and_never_the_teacher(row: Row, frozen: bool) -> None:
    batch = smooth_batch()
    teachers = nn.ModuleDict({"robust": batch.teacher, "natural": batch.natural_teacher})
    teachers.requires_grad_(not frozen)
    before = {name: value.clone() for name, value in teachers.state_dict().items()}
    loss_of(batch, row.objective).backward()
    for name, weight in batch.student.named_parameters():
        assert weight.grad is not None and float(weight.grad.norm()) > 0, f"no gradient reaches the student's {name}"
    for name, weight in teachers.named_parameters():
        assert weight.grad is None, f"a gradient was left on the teacher's {name}"
        assert weight.requires_grad is not frozen, f"requires_grad of the teacher's {name} was changed"
        assert torch.equal(weight, before[name]), f"the teacher's {name} changed"


@every_objective
@pytest.mark.thin(2)
def test_inputs_are_unchanged(row: Row) -> None:
    batch = smooth_batch()
    x, y = batch.x.clone(), batch.y.clone()
    loss_of(batch, row.objective).backward()
    assert torch.equal(batch.x, x) and torch.equal(batch.y, y), "the loss changed its input"
    assert not batch.x.requires_grad and batch.x.grad is None, "the loss left a gradient on its input"


class Repeated(Batch):
    """The same five images several times, each time with the same random numbers."""

    def once(self) -> Batch:
        return Batch(self.student, self.teacher, self.x[:5], self.y[:5], self.generator)

    def noise(self, sigma: float, copies: int = 1) -> Tensor:
        return self.once().noise(sigma, copies).repeat(1, len(self.x) // 5, 1, 1, 1)

    def normal(self, like: Tensor) -> Tensor:
        return self.once().normal(like[:5]).repeat(len(like) // 5, *[1] * (like.dim() - 1))

    def uniform(self, like: Tensor) -> Tensor:
        return self.once().uniform(like[:5]).repeat(len(like) // 5, *[1] * (like.dim() - 1))


@every_objective
@pytest.mark.thin(2)
def test_duplicated_batch_has_the_same_terms(row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    def repeated_start(x: Tensor, eps: Tensor, norm: Norm, generator: torch.Generator) -> Tensor:
        return random_start(x[:5], eps[:5], norm, generator).repeat(len(x) // 5, *[1] * (x.dim() - 1))

    monkeypatch.setattr(certkd.objectives.attacks, "random_start", repeated_start)
    batch = smooth_batch()
    once = values(Repeated(**vars(batch)), row.objective)
    for copies in (2, 3):
        x, y = batch.x.repeat(copies, 1, 1, 1), batch.y.repeat(copies)
        larger = Repeated(**{**vars(batch), "x": x, "y": y})
        assert values(larger, row.objective) == pytest.approx(once, rel=1e-9)


def padded(model: nn.Module, more: int) -> nn.Module:
    """The network with more classes, of probability 1e-130."""
    wider = nn.Linear(CLASSES, CLASSES + more).double()
    wider.weight.data, wider.bias.data = (
        torch.eye(CLASSES + more, CLASSES).double(),
        torch.full((CLASSES + more,), -300.0),
    )
    wider.bias.data = torch.cat([torch.zeros(CLASSES), torch.full((more,), -300.0)]).double()
    *layers, last = model
    return nn.Sequential(*layers, merged(last, wider))


def merged(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """Both linear layers in one."""
    both = nn.Linear(first.in_features, second.out_features).double()
    both.weight.data = second.weight.data @ first.weight.data
    both.bias.data = second.weight.data @ first.bias.data + second.bias.data
    return both


@pytest.mark.parametrize("row", [row for row in ROWS if row.blind], ids=lambda row: row.name)
@pytest.mark.thin(2)
def test_classes_of_no_probability_change_no_term(row: Row) -> None:
    batch = smooth_batch()
    assert batch.teacher is not None and batch.natural_teacher is not None
    networks = {name: getattr(batch, name) for name in ("student", "teacher", "natural_teacher")}
    wide = replace(batch, **{name: padded(model, 90) for name, model in networks.items()})
    assert values(wide, row.objective) == pytest.approx(values(batch, row.objective), rel=1e-9)


@every_objective
@pytest.mark.thin(2)
def test_student_forwards_in_train_mode(row: Row) -> None:
    """One for each different image: all terms about an image share it, and batch statistics are updated once for it."""
    student = nn.Sequential(nn.Flatten(), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, CLASSES)).double()
    calls: list[bool] = []
    student.register_forward_hook(lambda module, given, answer: calls.append(module.training))
    batch = batch_of(student.train(), network(1).eval())
    loss_of(batch, row.objective).backward()
    assert sum(calls) == row.forwards, f"{sum(calls)} student forward passes in train mode, each moves batch statistics"
    assert int(student[2].num_batches_tracked) == row.forwards, "batch statistics were updated in an attack"


@every_objective
@pytest.mark.thin(2)
def test_teachers_run_no_more_than_needed(row: Row) -> None:
    batch, calls = smooth_batch(), []
    loss_of(batch, row.objective)  # what is built once, by copies of the networks, is there then
    for name in ("teacher", "natural_teacher"):
        getattr(batch, name).register_forward_hook(lambda module, given, answer, name=name: calls.append(name))
    loss_of(batch, row.objective)
    assert calls.count("teacher") == row.teacher_forwards
    assert calls.count("natural_teacher") == row.natural_forwards
    assert row.objective.needs_teacher is (row.teacher_forwards > 0)
    assert row.objective.needs_natural_teacher is (row.natural_forwards > 0)
    if not row.objective.needs_teacher:
        assert values(replace(batch, teacher=None), row.objective) == values(batch, row.objective)


@every_objective
@pytest.mark.thin(2)
def test_same_generator_gives_the_same_terms(row: Row) -> None:
    batch = smooth_batch()
    torch.manual_seed(0)
    first = values(batch, row.objective)
    torch.manual_seed(1)
    assert values(batch, row.objective) == first, "a term depends on torch's global generator"


@every_objective
@pytest.mark.thin(2)
def test_identical_networks_have_no_distance_and_finite_gradients(row: Row) -> None:
    batch = replace(batch_of(network(0), network(0)), natural_teacher=network(0))
    terms = row.objective.terms(anew(batch))
    for name in row.zero:
        assert float(terms[name].value.detach()) == pytest.approx(0, abs=1e-12), f"{name} of a network with itself"
    total(terms).backward()
    for name, weight in batch.student.named_parameters():
        assert weight.grad is not None and bool(weight.grad.isfinite().all()), f"gradient of {name} is not finite"


@pytest.mark.parametrize("row", thin(ROWS, every=4), ids=lambda row: row.name)
def test_gradients_are_finite_for_few_and_many_classes(row: Row) -> None:
    for classes in (2, 3, 10, 100):
        batch = batch_of(network(0, nn.ReLU, classes), network(1, nn.ReLU, classes), classes=classes)
        loss_of(batch, row.objective).backward()
        for name, weight in batch.student.named_parameters():
            assert weight.grad is not None and bool(weight.grad.isfinite().all()), f"{name} at {classes} classes"
        assert any(bool(weight.grad.any()) for weight in weights_of(batch.student)), f"no gradient at {classes} classes"


def test_a_paper_of_which_the_abstract_was_read_is_marked_everywhere() -> None:
    for row in ROWS:
        told = "Only the paper's abstract was read" in " ".join((type(row.objective).__doc__ or "").split())
        kind = type(row.objective)
        assert told == kind.paper.endswith("(abstract)"), f"{kind.__name__}: {kind.paper}"
        assert told == row.name.endswith("(abstract)")
