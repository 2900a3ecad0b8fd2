"""The question that a run asks about every sample."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from verifiers.core.quantities import Arithmetic, Epsilon, Norm

if TYPE_CHECKING:
    from verifiers.graph.program import Program


@dataclass(frozen=True)
class Question:
    """The ball around each sample, the seed, and the teacher.

    Attributes:
        eps: the radius at which certified accuracy is reported.
        norm: norm of the ball.
        seed: run seed; it keys all randomness together with the sample index.
        teacher: the network that methods about a pair compare with.
        arithmetic: the arithmetic of the networks that proofs are about.
    """

    eps: Epsilon
    norm: Norm = Norm.LINF
    seed: int = 0
    teacher: "Program | None" = None
    arithmetic: Arithmetic = Arithmetic.FLOAT32
