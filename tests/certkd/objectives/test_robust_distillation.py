"""What is particular to the methods of adversarial distillation."""

import copy
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import certkd.objectives.attacks
from certkd.config.settings import Recipe
from certkd.objectives import (
    OBJECTIVES,
    AdaAd,
    AdCert,
    Adversarial,
    AdvFunMatch,
    Akd,
    Ard,
    Cat,
    CcDist,
    CcIbp,
    Crg,
    Iad,
    Igd,
    Kdiga,
    Mld,
    Mtard,
    MtlIbp,
    Objective,
    Rfd,
    Rslad,
    Saad,
    Sabr,
    Squeeze,
    Standard,
    Taps,
    Trades,
    Uad,
)
from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch
from certkd.objectives.robust import RobustDistillation
from certkd.reporter import TrainingReporter
from tests.certkd.objectives.objective_fixtures import (
    CLASSES,
    SHAPE,
    anew,
    batch_of,
    generator,
    linear,
    loss_of,
    network,
    smooth_batch,
    values,
    weights_of,
)
from tests.training import train
from verifiers.geometry.balls import Balls
from verifiers.runtime.modes import eval_mode

STEP: dict[str, Any] = {"eps": 0.1, "steps": 10, "step_size": 0.02}
ATTACKED: tuple[Objective, ...] = (
    Adversarial(**STEP),
    Trades(**STEP),
    MtlIbp(**STEP),
    Sabr(**STEP),
    Ard(**STEP),
    Kdiga(lambda_iga=0, kl_point="adversarial", **STEP),
    Rslad(**STEP),
    Iad(**STEP),
    AdaAd(**STEP),
    AdvFunMatch(**STEP),
    Akd(**STEP),
    Mtard(**STEP),
    Igd(**STEP),
    Kdiga(point="adversarial", target="ce", **STEP),
    Squeeze(**STEP),
    Uad(**STEP),
    Cat(**STEP),
    AdCert(**STEP),
    Rfd(**STEP),
    Mld(**STEP),
    Saad(**STEP),
    CcIbp(**STEP),
    Taps(share=0.1, **STEP),
    CcDist(**STEP),
    Crg(**STEP),
)
every_attack = pytest.mark.parametrize("objective", ATTACKED, ids=lambda objective: objective.kind)


def gradients(objective: Objective, batch: Batch) -> list[Tensor]:
    return list(torch.autograd.grad(loss_of(batch, objective), weights_of(batch.student), materialize_grads=True))


# -------------------------------------------------------------------------------------------------------------- attacks


