"""TRADES: cross-entropy on clean images, and equal predictions on the worst image of the ball."""

from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kd import kl_each
from verifiers.core.settings import Number
from verifiers.runtime.modes import eval_mode


class Trades(Attacked):
    """CE(f(x), y) + beta KL(f(x) || f(x')), x' raises KL(f(x) || f(x')); both sides of the KL have gradients.

    The authors' code starts its attack at x + 0.001 N(0, I); here it starts anywhere in the ball.
    """

    kind: Literal["trades"] = "trades"
    beta: Number = 6.0
    summary: ClassVar[str] = "cross-entropy, and equal predictions on the worst image of the ball (robust teacher)"
    paper: ClassVar[str] = "Zhang et al., arXiv 1901.08573"

    def terms(self, batch: Batch) -> Terms:
        adversarial = self.away_from_itself(batch)
        logits = batch.student(batch.x)
        return {
            "ce": Term(1.0, F.cross_entropy(logits, batch.y)),
            "kl_self": Term(self.beta, kl_each(batch.student(adversarial), logits).mean()),
        }

    def away_from_itself(self, batch: Batch) -> Float[Tensor, "batch *shape"]:
        """Find images of the ball whose outputs differ most from those of x."""
        with torch.no_grad(), eval_mode(batch.student):
            fixed = batch.student(batch.x)

        def loss(z: Tensor) -> Tensor:
            return kl_each(batch.student(z), fixed)

        return self.adversarial(batch, loss)
