"""Gaussian augmentation: cross-entropy under noise, the base classifier of randomized smoothing."""

from typing import ClassVar, Literal

from torch.nn import functional as F

from certkd.objectives.base import Batch, Objective, Term, Terms
from verifiers.core.settings import Positive


class Gaussian(Objective):
    """CE(f(x + n), y) with n drawn from N(0, sigma^2 I) in each batch; sigma is in pixel units."""

    kind: Literal["gaussian"] = "gaussian"
    sigma: Positive = 0.25
    summary: ClassVar[str] = "cross-entropy under Gaussian noise (for randomized smoothing)"
    paper: ClassVar[str] = "Cohen et al., arXiv 1902.02918"

    def terms(self, batch: Batch) -> Terms:
        return {"ce_noisy": Term(1.0, F.cross_entropy(batch.student(batch.noisy(self.sigma)), batch.y))}
