"""Cross-entropy on clean images: the baseline without a teacher."""

from typing import ClassVar, Literal

from torch.nn import functional as F

from certkd.objectives.base import Batch, Objective, Term, Terms


class Standard(Objective):
    """CE(f(x), y)."""

    kind: Literal["standard"] = "standard"
    summary: ClassVar[str] = "cross-entropy on clean images"
    paper: ClassVar[str] = ""

    def terms(self, batch: Batch) -> Terms:
        return {"ce": Term(1.0, F.cross_entropy(batch.student(batch.x), batch.y))}
