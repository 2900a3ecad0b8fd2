"""Closed forms of the objectives' terms on linear softmax models, whose gradients, attacks and bounds are known."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives import Adversarial, Ard, Crt, Ibp, Igd, Kd, Kdiga, KdigaCertified, MtlIbp, Rslad, Sabr, Trades
from certkd.objectives.base import Batch
from certkd.objectives.kdiga import Target
from tests.certkd.objectives.objective_fixtures import anew, batch_of, generator, linear, values

EPS = 0.05  # images are in [0.2, 0.8]: the image box cuts nothing off


def given(classes: int = 4) -> tuple[Batch, Tensor, Tensor, Tensor, Tensor]:
    """A batch with linear networks; weights of student and teacher, and both networks' logits."""
    batch = batch_of(linear(1, classes), linear(2, classes), classes=classes)
    assert batch.teacher is not None
    with torch.no_grad():
        logits, target = batch.student(batch.x), batch.teacher(batch.x)
    return batch, batch.student[1].weight.detach(), batch.teacher[1].weight.detach(), logits, target  # type: ignore[index]


def loss_slope(weight: Tensor, logits: Tensor, y: Tensor, temperature: float = 1.0) -> Tensor:
    """T grad CE(W x / T, y) = W'(p - e_y)."""
    return ((logits / temperature).softmax(1) - F.one_hot(y, logits.shape[1])) @ weight


@pytest.mark.parametrize("target", ["ce", "ce_tempered", "margin", "projection", "jacobian"])
@pytest.mark.parametrize(("norm", "squared"), [(2, False), (1, False), (2, True)])
def test_alignment(target: Target, norm: Any, squared: bool) -> None:
    batch, ours, theirs, logits, said = given()
    y, classes = batch.y, logits.shape[1]
    rows = torch.arange(len(y))
    if target in ("ce", "ce_tempered"):
        temperature = 1.0 if target == "ce" else 5.0
        gap = loss_slope(ours, logits, y, temperature) - loss_slope(theirs, said, y, temperature)
    elif target == "margin":
        rivals = said.scatter(1, y[:, None], -torch.inf).argmax(1)
        gap = (ours[y] - ours[rivals]) - (theirs[y] - theirs[rivals])
    else:
        change = ours - theirs
        drawn = torch.randn(logits.shape, generator=generator(), dtype=logits.dtype)
        centred = change - change.mean(0)
        whole = centred.flatten().expand(len(y), -1)
        gap = (drawn @ centred if target == "projection" else whole) / (classes - 1) ** 0.5
    lengths = torch.linalg.vector_norm(gap, norm, dim=1)
    expected = float((lengths.square() if squared else lengths).mean())
    found = values(batch, Kdiga(target=target, norm=norm, squared=squared))["iga"]
    assert found == pytest.approx(expected, rel=1e-12) and len(rows) == 5


def test_finite_differences_are_those_of_the_step_alone() -> None:
    batch, ours, theirs, _, _ = given()
    step = EPS * (2 * torch.rand(batch.x.shape, generator=generator(), dtype=batch.x.dtype) - 1).flatten(1)
    p, q = (2 * step @ theirs.T).log_softmax(1), (2 * step @ ours.T).log_softmax(1)
    found = values(batch, Kdiga(target="finite_difference", point="random", eps=EPS))["iga"]
    assert found == pytest.approx(float((p.exp() * (p - q)).sum(1).mean()), rel=1e-9)


def test_cosines_of_loss_gradients() -> None:
    batch, ours, _, logits, _ = given()
    natural = batch.natural_teacher
    assert natural is not None
    with torch.no_grad():
        theirs = loss_slope(natural[1].weight, natural(batch.x), batch.y)  # type: ignore[index]
    expected = 1 - F.cosine_similarity(loss_slope(ours, logits, batch.y), theirs, dim=1).mean()
    assert values(batch, Igd(eps=EPS))["igd"] == pytest.approx(float(expected), rel=1e-9)


def worst(margins: Tensor, weight: Tensor, y: Tensor, eps: float) -> Tensor:
    """The least f_y - f_j over the linf ball, for every j."""
    return margins - eps * (weight[y][:, None] - weight[None]).abs().sum(2)


def margins_of(logits: Tensor, y: Tensor) -> Tensor:
    return logits.gather(1, y[:, None]) - logits


