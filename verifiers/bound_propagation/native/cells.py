"""Bound rows over domains: parts of one ball on which some neurons are above or below given values."""

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
from verifiers.bound_propagation.native.domains import Domains, Splits
from verifiers.bound_propagation.native.noise import Noise
from verifiers.bound_propagation.native.places import FreeLines, costs, is_relu
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
        shifts: by node, the values added to their constants.
        watched: operators whose rows are kept.
        coefficients: by operator, the rows' coefficients there; filled by ``push``.
        slopes: the rows' coefficients of the image; filled by ``push``.
    """

    multipliers: dict[int, Float[Tensor, "domains ..."]] = field(default_factory=dict)
    shifts: dict[int, Float[Tensor, " domains"]] = field(default_factory=dict)
    watched: frozenset[int] = frozenset()
    coefficients: dict[int, Float[Tensor, "domains ..."]] = field(default_factory=dict)
    slopes: Float[Tensor, "domains ..."] | None = None

    def arrive(self, back: BackwardRows, position: int, ids: Tensor | None) -> None:
        """Add the multipliers of the node, and keep the rows of watched operators."""
        super().arrive(back, position, ids)
        shape = self.graph.nodes[position].shape
        if ids is not None and position in self.multipliers:
            back.add(position, Rows(self.multipliers[position][ids]), shape)
            back.constant = back.constant + self.shifts[position][ids]
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
        splits, lines: the places and the free lines of the same ball, if known.
    """

    def __init__(
        self,
        root: Bounds,
        specification: Float[Tensor, "1 rows classes"],
        splits: Splits | None = None,
        lines: FreeLines | None = None,
    ) -> None:
        self.root, self.graph, self.x = root, root.graph, root.balls.x
        self.specification = specification
        self.shapes = {i: node.shape for i, node in enumerate(self.graph.nodes)}
        self.splits = Splits.of(self.graph, root.intervals) if splits is None else splits
        sized = zip(self.splits.readers, self.splits.sizes, strict=True)
        self.lines = FreeLines.of(self.graph, root.intervals) if lines is None else lines
        self.points = self.splits.all_points(self.x)
        hinges = [torch.full((size,), is_relu(self.graph.nodes[reader].operator)) for (reader, _), size in sized]
        self.hinges = torch.cat([torch.zeros(0, dtype=torch.bool), *hinges]).to(self.x.device)
        self.differences = frozenset(
            i for i, node in enumerate(self.graph.nodes) if isinstance(node.operator, ReluDifference)
        )

    def coarse(self) -> "DomainBounds":
        """Return the same bounds in float32, which prove nothing; these bounds themselves if there are none."""
        root = self.root.coarse()
        if root is None:
            return self
        return DomainBounds(root, self.specification.to(root.balls.x.dtype), self.splits, self.lines)

    def ends(
        self, intervals: Sequence[Interval]
    ) -> tuple[Float[Tensor, "domains open"], Float[Tensor, "domains open"]]:
        """Return for every place the lower and upper end of its neuron."""
        like = self.x.new_zeros((len(intervals[0].low), 0))
        low, high = (
            self.splits.gather({reader: intervals[reader[1]][side] for reader in self.splits.readers}, like)
            for side in (0, 1)
        )
        return low, high

    def cut(self, domains: Domains) -> tuple[list[Interval], Bool[Tensor, " domains"]]:
        """Compute all intervals on each domain, by interval arithmetic from the splits, and the empty domains."""
        limits = self.splits.limits(domains.signs, self.shapes, self.x)
        empty = torch.zeros(len(domains), dtype=torch.bool, device=self.x.device)
        cells: list[Interval] = []
        crossed = max(CROSSED, 100 * torch.finfo(self.x.dtype).eps)

        def meet(one: Interval, other: Interval) -> Interval:
            nonlocal empty
            low, high = torch.fmax(one.low, other.low), torch.fmin(one.high, other.high)
            empty = empty | (low - high > crossed * (1 + low.abs())).flatten(1).any(1)
            return Interval(torch.minimum(low, high), torch.maximum(low, high))

        for position, node in enumerate(self.graph.nodes):
            low, high = (end.expand(len(domains), *end.shape[1:]) for end in self.root.intervals[position])
            if position in limits:
                low, high = torch.maximum(low, limits[position][0]), torch.minimum(high, limits[position][1])
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
        force = -domains.signs * domains.beta
        return Cell(
            self.graph,
            Balls(self.x.expand(count, *self.x.shape[1:]), root.balls.eps.expand(count), root.balls.norm),
            {(self.graph.output, 0, position): lines for position, lines in self.lines.spread(domains.alpha).items()},
            intervals=cells,
            multipliers=self.splits.added(force, self.shapes),
            shifts={node: -shift for node, shift in self.splits.moved(force).items()},
            watched=frozenset(reader for reader, _ in self.splits.readers) | self.differences,
            noise=self.noise(count),
            cut=root.cut,
        )

    def rows(self, cell: Cell, row: Int[Tensor, " domains"]) -> Planes:
        """Bound the row of each domain by a backward pass."""
        return cell.by_rows(self.specification[0, row][:, None]).reshape((len(row),))

    def noise(self, domains: int) -> Noise | None:
        """Return the errors on the whole ball, for a number of domains."""
        noise = self.root.noise
        return noise and Noise(noise.overflow.expand(domains), noise.errors)

    def glance(self, domains: Domains) -> Float[Tensor, " domains"]:
        """Bound domains with their current parameters."""
        cells, empty = self.cut(domains)
        found = self.rows(self.cell(domains, cells), domains.row).bound
        return torch.fmax(domains.bound, found).masked_fill(empty, math.inf)

    def candidates(
        self, domains: Domains, cells: list[Interval], coefficients: Mapping[int, Tensor]
    ) -> Int[Tensor, "domains candidates"]:
        """Choose the places whose neurons cost the row most, near the middle of what is left of their interval."""
        low, high = self.ends(cells)
        undecided = (domains.signs == 0) & (low < self.points) & (self.points < high)
        middle = 4 * (self.points - low) * (high - self.points) / (high - low).clamp_min(1e-300).square()
        cost = self.splits.gather(self._costs(domains, cells, coefficients), domains.beta)
        score = cost * torch.where(self.hinges, 1.0, middle)
        found, places = score.where(undecided, -1.0).topk(domains.branch.shape[1], dim=1)
        return places.masked_fill(found < 0, -1)

    def _costs(
        self, domains: Domains, cells: list[Interval], coefficients: Mapping[int, Tensor]
    ) -> dict[tuple[int, int], Tensor]:
        """Estimate what the relaxations cost the row, by operator and input."""
        alphas, found = self.lines.spread(domains.alpha), dict[tuple[int, int], Tensor]()
        for position in {reader for reader, _ in self.splits.readers}:
            operator, inputs = self.graph.nodes[position].operator, self.graph.nodes[position].inputs
            assert operator is not None
            row = coefficients.get(position, torch.zeros_like(cells[position].low))
            parts = costs(operator, [cells[i] for i in inputs], row, alphas.get(position))
            found.update(zip(((position, i) for i in inputs), parts, strict=True))
        for position in self.differences & coefficients.keys():
            operator, inputs = self.graph.nodes[position].operator, self.graph.nodes[position].inputs
            assert isinstance(operator, ReluDifference)
            below, above = operator.relax([cells[i] for i in inputs])
            row = coefficients[position]
            cost = torch.where(row < 0, -row * above.gap, row * below.gap)
            for relu in inputs[:2]:
                reader = relu, self.graph.nodes[relu].inputs[0]
                found[reader] = found[reader] + cost
        return found

    def constraints(
        self, leaf: Domains, cells: list[Interval]
    ) -> tuple[Int[Tensor, " split"], Float[Tensor, "split pixels"], Float[Tensor, " split"]]:
        """Return for each split at 0 its number, and slope and offset of the image's function that is at least 0."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for (_, node), entries in zip(self.splits.readers, self.splits.entries, strict=True):
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
