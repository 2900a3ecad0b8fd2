"""IGD: adversarial training with input gradients in the direction of a natural network's."""

from typing import ClassVar, Literal

import torch
from torch.nn import functional as F

from certkd.objectives.adversarial import Attacked
from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.gradients import cosine_gap, input_gradient, twice_differentiable
from verifiers.core.settings import Number


class Igd(Attacked):
    """CE(s(x'), y) + lambda_igd mean_i [1 - cos(grad_x CE(s(x_i), y_i), grad_x CE(n(x_i), y_i))], n the natural
    teacher.

    x' is from PGD on the cross-entropy. Only the paper's abstract was read; here both gradients are taken at the clean
    image.
    """

    kind: Literal["igd"] = "igd"
    lambda_igd: Number = 1.0
    needs_natural_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "cross-entropy on PGD examples and the direction of a natural network's input gradients"
    paper: ClassVar[str] = "Chen et al., arXiv 2305.09305 (abstract)"

    def terms(self, batch: Batch) -> Terms:
        assert batch.natural_teacher is not None
        adversarial = self.adversarial(batch)
        x = batch.x.detach().requires_grad_(True)
        with twice_differentiable(), torch.enable_grad():
            theirs, ours = (
                input_gradient(F.cross_entropy(network(x), batch.y, reduction="none"), x, create_graph=second)
                for network, second in ((batch.natural_teacher, False), (batch.student, True))
            )
        return {
            "ce_adversarial": Term(1.0, F.cross_entropy(batch.student(adversarial), batch.y)),
            "igd": Term(self.lambda_igd, cosine_gap(ours, theirs).mean()),
        }
