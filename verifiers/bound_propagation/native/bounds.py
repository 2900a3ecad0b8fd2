"""Bound a graph over a batch of balls: intervals forward, rows backward, tighter intervals where they help.

Every row is a lower bound; an upper bound is the negated lower bound of the negated row. A row starts at a node and
moves back through the linear relaxation of one operator after another. It ends as a linear function of the image, whose
minimum over the ball is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.engine import Planes, joined
from verifiers.bound_propagation.native.backward import BackwardPass, BackwardRows
from verifiers.bound_propagation.native.coupling import divide, linked
from verifiers.bound_propagation.native.noise import Noise
from verifiers.bound_propagation.native.signs import nearest_end, until_signs
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls, per_sample
from verifiers.graph.affine import Affine
from verifiers.graph.affine_difference import AffineDifference
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Interval, Paired
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.rows import shape_size

#: The most free lines of a sample for the rows of an inner node, on one side and below one node.
OWN_LINES = 2**14


@dataclass
class Bounds(BackwardPass):
    """Intervals of all nodes for one batch of balls; filled by ``propagate``.

    Attributes:
        dual_norms: dual norms of affine nodes, for l2 and l1.
        intersect: intersect tightened intervals with the plain ones.
        known: intervals of nodes already known to hold on these balls.
        settled: nodes whose known intervals no row tightens any more.
        refined: the nodes bounded by rows.
        lines: by operator, the free lines that were good for rows of a specification.
        arithmetic: the arithmetic of the network; bounds in float32 hold for the network over the real numbers too.
    """

    dual_norms: Mapping[int, Tensor] = field(default_factory=dict)
    intersect: bool = True
    known: Mapping[int, Interval] = field(default_factory=dict)
    settled: frozenset[int] = frozenset()
    refined: list[int] = field(default_factory=list)
    lines: Mapping[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    arithmetic: Arithmetic = Arithmetic.REAL

    def coarse(self) -> "Bounds | None":
        """Return the same bounds in float32, for a search whose result is proved in float64; None if there are none."""
        if (graph := self.graph.coarse) is None:
            return None
        found = Bounds(graph, self.balls.to(torch.float32), cut=self.cut, refined=list(self.refined))
        found.intervals = [interval.to(torch.float32) for interval in self.intervals]
        found.known = {position: interval.to(torch.float32) for position, interval in self.known.items()}
        found.dual_norms = {position: norms.float() for position, norms in self.dual_norms.items()}
        found.intersect, found.arithmetic, found.settled = self.intersect, self.arithmetic, self.settled
        found.noise = self.noise and self.noise.to(torch.float32)
        return found

    def propagate(self, *, refine: bool) -> None:
        """Bound every node by intervals; with ``refine``, also by rows where tighter bounds tighten a relaxation."""
        nodes = self.graph.nodes
        box = Interval(*self.balls.box())
        shape = (len(self.balls.x), *nodes[0].shape)
        self.intervals = [Interval(box.low.reshape(shape), box.high.reshape(shape))]
        self.refined = []
        if self.arithmetic.deployed:
            self.noise = Noise(torch.zeros(len(self.balls.x), dtype=torch.bool, device=self.balls.x.device))
        for position, node in enumerate(nodes[1:], start=1):
            assert node.operator is not None
            if refine:
                for i, mask in self.inputs_to_tighten(position):
                    if i not in self.refined:
                        self._tighten(i, mask)
            boxes = [self.intervals[i] for i in node.inputs]
            interval = node.operator.interval(*boxes)
            if self.noise is not None:
                interval = self.noise.widened(node, position, boxes, interval)
            if position in self.dual_norms:
                interval = self._exactly(position, interval)
            if position in self.known:
                interval = common(interval, self.known[position])
            self.intervals.append(interval)
            if isinstance(node.operator, Paired):
                self._link(position)

    def _tighten(self, position: int, mask: Tensor) -> None:
        """Bound a node by rows; a teacher's before a ReLU brings its difference along, before the student's."""
        self._refine(position, mask)
        self.refined.append(position)
        triple = self.graph.triples.get(position)
        if triple is None:
            return
        self._link(position)
        if triple.relu and position == triple.t and triple.d not in self.refined and not self._exact(triple.d):
            self._tighten(triple.d, ReluDifference.open(self.intervals[triple.t], self.intervals[triple.s]))

    def _link(self, position: int) -> None:
        """Intersect the intervals of two networks and of their difference."""
        t, s, d, _ = self.graph.triples[position]
        ends = linked(self.intervals[t], self.intervals[s], self.intervals[d], common)
        self.intervals[t], self.intervals[s], self.intervals[d] = ends

    def inputs_to_tighten(self, position: int) -> list[tuple[int, Tensor]]:
        """List a node's inputs that rows can tighten, with the entries whose tighter bounds tighten its relaxation."""
        node = self.graph.nodes[position]
        assert node.operator is not None
        masks = node.operator.inputs_to_tighten([self.intervals[i] for i in node.inputs])
        pairs = zip(node.inputs, masks, strict=True)
        return [(i, entries) for i, entries in pairs if entries is not None and self._open(i)]

    def _open(self, position: int) -> bool:
        """Return whether rows may tighten a node."""
        return position > 0 and position not in self.settled and not self._exact(position)

    def _exact(self, position: int) -> bool:
        """Return whether a node's interval is already exact: one mixing operator of the box, or a known dual norm."""
        if position in self.dual_norms:
            return not self.cut
        operator, inputs = self.graph.nodes[position].operator, self.graph.nodes[position].inputs
        if isinstance(operator, AffineDifference):
            return operator.follows_image and all(self._exact(i) for i in inputs[:2])
        mixed_once = isinstance(operator, Affine) and all(self.graph.apart[i] for i in inputs)
        return mixed_once and len(inputs) == 1 and self.balls.norm is Norm.LINF

    def _exactly(self, position: int, interval: Interval) -> Interval:
        value = self._values[position]
        half = per_sample(self.balls.eps, value) * self.dual_norms[position]
        if self.noise is not None:
            half = half + self.noise.since_image(self.graph, position)
        ball = Interval(value - half, value + half)
        return common(interval, ball) if self.intersect else ball

    @cached_property
    def _values(self) -> list[Tensor]:
        with torch.no_grad():
            return self.graph.values(self.balls.x)

    def _refine(self, position: int, mask: Tensor) -> None:
        """Bound the masked entries of a node by rows, from both sides."""
        samples, entries = mask.flatten(1).nonzero(as_tuple=True)
        if not len(samples):
            return
        before = self.intervals[position]
        if self.graph.signs_suffice[position] and not self.alphas:
            low, negated = until_signs(self, position, samples, entries)
        elif position in self.graph.code_ends and not self.alphas:
            turns = nearest_end(self.graph.code_ends[position], *(side.flatten(1)[samples, entries] for side in before))
            low, negated = until_signs(self, position, samples, entries, turns)
        else:
            low, negated = (self.lower(position, samples, entries, sign).bound for sign in (1.0, -1.0))
        place, ends = (samples, entries), (low, -negated)
        low, high = (
            old.flatten(1).index_put(place, torch.where(torch.isfinite(new), new, old.flatten(1)[place]))
            for old, new in zip(before, ends, strict=True)
        )
        after = Interval(low.reshape(before.low.shape), high.reshape(before.high.shape))
        self.intervals[position] = common(before, after) if self.intersect else _ordered(after)

    def lower(self, start: int, samples: Int[Tensor, " rows"], entries: Int[Tensor, " rows"], sign: float) -> Planes:
        """Bound ``sign * node[entry]`` from below, block by block."""
        parts, each = [], self.lines_per_sample(start)
        for chunk in self.blocks(start, len(samples)):
            signs, shape = self.balls.x.new_full((len(chunk),), sign), self.graph.nodes[start].shape
            back = BackwardRows.at_entries(start, shape, samples[chunk], entries[chunk], signs, self.noise)
            lines = samples[chunk] * each + entries[chunk] if self.alphas and each > 1 else None
            parts.append(self.finish(back, start, 0 if sign > 0 else 1, lines))
        return joined(parts)

    def lines_per_sample(self, start: int) -> int:
        """Return how many sets of free lines a sample has for rows of an inner node: one an entry, if it is small.

        Nodes of two networks share theirs: small changes count much where networks nearly cancel.
        """
        sizes = [shape_size(node.shape) for node in self.graph.nodes[: start + 1]]
        return sizes[-1] if not self.graph.triples and sizes[-1] * max(sizes) <= OWN_LINES else 1

    def by_intervals(self, specification: Float[Tensor, "batch rows classes"]) -> Planes:
        """Bound the specification, merged with the last affine operator, by intervals; the planes are constant."""
        start, samples = self.merged(specification)
        back = BackwardRows.begin(self.graph.output, start, samples, self.noise)
        if self.graph.affine_operator(self.graph.output):
            self.step(back, self.graph.output)
            self._divide_logits(back)
        low = back.constant
        for position, part in back.pending.items():
            values, box = part.dense(self.graph.nodes[position].shape).values, self.intervals[position]
            ends = values.clamp_min(0) * box.low[samples] + values.clamp_max(0) * box.high[samples]
            low = low + ends.flatten(1).sum(1)
        return Planes(low, low, torch.zeros_like(low), back.rounding).reshape(specification.shape[:2])

    def _divide_logits(self, back: BackwardRows) -> None:
        """Bound opposite coefficients of two networks by the interval of their difference."""
        for triple in {self.graph.triples[i] for i in back.pending if i in self.graph.triples}:
            box = self.intervals[triple.d]
            divide(back.pending, back.samples, triple, self.graph.nodes[triple.d].shape, torch.ones_like(box.low))


