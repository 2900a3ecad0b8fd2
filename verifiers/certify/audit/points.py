"""Run the stored points of a relation of two networks again, and attack the balls where it is proved."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.certify.audit.counterexamples import LOGIT_ROUNDING, ROUNDING, stored_counterexamples
from verifiers.certify.audit.findings import Finding, marked
from verifiers.certify.audit.subject import Subject, blocks
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.geometry.balls import norms
from verifiers.geometry.disagreement import PairAttack
from verifiers.results.reader import read_images
from verifiers.results.rows import MethodRows
from verifiers.results.summaries.match import Matched
from verifiers.runtime.alone import logits_alone

#: The attack on every ball: steps and restarts.
STEPS, RESTARTS = 20, 2
#: Stands for a threshold of 0 where a property needs more.
SMALLEST = 1e-300


def check_points(subject: Subject, rows: MethodRows) -> Finding:
    """Check every stored point: it is in the ball and the image box, and strictly breaks the relation.

    Each runs alone, as a person would run it. Without the teacher only the student's class is compared.
    """
    asked = np.flatnonzero(rows["status"] == Status.FALSIFIED)
    found = Finding(rows.name, len(asked), remark="points, run again by both networks")
    for block in blocks(asked):
        stored = torch.from_numpy(read_images(subject.certificates.path, rows.name, "counterexample", block))
        problems = _problems(subject, rows, block, stored.to(subject.program.device))
        bad = np.any(list(problems.values()), axis=0)
        for i in np.flatnonzero(bad):
            what = next(name for name, broken in problems.items() if broken[i])
            found.contradictions.append(f"{rows.name}, sample {rows['index'][block[i]]}: its point {what}")
        found.asked += len(block)
        found.again += int((~bad).sum()) if subject.teacher is not None else 0
    return found


def _problems(subject: Subject, rows: MethodRows, block: np.ndarray, points: Tensor) -> dict[str, np.ndarray]:
    x = subject.samples.batch(block, points.device)
    distance = norms(points.double() - x.double(), subject.norm).cpu().numpy()
    student = logits_alone(subject.program.module, points)
    problems = {
        "is outside the ball": ~(distance <= rows.eps),
        "is outside the image box": ~((points >= 0) & (points <= 1)).flatten(1).all(1).cpu().numpy(),
        "is at another distance": ~np.isclose(distance, rows["distance"][block], rtol=ROUNDING, atol=1e-12),
        "has another class of the student": _differs(student, rows["student_class"][block]),
    }
    if subject.teacher is None:
        return problems
    teacher, relation = logits_alone(subject.teacher.module, points), Matched.of(rows, subject.certificates).relation
    size = violation(relation, student, teacher, _classes(subject.teacher.module, x)).cpu().numpy()
    slack = 10 * LOGIT_ROUNDING * torch.cat([student, teacher], 1).abs().amax(1).clamp_min(1.0).cpu().numpy()
    return {
        **problems,
        "has another class of the teacher": _differs(teacher, rows["teacher_class"][block]),
        "does not break the property": ~(size > 0),
        "breaks it by another amount": ~(np.abs(size - rows["violation"][block]) <= slack + ROUNDING * np.abs(size)),
    }


def _classes(network: nn.Module, x: Float[Tensor, "batch *shape"]) -> Int[Tensor, " batch"]:
    with torch.no_grad():
        return network(x).argmax(1)


def _differs(logits: Float[Tensor, "points classes"], stored: np.ndarray) -> np.ndarray:
    """Mark points whose class is not the stored one, by more than rounding on another machine."""
    named = torch.as_tensor(stored, device=logits.device).clamp(0, logits.shape[1] - 1)
    below = logits.amax(1) - logits.gather(1, named[:, None])[:, 0]
    slack = LOGIT_ROUNDING * logits.abs().amax(1).clamp_min(1.0)
    known = (stored >= 0) & (stored < logits.shape[1])
    return ~((below <= slack).cpu().numpy() & known)


def violation(relation: Relation, student: Tensor, teacher: Tensor, c: Tensor) -> Float[Tensor, " points"]:
    """Compute by how much points break a relation, written apart from the certifier's."""
    if relation.kind is Property.CLOSE:
        return (student - teacher).abs().amax(1) - relation.tolerance
    if relation.kind is Property.NOT_WORSE:
        return _lead(teacher, c) - _lead(student, c) - relation.tolerance
    named = c if relation.kind is Property.TRANSFER else teacher.argmax(1)
    return torch.minimum(_lead(teacher, named) - relation.delta, -_lead(student, named))


