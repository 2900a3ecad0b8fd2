"""Bounds of a graph over a batch of balls: intervals forward, rows backward, tighter intervals where they pay.

Every row is a lower bound; an upper bound is the negated lower bound of the negated row. A row starts at a node and is
pushed back through the linear relaxation of one operator after another until it is a linear function of the image,
whose minimum over the ball is known.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.engine import Planes, joined
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import DUAL, Balls, per_sample
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Interval, Relaxation
from verifiers.graph.relaxations.lines import Places
from verifiers.graph.rows import Rows, Shape, add, one_hot, shape_size

#: Coefficients that one block of rows may hold at a node.
BLOCK = 2**22


#: Free lines of the relaxation of a node (last) in the bounds of a start node's entries (side 0) or negations (1).
Choices = Mapping[tuple[int, int, int], Places]


@dataclass
class Bounds:
    """Intervals of all nodes for one batch of balls; filled by ``propagate``."""

    graph: Graph
    balls: Balls
    reaches: Mapping[int, Tensor] = field(default_factory=dict)  # dual norms of affine nodes, for l2 and l1
    intersect: bool = True
    choices: Choices = field(default_factory=dict)
    known: Mapping[int, Interval] = field(default_factory=dict)  # intervals of nodes that hold in these balls anyway
    intervals: list[Interval] = field(default_factory=list)
    refined: list[int] = field(default_factory=list)
    relaxations: dict[tuple[int, int, int], Relaxation] = field(default_factory=dict)

    def propagate(self, *, refine: bool) -> None:
        """Interval bounds of every node; with ``refine``, rows wherever tighter bounds tighten a relaxation."""
        nodes = self.graph.nodes
        box = Interval(*self.balls.box())
        shape = (len(self.balls.x), *nodes[0].shape)
        self.intervals = [Interval(box.low.reshape(shape), box.high.reshape(shape))]
        self.refined = []
        for position, node in enumerate(nodes[1:], start=1):
            assert node.operator is not None
            if refine:
                for i, loose in self.loose_inputs(position):
                    if i not in self.refined:
                        self._refine(i, loose)
                        self.refined.append(i)
            interval = node.operator.interval(*(self.intervals[i] for i in node.inputs))
            if position in self.reaches:
                interval = self._exactly(position, interval)
            if position in self.known:
                interval = common(interval, self.known[position])
            self.intervals.append(interval)

    def loose_inputs(self, position: int) -> list[tuple[int, Tensor]]:
        """Inputs of a node that rows can tighten, with the entries whose tighter bounds tighten its relaxation."""
        node = self.graph.nodes[position]
        assert node.operator is not None
        loose = node.operator.loose([self.intervals[i] for i in node.inputs])
        pairs = zip(node.inputs, loose, strict=True)
        return [(i, entries) for i, entries in pairs if entries is not None and i and not self._exact(i)]

    def _exact(self, position: int) -> bool:
        """Known exactly already: the box through one mixing operator, or the dual norm of an affine node."""
        if position in self.reaches:
            return True
        inputs = self.graph.nodes[position].inputs
        mixed_once = self.graph.affine[position] and all(self.graph.entrywise[i] for i in inputs)
        return mixed_once and len(inputs) == 1 and self.balls.norm is Norm.LINF

    def _exactly(self, position: int, interval: Interval) -> Interval:
        value = self._values[position]
        reach = per_sample(self.balls.eps, value) * self.reaches[position]
        ball = Interval(value - reach, value + reach)
        return common(interval, ball) if self.intersect else ball

    @cached_property
    def _values(self) -> list[Tensor]:
        with torch.no_grad():
            return self.graph.values(self.balls.x)

    def _refine(self, position: int, loose: Tensor) -> None:
        """Both bounds of the loose entries of a node by rows."""
        samples, entries = loose.flatten(1).nonzero(as_tuple=True)
        if not len(samples):
            return
        before = self.intervals[position]
        if self.graph.signs_suffice[position] and not self.choices:
            low, negated = self._until_signs(position, samples, entries)
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
        """Lower bounds of ``sign * node[entry]``, block by block."""
        parts = []
        for chunk in self._blocks(start, len(samples)):
            rows = one_hot(self.graph.nodes[start].shape, entries[chunk], self.balls.x.new_full((len(chunk),), sign))
            parts.append(self.push(start, rows, samples[chunk], side=0 if sign > 0 else 1))
        return joined(parts)

    def _blocks(self, start: int, rows: int) -> tuple[Int[Tensor, " block"], ...]:
        widest = max(shape_size(node.shape) for node in self.graph.nodes[: start + 1])
        return torch.arange(rows, device=self.balls.x.device).split(block_of(widest))

    def _until_signs(self, start: int, samples: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Lower bounds of entries and of their negations, where an entry's exact bounds matter only around zero.

        The row of an entry and that of its negation go back together, and both leave as soon as the intervals of the
        nodes where they stand prove one of them positive; most do after a layer or two. nan where nothing was proved.
        """
        found = self.balls.x.new_full((2, len(samples)), float("nan"))
        for chunk in self._blocks(start, len(samples)):
            found[:, chunk] = self._pairs_until_signs(start, samples[chunk], entries[chunk])
        return found[0], found[1]

    def _pairs_until_signs(self, start: int, samples: Tensor, entries: Tensor) -> Float[Tensor, "2 rows"]:
        left = torch.arange(len(samples), device=samples.device)
        found = self.balls.x.new_full((2, len(samples)), float("nan"))
        signs = torch.ones_like(found[0])
        rows = one_hot(self.graph.nodes[start].shape, entries.repeat(2), torch.cat([signs, -signs]))
        front = Front({start: rows}, signs.new_zeros(2 * len(left)), samples.repeat(2))
        nearest = True  # whose boxes say what the interval of the start node said
        for position in range(start, 0, -1):
            if not self._step(front, position) or self.graph.affine_operator(position):
                continue
            if nearest:
                nearest = False
                continue
            bounds = self._over_boxes(front).reshape(2, -1)
            known = (bounds > 0).any(0)
            found[:, left[known]] = bounds[:, known]
            left = left[~known]
            if not len(left):
                return found
            front = front.keep(~known.repeat(2))
        found[:, left] = self._minimum(front, with_planes=False).bound.reshape(2, -1)
        return found

    def _over_boxes(self, front: "Front") -> Float[Tensor, " rows"]:
        """The least value of rows where they stand, over the boxes of those nodes."""
        low = front.constant
        for position, rows in front.pending.items():
            box, samples = self.intervals[position], front.samples
            low = low + rows.dot(box.center, samples) - rows.take(rows.values.abs()).dot(box.reach, samples)
        return low

    def by_rows(
        self,
        specification: Float[Tensor, "batch rows classes"],
        less: Float[Tensor, "batch rows *shape"] | None = None,
    ) -> Planes:
        """Rows of the specification pushed back from the logits; planes ``(batch, rows)``.

        ``less`` holds a linear function of the image for each row: what is bounded is the row minus that function.
        """
        start, samples = self._merged(specification)
        widest = max(shape_size(node.shape) for node in self.graph.nodes)
        ids = torch.arange(len(samples), device=samples.device)
        slopes = None if less is None else -less.reshape(len(samples), *self.graph.nodes[0].shape)
        parts = [
            self.push(
                self.graph.output,
                start.take(start.values[chunk]),
                samples[chunk],
                chunk,
                image=None if slopes is None else slopes[chunk],
            )
            for chunk in ids.split(block_of(widest))
        ]
        return joined(parts).reshape(specification.shape[:2])

    def by_intervals(self, specification: Float[Tensor, "batch rows classes"]) -> Planes:
        """Interval arithmetic of the specification merged with the last affine operator; the planes are constant."""
        start, samples = self._merged(specification)
        last, affine = self.graph.nodes[self.graph.output], self.graph.affine_operator(self.graph.output)
        low = torch.zeros(len(samples), dtype=specification.dtype, device=samples.device)
        parts = [(self.graph.output, start)]
        if affine and last.operator is not None:
            pushed = last.operator.relax([]).push(start, samples)
            low = low if pushed.constant is None else low + pushed.constant
            parts = [(i, part) for i, part in zip(last.inputs, pushed.inputs, strict=True) if part is not None]
        for position, part in parts:
            values, box = part.dense(self.graph.nodes[position].shape).values, self.intervals[position]
            ends = values.clamp_min(0) * box.low[samples] + values.clamp_max(0) * box.high[samples]
            low = low + ends.flatten(1).sum(1)
        return Planes(low, low, torch.zeros_like(low)).reshape(specification.shape[:2])

    def _merged(self, specification: Tensor) -> tuple[Rows, Tensor]:
        """All rows of all samples in one tensor, and the sample of each."""
        batch, rows = specification.shape[:2]
        values = specification.reshape(batch * rows, *self.graph.nodes[self.graph.output].shape)
        return Rows(values), torch.arange(batch, device=values.device).repeat_interleave(rows)

    def push(
        self,
        start: int,
        rows: Rows,
        samples: Int[Tensor, " rows"],
        ids: Int[Tensor, " rows"] | None = None,
        side: int = 0,
        image: Float[Tensor, "rows *shape"] | None = None,
    ) -> Planes:
        """Push rows of a node back to the image and minimise them over each row's ball.

        ``ids`` number the rows of a specification, for relaxations that are chosen per row. Only they get planes;
        for the rows of an inner node just the bound counts. ``side`` is 0 for lower bounds of an inner node's entries
        and 1 for those of their negations, which choose their lines apart. ``image`` holds coefficients of the image
        that each row has besides.
        """
        front = Front({start: rows}, self.balls.x.new_zeros(len(samples)), samples)
        if image is not None:
            front.add(0, Rows(image), self.graph.nodes[0].shape)
        for position in range(start, 0, -1):
            self._step(front, position, (start, side), ids)
        return self._minimum(front, with_planes=ids is not None)

    def _step(
        self, front: "Front", position: int, start: tuple[int, int] = (-1, -1), ids: Tensor | None = None
    ) -> bool:
        """Push the rows that stand at a node to its inputs; whether there were any."""
        if (here := front.pending.pop(position, None)) is None:
            return False
        node, samples = self.graph.nodes[position], front.samples
        relaxation, per_row = self._relaxation(position, start, samples, ids)
        pushed = relaxation.push(here, torch.arange(len(samples), device=samples.device) if per_row else samples)
        if pushed.constant is not None:
            front.constant = front.constant + pushed.constant
        for i, part in zip(node.inputs, pushed.inputs, strict=True):
            if part is not None:
                front.add(i, part, self.graph.nodes[i].shape)
        return True

    def _relaxation(
        self, position: int, start: tuple[int, int], samples: Tensor, ids: Tensor | None
    ) -> tuple[Relaxation, bool]:
        """The relaxation of a node for rows from a start node, and whether it has its own lines for every row."""
        node = self.graph.nodes[position]
        assert node.operator is not None
        boxes = [self.intervals[i] for i in node.inputs]
        places = self.choices.get((*start, position))
        if places is not None and ids is not None:
            own = [Interval(box.low[samples], box.high[samples]) for box in boxes]
            return node.operator.relax(own, (places[0][ids], places[1][ids])), True
        key = (position, *(start if places is not None else (-1, -1)))
        if key not in self.relaxations:
            self.relaxations[key] = node.operator.relax(boxes, places)
        return self.relaxations[key], False

    def _minimum(self, front: "Front", *, with_planes: bool) -> Planes:
        rows, constant, samples = front.pending.get(0), front.constant, front.samples
        if rows is None:
            return Planes(constant, constant, torch.zeros_like(constant))
        shape, linf = self.graph.nodes[0].shape, self.balls.norm is Norm.LINF
        by_box = self._over_boxes(front)
        if linf and not with_planes:
            return Planes(by_box, by_box, by_box)
        value = constant + rows.dot(self.balls.x.reshape(len(self.balls.x), *shape), samples)
        inside = rows.masked(shape).values.flatten(1)
        steepness = torch.linalg.vector_norm(inside, DUAL[self.balls.norm], dim=1)
        by_ball = value - self.balls.eps[samples] * steepness
        return Planes(by_box if linf else torch.maximum(by_box, by_ball), value, steepness)


