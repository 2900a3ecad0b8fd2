"""Diagnostics and warnings of a training."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import certkd.training.loop
from certkd.config.settings import OptimizerConfig, Recipe, SelectionConfig, Threat
from certkd.data.splits import Split, TensorImages
from certkd.objectives import Adversarial, Gaussian, Ibp, Kd, Kdiga, Objective, SmoothAdv
from certkd.training.monitor import alarms, diagnostics, threat_of_objective
from tests.certkd.training.test_training import CPU, Listener, fit, plain, samples, seeded
from verifiers.core.quantities import Norm

SELECTION, THREAT = SelectionConfig(eps="0.2"), Threat(eps=0.2)


def held_out() -> Split:
    x, y = samples(80, 1)
    return Split(TensorImages(x), y, torch.arange(80))


def test_a_network_agrees_with_itself() -> None:
    found = diagnostics(plain(), plain(), held_out(), THREAT, CPU)
    assert found["gradient_gap"] == 0 and found["gradient_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["transfer"] == 1, "an example that fools the student does not fool the same network"


def test_agreement_with_another_network_against_a_literal_loop() -> None:
    student, teacher, (x, y) = plain(0), plain(1), samples(80, 1)
    gaps = []
    for image, label in zip(x, y, strict=True):
        slopes = []
        for model in (student, teacher):
            pixels = image[None].clone().requires_grad_(True)
            slopes.append(torch.autograd.grad(F.cross_entropy(model(pixels), label[None]), pixels)[0])
        gaps.append(float((slopes[0] - slopes[1]).norm()))
    found = diagnostics(student, teacher, held_out(), None, CPU)
    assert found["gradient_gap"] == pytest.approx(sum(gaps) / 80, rel=1e-5)
    assert set(found) == {"gradient_gap", "gradient_cosine", "teacher_clean"}, "an attack was run that nobody asked for"


TEACHERS = {"gradient_gap", "gradient_cosine", "teacher_clean", "teacher_entropy"}
OWN = {"margin_excess", "local_linearity"}


def logged(objective: Objective | None = None, **settings: Any) -> set[str]:
    """Names of the first epoch's validation metrics."""
    recipe = Recipe(epochs=1, batch_size=40)
    return set(fit(plain(), objective, recipe=recipe, **settings).history[0]["validation"])


def test_what_a_training_logs_with_and_without_a_teacher_and_a_threat() -> None:
    assert logged(Kd(), teacher=plain(1), selection=SELECTION) >= TEACHERS | OWN
    assert logged(Kd(), teacher=plain(1)) & (TEACHERS | OWN) == {"gradient_gap", "gradient_cosine", "teacher_clean"}
    assert logged(selection=SELECTION) & (TEACHERS | OWN) == OWN
    assert logged(Adversarial(eps=0.1, steps=1)) & (TEACHERS | OWN) == OWN, "the objective has an eps"
    assert logged(Kd(), teacher=plain(1), threat=Threat(eps=0.1)) >= TEACHERS | OWN
    assert not logged() & (TEACHERS | OWN)
    assert logged(Adversarial(eps=0.1, norm=Norm.L2, steps=1)) & OWN == {"margin_excess"}


def test_the_ball_of_stored_settings() -> None:
    for objective, expected in (
        (Kd(), None),
        (Gaussian(sigma=0.1), None),
        (SmoothAdv(eps=0.3), None),
        (Adversarial(eps=0.3, norm=Norm.L2), Threat(eps=0.3, norm=Norm.L2)),
        (Ibp(eps=0.3), Threat(eps=0.3)),
        (Kdiga(norm=1), None),
        (Kdiga(point="adversarial", eps=0.2, attack_norm=Norm.L2), Threat(eps=0.2, norm=Norm.L2)),
    ):
        assert threat_of_objective(objective.model_dump(mode="json")) == expected
    assert threat_of_objective({}) is None
    for stored in ({"eps": "8/255"}, {"eps": None}, {"eps": 0}, {"eps": 0.1, "sigma": 0.5}):
        assert threat_of_objective(stored) is None
    assert threat_of_objective({"eps": 0.1, "norm": 2}) == Threat(eps=0.1), "norm 2 is that of kdiga's gradients"


