"""The regulariser of Shi et al.: a literal version, its fading, and what it is for."""

import pytest
import torch
from torch import nn

from certkd.objectives import CcIbp, Ibp, MtlIbp, Objective, Sabr, Taps
from certkd.objectives.base import Batch
from certkd.objectives.warmup import warmup_terms
from tests.certkd.objectives.objective_fixtures import anew, batch_of, linear, network
from tests.certkd.objectives.rows_certified import hidden_inputs
from verifiers.bound_propagation import activation_boxes, ball

SETTINGS = {"eps": 0.1, "lambda_warmup": 0.5, "ramp": 0.5}
OBJECTIVES = (Ibp(**SETTINGS), MtlIbp(**SETTINGS), CcIbp(**SETTINGS), Sabr(**SETTINGS), Taps(**SETTINGS))


def at(progress: float) -> Batch:
    batch = batch_of(network(4, nn.ReLU), network(5, nn.ReLU))
    return Batch(batch.student, batch.teacher, batch.x, batch.y, batch.generator, progress)


def lacking(ratio: float) -> float:
    return max(0.0, 0.5 - ratio) / 0.5


def literal(batch: Batch, eps: float) -> dict[str, float]:
    """One entry at a time, for a network with one activation."""
    ranges = [pair for image in batch.x for pair in hidden_inputs(batch.student, image, eps)]
    start = [min(p + eps, 1.0) - max(p - eps, 0.0) for p in batch.x.ravel().tolist()]
    width = sum(high - low for low, high in ranges) / len(ranges)
    centre = sum((low + high) / 2 for low, high in ranges) / len(ranges)
    sums = {"active": [0.0, 0.0], "inactive": [0.0, 0.0]}
    for low, high in ranges:
        kind = "active" if low > 0 else "inactive" if high < 0 else None
        if kind is not None:
            sums[kind][0] += abs(low + high) / 2
            sums[kind][1] += ((low + high) / 2 - centre) ** 2
    ratios = [a / b for a, b in zip(*sums.values(), strict=True)]
    balance = sum(lacking(min(ratio, 1 / ratio)) for ratio in ratios)
    return {"tightness": lacking(sum(start) / len(start) / width), "balance": balance}


@pytest.mark.parametrize("eps", [0.002, 0.02, 0.05])
def test_terms_equal_a_literal_loop(eps: float) -> None:
    batch = at(0.1)
    terms = warmup_terms(batch.student, ball(batch.x, eps), 0.3)
    assert {name: float(term.value.detach()) for name, term in terms.items()} == pytest.approx(
        literal(batch, eps), rel=1e-9, abs=1e-12
    )
    assert all(term.weight == 0.3 for term in terms.values())


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.kind)
def test_weight_falls_as_eps_grows_and_then_the_terms_are_gone(objective: Objective) -> None:
    early, late = objective.terms(anew(at(0.125))), objective.terms(anew(at(0.75)))
    assert early["tightness"].weight == pytest.approx(0.5 * 0.75) == early["balance"].weight
    assert late.keys() == early.keys() - {"tightness", "balance"}


def test_nothing_is_asked_of_a_network_without_activations() -> None:
    batch = at(0.1)
    assert warmup_terms(linear(1), ball(batch.x, 0.1), 1.0) == {}


def test_minimising_tightness_tightens_wide_intervals() -> None:
    torch.manual_seed(0)
    student, x = network(4, nn.ReLU), at(0.1).x
    for parameter in student.parameters():
        parameter.data.mul_(4)
    optimizer, box = torch.optim.Adam(student.parameters(), 0.1), ball(x, 0.05)

    def width() -> float:
        (low, high) = activation_boxes(student, box)[0]
        return float((high - low).mean().detach())

    before = width()
    for _ in range(60):
        optimizer.zero_grad()
        warmup_terms(student, box, 1.0)["tightness"].value.backward()
        optimizer.step()
    assert width() < 0.6 * before
