"""Rows of certified training and certified distillation, with their literal versions."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from certkd.objectives import AdCert, CcDist, CcIbp, Taps
from certkd.objectives.base import Batch
from tests.certkd.objectives.objective_fixtures import CLASSES, generator
from tests.certkd.objectives.objective_oracles import (
    STEP,
    attacked,
    box_of,
    divergences,
    interval,
    interval_ce,
    interval_margins,
    logits_of,
    mean,
)
from tests.certkd.objectives.objective_rows import Row

LATENT_STEPS, LATENT_SIZE = 12, 0.3


def log_sum(margins: list[float]) -> float:
    """Cross-entropy of margins to all classes."""
    return math.log(sum(math.exp(-margin) for margin in margins))


def combined(batch: Batch, share: float) -> float:
    """Cross-entropy of share times IBP's margins and the rest times those at an adversarial example."""
    losses = []
    for image, found, y in zip(batch.x, attacked(batch), batch.y.tolist(), strict=True):
        worst = [low for low, _ in interval_margins(batch.student, *box_of(image, STEP["eps"]), y)]
        logits = logits_of(batch.student, found)
        losses.append(log_sum([share * w + (1 - share) * (logits[y] - f) for w, f in zip(worst, logits, strict=True)]))
    return mean(losses)


def oracle_cc_ibp(batch: Batch) -> dict[str, float]:
    return {"ce_combined": combined(batch, 0.3)}


def literal_latent(
    model: nn.Module, box: tuple[list[float], list[float]], pair: tuple[int, int], start: Tensor
) -> float:
    """The margin f_y - f_j after signed steps in a box, one entry at a time."""
    low, high = box
    point = [a + (b - a) * (1 + u) / 2 for a, b, u in zip(low, high, start.ravel().tolist(), strict=True)]
    for _ in range(LATENT_STEPS):
        image = torch.tensor(point, dtype=start.dtype).reshape(start.shape).requires_grad_(True)
        logits = model(image[None])[0]
        signs = torch.autograd.grad(logits[pair[0]] - logits[pair[1]], image)[0].sign().ravel().tolist()
        moved = [p - LATENT_SIZE * (b - a) * s for p, s, a, b in zip(point, signs, low, high, strict=True)]
        point = [min(max(p, a), b) for p, a, b in zip(moved, low, high, strict=True)]
    logits = logits_of(model, torch.tensor(point, dtype=start.dtype).reshape(start.shape))
    return logits[pair[0]] - logits[pair[1]]


def literal_taps(share: float) -> Callable[[Batch], dict[str, float]]:
    """On a network with one activation all of it is attacked, so the inner box is that of the image."""

    def oracle(batch: Batch) -> dict[str, float]:
        draws, centres = generator(), batch.x
        if share < 1:
            room = (1 - share) * STEP["eps"]
            centres = batch.x + (attacked(batch, draws) - batch.x).clamp(-room, room)
        starts = torch.rand((len(centres), CLASSES, *batch.x.shape[1:]), generator=draws, dtype=batch.x.dtype) * 2 - 1
        losses = []
        for centre, y, start in zip(centres, batch.y.tolist(), starts, strict=True):
            box = box_of(centre, share * STEP["eps"])
            losses.append(log_sum([literal_latent(batch.student, box, (y, j), start[j]) for j in range(CLASSES)]))
        return {"ce_product": mean(losses) * interval_ce(batch, centres, share * STEP["eps"])}

    return oracle


def oracle_ad_cert(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    found = attacked(batch)
    kl = divergences(batch.teacher, found, batch.student, found, 2.0)
    return {"ce_certified": interval_ce(batch, batch.x, STEP["eps"]), "kl_adversarial": mean(kl)}


def hidden(model: nn.Module, image: Tensor) -> list[float]:
    """The values before the last layer."""
    with torch.no_grad():
        return model[:-1](image[None])[0].tolist()  # type: ignore[index]


def hidden_inputs(model: nn.Module, image: Tensor, eps: float) -> list[tuple[float, float]]:
    """Ranges over the ball of what the activation sees."""
    rows = zip(model[1].weight.tolist(), model[1].bias.tolist(), strict=True)  # type: ignore[index]
    return [interval(w, b, *box_of(image, eps)) for w, b in rows]


def hidden_box(model: nn.Module, image: Tensor) -> list[tuple[float, float]]:
    """Ranges over the ball of what the activation, which rises, gives."""
    ends = [torch.tensor(pair, dtype=torch.float64) for pair in hidden_inputs(model, image, STEP["eps"])]
    return [tuple(model[2](pair).tolist()) for pair in ends]  # type: ignore[index]


def oracle_cc_dist(batch: Batch) -> dict[str, float]:
    assert batch.teacher is not None
    squares = []
    for image, found in zip(batch.x, attacked(batch), strict=True):
        goals, reached = hidden(batch.teacher, image), hidden(batch.student, found)
        for goal, value, (low, high) in zip(goals, reached, hidden_box(batch.student, image), strict=True):
            squares.append((0.3 * max(abs(low - goal), abs(high - goal)) + 0.7 * abs(value - goal)) ** 2)
    return {"ce_combined": combined(batch, 0.3), "features": mean(squares)}


ATTACK_IN_BOX = {"latent_steps": LATENT_STEPS, "latent_step_size": LATENT_SIZE}
CERTIFIED_ROWS = (
    Row(CcIbp(alpha=0.3, **STEP), oracle_cc_ibp, {"ce_combined": 1.0}),
    Row(Taps(**ATTACK_IN_BOX, **STEP), literal_taps(1.0), {"ce_product": 1.0}, 0, blind=False),
    Row(Taps(share=0.3, **ATTACK_IN_BOX, **STEP), literal_taps(0.3), {"ce_product": 1.0}, 0, blind=False, note="staps"),
    Row(
        AdCert(alpha=0.2, temperature=2, **STEP),
        oracle_ad_cert,
        {"ce_certified": 0.2, "kl_adversarial": 0.8},
        teacher_forwards=1,
        zero=frozenset({"kl_adversarial"}),
    ),
    Row(
        CcDist(alpha=0.3, lambda_features=0.6, **STEP),
        oracle_cc_dist,
        {"ce_combined": 1.0, "features": 0.6},
        teacher_forwards=1,
    ),
)
