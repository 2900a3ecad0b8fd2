"""Evaluate a network on a split: clean, adversarial and noisy accuracy, and collapse."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from certkd.config.settings import SelectionConfig
from certkd.data.keys import keyed_generator
from certkd.data.splits import Split
from certkd.objectives.attacks import Pgd
from certkd.objectives.base import Batch
from verifiers.core.quantities import Epsilon
from verifiers.core.statistics import chance_limit
from verifiers.runtime.modes import eval_mode

#: A network has collapsed if it gives this share of the validation images the same class, or guesses.
CONSTANT_SHARE = 0.95
#: The number of noisy copies of each validation image; a single copy selects early, worse epochs.
NOISE_DRAWS = 4


def evaluate(
    model: nn.Module, split: Split, selection: SelectionConfig, place: torch.device, seed: int = 0, batch: int = 500
) -> dict[str, float]:
    """Measure clean accuracy, the mean norm of input gradients and the share of the most common class.

    An eps in ``selection`` adds PGD accuracy, and a sigma adds accuracy under Gaussian noise; both are reproducible.
    """
    clean = attacked = noisy = gradient = 0.0
    predictions = []
    with eval_mode(model):
        for number, rows in enumerate(torch.arange(len(split)).split(batch)):
            x, y = split.batch(rows, place)
            x = x.requires_grad_(True)
            with torch.enable_grad():
                logits = model(x)
                loss = nn.functional.cross_entropy(logits, y, reduction="sum")
                (slope,) = torch.autograd.grad(loss, x)
            predicted = logits.argmax(1)
            predictions.append(predicted.cpu())
            clean += float((predicted == y).sum())
            gradient += float(slope.flatten(1).norm(dim=1).sum())
            if selection.eps is not None:
                attacked += _attacked_correct(model, x.detach(), y, selection, keyed_generator(seed, number, 3))
            if selection.sigma is not None:
                noisy += _noisy_correct(model, x.detach(), y, selection.sigma, keyed_generator(seed, number, 5))
    share = float(torch.cat(predictions).bincount().max()) / len(split)
    metrics = {"clean": clean / len(split), "gradient_norm": gradient / len(split), "constant_share": share}
    metrics["chance_limit"] = chance_limit(logits.shape[1], len(split)) if len(split) >= 20 else 0.0
    if selection.eps is not None:
        metrics["pgd"] = attacked / len(split)
    if selection.sigma is not None:
        metrics["noisy"] = noisy / len(split)
    return metrics


def has_collapsed(metrics: Mapping[str, float]) -> bool:
    """Tell from the metrics of ``evaluate`` whether a network is (almost) a constant classifier."""
    constant = metrics["constant_share"] >= CONSTANT_SHARE > metrics["clean"]
    return constant or metrics["clean"] <= metrics["chance_limit"]


def _attacked_correct(
    model: nn.Module, x: Tensor, y: Tensor, selection: SelectionConfig, generator: torch.Generator
) -> float:
    assert selection.eps is not None
    eps = Epsilon.parse(selection.eps).value
    adversarial = Pgd(eps=eps, norm=selection.norm, steps=selection.steps).fool(model, x, y, generator)
    with torch.no_grad():
        return float((model(adversarial).argmax(1) == y).sum())


def _noisy_correct(model: nn.Module, x: Tensor, y: Tensor, sigma: float, generator: torch.Generator) -> float:
    """Count the images classified correctly under noise, averaged over the draws."""
    batch = Batch(model, None, x, y, generator)
    with torch.no_grad():
        right = [float((model(batch.noisy(sigma)).argmax(1) == y).sum()) for _ in range(NOISE_DRAWS)]
    return sum(right) / NOISE_DRAWS
