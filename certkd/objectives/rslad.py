"""RSLAD: use the teacher's outputs in place of every label, also in the attack."""

from typing import ClassVar, Literal

from torch import Tensor

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kd import kl_each
from certkd.objectives.robust import RobustDistillation, View, divergence_from_clean_teacher
from verifiers.core.settings import Number
from verifiers.geometry.ascent import PerSampleLoss


class Rslad(RobustDistillation):
    """lambda_adversarial KL(t(x) || s(x')) + lambda_clean KL(t(x) || s(x)), x' raises KL(t(x) || s(x')).

    The authors' code also averages KL over the classes, so its weights on CIFAR-100 mean a tenth of those on CIFAR-10.
    """

    kind: Literal["rslad"] = "rslad"
    lambda_adversarial: Number = 5 / 6
    lambda_clean: Number = 1 / 6
    summary: ClassVar[str] = "the teacher's clean outputs on clean and adversarial images"
    paper: ClassVar[str] = "Zi et al., arXiv 2108.07969"

    def inner(self, batch: Batch) -> PerSampleLoss | None:
        return divergence_from_clean_teacher(batch)

    def outer(self, view: View) -> Terms:
        def kl(logits: Tensor) -> Tensor:
            return kl_each(logits, view.teacher_clean).mean()

        terms = {"kl_adversarial": Term(self.lambda_adversarial, kl(view.student_attacked))}
        if self.lambda_clean > 0:
            terms["kl_clean"] = Term(self.lambda_clean, kl(view.student_clean))
        return terms
