"""Compare a network in training with its teacher, and warn of collapse and gradient masking."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from certkd.config.settings import SelectionConfig, Threat, TrainConfig
from certkd.data.splits import Split
from certkd.objectives import Objective
from certkd.training.evaluation import evaluate, has_collapsed
from verifiers.core.quantities import Epsilon, Norm
from verifiers.geometry.attack import Attack
from verifiers.geometry.balls import keyed_start
from verifiers.linearity.agreement import attack_agreement, gradient_agreement
from verifiers.linearity.estimates import cross_entropy_of, signed_linearity
from verifiers.runtime.modes import eval_mode

#: The number of images on which input gradients are compared, and the number of them that are attacked.
COMPARED, ATTACKED = 500, 100
#: Warn of a student below this share of its teacher's clean accuracy; a large lambda_iga can cause that.
FAR_BELOW = 0.8
#: Warn if an attack on the margin succeeds on a share of images that is larger by this than for the cross-entropy.
MASKED_MUCH = 0.2


def threat_of(config: TrainConfig) -> Threat | None:
    """Return the ball to attack: the configured one, the selection's, the objective's, or None."""
    selection = config.selection
    if config.threat is not None:
        return config.threat
    if selection.eps is not None:
        eps = Epsilon.parse(selection.eps).value
        return Threat(eps=eps, norm=selection.norm, steps=selection.steps)
    return threat_of_objective(config.objective.model_dump())


def threat_of_objective(settings: Mapping[str, Any]) -> Threat | None:
    """Return the ball of an objective's stored settings; None if they have none, or use noise instead."""
    eps = settings.get("eps")
    if not isinstance(eps, int | float) or eps <= 0 or settings.get("sigma"):
        return None
    norm = settings.get("attack_norm", settings.get("norm"))  # kdiga's norm, 1 or 2, is for gradients
    return Threat(eps=eps, norm=Norm(norm) if norm in list(Norm) else Norm.LINF)


def diagnostics(
    model: nn.Module,
    teacher: nn.Module | None,
    split: Split,
    threat: Threat | None,
    place: torch.device,
    seed: int = 0,
) -> dict[str, float]:
    """Estimate, on the first images of a split, how a network compares with its teacher and resists attacks.

    The metrics depend on the arguments; without teacher and threat there are none.

    * With a teacher: ``gradient_gap`` and ``gradient_cosine``, the mean distance and cosine of both networks' input
      gradients of the cross-entropy, and ``teacher_clean``, the teacher's accuracy on these images.
    * With a threat: ``margin_excess``, the share of images that an attack on the margin fools, less that of an attack
      on the cross-entropy; and for linf ``local_linearity``, the rise of the cross-entropy above its linearisation
      within the ball, in nats (Shao et al.'s measure).
    * With both: ``transfer``, the share of the network's adversarial examples that also fool the teacher (absent if
      there are none), and ``teacher_entropy`` at those points, in nats.
    """
    metrics: dict[str, float] = {}
    x, y = split.batch(torch.arange(min(len(split), COMPARED)), place)
    if teacher is not None:
        gradients = gradient_agreement(model, teacher, x, y, Norm.L2)
        metrics |= {"gradient_gap": float(gradients.gap.mean()), "gradient_cosine": float(gradients.cosine.mean())}
        with torch.no_grad(), eval_mode(teacher):
            metrics["teacher_clean"] = float((teacher(x).argmax(1) == y).double().mean())
    if threat is None:
        return metrics
    x, y, eps, norm = x[:ATTACKED], y[:ATTACKED], threat.eps, threat.norm
    reference = model if teacher is None else teacher
    found = attack_agreement(model, reference, x, y, Attack(eps, norm, seed, threat.steps, restarts=1))
    if teacher is not None and bool(found.fooled.any()):
        metrics["transfer"] = float(found.transfers.sum() / found.fooled.sum())
    if teacher is not None:
        metrics["teacher_entropy"] = float(found.teacher_entropy.mean())
    metrics["margin_excess"] = float(found.margin.double().mean() - found.ce.double().mean())
    if norm is Norm.LINF:
        start = keyed_start(x, x.new_full(x.shape[:1], eps), norm, seed, range(len(x)), 1)
        with eval_mode(model):
            curved = signed_linearity(cross_entropy_of(model, y), x, eps, norm, start)
        metrics["local_linearity"] = float(curved.double().mean())
    return metrics


def alarms(history: Sequence[Mapping[str, Any]], objective: Objective) -> Iterator[str]:
    """Yield warnings about problems that appear first in the last epoch."""
    *before, now = [record["validation"] for record in history]
    epoch = len(history)
    if before and has_collapsed(now) and not has_collapsed(before[-1]):
        yield f"epoch {epoch}: {_collapse_message(now, objective)}"
    if _masked(now) and not any(_masked(metrics) for metrics in before):
        yield f"epoch {epoch}: {_masked_message(now)}"


def warnings(
    last: Mapping[str, float], objective: Objective, teacher: nn.Module | None, held_out: Split, place: torch.device
) -> Iterator[str]:
    """Yield warnings about problems of the network after the last epoch."""
    if has_collapsed(last):
        yield _collapse_message(last, objective)
    elif teacher is not None and last["clean"] < FAR_BELOW * (theirs := _clean_accuracy(teacher, held_out, place)):
        yield f"clean accuracy {last['clean']:.1%} is far below the teacher's {theirs:.1%}{_hint(objective)}"
    if _masked(last):
        yield _masked_message(last)


def _masked(metrics: Mapping[str, float]) -> bool:
    return metrics.get("margin_excess", 0.0) > MASKED_MUCH


def _masked_message(metrics: Mapping[str, float]) -> str:
    return (
        f"gradient masking: an attack on the margin fools the network on {metrics['margin_excess']:.1%} more of the "
        "validation images than one on the cross-entropy; do not trust PGD accuracy on the cross-entropy"
    )


def _collapse_message(metrics: Mapping[str, float], objective: Objective) -> str:
    return (
        f"the student collapsed: one class for {metrics['constant_share']:.0%} of the validation images, "
        f"clean accuracy {metrics['clean']:.1%}, mean input gradient {metrics['gradient_norm']:.2g}{_hint(objective)}"
    )


def _hint(objective: Objective) -> str:
    weight = getattr(objective, "lambda_iga", 0)
    what = f"lambda_iga {weight}" if weight else "the learning rate"
    return f": {what} may be too large (then lower it), or the training too short"


def _clean_accuracy(model: nn.Module, split: Split, place: torch.device) -> float:
    return evaluate(model, split, SelectionConfig(), place)["clean"]
