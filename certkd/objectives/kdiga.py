"""KDIGA: knowledge distillation with input gradient alignment, with the paper's target and better ones."""

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float, Int
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.attacks import Pgd
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.gradients import Reduction, full_precision, input_gradient, reduced, twice_differentiable
from certkd.objectives.kd import Kd, kl_each, softened_kl
from verifiers.core.quantities import Norm
from verifiers.core.settings import Count, Number, Positive, Share

Target = Literal["ce", "ce_tempered", "margin", "projection", "jacobian", "finite_difference"]
Point = Literal["clean", "random", "adversarial"]
Scalars = Float[Tensor, "rows batch"]


class Kdiga(Kd):
    """lambda_ce CE + lambda_kl T^2 KL + lambda_iga mean_i || g_s(x_i) - g_t(x_i) ||; g is an input gradient, in pixels:

    * ``ce``: of the hard-label cross-entropy at temperature 1. This is the paper's; it vanishes on confident samples.
    * ``ce_tempered``: of target_temperature CE(f / target_temperature, y), which does not vanish.
    * ``margin``: of f_y - f_j, where j is the teacher's first choice among the other classes.
    * ``projection``: of v.f / sqrt(C - 1), where v is N(0, I) less its mean, drawn for each sample and step, the same
      for both networks. Its squared gap is, on average, that of ``jacobian``.
    * ``jacobian``: of all C logits less their mean, over sqrt(C - 1), one vector (C backward passes).
    * ``finite_difference``: no gradient, but KL(softmax(t(x + d) - t(x - d)) || softmax(s(x + d) - s(x - d))), where d
      is the step from the clean image to ``point``; it needs no second derivative. Source: IGDM, arXiv 2312.03286.

    The teacher's gradient is a constant. ``norm`` is 2 or 1 (1 is the dual of linf), ``squared`` or not. ``point`` is
    the place where the gradients are compared:

    * ``clean``: at the image.
    * ``random``: at a random point of the linf ball of eps, not clamped. KL and CE are taken there too (the authors'
      KDIGA-RS).
    * ``adversarial``: at a PGD example x'. KL(t(x') || s(x')) is taken there too, but not CE (KDIGA-ARD_A). The attack
      is in the ball of ``attack_norm``.

    eps grows from 0 over the first share ``eps_ramp`` of the training. ``kl_point`` moves the KL alone:
    ``kl_point: adversarial`` is KDIGA-ARD_C, and with ``lambda_iga: 0`` the authors' version of ARD.
    ``mask: teacher_correct`` counts KL and alignment as 0 where the teacher is wrong. ``ramp`` is the share of the
    training over which lambda_iga rises from 0. With sigma > 0 all images are under noise, as in kd: the same noise for
    x and x', whose attack includes it.

    One student forward pass for each different point serves all terms (the authors' code runs two or three and updates
    the batch statistics in each). Weights are per sample: they mean the same at any batch size and number of classes.
    ``reduction: batch_frobenius`` with lambda_kl divided by the number of classes gives the authors' weights.

    A large lambda_iga with ``target: ce`` from random weights drives the student to a constant function (its gradient
    gap is then that of the teacher alone); training detects and reports it.

    Example:
        >>> Kdiga(target="margin", lambda_iga=0.3)
    """

    kind: Literal["kdiga"] = "kdiga"  # type: ignore[assignment]
    lambda_iga: Number = 0.9
    target: Target = "projection"
    target_temperature: Positive = 5.0
    norm: Literal[1, 2] = 2
    squared: bool = False
    reduction: Reduction = "per_sample_mean"
    point: Point = "clean"
    kl_point: Point | None = None
    mask: Literal["all", "teacher_correct"] = "all"
    ramp: Share = 0.0
    eps: Positive | None = None
    steps: Count = 10
    step_size: Positive | None = None
    attack_norm: Norm = Norm.LINF
    eps_ramp: Share = 0.0
    summary: ClassVar[str] = "kd and the teacher's input gradients (target: ce is the paper's)"
    paper: ClassVar[str] = "Shao et al., arXiv 2110.12072"

    @model_validator(mode="after")
    def _settings_fit(self) -> "Kdiga":
        if self.eps is None and {self.point, self.kl_point} & {"random", "adversarial"}:
            raise ValueError("a random or adversarial point needs an eps")
        if self.target == "finite_difference" and self.point == "clean":
            raise ValueError("finite_difference needs a step away from the image: point random or adversarial")
        if self.reduction == "batch_frobenius" and (self.norm, self.squared) != (2, False):
            raise ValueError("batch_frobenius is of the norm 2, not squared")
        if self.reduction == "batch_frobenius" and self.target == "finite_difference":
            raise ValueError("batch_frobenius is of gradients, and finite_difference has none")
        self.refuse_idle(self._used())
        return self

    def _used(self) -> dict[str, bool]:
        """Return, for each setting of a target or a point, whether it has an effect."""
        points, differences = {self.point, self.kl_point}, self.target == "finite_difference"
        return {
            "target_temperature": self.target == "ce_tempered",
            "norm": not differences,
            "squared": not differences,
            "eps": bool(points & {"random", "adversarial"}),
            "steps": "adversarial" in points,
            "step_size": "adversarial" in points,
            "attack_norm": "adversarial" in points,
            "eps_ramp": bool(points & {"random", "adversarial"}),
        }

    def terms(self, batch: Batch) -> Terms:
        ce_point, kl_point = ("random" if self.point == "random" else "clean"), self.kl_point or self.point
        taught = {*([kl_point] if self.lambda_kl > 0 else []), *([self.point] if self.lambda_iga > 0 else [])}
        needed = {ce_point, *taught}
        images = self._images(batch, needed)
        seen = {name: self._look(batch, image, name, taught) for name, image in images.items() if name in needed}
        terms = {"ce": Term(self.lambda_ce, F.cross_entropy(seen[ce_point].logits, batch.y))}
        if self.lambda_kl > 0:
            at = seen[kl_point]
            kl = softened_kl(at.logits, at.target, self.temperature, self._kept(at.target, batch.y))
            terms["kl"] = Term(self.lambda_kl, kl)
        if self.lambda_iga > 0:
            value = self._alignment(batch, images, seen[self.point])
            terms["iga"] = Term(self.lambda_iga * batch.risen(self.ramp), value)
        return terms

    def _images(self, batch: Batch, named: Collection[str]) -> dict[str, Tensor]:
        """Compute the images at each named point; the clean ones always."""
        clean = batch.noisy(self.sigma)
        images = {"clean": clean}
        if "random" in named:
            assert self.eps is not None
            images["random"] = clean + self.eps * batch.risen(self.eps_ramp) * batch.uniform(clean)
        if "adversarial" in named:
            images["adversarial"] = self._attacked(batch, clean - batch.x)
        return images

    def _attacked(self, batch: Batch, noise: Tensor) -> Float[Tensor, "batch *shape"]:
        """Compute x' + noise, with x' in [0, 1] from PGD on CE(s(x' + noise), y); without noise, the usual example."""
        assert self.eps is not None
        grown = batch.risen(self.eps_ramp)
        step = None if self.step_size is None else self.step_size * grown
        attack = Pgd(eps=self.eps * grown, norm=self.attack_norm, steps=self.steps, step_size=step)

        def loss(z: Tensor) -> Tensor:
            return F.cross_entropy(batch.student(z + noise), batch.y, reduction="none")

        return noise + attack.raise_loss(batch.student, loss, batch.x, batch.generator)

    def _look(self, batch: Batch, image: Tensor, name: str, taught: Collection[str]) -> "Seen":
        """Run the student at one point, the teacher if needed there, and compute the gap of gradients if compared."""
        compared = name == self.point and self.lambda_iga > 0
        if compared and self.target != "finite_difference":
            return self._gradients(batch, image)
        with full_precision(image.device, compared):
            target = batch.constant(image) if name in taught else torch.empty(0)
            return Seen(batch.student(image), target)

    def _gradients(self, batch: Batch, image: Tensor) -> "Seen":
        assert batch.teacher is not None
        x = image.detach().requires_grad_(True)
        with twice_differentiable(), torch.enable_grad():
            target = batch.teacher(x)
            reference, direction = target.detach(), self._direction(batch, target)
            theirs = _stacked(self._scalars(target, reference, batch.y, direction), x, create_graph=False)
            logits = batch.student(x)
            ours = _stacked(self._scalars(logits, reference, batch.y, direction), x, create_graph=True)
        return Seen(logits, reference, ours - theirs.detach())

    def _direction(self, batch: Batch, logits: Tensor) -> Tensor | None:
        """Draw N(0, I) less its mean, over sqrt(C - 1), for each sample."""
        if self.target != "projection":
            return None
        drawn = batch.normal(logits.detach())
        return (drawn - drawn.mean(1, keepdim=True)) / _degrees(logits)

    def _scalars(
        self, logits: Tensor, reference: Tensor, y: Int[Tensor, " batch"], direction: Tensor | None
    ) -> Scalars:
        """Compute each sample's numbers whose input gradients are aligned; ``reference`` holds the teacher's logits."""
        if self.target == "ce":
            return F.cross_entropy(logits, y, reduction="none")[None]
        if self.target == "ce_tempered":
            temperature = self.target_temperature
            return temperature * F.cross_entropy(logits / temperature, y, reduction="none")[None]
        if self.target == "margin":
            others = reference.scatter(1, y[:, None], -torch.inf)
            pair = logits.gather(1, torch.stack([y, others.argmax(1)], dim=1))
            return (pair[:, 0] - pair[:, 1])[None]
        if direction is not None:
            return (logits * direction).sum(1)[None]
        return (logits - logits.mean(1, keepdim=True)).T / _degrees(logits)

    def _alignment(self, batch: Batch, images: Mapping[str, Tensor], seen: "Seen") -> Float[Tensor, ""]:
        kept = self._kept(seen.target, batch.y)
        if seen.gap is not None:
            return reduced(seen.gap, self.norm, self.squared, self.reduction, kept)
        each = difference_kl(batch, images["clean"], images[self.point], seen.logits, seen.target)
        return (each if kept is None else each * kept).mean()

    def _kept(self, target: Tensor, y: Tensor) -> Tensor | None:
        return target.argmax(1) == y if self.mask == "teacher_correct" else None


