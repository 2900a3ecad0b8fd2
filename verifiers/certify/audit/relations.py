"""Check rows that relate a student and its teacher against the other rows of both files, without a network; no torch.

A point that breaks a relation cannot be where other rows prove the classes that it excludes; and where both networks
are known to give different classes, no relation of their classes is proved.
"""

import numpy as np

from verifiers.core.quantities import DEPLOYED
from verifiers.core.relation import Property
from verifiers.core.status import About, Status
from verifiers.methods.base import Problems
from verifiers.methods.registry import find, proves
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.summaries.match import Matched, Stage


def kept_radius(certificates: Certificates, *, both: bool = False) -> np.ndarray:
    """Return the largest radius of each row within which the network provably keeps its class; -inf without one.

    Over the real numbers there is none: points are float32's.

    Args:
        certificates: the file.
        both: of rows alone that say so of the network and its teacher.
    """
    radius = np.full(len(next(iter(certificates))), -np.inf)
    if certificates.attributes.get("arithmetic") not in DEPLOYED:
        return radius
    for rows in certificates:
        method = find(rows.name)
        if proves(rows.name) and (method.both or (not both and method.about is About.NETWORK)):
            radius = np.maximum(radius, np.where(rows["status"] == Status.CERTIFIED, rows["radius"], -np.inf))
    return radius


def relation_problems(certificates: Certificates, rows: MethodRows) -> Problems:
    """Mark rows that relate two networks and that other rows of the same file contradict."""
    refuted, predicted = rows["status"] == Status.FALSIFIED, rows["predicted"]
    student, teacher = rows["student_class"] != predicted, rows["teacher_class"] != predicted
    return {
        "its point has another class, and is where the network provably keeps its own": refuted
        & student
        & (rows["distance"] <= kept_radius(certificates)),
        "the teacher has another class at its point, where both provably have the network's": refuted
        & teacher
        & (rows["distance"] <= kept_radius(certificates, both=True)),
    }


def identity_problems(certificates: Certificates, rows: MethodRows) -> Problems:
    """Mark rows that are proved by the identity of two programs whose hashes differ, or are unknown."""
    programs = [certificates.attributes.get(f"{whose}program_sha256", "") for whose in ("", "joint_teacher_")]
    same = programs[0] == programs[1] != ""
    return {"it is proved by identity, and the two programs differ": (rows["stage"] == Stage.IDENTITY) & (not same)}


def relation_to_teacher(
    teacher: Certificates, student: Certificates, rows: MethodRows, nearest: tuple[np.ndarray, np.ndarray]
) -> Problems:
    """Mark rows that relate a student to its teacher and that the teacher's own file contradicts.

    Args:
        teacher: the teacher's file, about the same samples in the same order, at the same eps.
        student: the student's file.
        rows: of a method that relates both, from the student's file.
        nearest: the distances of the teacher's and the student's nearest counterexamples; inf without one.
    """
    relation, own = Matched.of(rows, student).relation, next(iter(teacher))
    named = own["base" if find(own.name).about is About.SMOOTHED else "predicted"]
    proved, refuted = rows["status"] == Status.CERTIFIED, rows["status"] == Status.FALSIFIED
    at_image = ~refuted | (rows["stage"] == Stage.IMAGE) | (relation.kind is Property.TRANSFER)
    differs = rows["teacher_class"] != named
    answered = proved | refuted | (rows["status"] == Status.TIMEOUT)
    apart = np.zeros(len(rows), bool)  # points of the ball at which the classes are known to differ
    if relation.of_classes and not relation.delta:
        apart |= nearest[1] <= np.minimum(kept_radius(teacher), rows.eps)
    if relation.kind is Property.SAME_CLASS and not relation.delta:
        apart |= nearest[0] <= np.minimum(kept_radius(student), rows.eps)
    return {
        "the teacher predicts another class": answered & at_image & differs,
        "the teacher has another class at its point, where it provably keeps its own": refuted
        & differs
        & (rows["distance"] <= kept_radius(teacher)),
        "it is proved, and one network keeps its class at a counterexample of the other": proved & apart,
    }
