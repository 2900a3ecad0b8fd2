"""Prove chosen certificates again, each at its own radius, by other means than those of their author."""

from typing import Any, Literal

import numpy as np
import torch

from verifiers.bound_propagation import Complete as Prover
from verifiers.certify.answers import Asked
from verifiers.certify.attacked import Judge
from verifiers.certify.audit.findings import Finding
from verifiers.certify.audit.subject import Subject
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.quantities import Epsilon
from verifiers.core.status import Status
from verifiers.methods.complete import Complete
from verifiers.results.rows import MethodRows
from verifiers.results.summaries.complete import Stage
from verifiers.runtime.samples import Samples, first_images

#: A bound is zero at its largest radius, and another engine's float64 sums end slightly lower: proofs are at a radius
#: that is this share smaller.
ENGINE_ROUNDING = 1e-9


def prove(subject: Subject, rows: MethodRows) -> Finding:
    """Attack certificates of the chosen rows and prove them again.

    Each is proved by IBP and CROWN of the engine that did not write it, if that supports the network, else by the other
    one; then by alpha-CROWN and by branch and bound.
    """
    found = Finding(rows.name, rows.count(Status.CERTIFIED), remark="proofs")
    chosen = subject.chosen[rows["radius"][subject.chosen] > 0]
    if not len(chosen):
        return found
    stages: list[Stage] = []
    try:
        prover = _prover(subject, rows)
        for row in chosen:
            answer = _answer(prover, subject.samples, int(row), float(rows["radius"][row]))
            found.asked += 1
            if answer["status"] == Status.CERTIFIED:
                found.again += 1
                stages.append(Stage(int(answer["stage"])))
            if answer["status"] == Status.FALSIFIED and _refutes(subject, int(row), answer["counterexample"]):
                found.contradictions.append(
                    f"{rows.name}, sample {rows['index'][row]}: a point at distance {answer['distance']:.6g} changes "
                    f"the prediction, its certified radius is {rows['radius'][row]:.6g}"
                )
            subject.reporter.advance(1)
    except Contradiction as error:  # known facts about the network exclude each other: no answer about it counts
        found.asked, found.again, found.remark = found.asked + 1, 0, f"proofs: {error}"
        found.contradictions.append(f"{rows.name}: {error}")
        return found
    except Unsupported as error:
        found.remark = f"proofs: {error}"
        return found
    counts = ", ".join(f"{stages.count(stage)} by {stage.title}" for stage in Stage if stage in stages)
    if counts:
        found.remark = f"proofs: {counts}; IBP and CROWN by {prover.screen.name}"
    return found


def proves_row(subject: Subject, rows: MethodRows, row: int) -> bool:
    """Return whether a row's radius is proved by other means than those of its author."""
    try:
        answer = _answer(_prover(subject, rows), subject.samples, row, float(rows["radius"][row]))
    except (Contradiction, Unsupported):
        return False
    return bool(answer["status"] == Status.CERTIFIED)


def _prover(subject: Subject, rows: MethodRows) -> Prover:
    """Prepare complete verification, preferring the engine that did not write the rows."""
    written_by = str(rows.attributes.get("engine", ""))
    others: tuple[Literal["native", "auto-lirpa"], ...] = (
        ("native",) if written_by == "auto-lirpa" else ("auto-lirpa", "native")
    )
    first = first_images(subject.samples, subject.program.given)
    reasons = []
    for engine in others:
        settings = Complete(time_limit=subject.time_limit, restarts=4, engine=engine)
        try:
            return Prover.prepare(subject.program, first, subject.question(float(rows.eps)), settings)
        except Unsupported as error:
            reasons.append(str(error))
    raise Unsupported("; ".join(reasons))


def _answer(prover: Prover, samples: Samples, row: int, radius: float) -> dict[str, Any]:
    """Verify one sample at a radius, less the rounding of another engine."""
    eps = Epsilon.parse(radius * (1 - ENGINE_ROUNDING))
    (answer,) = prover.at(eps)(Asked(prover.program, samples).batch(np.array([row])))
    return {name: values[0] for name, values in answer.columns.items()}


def _refutes(subject: Subject, row: int, point: np.ndarray) -> bool:
    """Return whether a counterexample of the float32 network is one in the arithmetic of the file too."""
    found = torch.from_numpy(point)[None].to(subject.program.device)
    predicted = subject.samples.predicted[row : row + 1].to(found.device)
    return bool(Judge(subject.program, subject.arithmetic)(found, predicted).broken)