@dataclass(frozen=True)
class Seen:
    """The student's logits, the teacher's as constants (empty if not needed), and the gap of gradients."""

    logits: Float[Tensor, "batch classes"]
    target: Tensor
    gap: Float[Tensor, "batch many"] | None = None


def difference_kl(
    batch: Batch,
    centre: Float[Tensor, "batch *shape"],
    ahead: Float[Tensor, "batch *shape"],
    logits: Float[Tensor, "batch classes"],
    target: Float[Tensor, "batch classes"],
) -> Float[Tensor, " batch"]:
    """Compute KL(softmax(t(x + d) - t(x - d)) || softmax(s(x + d) - s(x - d))) of each sample; x - d is not clamped.

    ``logits`` and ``target`` are the student's and the teacher's at ``ahead``, x + d. Source: Lee et al., arXiv
    2312.03286 (IGDM).
    """
    behind = 2 * centre - ahead
    with full_precision(ahead.device):
        return kl_each(logits - batch.student(behind), target - batch.constant(behind))


def _degrees(logits: Tensor) -> float:
    """Return sqrt(C - 1), the root of the number of independent differences of C logits."""
    return math.sqrt(max(1, logits.shape[1] - 1))


def _stacked(scalars: Scalars, x: Tensor, *, create_graph: bool) -> Float[Tensor, "batch many"]:
    """Compute the input gradients of each row of scalars, one vector per sample."""
    rows = [input_gradient(row, x, create_graph=create_graph, retain_graph=True).flatten(1) for row in scalars]
    return torch.cat(rows, dim=1) if len(rows) > 1 else rows[0]
