"""Diagnostics of a student and its teacher: closed forms, finite differences, and networks made to mislead."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.certifying import certify
from tests.zoo import images, mlp
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.status import Status
from verifiers.geometry.attack import Attack
from verifiers.geometry.balls import norms
from verifiers.geometry.margins import margins
from verifiers.linearity.agreement import attack_agreement, gradient_agreement
from verifiers.methods.diagnostics import Diagnostics
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.summaries.diagnostics import ENOUGH, MEANS, diagnose

DUAL = {Norm.LINF: 1.0, Norm.L2: 2.0, Norm.L1: math.inf}
every_norm = pytest.mark.parametrize("norm", list(Norm))


def network(seed: int, *sizes: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return mlp(sizes, activation).eval()


def linear(seed: int, classes: int = 4) -> nn.Sequential:
    return network(seed, 6, classes).double()


def scaled(model: nn.Module, factor: float) -> nn.Module:
    """The same decisions with logits that many times as large."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in (made[-1].weight, made[-1].bias):
            parameter.mul_(factor)
    return made


def constant(pixels: int = 16, classes: int = 10) -> nn.Module:
    """Logits that do not depend on the image."""
    made = network(0, pixels, classes)
    nn.init.zeros_(made[1].weight)
    return made


def diagnosed(
    student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, eps: float = 0.1, **more: object
) -> Certificates:
    return certify(student, x, y, eps=eps, methods=["diagnostics"], teacher=teacher, **more)


@every_norm
def test_gradients_of_linear_networks_in_closed_form(norm: Norm) -> None:
    """grad CE = W^T (p - e_y), grad m = W_y - W_j."""
    student, teacher = linear(1), linear(2)
    x, y = images((2, 3), 9).double(), torch.arange(9) % 4
    found = gradient_agreement(student, teacher, x, y, norm)
    for i in range(len(x)):
        target, flat, slopes, rows = F.one_hot(y[i], 4), x[i].flatten(), [], []
        logits = (student[1].weight @ flat + student[1].bias).detach()
        rival = max((j for j in range(4) if j != y[i]), key=lambda j, logits=logits: float(logits[j]))
        for model in (student, teacher):
            weight = model[1].weight.detach()
            slopes.append(weight.T @ ((weight @ flat + model[1].bias.detach()).softmax(0) - target))
            rows.append(weight[y[i]] - weight[rival])
        a, b = slopes
        torch.testing.assert_close(found.gap[i], (a - b).norm())
        torch.testing.assert_close(found.gap_dual[i], (a - b).norm(p=DUAL[norm]))
        torch.testing.assert_close(found.cosine[i], a @ b / (a.norm() * b.norm()))
        torch.testing.assert_close(found.norm[i], a.norm())
        torch.testing.assert_close(found.margin_gap[i], (rows[0] - rows[1]).norm(p=DUAL[norm]))


def test_gradients_against_differences_pixel_by_pixel() -> None:
    student, teacher = (network(seed, 6, 7, 3, activation=nn.Tanh).double() for seed in (3, 4))
    x, y, step = images((1, 2, 3), 5).double(), torch.tensor([0, 1, 2, 1, 0]), 1e-6
    found = gradient_agreement(student, teacher, x, y, Norm.LINF)

    def slope(model: nn.Module, i: int) -> list[float]:
        slopes = []
        for pixel in range(6):
            ends = []
            for sign in (1, -1):
                moved = x[i].clone().flatten()
                moved[pixel] += sign * step
                with torch.no_grad():
                    logits = model(moved.reshape(1, 1, 2, 3))[0]
                ends.append(math.log(sum(math.exp(v) for v in logits.tolist())) - float(logits[y[i]]))
            slopes.append((ends[0] - ends[1]) / (2 * step))
        return slopes

    for i in range(5):
        a, b = slope(student, i), slope(teacher, i)
        sizes = [math.sqrt(sum(v * v for v in s)) for s in (a, b)]
        assert float(found.gap[i]) == pytest.approx(math.dist(a, b), rel=1e-6)
        assert float(found.gap_dual[i]) == pytest.approx(sum(abs(p - q) for p, q in zip(a, b, strict=True)), rel=1e-6)
        cosine = sum(p * q for p, q in zip(a, b, strict=True)) / (sizes[0] * sizes[1])
        assert float(found.cosine[i]) == pytest.approx(cosine, rel=1e-6)
        assert float(found.norm[i]) == pytest.approx(sizes[0], rel=1e-6)


