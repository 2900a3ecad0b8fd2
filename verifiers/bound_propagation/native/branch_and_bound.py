"""Branch and bound: lower bounds of rows over one ball, raised by splitting ReLUs until each row is decided.

A domain is the part of the ball where some neurons have a given sign. Its bound is CROWN's over intervals that end at
those signs, with two kinds of free parameters, both raised by gradient ascent: the lower lines of the neurons that are
not split (alpha), and a multiplier beta >= 0 for each split. Where z >= 0 on the domain, f >= f - beta z; so every
value is sound. A domain is split where, of the neurons whose relaxation costs the row most, both halves' bounds rise
most. One whose neurons all have a sign is a linear program; its dual solution gives the betas, its primal one a point
to try.
Sources: Wang et al., arXiv 2103.06624 (beta-CROWN); De Palma et al., arXiv 2104.06718 (filtered smart branching).
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.bounds import Bounds, block_of
from verifiers.bound_propagation.native.domains import Cell, Domains, Hinges, by_node, is_hinge, joined
from verifiers.bound_propagation.native.leaf import lowest
from verifiers.core.errors import Contradiction
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls, per_sample, project, reachable, steepest
from verifiers.graph.affine import Affine
from verifiers.graph.operators import Interval
from verifiers.graph.rows import one_hot, shape_size

#: Values that the intervals of one round's domains may hold, and domains of a round at most.
ROUND, LARGEST = 2**22, 512
#: Numbers about domains that wait, at most: signs and parameters of all their neurons take 17 bytes for each.
WAITING = 2**26
#: Steps of gradient ascent for each domain, and Adam's rate, which falls by a factor from step to step.
STEPS, RATE, DECAY = 8, 0.1, 0.95
#: Hinges of which each domain tries both halves before it is split by the best of them, and what the better half of a
#: split counts beside the worse.
CANDIDATES, SECOND = 16, 1e-3
#: Interval ends that cross by more than this share exclude each other; by less, it may be rounding.
CROSSED = 1e-9
#: Of breaking a leaf's constraints, in units of the row's range over the ball: the first that is high enough is used.
PRICES = (1e2, 1e5, 1e8)


@dataclass(frozen=True)
class Outcome:
    """What a search ended with.

    Attributes:
        bound: proved for every row on the whole ball: the least over rows and domains.
        domains: how many domains were bounded, not counting the halves that are tried before a split.
        point: an image in the ball that is a counterexample, where one was found.
        finished: every row is above the goal.
        late: it stopped, or passed over a linear program, because more would have ended after the deadline.
        full: so many domains wait that memory could run out.
    """

    bound: float
    domains: int
    point: Float[Tensor, "1 *shape"] | None
    finished: bool
    late: bool = False
    full: bool = False


class Search:
    """Rows over one ball, by branch and bound.

    Args:
        bounds: one ball, propagated: its intervals are the root's.
        specification: rows, ``(1, rows, classes)``.
        proved: what is known of each row already.
        goal: what each row's lower bound must exceed.
        deadline: on ``time.monotonic``.
        broken: which of some images, in the dtype of the bounds, are counterexamples.
    """

    def __init__(
        self,
        bounds: Bounds,
        specification: Float[Tensor, "1 rows classes"],
        proved: Float[Tensor, " rows"],
        goal: float,
        *,
        deadline: float,
        broken: Callable[[Float[Tensor, "points *shape"]], Bool[Tensor, " points"]],
    ) -> None:
        self.root, self.graph, self.x = bounds, bounds.graph, bounds.balls.x
        self.specification, self.goal = specification, goal
        self.proved = proved.where(proved.isfinite(), -math.inf)
        self.deadline, self.broken = deadline, broken
        self.shapes = {i: node.shape for i, node in enumerate(self.graph.nodes)}
        self.hinges = Hinges.of(self.graph, bounds.intervals)
        sizes = [shape_size(shape) for shape in self.shapes.values()]
        self.size = max(2, min(LARGEST, ROUND // sum(sizes), block_of(max(sizes))))
        self.pace, self.passed_over = 0.0, False  # seconds of the last step for each domain
        self.count, self.least = 0, torch.full_like(self.proved, math.inf)
        self.point: Tensor | None = None

    def run(self) -> Outcome:
        """Split until every row is above the goal, a counterexample is found, or time, memory or splits are used up.

        Raises:
            Contradiction: a row has no domain that is not empty.
        """
        full = False
        with torch.no_grad():
            pool = self._kept(self.bounded(self._whole()))
            while len(pool) and self.point is None and not self._late(min(2 * len(pool), self.size)) and not full:
                leaves = ~(pool.branch >= 0).any(1)
                if leaves.any():
                    self._kept(self._solved(pool.take(leaves)), final=True)
                    pool = pool.take(~leaves)
                    continue
                order = pool.bound.argsort()
                chosen, rest = order[: self.size // 2], order[self.size // 2 :]
                halves = self._split(pool.take(chosen))
                pool = joined([self._kept(self.bounded(halves)), pool.take(rest)])
                full = pool.signs.numel() > WAITING
        self._note(pool)
        least, late = float(self.least.min()), self.passed_over or bool(len(pool) and self.point is None and not full)
        if self.point is None and bool((self.least == math.inf).any()):
            raise Contradiction("native: branch and bound finds every part of a ball empty")
        return Outcome(least, self.count, self.point, least > self.goal, late, full)

    def _late(self, steps: int = 0) -> bool:
        """Whether so many steps of a single domain would end after the deadline."""
        return time.monotonic() + steps * self.pace > self.deadline

    def _kept(self, domains: Domains, final: bool = False) -> Domains:
        """Those that are not above the goal; of the others (all, where this is final) only the least bound counts."""
        left = ~(domains.bound > self.goal)
        self._note(domains.take(~left | final))
        return domains.take(left)

    def _note(self, done: Domains) -> None:
        """The least bound of each row over the domains that are done with; nan proves nothing."""
        bounds = done.bound.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        self.least = self.least.scatter_reduce(0, done.row, bounds, "amin")

    def _whole(self) -> Domains:
        """The whole ball, once for every row that is open."""
        rows = (~(self.proved > self.goal)).nonzero().flatten()
        self.least = self.proved.where(self.proved > self.goal, math.inf)
        low, high = self._ends(self.root.intervals)
        alpha = (high > -low).to(self.x.dtype).expand(len(rows), -1)
        zero = torch.zeros_like(alpha)
        branch = rows.new_zeros((len(rows), min(CANDIDATES, alpha.shape[1])))
        return Domains(rows, self.proved[rows], zero.to(torch.int8), alpha, zero, branch)

    def _ends(
        self, intervals: Sequence[Interval]
    ) -> tuple[Float[Tensor, "domains open"], Float[Tensor, "domains open"]]:
        """Lower and upper ends of the hinges."""
        nodes = {node for _, node in self.hinges.readers}
        low, high = ({node: intervals[node][side] for node in nodes} for side in (0, 1))
        like = self.x.new_zeros((len(intervals[0].low), 0))
        return self.hinges.gather(low, like), self.hinges.gather(high, like)

    def bounded(self, domains: Domains) -> Domains:
        """The same domains with better parameters, their bounds, and what to split next."""
        blocks = torch.arange(len(domains), device=self.x.device).split(self.size) if len(domains) else ()
        return joined([domains.take(slice(0, 0)), *(self._raised(domains.take(block), STEPS) for block in blocks)])

    def _raised(self, domains: Domains, steps: int) -> Domains:
        """Alpha and beta by gradient ascent; every step's bound is sound, so each domain keeps its best."""
        cells, empty = self._cut(domains)
        self.count += len(domains)
        best = domains.bound.masked_fill(empty, math.inf)
        alpha, beta = domains.alpha.clone().requires_grad_(), domains.beta.clone().requires_grad_()
        optimizer = torch.optim.Adam([alpha, beta], lr=RATE)
        for step in range(steps + 1):
            started, last = time.monotonic(), step == steps or not len(self.hinges) or self._late(2 * len(domains))
            with torch.set_grad_enabled(not last):
                cell = self._cell(replace(domains, alpha=alpha, beta=beta), cells)
                found = cell.by_rows(self.specification[0, domains.row][:, None]).bound[:, 0]
                loss = -found.where((best <= self.goal) & found.isfinite(), 0.0).sum()
            best = torch.fmax(best, found.detach().where(found < math.inf, math.nan))
            if last or bool((best > self.goal).all()):
                break
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            optimizer.param_groups[0]["lr"] *= DECAY
            with torch.no_grad():
                alpha.clamp_(0.0, 1.0)
                beta.clamp_min_(0.0)
            self.pace = (time.monotonic() - started) / len(domains)
        self._descend(cell.slopes)
        raised = replace(domains, bound=best, alpha=alpha.detach(), beta=beta.detach())
        return replace(raised, branch=self._next(raised, cells, cell.coefficients))

    def _split(self, domains: Domains) -> Domains:
        """Both halves of each domain, by the candidate that leaves the lower of the two bounds highest."""
        owner, column = (domains.branch >= 0).nonzero(as_tuple=True)
        candidate, worth = domains.branch[owner, column], torch.full_like(domains.branch, -math.inf, dtype=self.x.dtype)
        for some in torch.arange(len(owner), device=self.x.device).split(self.size // 2):
            if self._late(2 * len(some)):
                break
            bound = self._glance(domains.take(owner[some]).halves(candidate[some])).clamp_max(self.goal)
            lower, upper = torch.stack(bound.chunk(2)).aminmax(dim=0)
            worth[owner[some], column[some]] = lower + SECOND * upper
        best = worth.argmax(1, keepdim=True)  # the most promising one, where time was up
        return domains.halves(domains.branch.gather(1, best)[:, 0])

    def _glance(self, domains: Domains) -> Float[Tensor, " domains"]:
        """Bounds with the parameters as they are."""
        cells, empty = self._cut(domains)
        found = self._cell(domains, cells).by_rows(self.specification[0, domains.row][:, None]).bound[:, 0]
        return torch.fmax(domains.bound, found).masked_fill(empty, math.inf)

    def _cut(self, domains: Domains) -> tuple[list[Interval], Bool[Tensor, " domains"]]:
        """Intervals of all nodes on each domain, by interval arithmetic from the splits on; and which are empty."""
        signs = by_node(self.hinges.spread(domains.signs, self.shapes))
        empty = torch.zeros(len(domains), dtype=torch.bool, device=self.x.device)
        cells: list[Interval] = []
        for position, node in enumerate(self.graph.nodes):
            low, high = (end.expand(len(domains), *end.shape[1:]) for end in self.root.intervals[position])
            if position in signs:
                low = torch.where(signs[position] > 0, low.clamp_min(0.0), low)
                high = torch.where(signs[position] < 0, high.clamp_max(0.0), high)
            if node.operator is not None:
                forward = node.operator.interval(*(cells[i] for i in node.inputs))
                low, high = torch.fmax(low, forward.low), torch.fmin(high, forward.high)
            empty |= (low - high > CROSSED * (1 + low.abs())).flatten(1).any(1)
            cells.append(Interval(torch.minimum(low, high), torch.maximum(low, high)))
        return cells, empty

    def _cell(self, domains: Domains, cells: list[Interval]) -> Cell:
        """The bounds of domains with their parameters."""
        root, count = self.root, len(domains)
        alpha = self.hinges.spread(domains.alpha, self.shapes)
        beta = self.hinges.spread(-domains.signs * domains.beta, self.shapes)
        return Cell(
            self.graph,
            Balls(self.x.expand(count, *self.x.shape[1:]), root.balls.eps.expand(count), root.balls.norm),
            root.reaches,
            root.intersect,
            {(self.graph.output, 0, reader): (place, place) for (reader, _), place in alpha.items()},
            intervals=cells,
            multipliers=by_node(beta),
            watched=frozenset(reader for reader, _ in self.hinges.readers),
        )

    def _next(
        self, domains: Domains, cells: list[Interval], coefficients: Mapping[int, Tensor]
    ) -> Int[Tensor, "domains candidates"]:
        """The hinges whose relaxation costs the row most: its coefficient there times the largest gap of the line."""
        low, high = self._ends(cells)
        zeros = {reader: torch.zeros_like(cells[node].low) for reader, node in self.hinges.readers}
        row = self.hinges.gather({**zeros, **coefficients}, domains.alpha, by_reader=True)
        undecided = (domains.signs == 0) & (low < 0) & (high > 0)
        above = -low * high / (high - low).clamp_min(1e-12)
        below = torch.maximum((1 - domains.alpha) * high, -domains.alpha * low)
        score = torch.where(row < 0, -row * above, row * below) + 1e-9 * above
        cost, places = score.where(undecided, -1.0).topk(domains.branch.shape[1], dim=1)
        return places.masked_fill(cost < 0, -1)

    def _descend(self, slopes: Tensor | None) -> None:
        """Where the linear functions that bound the rows are least: perhaps a counterexample."""
        if slopes is not None:
            direction = steepest(slopes.reshape(-1, *self.x.shape[1:]), self.root.balls.norm)
            self._try(self.x - per_sample(self.root.balls.eps, self.x) * direction)

    def _try(self, points: Float[Tensor, "points *shape"]) -> None:
        """Keep the first counterexample among points, each moved into the ball."""
        if self.point is not None:
            return
        balls = self.root.balls
        inner = reachable(float(balls.eps), balls.norm, self.x.float())
        inside = project(points - self.x, balls.eps.new_full((len(points),), inner), balls.norm)
        points = (self.x + inside).clamp(0.0, 1.0)
        hits = self.broken(points)
        if hits.any():
            self.point = points[hits][:1]

    def _solved(self, leaves: Domains) -> Domains:
        """Leaves with the bounds that the duals of their linear programs prove; their lowest points are tried."""
        exact = all(
            n.operator is None or isinstance(n.operator, Affine) or is_hinge(n.operator) for n in self.graph.nodes
        )
        if not exact or self.root.balls.norm is not Norm.LINF:
            return leaves
        parts = [leaves.take(slice(0, 0))]
        for i in range(len(leaves)):
            leaf, late = leaves.take(slice(i, i + 1)), self._late()
            self.passed_over |= late
            parts.append(leaf if late or self.point is not None else self._by_program(leaf))
        return joined(parts)

    def _by_program(self, leaf: Domains) -> Domains:
        cells, _ = self._cut(leaf)
        cell = self._cell(replace(leaf, beta=torch.zeros_like(leaf.beta)), cells)
        cell.by_rows(self.specification[0, leaf.row][:, None])
        places, constraints, offsets = self._constraints(leaf, cells)
        if cell.slopes is None or not len(places):
            return leaf
        slope, (low, high) = cell.slopes.flatten(), (end.flatten() for end in cells[0])
        reach = max(1.0, float((slope.abs() * (high - low)).sum()))
        for price in PRICES:
            end = lowest(slope, constraints, offsets, low, high, price * reach)
            if end is None:
                break
            beta = torch.zeros_like(leaf.beta).index_copy(1, places, end.multipliers[None])
            proved = self._raised(replace(leaf, beta=beta), steps=0).bound
            leaf = replace(leaf, bound=torch.maximum(leaf.bound, proved))
            if bool(leaf.bound > self.goal) or end.violation <= 0:
                self._try(end.point.reshape(self.x.shape))
                break
        return leaf

    def _constraints(
        self, leaf: Domains, cells: list[Interval]
    ) -> tuple[Int[Tensor, " split"], Float[Tensor, "split pixels"], Float[Tensor, " split"]]:
        """Of each split hinge: its place, and slope and offset of the function of the image that is at least 0."""
        found: list[tuple[Tensor, Tensor, Tensor]] = []
        start = 0
        for (_, node), entries in zip(self.hinges.readers, self.hinges.entries, strict=True):
            signs = leaf.signs[0, start : start + len(entries)]
            chosen = signs.nonzero().flatten()
            if len(chosen):
                cell = Cell(self.graph, self.root.balls, intervals=cells)
                rows = one_hot(self.shapes[node], entries[chosen], signs[chosen].to(self.x))
                value = cell.push(node, rows, torch.zeros_like(chosen), torch.arange(len(chosen))).value
                assert cell.slopes is not None
                slopes = cell.slopes.flatten(1)
                found.append((start + chosen, slopes, value - slopes @ self.x.flatten()))
            start += len(entries)
        empty = (leaf.row[:0], self.x.new_zeros((0, self.x.numel())), self.x.new_zeros(0))
        return tuple(torch.cat(parts) for parts in zip(empty, *found, strict=True))  # type: ignore[return-value]
