"""The backward pass: push rows of a node back to the image, through one relaxation after another."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.engine import Planes, joined
from verifiers.bound_propagation.native.coupling import divide
from verifiers.bound_propagation.native.noise import Noise
from verifiers.core.quantities import Norm
from verifiers.geometry import cut_balls
from verifiers.geometry.balls import DUAL, Balls
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Interval, Relaxation
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.rows import Rows, Shape, add, one_hot, shape_size
from verifiers.runtime.deadline import check

#: The most coefficients of one block of rows at a node.
BLOCK = 2**22


def block_of(widest: int) -> int:
    """Return the number of rows per block, for a graph whose widest node has this many entries."""
    return max(16, min(1024, BLOCK // max(1, widest)))


#: Free lines by start node, side (0 for its entries, 1 for their negations) and relaxed node.
Alphas = Mapping[tuple[int, int, int], Alpha]


@dataclass
class BackwardRows:
    """Rows between their start and the image.

    Attributes:
        pending: their coefficients, by node.
        constant: their constants so far.
        samples: the sample of each row.
        rounding: the part of the constants that is due to rounding, with its sign changed.
        counted: the node where the rows start, if its rounding is already in the constants; else -1.
    """

    pending: dict[int, Rows]
    constant: Float[Tensor, " rows"]
    samples: Int[Tensor, " rows"]
    rounding: Float[Tensor, " rows"]
    counted: int = -1

    @classmethod
    def begin(
        cls, position: int, rows: Rows, samples: Int[Tensor, " rows"], noise: Noise | None = None
    ) -> "BackwardRows":
        """Start rows at a node."""
        zero = rows.values.new_zeros(len(samples))
        if noise is None:
            return cls({position: rows}, zero, samples, zero)
        rounding = zero.masked_fill(noise.overflow[samples], float("inf"))
        return cls({position: rows}, -rounding, samples, rounding)

    @classmethod
    def at_entries(
        cls,
        position: int,
        shape: Shape,
        samples: Int[Tensor, " rows"],
        entries: Int[Tensor, " rows"],
        signs: Float[Tensor, " rows"],
        noise: Noise | None = None,
    ) -> "BackwardRows":
        """Start rows ``sign * node[entry]``, whose rounding is that of the entry."""
        back = cls.begin(position, one_hot(shape, entries, signs), samples, noise)
        if noise is not None and (error := noise.errors.get(position)) is not None:
            back.lose(error.expand(len(noise.overflow), *error.shape[1:]).flatten(1)[samples, entries])
            back.counted = position
        return back

    def add(self, position: int, rows: Rows, shape: Shape) -> None:
        """Add coefficients of a node."""
        self.pending[position] = add(self.pending[position], rows, shape) if position in self.pending else rows

    def keep(self, chosen: Bool[Tensor, " rows"]) -> "BackwardRows":
        """Select some of the rows."""
        pending = {position: rows.keep(chosen) for position, rows in self.pending.items()}
        constant, samples, rounding = (each[chosen] for each in (self.constant, self.samples, self.rounding))
        return BackwardRows(pending, constant, samples, rounding, self.counted)

    def lose(self, error: Float[Tensor, " rows"]) -> None:
        """Lower the constants by the rounding of a node."""
        self.constant, self.rounding = self.constant - error, self.rounding + error


@dataclass
class BackwardPass:
    """Push rows back through a graph over a batch of balls.

    Attributes:
        graph: the network.
        balls: one for each sample.
        alphas: the free lines of relaxations, if not the default ones.
        intervals: the intervals of every node.
        relaxations: filled by ``push``.
        noise: the rounding of the deployed network; None bounds the network over the real numbers.
        cut: minimise rows over l2 balls cut at the image box, and not over the larger of the two alone.
    """

    graph: Graph
    balls: Balls
    alphas: Alphas = field(default_factory=dict)
    intervals: list[Interval] = field(default_factory=list)
    relaxations: dict[tuple[int, int, int], Relaxation] = field(default_factory=dict)
    noise: Noise | None = None
    cut: bool = False

    @property
    def overflows(self) -> bool:
        """True if a value of the deployed network may overflow on a ball: nothing is proved there."""
        return self.noise is not None and bool(self.noise.overflow.any())

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

        ``ids`` number the rows of a specification, for relaxations that are chosen per row. Only those rows get planes;
        rows of an inner node need just the bound. ``side`` is 0 for lower bounds of an inner node's entries and 1 for
        those of their negations, which have separate lines. ``image`` holds additional coefficients of the image for
        each row.
        """
        back = BackwardRows.begin(start, rows, samples, self.noise)
        if image is not None:
            back.add(0, Rows(image), self.graph.nodes[0].shape)
        return self.finish(back, start, side, ids)

    def finish(self, back: BackwardRows, start: int, side: int = 0, ids: Int[Tensor, " rows"] | None = None) -> Planes:
        """Push rows of a node back to the image, as ``push``."""
        found: Planes | None = None
        for position in range(start, 0, -1):
            if found is None and self.at_codes(back):
                found = self.minimum(back, with_planes=False)
                if ids is None:
                    return found
            self.step(back, position, (start, side), ids)
        planes = self.minimum(back, with_planes=ids is not None)
        return planes if found is None else replace(planes, bound=torch.maximum(planes.bound, found.bound))

    def at_codes(self, back: BackwardRows) -> bool:
        """Return whether rows stand at the codes of the image, where the box bounds them best."""
        apart, coded = self.graph.apart, self.graph.coded
        return any(coded[i] for i in back.pending) and all(apart[i] for i in back.pending)

    def blocks(self, start: int, rows: int) -> tuple[Int[Tensor, " block"], ...]:
        """Split a number of rows of a node into blocks that fit into memory."""
        widest = max(shape_size(node.shape) for node in self.graph.nodes[: start + 1])
        return torch.arange(rows, device=self.balls.x.device).split(block_of(widest))

    def by_rows(
        self,
        specification: Float[Tensor, "batch rows classes"],
        less: Float[Tensor, "batch rows *shape"] | None = None,
    ) -> Planes:
        """Push rows of the specification back from the logits; planes ``(batch, rows)``.

        ``less`` holds a linear function of the image for each row, which is subtracted before the row is bounded.
        """
        start, samples = self.merged(specification)
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

    def merged(self, specification: Tensor) -> tuple[Rows, Tensor]:
        """Merge the rows of all samples into one tensor; return it with the sample of each row."""
        batch, rows = specification.shape[:2]
        values = specification.reshape(batch * rows, *self.graph.nodes[self.graph.output].shape)
        return Rows(values), torch.arange(batch, device=values.device).repeat_interleave(rows)

    def step(
        self, back: BackwardRows, position: int, start: tuple[int, int] = (-1, -1), ids: Tensor | None = None
    ) -> bool:
        """Push the rows at a node to its inputs, and lower them by the node's rounding; False if there are none.

        Raises:
            TimeUp: a time limit has passed.
        """
        check()
        self.arrive(back, position, ids)
        if (here := back.pending.pop(position, None)) is None:
            return False
        node, samples = self.graph.nodes[position], back.samples
        error = None if self.noise is None or position == back.counted else self.noise.on(position, here, samples)
        if error is not None:
            back.lose(error)
        relaxation, per_row = self._relaxation(position, start, samples, ids)
        pushed = relaxation.push(here, torch.arange(len(samples), device=samples.device) if per_row else samples)
        if pushed.constant is not None:
            back.constant = back.constant + pushed.constant
        for i, part in zip(node.inputs, pushed.inputs, strict=True):
            if part is not None:
                back.add(i, part, self.graph.nodes[i].shape)
        return True

    def arrive(self, back: BackwardRows, position: int, ids: Tensor | None) -> None:
        """Complete the rows at a node before they are pushed on."""
        node = self.graph.nodes[position]
        if isinstance(node.operator, ReluDifference):
            share = node.operator.open(*(self.intervals[i] for i in node.inputs[2:4]))
            triple = self.graph.triples[position]
            divide(back.pending, back.samples, triple, node.shape, share.to(back.constant) if share.any() else None)

    def _relaxation(
        self, position: int, start: tuple[int, int], samples: Tensor, ids: Tensor | None
    ) -> tuple[Relaxation, bool]:
        """Return a node's relaxation for rows from a start node, and whether it has separate lines for every row."""
        node = self.graph.nodes[position]
        assert node.operator is not None
        boxes = [self.intervals[i] for i in node.inputs]
        alpha = self.alphas.get((*start, position))
        if alpha is not None and ids is not None:
            own = [Interval(box.low[samples], box.high[samples]) for box in boxes]
            return node.operator.relax(own, (alpha[0][ids], alpha[1][ids])), True
        key = (position, *(start if alpha is not None else (-1, -1)))
        if key not in self.relaxations:
            self.relaxations[key] = node.operator.relax(boxes, alpha)
        return self.relaxations[key], False

    def minimum(self, back: BackwardRows, *, with_planes: bool) -> Planes:
        """Minimise rows at the image over each row's ball."""
        rows, constant, samples = back.pending.get(0), back.constant, back.samples
        if any(back.pending):
            by_box = self.over_boxes(back)
            return Planes(by_box, by_box, torch.zeros_like(by_box), back.rounding)
        if rows is None:
            return Planes(constant, constant, torch.zeros_like(constant), back.rounding)
        shape, linf = self.graph.nodes[0].shape, self.balls.norm is Norm.LINF
        by_box = self.over_boxes(back)
        if linf and not with_planes:
            return Planes(by_box, by_box, by_box, back.rounding)
        value = constant + rows.dot(self.balls.x.reshape(len(self.balls.x), *shape), samples)
        inside = rows.masked(shape).values.flatten(1)
        steepness = torch.linalg.vector_norm(inside, DUAL[self.balls.norm], dim=1)
        if self.cut and self.balls.norm is Norm.L2:
            by_ball = value + self.least_on_cut_balls(rows.dense(shape).values.flatten(1), samples)
        else:
            by_ball = value - self.balls.eps[samples] * steepness
        return Planes(by_box if linf else torch.maximum(by_box, by_ball), value, steepness, back.rounding)

    def least_on_cut_balls(
        self, slopes: Float[Tensor, "rows pixels"], samples: Int[Tensor, " rows"]
    ) -> Float[Tensor, " rows"]:
        """Minimise linear functions of the perturbation over the balls of their samples, cut at the image box."""
        low, high = (end - self.balls.x for end in self.balls.box())
        return cut_balls.least(slopes, low.flatten(1)[samples], high.flatten(1)[samples], self.balls.eps[samples])

    def over_boxes(self, back: BackwardRows) -> Float[Tensor, " rows"]:
        """Minimise rows at their current nodes, over the boxes of those nodes."""
        low = back.constant
        for position, rows in back.pending.items():
            box, samples = self.intervals[position], back.samples
            low = low + rows.dot(box.center, samples) - rows.take(rows.values.abs()).dot(box.half_width, samples)
        return low