@pytest.mark.slow
def test_a_sample_does_not_depend_on_its_batch() -> None:
    student, teacher, x = network(1, 16, 12, 4), network(2, 16, 12, 4), images((1, 4, 4), 11)
    y = student(x).argmax(1)
    whole, parts = (diagnosed(student, teacher, x, y, batch_size=size)["diagnostics"] for size in (11, 3))
    for column in Diagnostics.columns:
        np.testing.assert_allclose(whole[column.name], parts[column.name], rtol=1e-4, atol=1e-5, err_msg=column.name)
    other = diagnosed(student, teacher, x, y, seed=1)["diagnostics"]
    assert not np.array_equal(whole["ce_llm"], other["ce_llm"])


@every_norm
def test_attacks_on_linear_networks_reach_the_least_margin(norm: Norm) -> None:
    """Of two classes, m - eps ||w||_* inside the image box; an attack succeeds where that is negative."""
    student, teacher, eps = linear(5, 2), linear(6, 2), {Norm.LINF: 0.02, Norm.L2: 0.04, Norm.L1: 0.05}[norm]
    x = 0.4 + 0.2 * images((2, 3), 40).double()
    weight = (student[1].weight[0] - student[1].weight[1]).detach()
    with torch.no_grad():
        student[1].bias.copy_(torch.tensor([-0.5 * float(weight.sum()), 0.0]))  # the boundary is amid the images
        y = student(x).argmax(1)
        here = margins(student(x), y)
    least = here - eps * weight.norm(p=DUAL[norm])
    found = attack_agreement(student, teacher, x, y, Attack(eps, norm, steps=100, restarts=2))
    torch.testing.assert_close(found.student_margin, least, rtol=1e-3, atol=2e-3)
    clear = least.abs() > 2e-3
    assert torch.equal(found.ce[clear], (least < 0)[clear]) and torch.equal(found.margin[clear], (least < 0)[clear])
    assert found.fooled.any() and not found.fooled.all(), "the test needs both"
    assert (norms(found.point - x, norm) <= eps).all() and found.point.min() >= 0 and found.point.max() <= 1


def test_what_the_teacher_says_by_a_loop_over_samples() -> None:
    student, teacher, x = network(1, 16, 20, 4), network(2, 16, 20, 4), images((1, 4, 4), 60)
    y = student(x).argmax(1)
    found = attack_agreement(student, teacher, x, y, Attack(0.3, Norm.LINF, steps=10, restarts=2))
    assert found.fooled.sum() > 10, "the test needs successes"
    for i in range(len(x)):
        with torch.no_grad():
            before, after, own = teacher(x[[i]])[0], teacher(found.point[[i]])[0], student(found.point[[i]])[0]
        shares = after.double().softmax(0).tolist()
        assert float(found.teacher_entropy[i]) == pytest.approx(-sum(p * math.log(p) for p in shares), rel=1e-4)
        assert bool(found.teacher_right[i]) == (int(before.argmax()) == int(y[i]))
        wrong = int(after.argmax()) != int(y[i])
        assert bool(found.teacher_right_attacked[i]) == (not wrong)
        rest = max(float(own[j]) for j in range(4) if j != y[i])
        assert float(found.student_margin[i]) == pytest.approx(float(own[y[i]]) - rest, abs=1e-5)
        assert bool(found.fooled[i]) == (float(found.student_margin[i]) < 0)
        assert bool(found.transfers[i]) == (bool(found.fooled[i]) and wrong)


