"""Uncertainty-aware distributional adversarial training: adversarial examples with the statistics of others."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.gradients import input_gradient, lengths, twice_differentiable
from certkd.objectives.kd import kl_each
from verifiers.core.settings import Number

_SMALLEST = 1e-6


class Uad(Attacked):
    """CE(f(x), y) + beta mean_i KL(r_i || f(x''_i)) + lambda_gradient mean_i ||grad CE(f(x_i)) - grad CE(f(x''_i))||_2.

    x' is from PGD on the cross-entropy. x'' is x' with another mean and deviation of each channel: those of x' plus
    N(0, 1) times their deviation over the batch, cut to [0, 1]; it may leave the ball. r is f(x) where that is right,
    else the label. Gradients are those by the image. Only the paper's abstract was read, which names
    the parts (statistics of adversarial examples and their uncertainty, a reference that is not misclassified, matched
    input gradients of both domains); their forms are ours.
    """

    kind: Literal["uad"] = "uad"
    beta: Number = 6.0
    lambda_gradient: Number = 0.1
    summary: ClassVar[str] = "adversarial examples with drawn statistics, and their input gradients (robust teacher)"
    paper: ClassVar[str] = "Dong et al., arXiv 2411.02871 (abstract)"

    def terms(self, batch: Batch) -> Terms:
        varied = self._varied(batch, self.adversarial(batch))
        with twice_differentiable(), torch.enable_grad():
            clean, slope = self._seen(batch, batch.x)
            logits, other = self._seen(batch, varied)
        wrong = F.cross_entropy(logits, batch.y, reduction="none")
        kl = torch.where(clean.argmax(1) == batch.y, kl_each(logits, clean), wrong).mean()
        gap = lengths((slope - other).flatten(1), 2, squared=False).mean()
        return {
            "ce": Term(1.0, F.cross_entropy(clean, batch.y)),
            "kl_distribution": Term(self.beta, kl),
            "gradient": Term(self.lambda_gradient, gap),
        }

    @staticmethod
    def _seen(batch: Batch, image: Tensor) -> tuple[Tensor, Tensor]:
        """Compute logits and the input gradients of the cross-entropy, with their graph."""
        x = image.detach().requires_grad_(True)
        logits = batch.student(x)
        return logits, input_gradient(F.cross_entropy(logits, batch.y, reduction="none"), x, create_graph=True)

    @staticmethod
    def _varied(batch: Batch, image: Tensor) -> Float[Tensor, "batch *shape"]:
        """Draw other means and deviations of the channels."""
        values = image.flatten(2) if image.dim() > 2 else image[:, None]
        mean, deviation = values.mean(2), values.std(2, correction=0)
        drawn = [each + batch.normal(each).to(each.dtype) * each.std(0, correction=0) for each in (mean, deviation)]
        unit = (values - mean[..., None]) / deviation.clamp_min(_SMALLEST)[..., None]
        return (unit * drawn[1][..., None] + drawn[0][..., None]).clamp(0, 1).reshape(image.shape)