def _lead(logits: Float[Tensor, "points classes"], c: Int[Tensor, " points"]) -> Float[Tensor, " points"]:
    """Return how far class c leads the best other class."""
    mine = torch.nn.functional.one_hot(c, logits.shape[1]).bool()
    return logits[mine] - logits.masked_fill(mine, -torch.inf).amax(1)


def check_balls(subject: Subject, rows: MethodRows) -> Finding:
    """Check both classes at the images, and attack the relation on every ball where it is proved."""
    assert subject.teacher is not None
    proved = rows["status"] == Status.CERTIFIED
    asked = proved | (rows["status"] == Status.TIMEOUT)
    relation = Matched.of(rows, subject.certificates).relation
    student, teacher = subject.program.module, subject.teacher.module
    broken, *other = np.zeros((3, len(rows)), bool)
    for block in blocks(np.flatnonzero(asked)):
        x = subject.samples.batch(block, subject.program.device)
        for differs, network, name in zip(other, (student, teacher), ("student", "teacher"), strict=True):
            with torch.no_grad():
                differs[block] = _differs(network(x).double(), rows[f"{name}_class"][block])
        held = block[proved[block]]
        broken[held] = _broken(subject, rows, held, relation) if len(held) else False
    problems = {
        "the student has another class at the image": other[0],
        "the teacher has another class at the image": other[1],
        "a point of its ball breaks the property that is proved": broken,
    }
    found = marked(rows, asked, problems, "attacks on the property within each ball", rows["index"])
    found.claims = int(asked.sum())
    return found


def check_least(subject: Subject, rows: MethodRows) -> Finding:
    """Attack the least tolerance or delta that is proved for each row, with the property at that threshold."""
    asked = np.isfinite(rows["least"]) & (rows["status"] != Status.PENDING)
    relation, broken = Matched.of(rows, subject.certificates).relation, np.zeros(len(rows), bool)
    for row in np.flatnonzero(asked):
        threshold = max(float(rows["least"][row]), SMALLEST)
        broken[row] = _broken(subject, rows, np.array([row]), relation.at(threshold))[0]
    problems = {"a point of its ball breaks the property at the least threshold proved": broken}
    return marked(rows, asked, problems, "attacks on the least thresholds", rows["index"])


def _broken(subject: Subject, rows: MethodRows, held: np.ndarray, relation: Relation) -> np.ndarray:
    """Mark rows with a point that breaks the relation: an end of the attack, or a counterexample of the student.

    Points are float32's: over the real numbers, a violation counts where rounding cannot make it.
    """
    assert subject.teacher is not None
    x, networks = subject.samples.batch(held, subject.program.device), (subject.program.module, subject.teacher.module)

    def size(student: Tensor, teacher: Tensor, c: Tensor) -> Tensor:
        least = LOGIT_ROUNDING * torch.cat([student, teacher], 1).abs().amax(1).clamp_min(1.0)
        return violation(relation, student, teacher, c) - (0.0 if subject.arithmetic.deployed else least)

    attack = PairAttack(*networks, size, rows.eps, subject.norm, subject.seed, STEPS, RESTARTS, relation.of_classes)
    broken = attack(x, rows["index"][held].tolist()).found
    c = _classes(networks[1], x)
    for point in stored_counterexamples(subject, held, x):
        inside = norms(point.double() - x.double(), subject.norm) <= rows.eps
        broken = broken | (inside & (size(logits_alone(networks[0], point), logits_alone(networks[1], point), c) > 0))
    return broken.cpu().numpy()