@every_norm
@pytest.mark.thin(2)
def test_a_student_equal_to_its_teacher(norm: Norm) -> None:
    student, x = network(1, 16, 20, 4), images((1, 4, 4), 50)
    eps = {Norm.LINF: 0.2, Norm.L2: 0.8, Norm.L1: 3.0}[norm]
    rows = diagnosed(student, copy.deepcopy(student), x, student(x).argmax(1), eps, norm=norm)["diagnostics"]
    found = diagnose(rows)
    assert found is not None and found.fooled > 10
    assert found.gradient_gap == found.gradient_gap_dual == found.margin_gradient_gap == 0
    assert found.gradient_cosine == pytest.approx(1.0) and found.transfer == 1.0
    assert found.teacher_right == 1.0 and found.teacher_right_attacked == 1 - found.fooled / found.samples
    assert math.isnan(found.ce_llm) == (norm is not Norm.LINF)
    assert not found.warnings and (rows["radius"] == 0).all() and (rows["status"] == Status.NOT_CERTIFIED).all()


def test_masked_gradients_are_told() -> None:
    """Logits 1e6 times as large: the cross-entropy's gradient is 0 in float32, and only the margin's attack works."""
    honest, x = network(1, 16, 30, 2), images((1, 4, 4), 60)
    masked, y = scaled(honest, 1e6), honest(x).argmax(1)
    found, fair = (diagnose(diagnosed(model, honest, x, y, 0.06)["diagnostics"]) for model in (masked, honest))
    assert found is not None and fair is not None
    assert found.gradient_norm == 0 and found.gradient_cosine == 0
    assert found.margin_attack == pytest.approx(fair.margin_attack, abs=0.05) and found.margin_attack > 0.3
    assert found.excess == pytest.approx(found.margin_attack - found.ce_attack) and found.excess > 0.2
    (warning,) = found.warnings
    for part in ("gradient masking", f"{found.margin_attack:.1%}", f"{found.ce_attack:.1%}", "do not trust PGD"):
        assert part in warning
    assert fair.ce_attack == pytest.approx(fair.margin_attack, abs=0.05) and not fair.warnings


def hand_made(ce: list[int], margin: list[int]) -> MethodRows:
    """Rows with these successes of the attacks and nothing else to say."""
    count = len(ce)
    columns = {name: np.ones(count) for name in MEANS}
    columns |= {"ce_attack": np.array(ce, np.int8), "margin_attack": np.array(margin, np.int8)}
    columns |= {"transfers": np.full(count, -1, np.int8), "correct": np.ones(count, np.uint8)}
    columns["status"] = np.full(count, Status.NOT_CERTIFIED, np.uint8)
    return MethodRows("diagnostics", {"classes": "10"}, columns)


@pytest.mark.parametrize(
    ("ce", "margin", "warned"),
    [
        ([0] * 100, [1] * 5 + [0] * 95, False),  # five points are not more than that
        ([0] * 100, [1] * 8 + [0] * 92, True),  # 8 points, standard error 2.7
        ([0] * 10, [1] * 2 + [0] * 8, False),  # 20 points, standard error 13.3
        ([1] * 20 + [0] * 80, [0] * 14 + [1] * 26 + [0] * 60, False),  # 6 points, standard error 5.8
        ([1] * 50 + [0] * 50, [0] * 100, False),  # the other way round
        ([0], [1], False),  # one sample
    ],
)
def test_masking_needs_five_points_and_two_standard_errors(ce: list[int], margin: list[int], warned: bool) -> None:
    found = diagnose(hand_made(ce, margin))
    assert found is not None and bool(found.warnings) == warned
    assert found.excess == pytest.approx(np.mean(margin) - np.mean(ce)) and math.isnan(found.transfer)
    if len(ce) > 1:
        gaps = [b - a for a, b in zip(ce, margin, strict=True)]
        mean = sum(gaps) / len(gaps)
        variance = sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1)
        assert found.excess_error == pytest.approx(math.sqrt(variance / len(gaps)))


