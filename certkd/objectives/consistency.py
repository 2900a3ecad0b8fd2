"""Consistency regularisation: train noisy copies of an image to get the same prediction."""

import math
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from certkd.objectives.base import Batch, Objective, Term, Terms
from verifiers.core.settings import Count, Number, Positive


def log_mean(log_probabilities: Float[Tensor, "copies batch classes"]) -> Float[Tensor, "batch classes"]:
    """Compute the logarithm of the probabilities averaged over the copies."""
    return torch.logsumexp(log_probabilities, dim=0) - math.log(len(log_probabilities))


def kl_to_each(mean: Float[Tensor, "batch classes"], each: Float[Tensor, "copies batch classes"]) -> Float[Tensor, ""]:
    """Compute KL(mean || copy) of log-probabilities, averaged over copies and batch; both sides have gradients."""
    return (mean.exp() * (mean - each)).sum(-1).mean()


def entropy(log_probabilities: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute the entropy of each sample's prediction, averaged over the batch."""
    return -(log_probabilities.exp() * log_probabilities).sum(-1).mean()


class Consistency(Objective):
    """mean_i CE(f(x + n_i), y) + lam mean_i KL(p || f(x + n_i)) + eta H(p), p the mean softmax of the noisy copies.

    n_i is drawn from N(0, sigma^2 I) in each batch; sigma is in pixel units. All copies pass the student at once. A
    single copy is consistent with itself: its KL is 0. The two regularisers are left out at weight 0.
    """

    kind: Literal["consistency"] = "consistency"
    sigma: Positive = 0.25
    copies: Count = 2
    lam: Number = 10.0
    eta: Number = 0.5
    summary: ClassVar[str] = "cross-entropy under Gaussian noise and equal predictions of noisy copies"
    paper: ClassVar[str] = "Jeong and Shin, arXiv 2006.04062"

    def terms(self, batch: Batch) -> Terms:
        logits = batch.student((batch.x + batch.noise(self.sigma, self.copies)).flatten(0, 1))
        terms = {"ce_noisy": Term(1.0, F.cross_entropy(logits, batch.y.repeat(self.copies)))}
        each = F.log_softmax(logits, dim=1).unflatten(0, (self.copies, -1))
        mean = log_mean(each)
        if self.lam > 0:
            terms["consistency"] = Term(self.lam, kl_to_each(mean, each))
        if self.eta > 0:
            terms["entropy"] = Term(self.eta, entropy(mean))
        return terms
