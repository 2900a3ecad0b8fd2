"""The method ``pgd``: search the ball for a counterexample."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from verifiers.core.columns import COUNTEREXAMPLE, Column, Columns
from verifiers.core.errors import Unsupported
from verifiers.core.question import Question
from verifiers.core.settings import Count, Positive
from verifiers.core.status import Guarantee, Status
from verifiers.methods.base import Method, Problems
from verifiers.results.rows import MethodRows

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Batch, Certifier


class Pgd(Method):
    """Attack by projected gradient descent with falling steps: on the margin, then towards the next likely classes.

    steps: steps of each run.
    restarts: runs; each after the first aims at one class, the most likely first, then again from random starts.
    time_limit: seconds per sample.
    """

    kind: Literal["pgd"] = "pgd"
    steps: Count = 30
    restarts: Count = 4
    time_limit: Positive = 3600.0
    guarantee: ClassVar[Guarantee] = Guarantee.ESTIMATE
    claim: ClassVar[str] = "no counterexample found by projected gradient descent at eps, or one is stored"
    paper: ClassVar[str] = (
        "Madry et al., arXiv 1706.06083; steps: Croce and Hein, arXiv 2003.01690; margin loss: Carlini and Wagner, "
        "arXiv 1608.04644"
    )
    cost: ClassVar[str] = "2 x steps x restarts forward passes"
    columns: ClassVar[tuple[Column, ...]] = COUNTEREXAMPLE

    def warnings(self, program: "Program", first: "Tensor") -> Iterable[str]:
        from verifiers.geometry.attack import has_slope
        from verifiers.geometry.attacks.autoattack import probabilities

        try:
            program.check_gradient(first)
        except Unsupported:  # as the attack says itself
            return
        if program.captured is not None and not has_slope(program.module, first):
            yield (
                "pgd is blind: the gradient of the logits is zero, as behind a sign or a step; what it misses says "
                "nothing"
            )
        elif probabilities(program.module, first):
            yield (
                "the network gives probabilities: behind a softmax attacks see little and bounds are loose; give the "
                "network without it"
            )

    def spreads(self) -> Mapping[str, float]:
        return {"distance": math.inf}  # of a counterexample, which runs through the network again

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        falsified, tried = rows["status"] == Status.FALSIFIED, rows["status"] == Status.NOT_CERTIFIED
        return {
            "it is falsified and its margin is not negative": falsified & ~(rows["margin"] < 0),
            "no counterexample is stored and its margin is negative": tried & ~(rows["margin"] >= 0),
            "it has a counterexample's distance and none is stored": ~falsified & ~np.isnan(rows["distance"]),
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        import torch

        from verifiers.geometry.attack import Attack
        from verifiers.runtime.certifier import Answering, as_columns
        from verifiers.runtime.deadline import left

        program.check_gradient(samples)
        attack = Attack(question.eps.value, question.norm, question.seed, self.steps, self.restarts)

        def answer(batch: "Batch") -> Columns:
            found = attack(program.module, batch.x, batch.predicted, batch.indices.tolist())
            end = Status.TIMEOUT if left() < 0 else Status.NOT_CERTIFIED
            status = torch.where(found.broken, Status.FALSIFIED.value, end.value)
            values = {
                "radius": torch.zeros_like(found.distance),
                "margin": found.margin.double(),
                "distance": found.distance,
                "counterexample": found.point.float(),
            }
            return as_columns(status, values)

        return Answering(answer, batch_size=256)
