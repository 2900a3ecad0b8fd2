"""alpha-CROWN: choose the free lines of the relaxations by gradient ascent on the bounds (arXiv 2011.13824).

A choice from 0 to 1 is sin^2 of a free parameter. Every value is a sound choice, and no clamp stops the gradient. All
steps give sound bounds, so each row keeps the best one. The first step is CROWN itself.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import fields, replace

import torch
from torch import Tensor

from verifiers.bound_propagation.engine import Planes, better
from verifiers.bound_propagation.native.bounds import Bounds, common
from verifiers.bound_propagation.native.places import has_free_lines, is_relu
from verifiers.graph.operators import Interval
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


def optimized(
    bounds: Bounds, specification: Tensor, iterations: int, deadline: float = math.inf, goal: float = math.inf
) -> Planes:
    """Compute the best bound of each row over CROWN and all steps of the optimiser.

    No step starts that would end after the deadline, on ``time.monotonic``, or once all bounds are above the goal. The
    intervals of ``bounds`` become the intersection of all steps' intervals.
    """
    started = time.monotonic()
    with torch.no_grad():
        bounds.propagate(refine=True)
        best = bounds.by_rows(specification)
    pace = WITH_GRADIENT * (time.monotonic() - started)
    angles = _angles(bounds, specification.shape[1])
    if not angles:
        return best
    optimizer = Adam(angles.values(), COUPLED_RATE if bounds.graph.triples else RATE)
    settled = {i: bounds.intervals[i] for i in bounds.refined if bounds.graph.affine[i]}  # their rows have no lines
    bounds.known, bounds.settled = {**bounds.known, **settled}, bounds.settled.union(settled)
    for step in range(iterations):
        trial = replace(bounds, alphas=_alphas(angles), intervals=[], refined=[], relaxations={})
        last = step == iterations - 1
        started = time.monotonic()
        if started + pace > deadline or bool((best.bound > goal).all()):
            break
        with torch.set_grad_enabled(not last):
            trial.propagate(refine=True)
            found = trial.by_rows(specification)
        best = better(best, Planes(*(getattr(found, each.name).detach() for each in fields(Planes))))
        bounds.intervals = [
            common(known, Interval(*(end.detach() for end in new)))
            for known, new in zip(bounds.intervals, trial.intervals, strict=True)
        ]
        if not last:
            optimizer.zero_grad()
            loss = -found.bound.where(torch.isfinite(found.bound), 0.0).sum()
            loss.backward()
            optimizer.step()
            optimizer.rate *= DECAY
        pace = time.monotonic() - started
    bounds.lines = {
        position: (low.detach(), high.detach())
        for (start, _, position), (low, high) in _alphas(angles).items()
        if start == bounds.graph.output
    }
    return best
