"""Perceptually aligned gradients as a target: input gradients of every class in the direction of a robust teacher's."""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from certkd.objectives.base import Batch, Objective, Term, Terms
from certkd.objectives.gradients import cosine_gap, input_gradient, twice_differentiable
from verifiers.core.settings import Number


class Pag(Objective):
    """CE(s(x), y) + lambda_pag mean_i [1 - cos(grad_x log s_k(x_i), grad_x log t_k(x_i))].

    k is a random class for each sample and step, the same for both networks. In the paper the target gradients are
    computed once, by a score-based generative model among others; a robust teacher, whose gradients are aligned with
    perception too, is one of ours. No attack is needed.
    """

    kind: Literal["pag"] = "pag"
    lambda_pag: Number = 1.0
    needs_teacher: ClassVar[bool] = True
    summary: ClassVar[str] = "cross-entropy and the direction of the teacher's input gradient of a random class"
    paper: ClassVar[str] = "Ganz et al., arXiv 2207.11378"

    def terms(self, batch: Batch) -> Terms:
        assert batch.teacher is not None
        x, draws = batch.x.detach().requires_grad_(True), (1 + batch.uniform(batch.x.flatten(1)[:, 0])) / 2

        def seen(network: nn.Module, second: bool) -> tuple[Tensor, Tensor]:
            logs = network(x).log_softmax(1)
            classes = (draws * logs.shape[1]).long().clamp_max(logs.shape[1] - 1)
            return logs, input_gradient(logs.gather(1, classes[:, None])[:, 0], x, create_graph=second)

        with twice_differentiable(), torch.enable_grad():
            _, theirs = seen(batch.teacher, False)
            logs, ours = seen(batch.student, True)
        return {
            "ce": Term(1.0, nn.functional.nll_loss(logs, batch.y)),
            "pag": Term(self.lambda_pag, cosine_gap(ours, theirs).mean()),
        }
