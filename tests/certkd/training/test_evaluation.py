"""What is measured on a split, and when a network counts as collapsed."""

import pytest
import torch
from torch.nn import functional as F

from certkd.config.settings import Recipe, SelectionConfig
from certkd.data.keys import key, keyed_generator
from certkd.data.splits import Split, TensorImages
from certkd.training.evaluation import evaluate, has_collapsed
from tests.certkd.training.test_training import CLASSES, CPU, busy, fit, plain, samples


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