def noisy_student() -> nn.Module:
    """Batch normalisation and dropout in train mode, but for one layer in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Flatten(), nn.Linear(6, 7), nn.BatchNorm1d(7), nn.Tanh(), nn.Dropout(0.3), nn.Linear(7, CLASSES)]
        student = nn.Sequential(*layers).double().train()
    student[4].eval()
    return student


@every_attack
def test_every_attack_reaches_far_and_stays_inside(objective: Objective, monkeypatch: pytest.MonkeyPatch) -> None:
    """eps and step_size are not swapped, the student is attacked in eval mode and comes back as it was."""
    student = noisy_student()
    batch = batch_of(student, network(1), 8)
    modes, found = [module.training for module in student.modules()], []
    true_ascend = certkd.objectives.attacks.ascend

    def watched(loss: Any, balls: Balls, **settings: Any) -> Tensor:
        before = copy.deepcopy(student.state_dict())
        assert not any(module.training for module in student.modules()), "the student is attacked in train mode"
        answer = true_ascend(loss, balls, **settings)
        assert all(torch.equal(value, before[name]) for name, value in student.state_dict().items())
        found.append((balls.x, answer))
        return answer

    monkeypatch.setattr(certkd.objectives.attacks, "ascend", watched)
    objective.terms(anew(batch))
    ((x, adversarial),) = found
    reach = float((adversarial - x).abs().max())
    assert 0.9 * 0.1 < reach <= 0.1 + 1e-12, f"{objective.kind} moves pixels by {reach}"  # type: ignore[attr-defined]
    assert float(adversarial.min()) >= 0 and float(adversarial.max()) <= 1
    assert [module.training for module in student.modules()] == modes


@pytest.mark.parametrize("step_size", [None, 0.02])
@every_attack
@pytest.mark.thin(3)
def test_attacks_grow_over_the_ramp(
    objective: Objective, step_size: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """eps is half as large in the middle of the ramp, and whole from its end on; a step stays the same share of it."""
    if not isinstance(objective, Attacked):
        pytest.skip("the ramp of kdiga is lambda's")
    objective = objective.model_copy(update={"ramp": 0.5, "step_size": step_size})
    found: list[tuple[float, float | None]] = []
    true_ascend = certkd.objectives.attacks.ascend

    def watched(loss: Any, balls: Balls, **settings: Any) -> Tensor:
        found.append((float(balls.eps.max()), settings["step_size"]))
        return true_ascend(loss, balls, **settings)

    monkeypatch.setattr(certkd.objectives.attacks, "ascend", watched)
    for progress, share in ((0.25, 0.5), (0.5, 1.0), (0.9, 1.0)):
        objective.terms(replace(batch_of(network(0), network(1), 4), progress=progress))
        eps, part = found.pop()
        assert eps == pytest.approx(0.1 * share)
        assert part is None if step_size is None else part == pytest.approx(0.2)


def test_sizes_of_an_attack_are_named() -> None:
    with pytest.raises(TypeError):
        certkd.objectives.attacks.Pgd(0.1, 10)  # type: ignore[misc]


def test_the_attack_on_a_linear_model_is_the_corner() -> None:
    """Of two classes the worst point is x - eps sign(w_y - w_j): KL and CE of Ard there, in closed form."""
    batch = batch_of(linear(0, 2), linear(1, 2), classes=2)
    assert batch.teacher is not None
    student, teacher = batch.student[1], batch.teacher[1]  # type: ignore[index]
    other = 1 - batch.y
    slope = (student.weight[batch.y] - student.weight[other]).detach()
    corner = batch.x.flatten(1) - 0.05 * slope.sign()
    with torch.no_grad():
        p, q = (batch.x.flatten(1) @ teacher.weight.T + teacher.bias).softmax(1), student(corner).softmax(1)
    expected = float((p * (p / q).log()).sum(1).mean())
    terms = Ard(alpha=1, temperature=1, eps=0.05).terms(anew(batch))
    assert set(terms) == {"kl_adversarial"} and terms["kl_adversarial"].weight == 1
    assert float(terms["kl_adversarial"].value.detach()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
def test_an_example_under_noise_is_in_the_ball_of_its_image(sigma: float) -> None:
    objective = Kdiga(point="adversarial", target="ce", sigma=sigma, **STEP)
    batch = smooth_batch()
    images = objective._images(anew(batch), {"clean", "adversarial"})
    reach = float((images["adversarial"] - images["clean"]).abs().max())
    assert 0.09 < reach <= 0.1 + 1e-12, f"the attack moves a noisy image by {reach}"
    assert (float((images["clean"] - batch.x).abs().max()) > 0.5) is (sigma > 0)
    with eval_mode(batch.student), torch.no_grad():
        clean, attacked = (F.cross_entropy(batch.student(images[name]), batch.y) for name in ("clean", "adversarial"))
    assert float(attacked) > float(clean), "the attack does not see the noise"


def test_every_attacked_objective_is_tested_here() -> None:
    attacked = {kind for kind in OBJECTIVES if issubclass(kind, Attacked)}
    missing = {kind.__name__ for kind in attacked} - {type(objective).__name__ for objective in ATTACKED}
    assert not missing, f"give each new objective that attacks a place in ATTACKED: {missing}"


# ------------------------------------------------------------------------------------------------- one method at a time


def test_trades_without_its_regulariser_is_standard_training() -> None:
    batch = smooth_batch()
    trades, standard = Trades(beta=0, **STEP), Standard()
    assert float(loss_of(batch, trades).detach()) == float(loss_of(batch, standard).detach())
    for one, other in zip(gradients(trades, batch), gradients(standard, batch), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_akd_is_cross_entropy_with_soft_labels_less_an_entropy(alpha: float) -> None:
    """At T = 1: the loss is SoftTargetCrossEntropy of (1 - alpha) y + alpha t(x'), less alpha times t's entropy."""
    loss = pytest.importorskip("timm.loss").SoftTargetCrossEntropy()
    batch, objective = smooth_batch(), Akd(alpha=alpha, **STEP)
    assert batch.teacher is not None
    found = objective.adversarial(anew(batch))
    with torch.no_grad():
        taught = batch.teacher(found).softmax(1)
    soft = (1 - alpha) * F.one_hot(batch.y, CLASSES).double() + alpha * taught
    theirs = loss(batch.student(found), soft)
    entropy = -(taught * taught.log()).sum(1).mean()
    ours = loss_of(batch, objective)
    assert float(ours.detach()) == pytest.approx(float((theirs - alpha * entropy).detach()), rel=1e-9)
    expected = torch.autograd.grad(theirs, weights_of(batch.student))
    for one, other in zip(gradients(objective, batch), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_ard_is_timms_distillation_of_the_attacked_student(temperature: float) -> None:
    """timm's loss where its student's logits are those of x', its teacher's those of x."""
    task = pytest.importorskip("timm.task", reason="this timm has no distillation task")
    batch, objective = smooth_batch(), Ard(alpha=1, temperature=temperature, **STEP)
    found = objective.adversarial(anew(batch))

    class Known(nn.Module):
        """A network of one image batch, with the statistics that timm asks for; here those that change nothing."""

        def __init__(self, model: nn.Module, x: Tensor) -> None:
            super().__init__()
            self.model, self.num_classes, self.in_chans, self.x = model, CLASSES, 1, x
            self.pretrained_cfg = {"mean": (0.0,), "std": (1.0,)}

        def forward(self, x: Tensor) -> Tensor:
            return self.model(self.x)

    assert batch.teacher is not None
    theirs = task.LogitDistillationTask(
        Known(batch.student, found),
        Known(batch.teacher, batch.x),
        criterion=nn.CrossEntropyLoss(),
        task_loss_weight=0.0,
        distill_loss_weight=1.0,
        temperature=temperature,
        device=torch.device("cpu"),
        dtype=torch.float64,
        verbose=False,
    )(batch.x, batch.y)["loss"]
    assert float(loss_of(batch, objective).detach()) == pytest.approx(float(theirs.detach()), rel=1e-12)


def test_iad_starts_to_look_at_itself_where_it_says() -> None:
    batch, objective = smooth_batch(), Iad(start=0.3, **STEP)
    for progress, names in ((0.01, 1), (0.3, 1), (0.3001, 2), (1.0, 2)):
        assert len(objective.terms(replace(anew(batch), progress=progress))) == names, f"at progress {progress}"


class Certain(nn.Module):
    """Gives the labels it was made with, with probability 1, or with 0 when it is wrong."""

    def __init__(self, y: Tensor) -> None:
        super().__init__()
        self.logits = 800.0 * F.one_hot(y, CLASSES).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.logits + 0 * x.sum()


@pytest.mark.parametrize("objective", [Iad(beta=0.7, **STEP), AdaAd(trust=0.7, **STEP)], ids=["iad", "adaiad"])
def test_a_student_looks_at_itself_only_where_its_teacher_errs(objective: Objective) -> None:
    batch = smooth_batch()
    teachers = [Certain((batch.y + k) % CLASSES) for k in (0, 1)]
    right, wrong = (values(replace(batch, teacher=teacher), objective)["kl_self"] for teacher in teachers)
    assert right == pytest.approx(0, abs=1e-12)
    assert wrong > 0.01, "a teacher that is wrong on every image is trusted"


def test_adaiad_is_adaad_with_one_more_term() -> None:
    batch = smooth_batch()
    plain, trusting = (values(batch, AdaAd(trust=trust, **STEP)) for trust in (0.0, 0.5))
    assert set(trusting) - set(plain) == {"kl_self"}
    assert all(trusting[name] == plain[name] for name in plain)


@pytest.mark.parametrize("kind", [Ard, Rslad, Iad, AdaAd, AdvFunMatch, Akd, Mtard])
def test_the_weight_of_igdm_grows_with_progress(kind: type[RobustDistillation]) -> None:
    batch = smooth_batch()
    objective = kind(lambda_igdm=4.0, **STEP)
    terms = [objective.terms(replace(anew(batch), progress=p)) for p in (0.25, 0.5, 1.0)]
    assert [found["igdm"].weight for found in terms] == [1.0, 2.0, 4.0]
    sizes = {float(found["igdm"].value.detach()) for found in terms}
    assert len(sizes) == 1, "the term itself depends on progress"
    assert "igdm" not in kind(**STEP).terms(anew(batch))


def test_igdm_does_not_see_a_shift() -> None:
    """Networks with the same differences have a term of 0, whatever their logits; at lambda 0 they have none."""
    student = linear(0)
    teacher = copy.deepcopy(student)
    teacher.state_dict()["1.bias"].copy_(torch.tensor([3.0, -2.0, 1.0, 0.5]))
    batch = batch_of(student, teacher)
    found = values(batch, Rslad(lambda_igdm=1, **STEP))
    assert found["igdm"] == pytest.approx(0, abs=1e-12) and found["kl_clean"] > 0.1
    assert values(batch_of(student, linear(1)), Rslad(lambda_igdm=1, **STEP))["igdm"] > 1e-4


def test_function_matching_mixes_images_of_the_batch() -> None:
    batch = batch_of(network(0), network(1), 40)
    mixed = AdvFunMatch._mixed(anew(batch)).x
    low, high = batch.x.amin(0), batch.x.amax(0)
    assert bool(((mixed >= low - 1e-12) & (mixed <= high + 1e-12)).all()), "a mixture leaves the images' hull"
    fitted = 0
    for image in mixed.flatten(1):
        pairs = batch.x.flatten(1)[:, None] - batch.x.flatten(1)[None]  # is image = b + u (a - b) for one pair?
        offset = image - batch.x.flatten(1)
        share = (pairs * offset).sum(2) / pairs.square().sum(2).clamp_min(1e-30)
        rest = (offset - share[:, :, None] * pairs).abs().amax(2)
        fitted += bool(((rest < 1e-9) & (share >= 0) & (share <= 1)).any())
    assert fitted == len(mixed), "a mixed image is no mixture of two images"
    assert torch.equal(AdvFunMatch._mixed(anew(batch)).x, mixed), "the mixture is not that of its generator"
    other = AdvFunMatch._mixed(replace(batch, generator=torch.Generator().manual_seed(12))).x
    assert not torch.equal(other, mixed)


def test_function_matching_uses_no_label_and_without_mixing_is_adaad() -> None:
    batch = smooth_batch()
    relabelled = replace(batch, y=(batch.y + 1) % CLASSES)
    for mix in (True, False):
        objective = AdvFunMatch(mix=mix, **STEP)
        assert values(relabelled, objective) == values(batch, objective)
    assert values(batch, AdvFunMatch(mix=False, **STEP)) == values(batch, AdaAd(**STEP))


def test_a_step_of_igd_aligns_gradients() -> None:
    """1 - cos, not 1 + cos: minimising it turns the student's input gradients towards the natural network's."""
    batch = replace(batch_of(network(0), network(1)), natural_teacher=network(2))

    def cosine() -> float:
        sides = []
        for model in (batch.student, batch.natural_teacher):
            assert model is not None
            x = batch.x.clone().requires_grad_(True)
            sides.append(torch.autograd.grad(F.cross_entropy(model(x), batch.y, reduction="sum"), x)[0].flatten(1))
        return float(F.cosine_similarity(sides[0], sides[1]).mean())

    objective, before = Igd(**STEP), cosine()
    assert values(batch, objective)["igd"] == pytest.approx(1 - before, rel=1e-9)
    optimizer = torch.optim.SGD(batch.student.parameters(), lr=0.05)
    for _ in range(25):
        optimizer.zero_grad()
        objective.terms(anew(batch))["igd"].value.backward()
        optimizer.step()
    after = cosine()
    assert after > before + 0.2, f"minimising IGD's term turns gradients from {before:.2f} to {after:.2f}"
    assert values(batch, objective)["igd"] == pytest.approx(1 - after, rel=1e-9)


# ---------------------------------------------------------------------------------------------------------------- mtard


def test_the_weight_of_mtard_over_several_steps() -> None:
    """w <- (1 - rate) w + rate r_a^beta / (r_a^beta + r_n^beta), r a loss over its first value; w starts at 1/2."""
    memory: dict[str, float] = {}
    objective = Mtard(rate=0.2, beta=1.5, **STEP)
    student = network(0)
    batch = batch_of(student, network(1))
    optimizer = torch.optim.SGD(student.parameters(), lr=0.02)
    weight, first, seen = 0.5, None, []
    for _ in range(6):
        terms = objective.terms(replace(batch, generator=generator(), memory=memory))
        losses = [float(terms[name].value.detach()) for name in ("kl_adversarial", "kl_clean")]
        first = first or losses
        adversarial, clean = ((now / start) ** 1.5 for now, start in zip(losses, first, strict=True))
        weight = 0.8 * weight + 0.2 * adversarial / (adversarial + clean)
        assert terms["kl_adversarial"].weight == pytest.approx(weight, rel=1e-12)
        assert terms["kl_clean"].weight == pytest.approx(1 - weight, rel=1e-12)
        seen.append(weight)
        optimizer.zero_grad()
        sum(term.weight * term.value for term in terms.values()).backward()  # type: ignore[union-attr]
        optimizer.step()
    assert seen[0] == 0.5 and len({round(value, 9) for value in seen[1:]}) == 5, f"the weight does not move: {seen}"


def test_mtard_of_perfect_students_keeps_its_weight() -> None:
    memory: dict[str, float] = {}
    batch = replace(batch_of(network(0), network(0)), natural_teacher=network(0))
    for _ in range(3):
        terms = Mtard(rate=0.3, **STEP).terms(replace(anew(batch), memory=memory))
        assert terms["kl_adversarial"].weight == pytest.approx(0.5) and all(map(math.isfinite, memory.values()))


class Interrupted(Exception):
    """Stands for a kill."""


class Stops(TrainingReporter):
    """Raises after two epochs."""

    def epoch(self, record: Any) -> None:
        if record["epoch"] == 1:
            raise Interrupted


def test_the_memory_of_mtard_survives_a_resume(tmp_path: Path) -> None:
    x = torch.rand((60, *SHAPE), generator=generator())
    y = (x.sum((1, 2, 3)) * 1.3).long() % CLASSES
    teacher, natural = network(1).float(), network(2).float()
    settings: dict[str, Any] = {
        "teacher": teacher,
        "natural_teacher": natural,
        "recipe": Recipe(epochs=4, batch_size=16),
        "device": "cpu",
    }
    objective = Mtard(rate=0.5, eps=0.1, steps=2)
    whole, parts = network(0).float(), network(0).float()
    straight = train(whole, (x, y), objective, out=tmp_path / "whole", **settings)
    with pytest.raises(Interrupted):
        train(parts, (x, y), objective, out=tmp_path / "parts", reporter=Stops(), **settings)
    resumed = train(parts, (x, y), objective, out=tmp_path / "parts", resume=True, **settings)
    for name, value in whole.state_dict().items():
        assert torch.equal(parts.state_dict()[name], value), f"{name} of the resumed training"
    assert [record["terms"] for record in resumed.history] == [record["terms"] for record in straight.history]
    memories = [
        torch.load(tmp_path / part / "resume.pt", weights_only=True)["progress"]["memory"]
        for part in ("whole", "parts")
    ]
    assert memories[0] == memories[1] and set(memories[0]) == {"first_adversarial", "first_clean", "weight"}
    assert memories[0]["weight"] != 0.5
