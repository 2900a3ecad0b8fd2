"""alpha-CROWN: choose the free lines of the relaxations by gradient ascent on the bounds (arXiv 2011.13824).

A choice from 0 to 1 is sin^2 of a free parameter. Every value is a sound choice, and no clamp stops the gradient. Each
row keeps the best bound that was proved; the first is CROWN's.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.engine import Planes, better
from verifiers.bound_propagation.native.bounds import Bounds, common
from verifiers.bound_propagation.native.places import has_free_lines, is_relu
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.products import Product
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.runtime.optimizer import Adam

#: The first alpha: near CROWN's own choice for ReLU, which is an end of [0, 1], but free to move.
START = math.asin(0.95**0.5)
#: The first slopes of differences are at least this far from 0 and 1, so that they are free to move.
NEAR = 0.02
RATE = 0.25
#: The same where lines of two networks nearly cancel, and small changes of one count much.
COUPLED_START, COUPLED_RATE = math.asin(0.99**0.5), 0.1
DECAY = 0.98
#: Times of a step with its gradient in those of CROWN, at most; the first step has nothing else to go by.
WITH_GRADIENT = 3.0


def _angles(bounds: Bounds, rows: int) -> dict[tuple[int, int, int], Tensor]:
    """Make the angles of the free lines for every pair of a start node and a relaxed node below it.

    Each row of the specification has its own lines, ``(2, batch * rows, *shape)``. So has each entry of a small inner
    node, on each side. The lower bounds of the entries of other inner nodes share the lines of their sample,
    ``(2, batch, *shape)``, and so do the upper bounds.
    """
    graph = bounds.graph
    relaxed = [i for i, node in enumerate(graph.nodes) if has_free_lines(node.operator)]
    starts = [(start, side) for start in bounds.refined for side in (0, 1)]
    mixed = {triple.d for triple in graph.triples.values()} | {graph.output}
    angles = {}
    for start, side in [*starts, (graph.output, 0)]:
        own_lines = rows if start == graph.output else bounds.lines_per_sample(start)
        for position in (i for i in relaxed if i <= start):
            if isinstance(graph.nodes[position].operator, ReluDifference) and start not in mixed:
                continue  # rows of one network
            initial = _initial(bounds, position)
            angles[start, side, position] = initial.repeat_interleave(own_lines, 1).requires_grad_(True)
    return angles


def _initial(bounds: Bounds, position: int) -> Tensor:
    """Start near CROWN's own lower line, and in the middle of the upper lines; for differences, near its planes."""
    node = bounds.graph.nodes[position]
    operator, boxes = node.operator, [bounds.intervals[i] for i in node.inputs]
    if isinstance(operator, ReluDifference):
        slopes = torch.stack([torch.stack([plane.slope, plane.share], 1) for plane in operator.relax(boxes)])
        return slopes.clamp(NEAR, 1 - NEAR).sqrt().asin()
    low, high = boxes[0]
    if isinstance(operator, Product):
        return low.new_full((2, len(low), *operator.terms), math.pi / 4)
    if not is_relu(operator):
        return torch.full_like(low, math.pi / 4).expand(2, *low.shape).clone()
    start = COUPLED_START if bounds.graph.triples else START
    steep = (high > -low).to(low.dtype)
    below = start * steep + (math.pi / 2 - start) * (1 - steep)
    return torch.stack([below, torch.full_like(below, math.pi / 4)])


def _alphas(angles: Mapping[tuple[int, int, int], Tensor]) -> dict[tuple[int, int, int], Alpha]:
    return {key: (angle[0].sin().square(), angle[1].sin().square()) for key, angle in angles.items()}


