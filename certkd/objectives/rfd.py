"""Robust feature distillation: a robust teacher's features at adversarial examples."""

from typing import ClassVar, Literal

from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.features import features_of_both
from verifiers.core.settings import Number


class Rfd(Attacked):
    """CE(s(x'), y) + lambda_features mean (h_s(x') - h_t(x'))^2, x' from PGD on the cross-entropy.

    h are features, the input of the last layer; student and teacher have equally many. Robust feature distillation was
    proposed for segmentation in 2024. Its text was not available, so this is the plain loss of that name, on
    classifiers; no paper's formula stands behind it.
    """

    kind: Literal["rfd"] = "rfd"
    lambda_features: Number = 1.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "cross-entropy and the teacher's features on PGD examples"
    paper: ClassVar[str] = ""

    def terms(self, batch: Batch) -> Terms:
        adversarial = self.adversarial(batch)
        logits, ours, theirs = features_of_both(batch, adversarial, adversarial)
        return {
            "ce_adversarial": Term(1.0, F.cross_entropy(logits, batch.y)),
            "features": Term(self.lambda_features, F.mse_loss(ours, theirs)),
        }
