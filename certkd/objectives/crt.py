"""CRT, certified robustness transfer: match the smoothed teacher's outputs under the same noise."""

from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from certkd.objectives.base import Batch, Objective, Term, Terms
from verifiers.core.settings import Positive, Share


class Crt(Objective):
    """alpha mean ||s(x + n) - t(x + n)||_2 + (1 - alpha) CE(s(x + n), y), the logits' distance not squared.

    n is drawn from N(0, sigma^2 I) in each batch, the same for student and teacher; sigma is in pixel units. The
    teacher should be trained under that noise. Cross-entropy is left out at weight 0.
    """

    kind: Literal["crt"] = "crt"
    sigma: Positive = 0.25
    alpha: Share = 1.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "distance to the teacher's outputs under Gaussian noise"
    paper: ClassVar[str] = "Vaishnavi et al., arXiv 2210.14283"

    def terms(self, batch: Batch) -> Terms:
        logits, target = batch.outputs(self.sigma)
        terms = {"transfer": Term(self.alpha, torch.linalg.vector_norm(logits - target, dim=1).mean())}
        if self.alpha < 1:
            terms["ce_noisy"] = Term(1 - self.alpha, F.cross_entropy(logits, batch.y))
        return terms
