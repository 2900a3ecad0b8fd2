"""The base of all training objectives: frozen settings with a ``terms`` method that gives named, weighted terms."""

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.settings import Strict


@dataclass(frozen=True)
class Batch:
    """The input of one training step.

    Attributes:
        student: the student, in train mode.
        teacher: the teacher, frozen and in eval mode; None if the objective needs none.
        x: images in [0, 1].
        y: true labels.
        generator: the step's random numbers, keyed by (seed, epoch, step).
        progress: share of the training's steps that are done after this one, in (0, 1].
        natural_teacher: a second teacher, accurate but not robust, frozen and in eval mode; for objectives with two.
        memory: numbers that an objective keeps from step to step; stored with the resume state.
    """

    student: nn.Module
    teacher: nn.Module | None
    x: Float[Tensor, "batch *shape"]
    y: Int[Tensor, " batch"]
    generator: torch.Generator
    progress: float = 1.0
    natural_teacher: nn.Module | None = None
    memory: dict[str, float] = field(default_factory=dict)

    def risen(self, ramp: float) -> float:
        """Rise from 0 to 1 over the first share ``ramp`` of the training, and stay at 1."""
        return min(1.0, self.progress / ramp) if ramp > 0 else 1.0

    def noise(self, sigma: float, copies: int = 1) -> Float[Tensor, "copies batch *shape"]:
        """Draw independent N(0, sigma^2) for each pixel, in pixel units; on the CPU, the same on every device."""
        drawn = torch.randn((copies, *self.x.shape), generator=self.generator, dtype=self.x.dtype)
        return sigma * drawn.to(self.x.device)

    def normal(self, like: Float[Tensor, "batch *any"]) -> Float[Tensor, "batch *any"]:
        """Draw N(0, 1) of a tensor's shape, in its type or at least float32; on the CPU, the same on every device and
        in every precision.
        """
        kind = torch.promote_types(like.dtype, torch.float32)
        return torch.randn(like.shape, generator=self.generator, dtype=kind).to(like.device)

    def uniform(self, like: Float[Tensor, "batch *any"]) -> Float[Tensor, "batch *any"]:
        """Draw uniformly from [-1, 1), of a tensor's shape and type; drawn on the CPU."""
        return (2 * torch.rand(like.shape, generator=self.generator, dtype=like.dtype) - 1).to(like.device)

    def noisy(self, sigma: float) -> Float[Tensor, "batch *shape"]:
        """Return the images under fresh noise, not clamped to [0, 1]; at sigma 0, the images without any draw."""
        return self.x + self.noise(sigma)[0] if sigma > 0 else self.x

    def outputs(self, sigma: float) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
        """Return the logits of the student and, without gradients, of the teacher on the same noisy images."""
        x = self.noisy(sigma)
        target = self.constant(x)
        return self.student(x), target

    def constant(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """Return the teacher's logits, without gradients."""
        assert self.teacher is not None
        with torch.no_grad():
            return self.teacher(x)


@dataclass(frozen=True)
class Term:
    """One part of a loss: its weight and its value before weighting."""

    weight: float
    value: Tensor


Terms = dict[str, Term]


def total(terms: Terms) -> Tensor:
    """Return the scalar that is back-propagated: the sum of weight times value."""
    return torch.stack([term.weight * term.value for term in terms.values()]).sum()


class Objective(Strict):
    """Settings of a training objective; ``kind`` is its name in configurations."""

    kind: str
    needs_teacher: ClassVar[bool] = False
    needs_natural_teacher: ClassVar[bool] = False
    #: True if it keeps numbers in the batch's memory, updated at each step.
    remembers: ClassVar[bool] = False
    summary: ClassVar[str]
    paper: ClassVar[str]

    @abstractmethod
    def terms(self, batch: Batch) -> Terms:
        """Return the loss of one batch, as named terms whose weights do not depend on the batch size."""
