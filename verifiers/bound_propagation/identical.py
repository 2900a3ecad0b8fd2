"""Answer ``match`` at once where student and teacher are one program with equal constants."""

from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.complete import undecided
from verifiers.bound_propagation.match import MatchCertifier, MatchSettings
from verifiers.core.columns import Columns
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.graph.program import Captured, Program
from verifiers.results.summaries.match import Stage
from verifiers.runtime.certifier import Answering, Batch, Certifier

#: Rows of a batch; no bounds are computed.
BATCH = 256


def match_certifier(
    program: Program, samples: Float[Tensor, "two *shape"], question: Question, settings: MatchSettings
) -> Certifier:
    """Prepare ``match`` for a pair of networks; identical ones need no search.

    Raises:
        Unsupported: there is no teacher, or a network cannot be captured.
        Contradiction: a point of the ball breaks a bound.
    """
    teacher = question.teacher
    if teacher is None or not identical(program, teacher, samples):
        return MatchCertifier.prepare(program, samples, question, settings)

    def answer(batch: Batch) -> Columns:
        with torch.no_grad():
            classes = torch.cat([program.module(image).argmax(1) for image in batch.x.split(1)]).cpu().numpy()
        rows, threshold = len(batch), settings.relation.threshold
        return undecided(
            batch.x,
            status=np.full(rows, Status.CERTIFIED.value, "uint8"),
            radius=np.full(rows, question.eps.value),
            margin=np.full(rows, threshold),
            stage=np.full(rows, Stage.IDENTITY.value, "uint8"),
            student_class=classes,
            teacher_class=classes.copy(),
            violation=np.full(rows, np.nan),
            least=np.full(rows, 0.0 if settings.bisect else np.nan),
        )

    notes: Mapping[str, str] = {"engine": "none", "graphs": "none: one program, with equal constants"}
    return Answering(answer, BATCH, notes)


def identical(student: Program, teacher: Program, samples: Float[Tensor, "two *shape"]) -> bool:
    """Return whether two networks are one program with equal constants, laid out and run alike on the same device.

    Such networks compute the same numbers wherever both run alike: no property of a pair can fail.
    """
    ours, theirs = student.capture(samples), teacher.capture(samples)
    alike = ours.plain == theirs.plain and student.device == teacher.device
    return alike and ours.sha256 == theirs.sha256 and _laid_out(ours) == _laid_out(theirs)


def _laid_out(captured: Captured) -> list[tuple[int, ...]]:
    """Return the strides of all constants: torch adds up in another order where they are laid out in another way."""
    return [constant.stride() for constant in (*captured.module.parameters(), *captured.module.buffers())]
