"""Choose splits: estimate the bounds of both halves for every candidate of a domain.

An estimate is no proof, and may use whatever is cheap. In general it is CROWN's bound of either half.

For affine operators and ReLUs in a box, the parent's row ends as A x' + b at the image, and a split changes one line
of it: it adds c + t z, for the input z of the neuron and known c and t, and a multiplier moves t to one side. Where z
is between two parallel planes a x' + v -+ e on the domain, A + t a is the row of the half. So the bounds of all halves
follow from A and the rows a of the candidates, which are pushed back once.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.ascent import ByValues
from verifiers.bound_propagation.native.backward import BackwardPass, BackwardRows
from verifiers.bound_propagation.native.cells import DomainBounds
from verifiers.bound_propagation.native.domains import Domains
from verifiers.bound_propagation.native.noise import Noise
from verifiers.graph.operators import Pushed
from verifiers.graph.rows import Rows

#: The weight of the better half of a split relative to the worse.
SECOND = 1e-3
#: Multiples of a neuron's coefficient by which the multiplier of its split is tried.
MOVES = (0.0, 0.25, 0.5, 1.0)
#: The most coefficients of halves that are compared at once.
AT_ONCE = 2**19


def worth(
    over: DomainBounds, domains: Domains, goal: float, size: int, late: Callable[[int], bool]
) -> Float[Tensor, "domains candidates"]:
    """Estimate what it is worth to split at each candidate: the lower of the halves' bounds, mostly.

    -inf for what is no candidate, or would be known too late. At most ``size`` halves are bounded at once.
    """
    owner, column = (domains.branch >= 0).nonzero(as_tuple=True)
    tried = owner, domains.branch[owner, column]
    bounds = _by_planes(over, domains, tried) if ByValues.suits(over) else _by_halves(over, domains, tried, size, late)
    low, high = bounds.clamp_max(goal).aminmax(dim=0)
    found = torch.full_like(domains.branch, -torch.inf, dtype=low.dtype)
    found[owner, column] = low + SECOND * high
    return found


def _by_halves(
    over: DomainBounds,
    domains: Domains,
    tried: tuple[Int[Tensor, " tried"], Int[Tensor, " tried"]],
    size: int,
    late: Callable[[int], bool],
) -> Float[Tensor, "2 tried"]:
    """Bound both halves by a backward pass each."""
    parts = []
    for owner, place in zip(*(part.split(max(1, size // 2)) for part in tried), strict=True):
        if late(2 * len(owner)):
            parts.append(domains.bound.new_full((2, len(owner)), -torch.inf))
            continue
        parts.append(over.glance(domains.take(owner).halves(place)).reshape(2, -1))
    return torch.cat([domains.bound.new_zeros((2, 0)), *parts], 1)


def _by_planes(over: DomainBounds, domains: Domains, tried: tuple[Tensor, Tensor]) -> Float[Tensor, "2 tried"]:
    """Bound both halves by the parent's row and the planes of the neuron."""
    values = ByValues(over, over.cut(domains)[0])
    cell, lines = values.cell(domains)
    value = over.rows(cell, domains.row).value
    low, high = over.root.intervals[0]
    middle, half = ((high + low) / 2).flatten(), ((high - low) / 2).flatten()
    owner = tried[0]
    if cell.slopes is None:
        return value[owner].expand(2, -1)
    slopes = cell.slopes.flatten(1)
    value = value + slopes @ (middle - over.x.flatten())
    maps = {
        reader: torch.stack([cell.coefficients[reader[0]], *lines[reader[0]][::2], lines[reader[0]].upper_offset])
        for reader in over.splits.readers
        if reader[0] in cell.coefficients
    }
    row, below, above, offset = _gathered(over, maps, tried)
    slope = torch.where(row > 0, below, above)
    base = value[owner] - row.clamp_max(0) * offset
    planes = _planes(over, values, tried)
    found = []
    moves, size = row.new_tensor(MOVES)[:, None], row.abs()
    for part in torch.arange(len(owner), device=row.device).split(max(1, AT_ONCE // slopes.shape[1])):
        normal, at, spread = (each[part] for each in planes)
        normal, own = normal * half, slopes[owner[part]] * half
        centre = (planes[0][part] @ middle) + at
        ends = []
        for move in (
            row[part] * (1 - slope[part]) - moves * size[part],
            -row[part] * slope[part] + moves * size[part],
        ):
            least = torch.stack([torch.linalg.vector_norm(torch.addcmul(own, t[:, None], normal), 1, 1) for t in move])
            ends.append((base[part] + move * centre - move.abs() * spread - least).amax(0))
        found.append(torch.stack(ends))
    return torch.cat([row.new_zeros((2, 0)), *found], 1)


def _gathered(over: DomainBounds, maps: dict[tuple[int, int], Tensor], tried: tuple[Tensor, Tensor]) -> Tensor:
    """Gather stacked maps ``(maps, domains, *shape)`` at the places; 0 where there is none."""
    owner, place = tried
    found, start = over.x.new_zeros((4, len(owner))), 0
    for reader, entries in zip(over.splits.readers, over.splits.entries, strict=True):
        here = (place >= start) & (place < start + len(entries))
        if reader in maps:
            found[:, here] = maps[reader].flatten(2)[:, owner[here], entries[place[here] - start]]
        start += len(entries)
    return found


class _Parallel:
    """A line in the middle of two parallel ones; what is left counts as noise."""

    def __init__(self, slope: Float[Tensor, "domains *shape"], middle: Float[Tensor, "domains *shape"]) -> None:
        self.slope, self.middle = slope, middle

    def push(self, rows: Rows, samples: Int[Tensor, " rows"]) -> Pushed:
        pushed = rows.take(rows.values * rows.gather(self.slope, samples))
        return Pushed([pushed.outside(clean=True)], rows.dot(self.middle, samples))


def _planes(
    over: DomainBounds, values: ByValues, tried: tuple[Tensor, Tensor]
) -> tuple[Float[Tensor, "tried pixels"], Float[Tensor, " tried"], Float[Tensor, " tried"]]:
    """Bound the neurons of places by a x' + v -+ e on their domains; return a, v and e."""
    owner, place = tried
    hinges, cells = values.hinges, values.cells
    errors = {i: hinge.offset / 2 for i, hinge in hinges.items()}
    noise = Noise(torch.zeros(len(cells[0].low), dtype=torch.bool, device=over.x.device), errors)
    run = BackwardPass(over.graph, over.root.balls, intervals=cells, noise=noise)
    run.relaxations = {(i, -1, -1): _Parallel(hinge.chord, errors[i]) for i, hinge in hinges.items()}
    slopes = over.x.new_zeros((len(owner), over.x.numel()))
    at, spread = torch.zeros_like(slopes[:, 0]), torch.zeros_like(slopes[:, 0])
    start = 0
    for (_, node), entries in zip(over.splits.readers, over.splits.entries, strict=True):
        here = ((place >= start) & (place < start + len(entries))).nonzero().flatten()
        for chunk in run.blocks(node, len(here)) if len(here) else ():
            some = here[chunk]
            ones = torch.ones_like(at[some])
            back = BackwardRows.at_entries(
                node, over.shapes[node], owner[some], entries[place[some] - start], ones, noise
            )
            for position in range(node, 0, -1):
                run.step(back, position)
            if 0 in back.pending:
                slopes[some] = back.pending[0].dense(over.shapes[0]).values.flatten(1)
            at[some], spread[some] = back.constant + back.rounding, back.rounding
        start += len(entries)
    return slopes, at, spread
