"""Bound rows over domains: parts of one ball on which some ReLUs have a given sign."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.engine import Planes
from verifiers.bound_propagation.native.backward import BackwardPass, BackwardRows
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.coupling import linked
from verifiers.bound_propagation.native.domains import Domains, UnstableReLUs, by_node
from verifiers.bound_propagation.native.noise import Noise
from verifiers.geometry.balls import Balls
from verifiers.graph.operators import Interval, Paired
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.rows import Rows, one_hot

#: Interval ends that cross by more than this share exclude each other; a smaller crossing may be rounding.
CROSSED = 1e-9


@dataclass
class Cell(BackwardPass):
    """A backward pass over domains: intervals are cut at the splits, and multipliers are added to the rows.

    Attributes:
        multipliers: by node, the values added to the coefficients of the rows that reach it.
        watched: operators whose rows are kept.
        coefficients: by operator, the rows' coefficients there; filled by ``push``.
        slopes: the rows' coefficients of the image; filled by ``push``.
    """

    multipliers: dict[int, Float[Tensor, "domains ..."]] = field(default_factory=dict)
    watched: frozenset[int] = frozenset()
    coefficients: dict[int, Float[Tensor, "domains ..."]] = field(default_factory=dict)
    slopes: Float[Tensor, "domains ..."] | None = None

    def arrive(self, back: BackwardRows, position: int, ids: Tensor | None) -> None:
        """Add the multipliers of the node, and keep the rows of watched operators."""
        super().arrive(back, position, ids)
        shape = self.graph.nodes[position].shape
        if ids is not None and position in self.multipliers:
            back.add(position, Rows(self.multipliers[position][ids]), shape)
        if position in self.watched and position in back.pending:
            self.coefficients[position] = back.pending[position].dense(shape).values.detach()

    def minimum(self, back: BackwardRows, *, with_planes: bool) -> Planes:
        """Keep the slopes, then minimise as ``BackwardPass.minimum``."""
        rows, shape = back.pending.get(0), self.graph.nodes[0].shape
        if rows is not None:
            self.slopes = rows.dense(shape).values.detach()
        return super().minimum(back, with_planes=with_planes)


class DomainBounds:
    """Bound rows over domains of one ball.

    Args:
        root: propagated bounds of the ball.
        specification: the rows.
    """

    def __init__(self, root: Bounds, specification: Float[Tensor, "1 rows classes"]) -> None:
        self.root, self.graph, self.x = root, root.graph, root.balls.x
        self.specification = specification
        self.shapes = {i: node.shape for i, node in enumerate(self.graph.nodes)}
        self.relus = UnstableReLUs.of(self.graph, root.intervals)
        self.differences = frozenset(
            i for i, node in enumerate(self.graph.nodes) if isinstance(node.operator, ReluDifference)
        )

    def ends(
        self, intervals: Sequence[Interval]
    ) -> tuple[Float[Tensor, "domains open"], Float[Tensor, "domains open"]]:
        """Return the lower and upper ends of the unstable ReLUs' inputs."""
        nodes = {node for _, node in self.relus.readers}
        low, high = ({node: intervals[node][side] for node in nodes} for side in (0, 1))
        like = self.x.new_zeros((len(intervals[0].low), 0))
        return self.relus.gather(low, like), self.relus.gather(high, like)

    def cut(self, domains: Domains) -> tuple[list[Interval], Bool[Tensor, " domains"]]:
        """Compute all intervals on each domain, by interval arithmetic from the splits, and the empty domains."""
        signs = by_node(self.relus.spread(domains.signs, self.shapes))
        empty = torch.zeros(len(domains), dtype=torch.bool, device=self.x.device)
        cells: list[Interval] = []

        def meet(one: Interval, other: Interval) -> Interval:
            nonlocal empty
            low, high = torch.fmax(one.low, other.low), torch.fmin(one.high, other.high)
            empty = empty | (low - high > CROSSED * (1 + low.abs())).flatten(1).any(1)
            return Interval(torch.minimum(low, high), torch.maximum(low, high))

        for position, node in enumerate(self.graph.nodes):
            low, high = (end.expand(len(domains), *end.shape[1:]) for end in self.root.intervals[position])
            if position in signs:
                low = torch.where(signs[position] > 0, low.clamp_min(0.0), low)
                high = torch.where(signs[position] < 0, high.clamp_max(0.0), high)
            cell = Interval(low, high)
            cells.append(meet(cell, self._forward(position, [cells[i] for i in node.inputs]) if position else cell))
            if isinstance(node.operator, Paired):
                t, s, d, _ = self.graph.triples[position]
                cells[t], cells[s], cells[d] = linked(cells[t], cells[s], cells[d], meet)
        return cells, empty

    def _forward(self, position: int, boxes: list[Interval]) -> Interval:
        """Bound a node from its inputs; its error on the whole ball covers every domain."""
        operator, noise = self.graph.nodes[position].operator, self.root.noise
        assert operator is not None
        after = operator.interval(*boxes)
        if noise is None or position not in noise.errors:
            return after
        return Interval(after.low - noise.errors[position], after.high + noise.errors[position])

    def cell(self, domains: Domains, cells: list[Interval]) -> Cell:
        """Build the backward pass of domains with their parameters."""
        root, count = self.root, len(domains)
        alpha = self.relus.spread(domains.alpha, self.shapes)
        beta = self.relus.spread(-domains.signs * domains.beta, self.shapes)
        return Cell(
            self.graph,
            Balls(self.x.expand(count, *self.x.shape[1:]), root.balls.eps.expand(count), root.balls.norm),
            {(self.graph.output, 0, reader): (value, value) for (reader, _), value in alpha.items()},
            intervals=cells,
            multipliers=by_node(beta),
            watched=frozenset(reader for reader, _ in self.relus.readers) | self.differences,
            noise=self.noise(count),
            cut=root.cut,
        )

    def noise(self, domains: int) -> Noise | None:
        """Return the errors on the whole ball, for a number of domains."""
        noise = self.root.noise
        return noise and Noise(noise.overflow.expand(domains), noise.errors)

    def glance(self, domains: Domains) -> Float[Tensor, " domains"]:
        """Bound domains with their current parameters."""
        cells, empty = self.cut(domains)
        found = self.cell(domains, cells).by_rows(self.specification[0, domains.row][:, None]).bound[:, 0]
        return torch.fmax(domains.bound, found).masked_fill(empty, math.inf)

    def candidates(
        self, domains: Domains, cells: list[Interval], coefficients: Mapping[int, Tensor]
    ) -> Int[Tensor, "domains candidates"]:
        """Choose the ReLUs whose relaxation costs the row most: its coefficient times the largest gap of the line."""
        low, high = self.ends(cells)
        zeros = {reader: torch.zeros_like(cells[node].low) for reader, node in self.relus.readers}
        row = self.relus.gather({**zeros, **coefficients}, domains.alpha, by_reader=True)
        undecided = (domains.signs == 0) & (low < 0) & (high > 0)
        above = -low * high / (high - low).clamp_min(1e-12)
        below = torch.maximum((1 - domains.alpha) * high, -domains.alpha * low)
        score = (
            torch.where(row < 0, -row * above, row * below)
            + 1e-9 * above
            + self._of_differences(cells, coefficients, domains.alpha)
        )
        cost, places = score.where(undecided, -1.0).topk(domains.branch.shape[1], dim=1)
        return places.masked_fill(cost < 0, -1)

    def _of_differences(
        self, cells: list[Interval], coefficients: Mapping[int, Tensor], like: Tensor
    ) -> Float[Tensor, "domains open"] | float:
        """Compute what the planes of relu(s) - relu(t) cost the row: it counts for the ReLUs of both s and t."""
        costs: dict[int, Tensor] = {}
        for position in self.differences & coefficients.keys():
            operator, inputs = self.graph.nodes[position].operator, self.graph.nodes[position].inputs
            assert isinstance(operator, ReluDifference)
            below, above = operator.relax([cells[i] for i in inputs])
            row = coefficients[position]
            costs[inputs[0]] = costs[inputs[1]] = torch.where(row < 0, -row * above.gap, row * below.gap)
        if not costs:
            return 0.0
        zeros = {reader: torch.zeros_like(cells[node].low) for reader, node in self.relus.readers}
        return self.relus.gather({**zeros, **costs}, like, by_reader=True)

    def constraints(
        self, leaf: Domains, cells: list[Interval]
    ) -> tuple[Int[Tensor, " split"], Float[Tensor, "split pixels"], Float[Tensor, " split"]]:
        """Return for each split ReLU its number, and slope and offset of the image's function that is at least 0."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for (_, node), entries in zip(self.relus.readers, self.relus.entries, strict=True):
            signs = leaf.signs[0, start : start + len(entries)]
            chosen = signs.nonzero().flatten()
            if len(chosen):
                cell = Cell(self.graph, self.root.balls, intervals=cells, noise=self.root.noise)
                rows = one_hot(self.shapes[node], entries[chosen], signs[chosen].to(self.x))
                value = cell.push(node, rows, torch.zeros_like(chosen), torch.arange(len(chosen))).value
                assert cell.slopes is not None
                slopes = cell.slopes.flatten(1)
                found.append((start + chosen, slopes, value - slopes @ self.x.flatten()))
            start += len(entries)
        empty = (leaf.row[:0], self.x.new_zeros((0, self.x.numel())), self.x.new_zeros(0))
        return tuple(torch.cat(parts) for parts in zip(empty, *found, strict=True))  # type: ignore[return-value]