def test_attacks_on_two_classes_reach_the_corner() -> None:
    """The margin falls by eps ||w_y - w_j||_1, for the loss of the label and for any divergence from there."""
    batch, weight, _, logits, said = given(2)
    y = batch.y
    corner = batch.x - EPS * (weight[y] - weight[1 - y]).sign().reshape(batch.x.shape)
    with torch.no_grad():
        attacked = batch.student(corner)
    loss = float(F.cross_entropy(attacked, y))
    assert loss == pytest.approx(float(torch.logsumexp(-worst(margins_of(logits, y), weight, y, EPS), 1).mean()))
    assert values(batch, Adversarial(eps=EPS))["ce_adversarial"] == pytest.approx(loss, rel=1e-9)
    kl = F.kl_div((attacked / 30).log_softmax(1), (said / 30).softmax(1), reduction="batchmean") * 900
    assert values(batch, Ard(eps=EPS))["kl_adversarial"] == pytest.approx(float(kl), rel=1e-9)


def ends(logits: Tensor, weight: Tensor, target: Tensor) -> Tensor:
    """KL(target || s(z)) of two classes in the two corners where their difference is extreme, (2, batch)."""
    reach = EPS * (weight[1] - weight[0]).abs().sum()
    far = torch.stack([-reach, reach]) / 2
    there = torch.stack([logits + far, logits - far]).log_softmax(2)
    return F.kl_div(there, target.softmax(1).expand_as(there), reduction="none").sum(2)


def test_divergences_on_two_classes_grow_up_to_a_corner() -> None:
    """From the clean student's own outputs the divergence rises to both sides, and the start decides for one."""
    batch, weight, _, logits, said = given(2)
    found = values(batch, Rslad(eps=EPS))["kl_adversarial"]
    assert found == pytest.approx(float(ends(logits, weight, said).amax(0).mean()), rel=1e-6)
    own = ends(logits, weight, logits)
    assert (
        float(own.amin(0).mean()) * (1 - 1e-6) <= values(batch, Trades(eps=EPS))["kl_self"] <= float(own.amax(0).mean())
    )


@pytest.mark.parametrize("bound", ["ibp", "crown-ibp"])
def test_bounds_are_exact(bound: Any) -> None:
    batch, ours, theirs, logits, said = given()
    y = batch.y
    least = worst(margins_of(logits, y), ours, y, EPS)
    certified = float(torch.logsumexp(-least, 1).mean())
    assert values(batch, Ibp(eps=EPS, method=bound))["ce_certified"] == pytest.approx(certified, rel=1e-6)
    growing = replace(batch, progress=0.25)  # half of eps, and half of the bound is CROWN-IBP's where that is asked
    smaller = float(torch.logsumexp(-worst(margins_of(logits, y), ours, y, EPS / 2), 1).mean())
    assert values(growing, Ibp(eps=EPS, method=bound))["ce_certified"] == pytest.approx(smaller, rel=1e-6)
    if bound == "ibp":
        assert values(batch, MtlIbp(eps=EPS))["ce_certified"] == pytest.approx(certified, rel=1e-6)
        assert values(batch, Sabr(eps=EPS, share=1.0))["ce_certified"] == pytest.approx(certified, rel=1e-6)
        most = -worst(-margins_of(said, y), theirs, y, EPS)
        behind = most - least
    else:  # one graph: only the difference of both networks counts
        behind = -worst(margins_of(logits - said, y), ours - theirs, y, EPS)
    found = values(batch, KdigaCertified(eps=EPS, bound=bound))["deficit"]
    assert found == pytest.approx(float(behind.amax(1).clamp_min(0).mean()), rel=1e-6)


def test_divergence_and_transfer_of_logits() -> None:
    batch, _, _, logits, said = given()
    kl = F.kl_div((logits / 3).log_softmax(1), (said / 3).softmax(1), reduction="batchmean") * 9
    assert values(batch, Kd(temperature=3))["kl"] == pytest.approx(float(kl), rel=1e-12)
    noisy = anew(batch).noisy(0.3)
    assert batch.teacher is not None
    with torch.no_grad():
        apart = torch.linalg.vector_norm(batch.student(noisy) - batch.teacher(noisy), dim=1).mean()
    assert values(batch, Crt(sigma=0.3))["transfer"] == pytest.approx(float(apart), rel=1e-12)