def test_a_constant_network_has_collapsed() -> None:
    x, y = images((1, 4, 4), 60), torch.arange(60) % 10
    teacher = network(1, 16, 30, 10)
    rows = diagnosed(constant(), teacher, x, y)["diagnostics"]
    found = diagnose(rows)
    assert found is not None and found.clean == pytest.approx(0.1) and found.samples == 6
    (warning,) = found.warnings
    assert "collapse" in warning and "10.0%" in warning and "10 classes" in warning
    asked = rows["status"] == Status.NOT_CERTIFIED
    assert (rows["status"][~asked] == Status.MISCLASSIFIED).all() and (rows["transfers"] == -1).all()
    assert (rows["ce_attack"][~asked] == -1).all() and (rows["ce_attack"][asked] == 0).all()
    assert np.isnan(rows["gradient_gap"][~asked]).all()
    guessing = diagnose(diagnosed(network(9, 16, 30, 10), teacher, x, y)["diagnostics"])
    assert guessing is not None and guessing.clean < 0.2 and not guessing.warnings, "it guesses, but has gradients"
    few = diagnose(diagnosed(constant(), teacher, x[: ENOUGH - 1], y[: ENOUGH - 1])["diagnostics"])
    assert few is not None and not few.warnings


def test_vanishing_gradients_give_no_nan() -> None:
    x, y = images((1, 4, 4), 5), torch.zeros(5, dtype=torch.long)
    flat, steep = constant(), network(1, 16, 30, 10)
    for student, teacher in ((flat, steep), (steep, flat), (flat, flat)):
        found = gradient_agreement(student, teacher, x, y, Norm.LINF)
        assert all(bool(values.isfinite().all()) for values in found) and (found.cosine == 0).all()
    tiny = scaled(steep, 1e-30)
    nearly = gradient_agreement(tiny, tiny, x, y, Norm.LINF)
    assert (nearly.norm > 0).all() and torch.allclose(nearly.cosine, torch.ones(5).double())


def test_nothing_classified_correctly() -> None:
    x, student = images((1, 4, 4), 30), network(1, 16, 30, 10)
    y = (student(x).argmax(1) + 1) % 10
    found = diagnose(diagnosed(student, student, x, y)["diagnostics"])
    assert found is not None and (found.samples, found.clean, found.fooled) == (0, 0.0, 0)
    assert math.isnan(found.gradient_gap) and math.isnan(found.transfer) and not found.warnings


def test_networks_are_left_as_they_were() -> None:
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).train()
    before, teacher = copy.deepcopy(student.state_dict()), network(1, 16, 4)
    x, y = images((1, 4, 4), 6), torch.arange(6) % 4
    gradient_agreement(student, teacher, x, y, Norm.L2)
    attack_agreement(student, teacher, x, y, Attack(0.1, Norm.L2, steps=2, restarts=2))
    assert all(module.training for module in student.modules())
    assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
    assert all(parameter.grad is None for model in (student, teacher) for parameter in model.parameters())
    assert not x.requires_grad


def test_what_is_asked_wrongly() -> None:
    x, y, student = images((1, 4, 4), 3), torch.zeros(3, dtype=torch.long), network(1, 16, 4)
    other = network(1, 16, 5)
    for change, said in (
        ({"eps": 0.0}, "eps must be positive and finite, got 0.0"),
        ({"eps": math.inf}, "eps must be positive and finite, got inf"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"restarts": 0}, "restarts must be at least 1, got 0"),
    ):
        with pytest.raises(InputError, match=said):
            attack_agreement(student, student, x, y, Attack(**{"eps": 0.1, "norm": Norm.LINF, **change}))
    for ask in (
        lambda: attack_agreement(student, other, x, y, Attack(0.1, Norm.LINF)),
        lambda: gradient_agreement(student, other, x, y, Norm.LINF),
    ):
        with pytest.raises(InputError, match=r"\(3, 4\), the teacher's \(3, 5\): give a teacher of the same classes"):
            ask()
    for teacher, said in ((None, "compare with a teacher: give one"), (other, r"(4,) and (5,)")):
        rows = diagnosed(student, teacher, x, student(x).argmax(1))["diagnostics"]
        assert (rows["status"] == Status.UNSUPPORTED).all() and said in rows.attributes["reason"]
        assert diagnose(rows) is None