@dataclass
class _Best:
    """The angles of the steps that were best for each sample by one measure of its bounds.

    Attributes:
        value: the measure of each sample; -inf before the first step.
        angles: the angles, in the layout of the search.
    """

    value: Float[Tensor, " batch"]
    angles: dict[tuple[int, int, int], Tensor]

    @classmethod
    def start(cls, angles: Mapping[tuple[int, int, int], Tensor], batch: int) -> "_Best":
        """Start from the first angles."""
        value = next(iter(angles.values())).new_full((batch,), -math.inf).detach()
        return cls(value, {key: angle.detach().clone() for key, angle in angles.items()})

    def keep(self, value: Float[Tensor, " batch"], angles: Mapping[tuple[int, int, int], Tensor]) -> None:
        """Keep the angles of the samples whose measure grew."""
        better = value > self.value
        self.value = torch.fmax(value, self.value)
        for key, angle in angles.items():
            chosen = better.repeat_interleave(angle.shape[1] // len(better))
            self.angles[key][:, chosen] = angle.detach()[:, chosen]

    def exact(self) -> dict[tuple[int, int, int], Alpha]:
        """Return the free lines in float64."""
        return _alphas({key: angle.double() for key, angle in self.angles.items()})


def optimized(
    bounds: Bounds, specification: Tensor, iterations: int, deadline: float = math.inf, goal: float = math.inf
) -> Planes:
    """Compute the best bound of each row over CROWN and two of the optimiser's steps.

    The steps run in float32 where the graph allows it, and prove nothing. For each sample the step with the largest sum
    of bounds and the step with the largest least bound are repeated in float64, and only those bounds count. No step
    starts that would end, with the proofs, after the deadline, on ``time.monotonic``, or once all bounds are above the
    goal. The intervals of ``bounds``
    become the intersection of those of CROWN and of the proofs.
    """
    started = time.monotonic()
    with torch.no_grad():
        bounds.propagate(refine=True)
        best = bounds.by_rows(specification)
    proofs = 2 * (time.monotonic() - started)
    pace = WITH_GRADIENT / 2 * proofs
    settled = {i: bounds.intervals[i] for i in bounds.refined if bounds.graph.affine[i]}  # their rows have no lines
    bounds.known, bounds.settled = {**bounds.known, **settled}, bounds.settled.union(settled)
    search = bounds.coarse() or bounds
    angles, rows = _angles(search, specification.shape[1]), specification.to(search.balls.x.dtype)
    if not angles:
        return best
    kept = [_Best.start(angles, len(specification)) for _ in range(2)]
    optimizer, tried = Adam(angles.values(), COUPLED_RATE if bounds.graph.triples else RATE), False
    for step in range(iterations):
        last = step == iterations - 1
        started = time.monotonic()
        if started + pace + proofs > deadline or bool((best.bound > goal).all()):
            break
        trial = replace(search, alphas=_alphas(angles), intervals=[], refined=[], relaxations={})
        with torch.set_grad_enabled(not last):
            trial.propagate(refine=True)
            found = trial.by_rows(rows).bound
        finite = found.where(torch.isfinite(found), 0.0)
        value = found.detach().nan_to_num(-math.inf, math.inf, -math.inf)
        for one, measure in zip(kept, (value.sum(1), value.amin(1)), strict=True):
            one.keep(measure, angles)
        if not tried and bool(((value > goal) | (best.bound > goal)).all()):
            best, tried = _proved(bounds, specification, kept[1:], best), True
        if not last:
            optimizer.zero_grad()
            (-finite.sum()).backward()
            optimizer.step()
            optimizer.rate *= DECAY
        pace = time.monotonic() - started
    bounds.lines = {
        position: lines for (start, _, position), lines in kept[0].exact().items() if start == bounds.graph.output
    }
    return best if bool((best.bound > goal).all()) else _proved(bounds, specification, kept, best)


def _proved(bounds: Bounds, specification: Tensor, kept: Sequence[_Best], best: Planes) -> Planes:
    """Improve planes and intervals by those of kept angles, in float64."""
    with torch.no_grad():
        for one in kept:
            if not bool((one.value > -math.inf).any()):
                continue
            trial = replace(bounds, alphas=one.exact(), intervals=[], refined=[], relaxations={})
            trial.propagate(refine=True)
            best = better(best, trial.by_rows(specification))
            pairs = zip(bounds.intervals, trial.intervals, strict=True)
            bounds.intervals = [common(known, new) for known, new in pairs]
    return best
