"""The method ``autoattack``: four attacks in AutoAttack's standard order."""

import math
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from verifiers.core.columns import COUNTEREXAMPLE, Column, Columns
from verifiers.core.question import Question
from verifiers.core.settings import Count, Positive
from verifiers.core.status import Guarantee, Status
from verifiers.methods.base import Method, Problems, Summary
from verifiers.results.rows import MethodRows
from verifiers.results.summaries import autoattack
from verifiers.results.summaries.autoattack import TITLES

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Batch, Certifier


class AutoAttack(Method):
    """Attack by APGD on the cross-entropy, targeted APGD on the ratio of logits, targeted FAB, and Square, in turn.

    version: standard runs each attack on the samples that those before left; fast runs the first two alone; each runs
        every attack on every sample.
    steps: steps of each run of APGD and FAB.
    restarts: random starts of every attack, and of every target class; in l1 the first attack makes five times as many.
    queries: queries of Square for each sample.
    time_limit: seconds per sample.
    """

    kind: Literal["autoattack"] = "autoattack"
    version: Literal["standard", "fast", "each"] = "standard"
    steps: Count = 100
    restarts: Count = 1
    queries: Count = 5000
    time_limit: Positive = 3600.0
    guarantee: ClassVar[Guarantee] = Guarantee.ESTIMATE
    claim: ClassVar[str] = "no counterexample found by AutoAttack's four attacks at eps, or one is stored"
    paper: ClassVar[str] = (
        "Croce and Hein, arXiv 2003.01690; in l1: arXiv 2103.01208; FAB: arXiv 1907.02044; Square: arXiv 1912.00049"
    )
    cost: ClassVar[str] = (
        "for a sample that none breaks, restarts x (60 x steps + queries) forward passes, at ten classes or more"
    )
    summary: ClassVar[Summary | None] = autoattack.summary
    columns: ClassVar[tuple[Column, ...]] = (
        *(
            Column(name, "int8", "", f"1 when {title} found a counterexample, 0 when not, -1 when it did not run")
            for name, title in TITLES.items()
        ),
        Column(
            "zero_gradient",
            "int8",
            "",
            "1 when targeted APGD met a start without any gradient, 0 when not, -1 when it did not run",
        ),
        *COUNTEREXAMPLE,
    )

    def spreads(self) -> Mapping[str, float]:
        return dict.fromkeys(("distance", "zero_gradient", *TITLES), math.inf)  # rounding may let another attack win

    def flags(self, rows: MethodRows) -> Iterable[str]:
        return autoattack.flags(rows)

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        falsified, tried = rows["status"] == Status.FALSIFIED, rows["status"] == Status.NOT_CERTIFIED
        ran = np.stack([rows[name] for name in TITLES])
        flags = np.stack([*ran, rows["zero_gradient"]])
        later = (ran[1:] >= 0) & (np.maximum.accumulate(ran, axis=0)[:-1] == 1)
        used = 2 if self.version == "fast" else len(ran)
        short = (ran[:used] < 0).any(0) & (tried | (falsified & (self.version == "each")))
        return {
            "a flag is none of -1, 0 and 1": ~np.isin(flags, (-1, 0, 1)).all(0),
            "it is falsified and no attack found that, or the reverse": (falsified | tried)
            & (falsified != (ran == 1).any(0)),
            "an attack ran on it after it was falsified": later.any(0) & (self.version != "each"),
            "an attack of its version did not run on it": short,
            "an attack ran on it that its version has not": (ran[used:] >= 0).any(0),
            "an attack ran on it and it is misclassified": (rows["status"] == Status.MISCLASSIFIED)
            & (flags >= 0).any(0),
            "its gradient was looked at and its second attack did not run, or the reverse": (falsified | tried)
            & ((rows["zero_gradient"] >= 0) != (rows["apgd_t"] >= 0)),
            "it is falsified and its margin is not negative": falsified & ~(rows["margin"] < 0),
            "no counterexample is stored and its margin is negative": tried & ~(rows["margin"] >= 0),
            "it has a counterexample's distance and none is stored": ~falsified & ~np.isnan(rows["distance"]),
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        import torch

        from verifiers.geometry.attacks.autoattack import FAST, AutoAttack, Stage, probabilities
        from verifiers.runtime.certifier import Answering, as_columns
        from verifiers.runtime.deadline import left

        program.check_gradient(samples)
        stages = FAST if self.version == "fast" else tuple(Stage)
        attack = AutoAttack(
            question.eps.value,
            question.norm,
            question.seed,
            self.steps,
            self.restarts,
            self.queries,
            stages=stages,
            each=self.version == "each",
        )

        def answer(batch: "Batch") -> Columns:
            done = attack(program.module, batch.x, batch.predicted, batch.indices.tolist(), batch.tick)
            end = Status.TIMEOUT if left() < 0 else Status.NOT_CERTIFIED
            status = torch.where(done.found.broken, Status.FALSIFIED.value, end.value)
            values = {
                "radius": torch.zeros_like(done.found.distance),
                "margin": done.found.margin.double(),
                **{stage.replace("-", "_"): outcome for stage, outcome in done.outcomes.items()},
                "zero_gradient": done.flat,
                "distance": done.found.distance,
                "counterexample": done.found.point.float(),
            }
            return as_columns(status, values)

        notes = {autoattack.SOFTMAX: "1"} if probabilities(program.module, samples) else {}
        return Answering(answer, batch_size=64, notes=notes)