def common(one: Interval, other: Interval) -> Interval:
    """Intersect two intervals; the other's end replaces one that is nan."""
    return _ordered(Interval(torch.fmax(one.low, other.low), torch.fmin(one.high, other.high)))


def _ordered(interval: Interval) -> Interval:
    """Reorder ends that rounding has crossed."""
    return Interval(torch.minimum(*interval), torch.maximum(*interval))


def dual_norms(graph: Graph, norm: Norm) -> dict[int, Float[Tensor, "1 *shape"]]:
    """Compute the dual norm of each entry's row, for every affine node with a nonlinear consumer."""
    if norm is Norm.LINF:
        return {}
    wanted = {
        i
        for position, node in enumerate(graph.nodes)
        for i in node.inputs
        if graph.affine[i] and i and not graph.affine[position]
    }
    zero = torch.zeros((1, *graph.nodes[0].shape), dtype=graph.like.dtype, device=graph.like.device)
    balls = Balls(zero, zero.new_zeros(1), norm)
    values = graph.values(zero)
    found = {}
    for position in wanted:
        bounds = Bounds(graph, balls)
        bounds.intervals = [Interval(value, value) for value in values]
        shape = graph.nodes[position].shape
        entries = torch.arange(shape_size(shape), device=zero.device)
        steepness = bounds.lower(position, torch.zeros_like(entries), entries, 1.0).steepness
        found[position] = steepness.reshape(1, *shape)
    return found
