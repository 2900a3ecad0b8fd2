"""The unsafe sets of a pair's properties, as half spaces of the logits of both networks, student first.

A case is a closed set in which the property may fail. It is refuted on a region where one of its values is positive
everywhere. c is the teacher's class at the image, S and T are the logits.
"""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.half_spaces import HalfSpaces
from verifiers.core.relation import Property, Relation
from verifiers.geometry.margins import margin_specification, margins

#: A value as coefficients of S and T by class, and whether the threshold is added to it.
Value = tuple[dict[int, float], dict[int, float], bool]


def violation(
    relation: Relation,
    student: Float[Tensor, "points classes"],
    teacher: Float[Tensor, "points classes"],
    c: Int[Tensor, " points"],
) -> Float[Tensor, " points"]:
    """Compute by how much points break a property: positive where it fails, in the dtype of the logits.

    Ties are no failure. Logits that are not finite fail nothing.
    """
    match relation.kind:
        case Property.CLOSE:
            found = (student - teacher).abs().amax(1) - relation.tolerance
        case Property.NOT_WORSE:
            found = margins(teacher, c) - margins(student, c) - relation.tolerance
        case Property.TRANSFER:
            found = torch.minimum(margins(teacher, c), -margins(student, c))
        case Property.SAME_CLASS:
            chosen = teacher.argmax(1)
            found = torch.minimum(margins(teacher, chosen) - relation.delta, -margins(student, chosen))
    finite = torch.isfinite(student).all(1) & torch.isfinite(teacher).all(1)
    return found.where(finite, -torch.inf)


def screening_rows(relation: Relation, c: Int[Tensor, " batch"], classes: int) -> Float[Tensor, "batch rows both"]:
    """Build the rows of both networks' logits whose bounds decide a property on most regions; see ``screened``."""
    if relation.kind is Property.CLOSE:
        eye = torch.eye(classes, dtype=torch.float64, device=c.device)
        rows = torch.cat([torch.cat([eye, -eye], 1), torch.cat([-eye, eye], 1)])
        return rows.expand(len(c), -1, -1)
    rows = margin_specification(c, classes, torch.float64)
    none = torch.zeros_like(rows)
    parts = torch.cat([rows, none], 2), torch.cat([none, rows], 2), torch.cat([rows, -rows], 2)
    if relation.kind is Property.NOT_WORSE:
        return parts[2]
    return torch.cat(parts, 1)


def screened(relation: Relation, bounds: Float[Tensor, "batch rows"]) -> Float[Tensor, " batch"]:
    """Turn bounds of the rows of ``screening_rows`` into a margin; the property holds on a region if it is positive."""
    bounds = bounds.where(bounds < torch.inf, -torch.inf)  # nan and inf prove nothing
    if relation.kind in (Property.CLOSE, Property.NOT_WORSE):
        return bounds.amin(1) + relation.tolerance
    own, teacher, apart = bounds.chunk(3, 1)
    if relation.kind is Property.TRANSFER:
        return torch.maximum(own, apart).amin(1)
    return torch.minimum(torch.maximum(own, apart + relation.delta), teacher + relation.delta).amin(1)


def least_threshold(relation: Relation, bounds: Float[Tensor, "batch rows"]) -> Float[Tensor, " batch"]:
    """Return the least tolerance or delta above which ``screened`` is positive; inf where there is none."""
    if relation.kind is Property.TRANSFER:
        return torch.where(screened(relation, bounds) > 0, 0.0, torch.inf)
    bounds = bounds.where(bounds < torch.inf, -torch.inf)  # nan and inf prove nothing
    if relation.kind is Property.SAME_CLASS:
        own, teacher, apart = bounds.chunk(3, 1)
        needed = torch.maximum(torch.where(own > 0, -torch.inf, -apart), -teacher)
    else:
        needed = -bounds
    return needed.amax(1).clamp_min(0.0)


def unsafe(relation: Relation, c: int, classes: int, pairs: Sequence[tuple[int, int]] | None = None) -> HalfSpaces:
    """Build the unsafe set of a property.

    Args:
        relation: the property.
        c: the teacher's class at the image.
        classes: number of classes.
        pairs: for ``same-class``, the pairs of the teacher's and the student's class that are still possible.
    """
    made = [list(case) for case in _cases(relation, c, classes, pairs)]
    outputs = torch.zeros((sum(map(len, made)), 2 * classes), dtype=torch.float64)
    constant, case = torch.zeros(len(outputs), dtype=torch.float64), torch.zeros(len(outputs), dtype=torch.int64)
    row = 0
    for number, values in enumerate(made):
        for student, teacher, threshold in values:
            for j, factor in student.items():
                outputs[row, j] += factor
            for j, factor in teacher.items():
                outputs[row, classes + j] += factor
            constant[row], case[row] = relation.threshold * threshold, number
            row += 1
    return HalfSpaces(outputs, None, constant, case)


def _cases(
    relation: Relation, c: int, classes: int, pairs: Sequence[tuple[int, int]] | None
) -> Iterator[Iterator[Value]]:
    others = [j for j in range(classes) if j != c]
    match relation.kind:
        case Property.CLOSE:
            yield from (iter([({k: sign}, {k: -sign}, True)]) for sign in (1.0, -1.0) for k in range(classes))
        case Property.NOT_WORSE:
            yield from (_worse(c, j, others) for j in others)
        case Property.TRANSFER:
            yield from (_parted(c, j, classes) for j in others)
        case Property.SAME_CLASS:
            every = [(a, b) for a in range(classes) for b in range(classes) if a != b]
            yield from (_parted(a, b, classes) for a, b in (every if pairs is None else pairs))


def _worse(c: int, j: int, others: Sequence[int]) -> Iterator[Value]:
    """The student's margin towards j is below the teacher's margin by more than the tolerance."""
    for k in sorted(others, key=lambda k: k != j):
        student, teacher = {c: 1.0, j: -1.0}, {c: -1.0, k: 1.0}
        yield student, teacher, True


def _parted(a: int, b: int, classes: int) -> Iterator[Value]:
    """The teacher prefers class a by at least the threshold, and the student prefers b to it.

    The second value is the sum of the first and the third: it is redundant, and its bound is tight where the two
    networks are alike.
    """
    yield {a: 1.0, b: -1.0}, {}, False
    yield {a: 1.0, b: -1.0}, {b: 1.0, a: -1.0}, True
    for k in sorted((k for k in range(classes) if k != a), key=lambda k: k != b):
        yield {}, {k: 1.0, a: -1.0}, True
