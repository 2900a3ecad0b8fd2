"""The method ``complete``: decide every sample at eps by attack, bounds, and branch and bound."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from verifiers.core.columns import COUNTEREXAMPLE, ROUNDING, Column
from verifiers.core.question import Question
from verifiers.core.settings import Count, Positive
from verifiers.core.status import Guarantee, Status
from verifiers.methods.base import Method, Problems, Summary
from verifiers.results.rows import MethodRows
from verifiers.results.summaries import complete
from verifiers.results.summaries.complete import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


class Complete(Method):
    """Decide each sample by the first stage that can: attack, IBP, CROWN, alpha-CROWN, branch and bound.

    time_limit: seconds per sample.
    iterations: steps of alpha-CROWN's optimiser; on l2 balls the same stage then makes as many of sdp-crown's.
    steps, restarts: steps and restarts of the attack.
    engine: the engine of IBP and CROWN; the later stages are native.
    """

    kind: Literal["complete"] = "complete"
    time_limit: Positive = 30.0
    iterations: Count = 20
    steps: Count = 30
    restarts: Count = 2
    engine: Literal["auto", "native", "auto-lirpa"] = "auto"
    guarantee: ClassVar[Guarantee] = Guarantee.DETERMINISTIC
    at_eps_alone: ClassVar[bool] = True
    claim: ClassVar[str] = "at eps: margins are positive on the ball, or a counterexample is stored"
    paper: ClassVar[str] = "Wang et al., arXiv 2103.06624 (beta-CROWN)"
    cost: ClassVar[str] = (
        "as little as decides a sample: attack, IBP, CROWN, alpha-CROWN, branch and bound until the time limit"
    )
    summary: ClassVar[Summary | None] = complete.summary
    columns: ClassVar[tuple[Column, ...]] = (
        ROUNDING,
        Column("stage", "uint8", "", "which stage decided: " + "; ".join(f"{s.value} {s.title}" for s in Stage)),
        *(Column(stage.column, "float64", "seconds", f"time in the stage {stage.title}") for stage in Stage),
        Column(
            "domains", "int64", "", "parts of the ball that branch and bound bounded; halves it only tried do not count"
        ),
        *COUNTEREXAMPLE,
    )

    def spreads(self) -> Mapping[str, float]:
        columns = ("margin", "distance", "stage", "domains")  # of the stage that decides first
        return dict.fromkeys(columns, math.inf)

    def repeats(self, stored: MethodRows, again: MethodRows) -> Mapping[str, np.ndarray]:
        return {"margin": (stored["stage"] == again["stage"]) & np.isin(again["stage"], (Stage.IBP, Stage.CROWN))}

    def again(self, time_limit: float) -> Method:
        return self.model_copy(update={"time_limit": min(self.time_limit, time_limit)})

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        status, stage, margin = rows["status"], rows["stage"], rows["margin"]
        certified, falsified = status == Status.CERTIFIED, status == Status.FALSIFIED
        tried = (status == Status.NOT_CERTIFIED) | (status == Status.TIMEOUT)
        proving, refuting = [s for s in Stage if s is not Stage.ATTACK], [Stage.ATTACK, Stage.BRANCH_AND_BOUND]
        return {
            "it is certified at another radius than eps": certified & (rows["radius"] != rows.eps),
            "it is certified and its margin is not positive": certified & ~(margin > 0),
            "it is falsified and its margin is not negative": falsified & ~(margin < 0),
            "it is open and a bound proves it": tried & (margin > 0),
            "it has a counterexample's distance and none is stored": ~falsified & ~np.isnan(rows["distance"]),
            "no such stage decides it": (certified & ~np.isin(stage, proving))
            | (falsified & ~np.isin(stage, refuting)),
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.bound_propagation import Complete as Prepared

        return Prepared.prepare(program, samples, question, self)
