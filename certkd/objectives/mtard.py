"""MTARD: a robust teacher for adversarial images and a natural one for clean images."""

from typing import ClassVar, Literal

import torch

from certkd.objectives.base import Batch, Term, Terms
from certkd.objectives.kd import kl_each
from certkd.objectives.robust import RobustDistillation, View
from verifiers.core.settings import Positive, Share


class Mtard(RobustDistillation):
    """w KL(t(x') || s(x')) + (1 - w) KL(n(x) || s(x)), x' from PGD on CE(s(x'), y), n the natural teacher.

    w starts at 1/2 and moves towards the loss that has fallen less. With r the loss of the step divided by that of the
    first step, w becomes (1 - rate) w + rate r_a^beta / (r_a^beta + r_n^beta).
    """

    kind: Literal["mtard"] = "mtard"
    rate: Share = 0.025
    beta: Positive = 1.0
    needs_natural_teacher: ClassVar[bool] = True
    remembers: ClassVar[bool] = True
    summary: ClassVar[str] = "a robust teacher on PGD examples, a natural one on clean images, weighed as they lag"
    paper: ClassVar[str] = "Zhao et al., ECCV 2022"

    def outer(self, view: View) -> Terms:
        natural = view.batch.natural_teacher
        assert natural is not None
        with torch.no_grad():
            target = natural(view.batch.x)
        adversarial = kl_each(view.student_attacked, view.teacher_attacked).mean()
        clean = kl_each(view.student_clean, target).mean()
        weight = self._weight(view.batch, float(adversarial.detach()), float(clean.detach()))
        return {"kl_adversarial": Term(weight, adversarial), "kl_clean": Term(1 - weight, clean)}

    def _weight(self, batch: Batch, adversarial: float, clean: float) -> float:
        memory = batch.memory
        memory.setdefault("first_adversarial", max(adversarial, 1e-12))
        memory.setdefault("first_clean", max(clean, 1e-12))
        lag = (adversarial / memory["first_adversarial"]) ** self.beta
        other = (clean / memory["first_clean"]) ** self.beta
        share = lag / (lag + other) if lag + other > 0 else 0.5
        memory["weight"] = (1 - self.rate) * memory.get("weight", 0.5) + self.rate * share
        return memory["weight"]
