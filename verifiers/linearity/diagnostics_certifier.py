"""The certifier of ``diagnostics``, which estimates and certifies nothing."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.core.errors import Unsupported
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.attack import Attack
from verifiers.geometry.balls import keyed_start
from verifiers.graph.program import Program
from verifiers.linearity.agreement import attack_agreement, gradient_agreement
from verifiers.linearity.estimates import cross_entropy_of, signed_linearity
from verifiers.runtime.certifier import Answer, Batch, as_columns


@runtime_checkable
class AttackSettings(Protocol):
    """The settings of the method; see ``verifiers.methods.diagnostics``."""

    @property
    def steps(self) -> int: ...
    @property
    def restarts(self) -> int: ...


@dataclass
class DiagnosticsCertifier:
    """The method prepared for a pair of networks; every row gets NOT_CERTIFIED."""

    model: nn.Module
    teacher: nn.Module
    settings: AttackSettings
    question: Question
    classes: int
    batch_size: int = 256

    @classmethod
    def prepare(
        cls, program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: AttackSettings
    ) -> "DiagnosticsCertifier":
        """Compare both networks' outputs.

        Raises:
            Unsupported: there is no teacher, or its classes differ.
        """
        if question.teacher is None:
            raise Unsupported("diagnostics compare with a teacher: give one")
        program.check_gradient(samples)
        question.teacher.check_gradient(samples)
        model, teacher = program.module, question.teacher.module
        with torch.no_grad():
            logits, theirs = model(samples[:1]), teacher(samples[:1])
        if logits.shape != theirs.shape:
            shapes = f"{tuple(logits.shape[1:])} and {tuple(theirs.shape[1:])}"
            raise Unsupported(f"student and teacher differ in their logits: {shapes}")
        return cls(model, teacher, settings, question, logits.shape[1])

    @property
    def notes(self) -> dict[str, str]:
        """The number of classes."""
        return {"classes": str(self.classes)}

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        """Compare the gradients of both networks, and attack the student twice."""
        x, predicted, indices = batch.x, batch.predicted, batch.indices
        question, settings = self.question, self.settings
        eps, norm, seed, restarts = question.eps.value, question.norm, question.seed, settings.restarts
        gradients = gradient_agreement(self.model, self.teacher, x, predicted, norm)
        attack = Attack(eps, norm, seed, settings.steps, restarts)
        attacks = attack_agreement(self.model, self.teacher, x, predicted, attack, indices)
        start = keyed_start(x, x.new_full(x.shape[:1], eps), norm, seed, indices.tolist(), restarts)
        flags = {
            "ce_attack": attacks.ce,
            "margin_attack": attacks.margin,
            "transfers": torch.where(attacks.fooled, attacks.transfers.to(torch.int8), -1),
            "teacher_right": attacks.teacher_right,
            "teacher_right_attacked": attacks.teacher_right_attacked,
        }
        values = {
            "radius": torch.zeros_like(gradients.gap),
            "margin": attacks.student_margin.double(),
            "gradient_gap": gradients.gap,
            "gradient_gap_dual": gradients.gap_dual,
            "gradient_cosine": gradients.cosine,
            "gradient_norm": gradients.norm,
            "margin_gradient_gap": gradients.margin_gap,
            **{name: flag.to(torch.int8) for name, flag in flags.items()},
            "teacher_entropy": attacks.teacher_entropy.double(),
            "ce_llm": signed_linearity(cross_entropy_of(self.model, predicted), x, eps, norm, start).double(),
        }
        yield Answer(batch.rows, as_columns(torch.full_like(predicted, Status.NOT_CERTIFIED.value), values))
