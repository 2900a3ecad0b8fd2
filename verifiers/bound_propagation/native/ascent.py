"""Gradient ascent on the bounds of domains, by the free lines of relaxations (alpha) and multipliers of splits (beta).

It runs in the dtype of its bounds, and its result is no proof: the parameters are, for a bound computed from them anew.

For affine operators and ReLUs in a box, no automatic differentiation is needed. A row ends as A x' + b at the image,
and x* is where that is least. The derivative by the lower slope of a neuron is the row's coefficient there, if
positive, times the value that the relaxed network has at x*. That by a multiplier is the distance of the value from
the split. So one pass from x* forward gives the whole gradient.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.bound_propagation.native.cells import Cell, DomainBounds
from verifiers.bound_propagation.native.domains import Domains
from verifiers.bound_propagation.native.pace import Pace
from verifiers.core.quantities import Norm
from verifiers.graph.affine import Affine
from verifiers.graph.operators import Enclosed, Interval, Relaxation, is_plain_relu
from verifiers.graph.relaxations.lines import Lines
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.runtime.optimizer import Adam

#: Adam's rate, and the factor by which it falls from step to step.
RATE, DECAY = 0.1, 0.95
#: Domains above the goal leave the ascent once this share of those in it are.
LEAVE = 0.25


class Gradient(NamedTuple):
    """Derivatives of the bounds of domains by their parameters."""

    alpha: Float[Tensor, "domains lines"]
    beta: Float[Tensor, "domains open"]


class Slope(Protocol):
    """Bounds of domains and their derivatives."""

    def keep(self, chosen: Bool[Tensor, " domains"]) -> None:
        """Keep some of the domains."""

    def __call__(self, domains: Domains, *, last: bool) -> tuple[Float[Tensor, " domains"], Gradient | None]:
        """Bound the domains; return the derivatives too, unless it is the last time."""


@dataclass
class ByAutograd:
    """Any graph, by automatic differentiation."""

    over: DomainBounds
    cells: list[Interval]

    def keep(self, chosen: Tensor) -> None:
        self.cells = [Interval(low[chosen], high[chosen]) for low, high in self.cells]

    def __call__(self, domains: Domains, *, last: bool) -> tuple[Tensor, Gradient | None]:
        alpha, beta = (part.detach().requires_grad_(not last) for part in (domains.alpha, domains.beta))
        with torch.set_grad_enabled(not last):
            cell = self.over.cell(replace(domains, alpha=alpha, beta=beta), self.cells)
            found = self.over.rows(cell, domains.row).bound
            total = found.where(found.isfinite(), 0.0).sum()
        if last or not total.requires_grad:
            return found, None
        slopes = torch.autograd.grad(total, (alpha, beta), allow_unused=True, materialize_grads=True)
        return found.detach(), Gradient(*slopes)


class Hinge(NamedTuple):
    """One layer of ReLUs on domains.

    Attributes:
        open: 1 where the sign of the input is open, else 0.
        on: 1 where it is positive, else 0.
        chord, offset: the upper line.
    """

    open: Float[Tensor, "domains *shape"]
    on: Float[Tensor, "domains *shape"]
    chord: Float[Tensor, "domains *shape"]
    offset: Float[Tensor, "domains *shape"]

    @classmethod
    def of(cls, box: Interval) -> "Hinge":
        """Relax the layer over a box of its inputs."""
        zero = torch.zeros_like(box.low)
        on, _, chord, offset = Relu().lines(*box, (zero, zero))
        return cls(((box.low < 0) & (box.high > 0)).to(zero), on, chord, offset)

    def lines(self, alpha: Float[Tensor, "domains *shape"]) -> Lines:
        """Return both lines."""
        return Lines(torch.addcmul(self.on, alpha, self.open), self.on.new_zeros(1), self.chord, self.offset)


class ByValues:
    """Affine operators and ReLUs in a box, by values of the relaxed network."""

    def __init__(self, over: DomainBounds, cells: list[Interval]) -> None:
        self.over, self.graph, self.cells = over, over.graph, cells
        nodes = enumerate(over.graph.nodes)
        self.hinges = {i: Hinge.of(cells[node.inputs[0]]) for i, node in nodes if is_plain_relu(node.operator)}

    @staticmethod
    def suits(over: DomainBounds) -> bool:
        """Return whether the ball and the network are of this kind."""
        operators = [node.operator for node in over.graph.nodes[1:]]
        plain = all(isinstance(one, Affine) or is_plain_relu(one) for one in operators)
        return plain and over.root.balls.norm is Norm.LINF

    def keep(self, chosen: Tensor) -> None:
        self.cells = [Interval(low[chosen], high[chosen]) for low, high in self.cells]
        self.hinges = {i: Hinge(*(part[chosen] for part in hinge)) for i, hinge in self.hinges.items()}

    def __call__(self, domains: Domains, *, last: bool) -> tuple[Tensor, Gradient | None]:
        cell, lines = self.cell(domains)
        bound = self.over.rows(cell, domains.row).bound
        return bound, None if last or cell.slopes is None else self._gradient(domains, cell, lines)

    def cell(self, domains: Domains) -> tuple[Cell, dict[int, Lines]]:
        """Build the backward pass of domains, and the lines of every ReLU."""
        cell = self.over.cell(domains, self.cells)
        free = {position: alpha[0] for (_, _, position), alpha in cell.alphas.items()}
        lines = {i: hinge.lines(free[i]) for i, hinge in self.hinges.items()}
        ready: dict[tuple[int, int, int], Relaxation] = {(i, -1, -1): Enclosed(line) for i, line in lines.items()}
        return replace(cell, alphas={}, relaxations=ready), lines

    def _gradient(self, domains: Domains, cell: Cell, lines: Mapping[int, Lines]) -> Gradient:
        assert cell.slopes is not None
        box = self.cells[0]
        values, slopes = [box.center - cell.slopes.sign() * box.half_width], dict[int, Tensor]()
        for position, node in enumerate(self.graph.nodes[1 : max(lines, default=0) + 1], start=1):
            inputs = [values[i] for i in node.inputs]
            if position not in lines:
                assert node.operator is not None
                values.append(node.operator.forward(*inputs))
                continue
            (z,), line, row = inputs, lines[position], cell.coefficients.get(position)
            low = line.lower_slope * z
            if row is None:
                values.append(low)
                continue
            values.append(torch.where(row > 0, low, torch.addcmul(line.upper_offset, line.upper_slope, z)))
            slopes[position] = row.clamp_min(0) * z * self.hinges[position].open
        like = domains.beta
        chosen = [like[:, :0]]
        for position, entries in self.over.lines.entries.items():
            assert entries is not None, "all free lines are ReLUs'"
            part = slopes.get(position)
            chosen.append(like.new_zeros(len(like), len(entries)) if part is None else part.flatten(1)[:, entries])
        reached = self.over.splits.gather({reader: values[reader[1]] for reader in self.over.splits.readers}, like)
        return Gradient(torch.cat(chosen, 1), -domains.signs * (reached - self.over.points))


def ascended(over: DomainBounds, domains: Domains, goal: float, pace: Pace, steps: int) -> Domains:
    """Return domains with the best alpha and beta that a number of steps finds.

    Domains above the goal stop. No step starts that would end, with the proofs of all domains, after the deadline.
    """
    cells, empty = over.cut(domains)
    slope: Slope = (ByValues if ByValues.suits(over) else ByAutograd)(over, cells)
    best = torch.full_like(domains.bound, -torch.inf, dtype=over.x.dtype).masked_fill(empty, torch.inf)
    kept_alpha, kept_beta = domains.alpha.clone(), domains.beta.clone()
    left, running = torch.arange(len(domains), device=over.x.device), domains
    optimizer = Adam([domains.alpha.clone(), domains.beta.clone()], RATE)
    for step in range(steps + 1):
        last = step == steps or pace.late(2 * len(left), len(domains))
        with pace.of_step(len(left)):
            alpha, beta = optimizer.parameters
            bound, gradient = slope(replace(running, alpha=alpha, beta=beta), last=last)
            better = bound > best[left]
            rows = left[better]
            best[rows], kept_alpha[rows], kept_beta[rows] = bound[better], alpha[better], beta[better]
            still = ~(best[left] > goal)
            if gradient is None or not still.any():
                break
            if float(still.float().mean()) <= 1 - LEAVE:
                left, running = left[still], running.take(still)
                gradient = Gradient(*(part[still] for part in gradient))
                optimizer.keep(still)
                slope.keep(still)
            alpha, beta = optimizer.parameters
            alpha.grad, beta.grad = (-part.nan_to_num(0.0, 0.0, 0.0) for part in gradient)
            optimizer.step()
            optimizer.rate *= DECAY
            alpha.clamp_(0.0, 1.0)
            beta.clamp_min_(0.0)
    return replace(domains, alpha=kept_alpha, beta=kept_beta)
