"""What is measured on a split, and when a network counts as collapsed."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.config import OptimizerConfig, Recipe, SelectionConfig
from certkd.data import Split, TensorImages
from certkd.evaluation import agreement, evaluate, has_collapsed, key, keyed_generator
from certkd.objectives import Kd
from tests.certkd.test_training import CLASSES, CPU, Listener, busy, fit, plain, samples


def test_evaluate_against_a_literal_loop() -> None:
    model, (x, y) = busy().train(), samples(50)
    metrics = evaluate(model, Split(TensorImages(x), y, torch.arange(50)), SelectionConfig(), CPU, batch=7)
    assert model.training, "evaluation leaves the network in eval mode"
    model.eval()
    right, slopes, predictions = 0, 0.0, []
    for image, label in zip(x, y, strict=True):
        pixels = image[None].clone().requires_grad_(True)
        logits = model(pixels)
        (slope,) = torch.autograd.grad(F.cross_entropy(logits, label[None]), pixels)
        predictions.append(int(logits.argmax()))
        right += predictions[-1] == int(label)
        slopes += float(slope.norm())
    assert metrics["clean"] == right / 50
    assert metrics["gradient_norm"] == pytest.approx(slopes / 50, rel=1e-5)
    assert metrics["constant_share"] == max(predictions.count(k) for k in range(CLASSES)) / 50
    assert "pgd" not in metrics, "an attack was run that nobody asked for"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_attacked_accuracy_falls_with_eps() -> None:
    model = plain()
    fit(model, recipe=Recipe(epochs=20, batch_size=16))
    split = Split(TensorImages(samples(80, 1)[0]), samples(80, 1)[1], torch.arange(80))
    found = [evaluate(model, split, SelectionConfig(eps=eps), CPU) for eps in ("1e-6", "0.1", "0.2", "0.5")]
    accuracies = [metrics["pgd"] for metrics in found]
    assert accuracies[0] == found[0]["clean"] > accuracies[1] > accuracies[2] > accuracies[3], accuracies


def test_constant_network_has_collapsed_whatever_its_accuracy() -> None:
    constant = {"clean": 0.5, "constant_share": 1.0, "gradient_norm": 1.0, "chance_limit": 0.2}
    guessing = {"clean": 0.15, "constant_share": 0.3, "gradient_norm": 1.0, "chance_limit": 0.2}
    good = {"clean": 0.9, "constant_share": 0.3, "gradient_norm": 1e-9, "chance_limit": 0.2}
    assert has_collapsed(constant) and has_collapsed(guessing) and not has_collapsed(good)


def test_every_tuple_of_parts_has_its_own_seed() -> None:
    seeds = {key(run, epoch, step) for run in range(3) for epoch in range(3) for step in range(1, 4)}
    assert len(seeds) == 27 and key(1, 2, 3) == key(1, 2, 3)
    drawn = [torch.rand(4, generator=keyed_generator(0, 1, step)) for step in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


ATTACKED = SelectionConfig(eps="0.2")


def held_out() -> Split:
    x, y = samples(80, 1)
    return Split(TensorImages(x), y, torch.arange(80))


def test_a_network_agrees_with_itself() -> None:
    found = agreement(plain(), plain(), held_out(), ATTACKED, CPU)
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
    found = agreement(student, teacher, held_out(), SelectionConfig(), CPU)
    assert found["gradient_gap"] == pytest.approx(sum(gaps) / 80, rel=1e-5)
    assert set(found) == {"gradient_gap", "gradient_cosine"}, "an attack was run that nobody asked for"


def test_a_training_with_a_teacher_logs_how_far_both_agree() -> None:
    result = fit(plain(), Kd(), teacher=plain(1), selection=ATTACKED)
    for record in result.history:
        assert {"gradient_gap", "gradient_cosine", "teacher_entropy", "margin_excess"} <= set(record["validation"])
    assert "gradient_gap" not in fit(plain(), selection=ATTACKED).history[0]["validation"]


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
