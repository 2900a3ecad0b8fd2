"""The method ``match``: decide on each ball whether the student matches its teacher, with a proof or a point."""

import builtins
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import field_validator, model_validator

from verifiers.core.columns import ROUNDING, Column
from verifiers.core.errors import InputError, did_you_mean, quoted
from verifiers.core.question import Question
from verifiers.core.relation import Property, Relation
from verifiers.core.settings import Count, Number, Positive
from verifiers.core.status import About, Guarantee, Status
from verifiers.methods.base import REPEATS, Method, Problems, Summary
from verifiers.methods.base import ROUNDING as ROUNDED
from verifiers.results.reader import read
from verifiers.results.rows import MethodRows
from verifiers.results.summaries import match
from verifiers.results.summaries.match import SEARCHES, Stage

if TYPE_CHECKING:
    from torch import Tensor

    from verifiers.graph.program import Program
    from verifiers.runtime.certifier import Certifier


class Match(Method):
    """Decide a property of student and teacher on each ball: attack, CROWN, each network alone, both together.

    With the teacher's class c at the image, logits S and T:

    property: same-class (the student gives the class that the teacher prefers by more than delta), close (no logits
    differ by more than the tolerance), not-worse (the student's margin of c is at most the tolerance below the
    teacher's) or transfer (wherever the teacher gives c, so does the student).
    tolerance: of close and not-worse, in logits.
    delta: of same-class, in logits.
    time_limit: seconds per sample.
    iterations: steps of alpha-CROWN's optimiser.
    steps, restarts: steps and restarts of the attack.
    bisect: also bisect the least tolerance (of same-class: the least delta) that is proved.
    points: certificate files whose counterexamples are tried too, those of the same samples.
    """

    kind: Literal["match"] = "match"
    property: Property = Property.SAME_CLASS
    tolerance: Number = 0.0
    delta: Number = 0.0
    time_limit: Positive = 30.0
    iterations: Count = 20
    steps: Count = 40
    restarts: Count = 4
    bisect: bool = False
    points: tuple[str, ...] = ()
    guarantee: ClassVar[Guarantee] = Guarantee.DETERMINISTIC
    about: ClassVar[About] = About.PAIR
    relational: ClassVar[bool] = True
    claim: ClassVar[str] = "at eps: student and teacher have the property everywhere on the ball, or a point is stored"
    paper: ClassVar[str] = (
        "CROWN and alpha-CROWN, arXiv 2011.13824, of both networks and their difference, after ReluDiff, "
        "arXiv 2001.03662"
    )
    cost: ClassVar[str] = "as little as decides a sample: attack, bounds of both networks, splits until the time limit"
    summary: ClassVar[Summary | None] = match.summary
    columns: ClassVar[tuple[Column, ...]] = (
        ROUNDING,
        Column("stage", "uint8", "", "which stage decided: " + "; ".join(f"{s.value} {s.title}" for s in Stage)),
        Column("domains", "int64", "", "parts of the ball that were bounded"),
        Column("student_class", "int64", "", "the student's class at the stored point; at the image without one"),
        Column("teacher_class", "int64", "", "the teacher's class at the stored point; at the image without one"),
        Column("distance", "float64", "pixels", "length from the image to the stored point; nan when none"),
        Column("violation", "float64", "logits", "by how much the stored point breaks the property; nan when none"),
        Column("least", "float64", "logits", "least tolerance or delta proved; nan when not bisected"),
        Column("counterexample", "float32", "pixels", "the point, inside the ball", axes=("image",)),
    )

    @field_validator("property", mode="before")
    @classmethod
    def _known_property(cls, given: object) -> object:
        """Refuse an unknown property, with the nearest known one."""
        if isinstance(given, str) and given not in list(Property):
            raise InputError(f"unknown property {quoted(given)}.{did_you_mean(given, list(map(str, Property)))}")
        return given

    @model_validator(mode="after")
    def _known_thresholds(self) -> "Match":
        """Refuse thresholds that the property does not have."""
        _ = self.relation
        if self.bisect and self.property is Property.TRANSFER:
            raise ValueError("transfer has neither tolerance nor delta: drop bisect")
        return self

    @builtins.property
    def options(self) -> dict[str, Any]:
        """The settings that rows depend on: a point counts wherever it comes from."""
        return {name: value for name, value in super().options.items() if name != "points"}

    @builtins.property
    def relation(self) -> Relation:
        """The property with its threshold."""
        return Relation(self.property, self.tolerance, self.delta)

    def check(self, question: Question) -> None:
        """Refuse files that are no certificate files."""
        for path in self.points:
            read(path)

    def spreads(self) -> Mapping[str, float]:
        names = (column.name for column in self.columns)  # of the stage that decides first
        return dict.fromkeys(("margin", *names), math.inf)

    def repeats(self, stored: MethodRows, again: MethodRows) -> Mapping[str, np.ndarray]:
        screened = (stored["stage"] >= Stage.CROWN) & (again["stage"] >= Stage.CROWN)
        return {
            "rounding": screened,
            "margin": screened & (stored["stage"] == again["stage"]) & (again["stage"] == Stage.CROWN),
        }

    def claims_more(self, stored: MethodRows, again: MethodRows) -> np.ndarray:
        return np.isfinite(stored["least"]) & ~(again["least"] <= stored["least"] * (1 + REPEATS))

    def again(self, time_limit: float) -> Method:
        return self.model_copy(update={"time_limit": min(self.time_limit, time_limit)})

    def problems(self, rows: MethodRows, path: str, pixels: int | None) -> Problems:
        proved, refuted = rows["status"] == Status.CERTIFIED, rows["status"] == Status.FALSIFIED
        margin, stage, violation = rows["margin"], rows["stage"], rows["violation"]
        same, no_point = proved & (stage == Stage.IDENTITY), np.isnan(rows["distance"]) & np.isnan(violation)
        return {
            "it is proved at another radius than eps": proved & (rows["radius"] != rows.eps),
            "it is proved and its margin is not positive": proved & ~same & ~(margin > 0),
            "it is proved by identity and its margin is not the threshold": same & (margin != self.relation.threshold),
            "it is refuted and the two networks are identical": refuted & (stage == Stage.IDENTITY),
            "it is refuted and its point does not break the property": refuted & ~(violation > 0),
            "it is refuted and its margin is not minus the violation": refuted & (margin != -violation),
            "it is open and a bound proves it": ~proved & ~refuted & (margin > 0),
            "no such stage decides it": (proved & np.isin(stage, (0, *SEARCHES)))
            | (refuted & (stage == 0))
            | (stage > max(Stage)),
            "its point is outside the ball": refuted & ~(rows["distance"] <= rows.eps),
            "its point is the image and has a distance": refuted & (stage == Stage.IMAGE) & (rows["distance"] != 0),
            "it has a point's distance or violation and no point is stored": ~refuted & ~no_point,
            **self._of_classes(proved, refuted, rows),
            **self._of_least(proved, refuted, rows),
        }

    def _of_classes(self, proved: np.ndarray, refuted: np.ndarray, rows: MethodRows) -> Problems:
        """Mark rows whose classes are not those of their answer, in the properties about classes."""
        if not self.relation.of_classes:
            return {}
        same = rows["student_class"] == rows["teacher_class"]
        return {
            "it is proved and the classes at the image differ": proved & ~same & (not self.delta),
            "it is proved and the student's class is not its prediction": proved
            & (rows["student_class"] != rows["predicted"])
            & (not self.delta),
            "both networks give its point one class": refuted & same,
        }

    def _of_least(self, proved: np.ndarray, refuted: np.ndarray, rows: MethodRows) -> Problems:
        """Mark rows whose least threshold contradicts their answer."""
        least, asked = rows["least"], self.relation.threshold
        return {
            "it has a least threshold and none was bisected": np.isfinite(least) & (not self.bisect),
            "its least threshold is negative": least < 0,
            "it is proved and its least threshold is above the one asked": proved & (least > asked),
            "its point breaks the least threshold proved": refuted
            & (least < (asked + rows["violation"]) * (1 - ROUNDED) - ROUNDED),
        }

    def prepare(self, program: "Program", samples: "Tensor", question: Question) -> "Certifier":
        from verifiers.bound_propagation import match_certifier

        return match_certifier(program, samples, question, self)