def test_diagnostics_are_those_of_every_tenth_epoch_and_the_last() -> None:
    history = fit(plain(), selection=SELECTION, recipe=Recipe(epochs=12, batch_size=40)).history
    diagnosed = [record["epoch"] for record in history if set(record["validation"]) >= OWN]
    assert diagnosed == [9, 11] and all("pgd" in record["validation"] for record in history)


def test_local_linearity_of_a_network_that_is_linear() -> None:
    """Cross-entropy is convex in the logits: with a linear network it rises above its tangent, with a constant not."""
    flat = plain()
    for weight in flat.parameters():
        weight.data.zero_()
    curved = diagnostics(linear_network(), None, held_out(), THREAT, CPU)["local_linearity"]
    assert curved > 0 and diagnostics(flat, None, held_out(), THREAT, CPU)["local_linearity"] == 0


def linear_network() -> nn.Module:
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 4)), 0)


class Loud(nn.Module):
    """Logits so large that the cross-entropy has no gradient in float32 although margins have."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.model(x)


def test_masked_gradients_are_said() -> None:
    teacher = plain()
    fit(teacher, recipe=Recipe(epochs=20, batch_size=16))
    small = SelectionConfig(eps="0.1")
    for student, expected in ((Loud(plain()), 1), (plain(), 0)):
        inner = student.model if isinstance(student, Loud) else student
        inner.load_state_dict(teacher.state_dict())
        listener = Listener()
        recipe = Recipe(epochs=1, optimizer=OptimizerConfig(rate=1e-9))
        fit(student, Kd(lambda_kl=0), teacher=teacher, selection=small, recipe=recipe, reporter=listener)
        said = [text for text in listener.warnings if "gradient masking" in text]
        assert len(said) == expected, listener.warnings


def epoch_of(**metrics: float) -> dict[str, Any]:
    return {"validation": {"clean": 0.9, "constant_share": 0.2, "chance_limit": 0.3, "gradient_norm": 1.0, **metrics}}


def test_what_goes_wrong_in_the_middle_is_said_once() -> None:
    fine, gone, masked = epoch_of(), epoch_of(clean=0.1, constant_share=1.0), epoch_of(margin_excess=0.3)
    begun = epoch_of(clean=0.1, constant_share=0.4)
    kinds = {"collapsed": "the student collapsed", "masked": "gradient masking"}

    def said(*history: dict[str, Any]) -> list[str]:
        found = list(alarms(history, Kdiga()))
        assert all(text.startswith(f"epoch {len(history)}: ") for text in found)
        return [name for name, what in kinds.items() for text in found if what in text]

    assert said(fine) == said(fine, fine) == said(begun) == said(begun, begun) == said(begun, fine) == []
    assert said(fine, gone) == said(begun, fine, gone) == ["collapsed"] and said(fine, gone, gone) == []
    assert said(masked) == said(fine, masked) == ["masked"] and said(masked, fine, masked) == []


def test_a_training_that_falls_into_a_constant_says_in_which_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    listener, good = Listener(), certkd.training.loop.evaluate

    def falling(*given: Any) -> dict[str, float]:
        metrics, done = good(*given), len([call for call in listener.calls if call == "epoch"])
        fallen = {"clean": 0.1, "constant_share": 1.0} if done >= 2 else {"clean": 0.9, "constant_share": 0.3}
        return {**metrics, **fallen}

    monkeypatch.setattr(certkd.training.loop, "evaluate", falling)
    fit(plain(), recipe=Recipe(epochs=5, batch_size=40), reporter=listener)
    assert [text[:31] for text in listener.warnings] == [
        "epoch 3: the student collapsed:",
        "the student collapsed: one clas",
    ]