@dataclass
class Front:
    """Rows on their way back: their coefficients at the nodes where they stand, and what they gained so far."""

    pending: dict[int, Rows]
    constant: Float[Tensor, " rows"]
    samples: Int[Tensor, " rows"]

    def add(self, position: int, rows: Rows, shape: Shape) -> None:
        """Coefficients that reach a node."""
        self.pending[position] = add(self.pending[position], rows, shape) if position in self.pending else rows

    def keep(self, chosen: Bool[Tensor, " rows"]) -> "Front":
        """Some of the rows."""
        pending = {position: rows.keep(chosen) for position, rows in self.pending.items()}
        return Front(pending, self.constant[chosen], self.samples[chosen])


def block_of(widest: int) -> int:
    """Rows at a time, for a graph whose widest node has so many entries."""
    return max(16, min(1024, BLOCK // max(1, widest)))


def common(one: Interval, other: Interval) -> Interval:
    """The intersection; an end that is nan gives way to the other."""
    return _ordered(Interval(torch.fmax(one.low, other.low), torch.fmin(one.high, other.high)))


def _ordered(interval: Interval) -> Interval:
    """Ends that rounding has crossed, put in order."""
    return Interval(torch.minimum(*interval), torch.maximum(*interval))


def dual_reaches(graph: Graph, norm: Norm) -> dict[int, Tensor]:
    """For every affine node that something nonlinear reads: the dual norm of each entry's row, ``(1, *shape)``."""
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
