"""Branch and bound: raise lower bounds of rows over one ball by splitting neurons, until each row is decided.

A domain is the part of the ball where some neurons are above or below given values: 0 for ReLUs, a few places in their
intervals for the inputs of curved functions and of products. Its bound is CROWN's over intervals cut there. Gradient
ascent optimises two kinds of free parameters: the free lines of relaxations (alpha), and a multiplier beta >= 0 for
each split. Where z >= c on the domain, f >= f - beta (z - c), so every value is sound. The ascent runs in float32 where
the graph allows it, and only the bound that its best parameters have in float64 counts. The candidates for a split are
the places in neurons whose relaxation costs the row most; the one that raises the bounds of both halves most is split,
by estimates in float32.
A domain in which all neurons have a sign is a linear program. Its dual solution gives the betas, its primal solution a
point to try.
Sources: Wang et al., arXiv 2103.06624 (beta-CROWN); De Palma et al., arXiv 2104.06718 (filtered smart branching);
Shi et al., arXiv 2405.21063 (nonlinear functions).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.ascent import ascended
from verifiers.bound_propagation.native.backward import block_of
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.cells import DomainBounds
from verifiers.bound_propagation.native.domains import Domains, joined
from verifiers.bound_propagation.native.glances import worth
from verifiers.bound_propagation.native.leaf import lowest
from verifiers.bound_propagation.native.pace import Pace
from verifiers.bound_propagation.native.places import is_relu
from verifiers.core.errors import Contradiction
from verifiers.core.quantities import Norm
from verifiers.graph.affine import Affine
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.rows import shape_size

#: The most values in the intervals of one round's domains, and the most domains of a round.
ROUND, LARGEST = 2**22, 512
#: The most places and free lines of all waiting domains; signs and parameters take at most 9 bytes each.
WAITING = 2**27
#: Steps of gradient ascent for each domain.
STEPS = 8
#: The number of places whose halves each domain tries before it splits at the best.
CANDIDATES = 16
#: Prices of violating a leaf's constraints, in units of the row's range over the ball; the first sufficient one counts.
PRICES = (1e2, 1e5, 1e8)


@dataclass(frozen=True)
class Outcome:
    """The result of a search.

    Attributes:
        bound: the bound proved for every row on the whole ball: the least over rows and domains.
        domains: number of bounded domains, not counting the halves that are tried before a split.
        point: a counterexample in the ball, if one was found.
        finished: every row is above the goal.
        late: the search stopped, or skipped a linear program, because of the deadline.
        full: the search stopped because memory could run out from waiting domains.
    """

    bound: float
    domains: int
    point: Float[Tensor, "1 *shape"] | None
    finished: bool
    late: bool = False
    full: bool = False


class BranchAndBound:
    """Bound rows over one ball by branch and bound.

    Args:
        bounds: propagated bounds of one ball; their intervals are the root's.
        specification: rows, ``(1, rows, classes)``.
        proved: the known bound of each row.
        goal: the value that each row's lower bound must exceed.
        deadline: the deadline on ``time.monotonic``.
        broken: returns which of some images, in the dtype of the bounds, are counterexamples.
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
        self.over, self.specification, self.goal = DomainBounds(bounds, specification), specification, goal
        self.fast = self.over.coarse()
        self.partners = self.over.splits.partners(self.graph).to(self.x.device)
        self.proved = proved.where(proved.isfinite(), -math.inf)
        self.pace, self.broken = Pace(deadline), broken
        sizes = [shape_size(node.shape) for node in self.graph.nodes]
        self.size = max(2, min(LARGEST, ROUND // sum(sizes), block_of(max(sizes))))
        self.passed_over = False
        self.count, self.least = 0, torch.full_like(self.proved, math.inf)
        self.point: Tensor | None = None

    def run(self) -> Outcome:
        """Split until every row is above the goal, a counterexample is found, or time, memory or splits run out.

        Raises:
            Contradiction: all domains of a row are empty.
        """
        full = False
        with torch.no_grad():
            pool = self._whole()
            if not self._late():
                pool = self._kept(self.bounded(pool))
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
                full = pool.signs.numel() + pool.alpha.numel() > WAITING
        self._note(pool)
        least, late = float(self.least.min()), self.passed_over or bool(len(pool) and self.point is None and not full)
        if self.point is None and bool((self.least == math.inf).any()):
            raise Contradiction("native: branch and bound finds every part of a ball empty")
        return Outcome(least, self.count, self.point, least > self.goal, late, full)

    def _late(self, domains: int = 0) -> bool:
        """Return whether a step and a proof of this many domains would end after the deadline."""
        return self.pace.late(domains, domains)

    def _kept(self, domains: Domains, final: bool = False) -> Domains:
        """Keep the domains not above the goal; note the least bound of the others (of all, if final)."""
        left = ~(domains.bound > self.goal)
        self._note(domains.take(~left | final))
        return domains.take(left)

    def _note(self, done: Domains) -> None:
        """Update the least bound of each row over the finished domains; nan proves nothing."""
        bounds = done.bound.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)
        self.least = self.least.scatter_reduce(0, done.row, bounds, "amin")

    def _whole(self) -> Domains:
        """Build one domain per open row: the whole ball."""
        rows = (~(self.proved > self.goal)).nonzero().flatten()
        self.least = self.proved.where(self.proved > self.goal, math.inf)
        alpha = self.over.lines.start(self.graph, self.root.intervals, self.root.lines, rows)
        alpha = alpha.to(self.fast.x.dtype)
        zero = alpha.new_zeros((len(rows), len(self.over.splits)))
        branch = rows.new_zeros((len(rows), min(CANDIDATES, len(self.over.splits))))
        return Domains(rows, self.proved[rows], zero.to(torch.int8), alpha, zero, branch)

    def bounded(self, domains: Domains) -> Domains:
        """Return the same domains with better parameters, their bounds, and the next splits.

        Those that would end after the deadline stay as they are, with the bounds of the domains they are parts of.
        """
        blocks = torch.arange(len(domains), device=self.x.device).split(self.size) if len(domains) else ()
        parts = [domains.take(slice(0, 0))]
        for part in map(domains.take, blocks):
            parts.append(part if self._late(len(part)) and self.count else self._raised(part, STEPS))
        return joined(parts)

    def _raised(self, domains: Domains, steps: int) -> Domains:
        """Optimise alpha and beta by gradient ascent, and prove the bound of the best in float64."""
        self.count += len(domains)
        if steps and len(self.over.splits):
            domains = ascended(self.fast, domains, self.goal, self.pace, steps)
        with self.pace.of_proof(len(domains)):
            exact = domains.to(self.x.dtype)
            cells, empty = self.over.cut(exact)
            cell = self.over.cell(exact, cells)
            found = self.over.rows(cell, domains.row).bound
            best = torch.fmax(domains.bound, found.where(found < math.inf, math.nan)).masked_fill(empty, math.inf)
            self._descend(cell.slopes)
            branch = self.over.candidates(exact, cells, cell.coefficients)
        return replace(domains, bound=best, branch=branch)

    def _split(self, domains: Domains) -> Domains:
        """Split each domain at the candidate for which the lower of the two halves' bounds is highest."""
        found = worth(self.fast, domains, self.goal, self.size, self._late)
        best = found.argmax(1, keepdim=True)  # the most promising one if time is up
        place = domains.branch.gather(1, best)[:, 0]
        return self._paired(domains.halves(place), self.partners[place].repeat(2))

    def _paired(self, halves: Domains, partner: Int[Tensor, " halves"]) -> Domains:
        """Split halves at the same neuron of the other network of a pair too, where its sign is open."""
        if not (partner >= 0).any():
            return halves
        at, ends = partner.clamp_min(0)[:, None], self.over.ends(self.over.cut(halves)[0])
        sign, low, high = (values.gather(1, at)[:, 0] for values in (halves.signs, *ends))
        point = self.over.points[at[:, 0]]
        pair = (partner >= 0) & (sign == 0) & (low < point) & (high > point)
        return joined([halves.take(~pair), halves.take(pair).halves(partner[pair])])

    def _descend(self, slopes: Tensor | None) -> None:
        """Try the points where the linear functions that bound the rows are least."""
        if slopes is not None:
            self._try(self.root.balls.lowest(slopes.reshape(-1, *self.x.shape[1:])))

    def _try(self, points: Float[Tensor, "points *shape"]) -> None:
        """Keep the first counterexample among points, after moving each into the ball."""
        if self.point is not None:
            return
        points = self.root.balls.inside(points)
        hits = self.broken(points)
        if hits.any():
            self.point = points[hits][:1]

    def _solved(self, leaves: Domains) -> Domains:
        """Bound leaves by the duals of their linear programs, and try the lowest points."""
        exact = all(
            isinstance(n.operator, Affine | ReluDifference | None) or is_relu(n.operator) for n in self.graph.nodes
        )
        if not exact or self.root.balls.norm is not Norm.LINF:
            return leaves
        leaves = leaves.to(self.x.dtype)
        parts = [leaves.take(slice(0, 0))]
        for i in range(len(leaves)):
            leaf, late = leaves.take(slice(i, i + 1)), self._late()
            self.passed_over |= late
            parts.append(leaf if late or self.point is not None else self._by_program(leaf))
        return joined(parts)

    def _by_program(self, leaf: Domains) -> Domains:
        cells, _ = self.over.cut(leaf)
        cell = self.over.cell(replace(leaf, beta=torch.zeros_like(leaf.beta)), cells)
        cell.by_rows(self.specification[0, leaf.row][:, None])
        split, constraints, offsets = self.over.constraints(leaf, cells)
        if cell.slopes is None or not len(split):
            return leaf
        slope, (low, high) = cell.slopes.flatten(), (end.flatten() for end in cells[0])
        unit = max(1.0, float((slope.abs() * (high - low)).sum()))
        for price in PRICES:
            end = lowest(slope, constraints, offsets, low, high, price * unit)
            if end is None:
                break
            beta = torch.zeros_like(leaf.beta).index_copy(1, split, end.multipliers[None])
            proved = self._raised(replace(leaf, beta=beta), steps=0).bound
            leaf = replace(leaf, bound=torch.maximum(leaf.bound, proved))
            if bool(leaf.bound > self.goal) or end.violation <= 0:
                self._try(end.point.reshape(self.x.shape))
                break
        return leaf
