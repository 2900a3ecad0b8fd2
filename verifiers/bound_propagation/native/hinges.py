"""Push rows back with free slopes at ReLUs, and follow the neurons' inputs back to the image; see ``sdp``."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.backward import BackwardPass, BackwardRows, block_of
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.trust_region import SLACK, Directions
from verifiers.graph.operators import is_plain_relu
from verifiers.graph.rows import Rows, shape_size

#: The most neurons of a sample with a multiplier: those whose relaxation costs the rows most.
MOST = 256
#: Covers the rounding of E.
WIDER = 1 + 1e-9


@dataclass(frozen=True)
class Hinges:
    """The inputs of all ReLUs of a graph, side by side.

    Attributes:
        readers: the position of each ReLU, of the node that it reads, and where its entries start.
        low, high: their intervals.
    """

    readers: tuple[tuple[int, int, int], ...]
    low: Float[Tensor, "batch entries"]
    high: Float[Tensor, "batch entries"]

    @classmethod
    def of(cls, bounds: Bounds) -> "Hinges":
        """Find the ReLUs of propagated bounds."""
        readers, start, ends = [], 0, [(bounds.balls.x.flatten(1)[:, :0],) * 2]
        for position, node in enumerate(bounds.graph.nodes):
            if is_plain_relu(node.operator):
                read = node.inputs[0]
                readers.append((position, read, start))
                low, high = bounds.intervals[read]
                ends.append((low.flatten(1), high.flatten(1)))
                start += shape_size(node.shape)
        low, high = (torch.cat(parts, 1) for parts in zip(*ends, strict=True))
        return cls(tuple(readers), low, high)

    @property
    def open(self) -> Tensor:
        """Marks the unstable neurons."""
        return (self.low < 0) & (self.high > 0)


@dataclass
class Pass(BackwardPass):
    """Push rows back with free slopes at ReLUs, and bound what each neuron adds.

    Attributes:
        hinges: the ReLUs.
        slopes: the slope of each neuron for each row.
        weights: its multiplier.
        middle: the centre m of each neuron.
        coefficients: filled with the rows' coefficients at the ReLUs, by position.
    """

    hinges: Hinges | None = None
    slopes: Tensor | None = None
    weights: Tensor | None = None
    middle: Tensor | None = None
    coefficients: dict[int, list[Tensor]] = field(default_factory=dict)

    def step(
        self, back: BackwardRows, position: int, start: tuple[int, int] = (-1, -1), ids: Tensor | None = None
    ) -> bool:
        """Push the rows at a ReLU back by their slopes, and every other node as CROWN does."""
        hinges = self.hinges
        place = None if hinges is None else next((one for one in hinges.readers if one[0] == position), None)
        if place is None or hinges is None or ids is None:
            return super().step(back, position, start, ids)
        self.arrive(back, position, ids)
        if (here := back.pending.pop(position, None)) is None:
            return False
        shape = self.graph.nodes[position].shape
        row = here.dense(shape).values.flatten(1)
        self.coefficients.setdefault(position, []).append(row.detach())
        part = slice(place[2], place[2] + row.shape[1])
        low, high = hinges.low[back.samples, part], hinges.high[back.samples, part]
        if self.slopes is None:
            slope = by_crown(row, low, high)
            weight = middle = torch.zeros_like(row)
        else:
            assert self.weights is not None and self.middle is not None
            slope, weight = self.slopes[ids, part], self.weights[ids, part]
            middle = self.middle[back.samples, part]
        slope = torch.where(low >= 0, 1.0, torch.where(high <= 0, 0.0, slope))
        back.constant = back.constant + least_hinge(row, row * slope, low, high, weight, middle).sum(1)
        back.add(place[1], Rows((row * slope).reshape(len(row), *shape)), shape)
        return True


def by_crown(row: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Return CROWN's slopes: 0 or 1 for positive coefficients, the chord's for negative ones."""
    chord = high.clamp_min(0.0) / (high - low).clamp_min(1e-300)
    return torch.where(row > 0, (high > -low).to(row.dtype), chord)


def least_hinge(
    coefficient: Float[Tensor, "*shape"],
    slope: Float[Tensor, "*shape"],
    low: Float[Tensor, "*shape"],
    high: Float[Tensor, "*shape"],
    weight: Float[Tensor, "*shape"],
    middle: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """Bound min c max(z, 0) - g z + w/2 (z - m)^2 over z in [low, high] from below.

    It is 0 for stable neurons: their g is c or 0, their w is 0. Each side of 0 is a parabola that opens upward, whose
    minimum is its vertex moved into the side. Values are lowered by more than their rounding.
    """
    with torch.no_grad():
        bend = weight.clamp_min(1e-300)
        right = torch.minimum((middle - (coefficient - slope) / bend).nan_to_num(nan=0.0).clamp_min(0.0), high)
        left = torch.maximum((middle + slope / bend).nan_to_num(nan=0.0).clamp_max(0.0), low)
        size = (coefficient.abs() + slope.abs()) * torch.maximum(-low, high)
        size = size + weight * (torch.maximum(-low, high) + middle.abs()).square()
    on_right = (coefficient - slope) * right + 0.5 * weight * (right - middle).square()
    on_left = -slope * left + 0.5 * weight * (left - middle).square()
    found = torch.minimum(on_right, on_left) - SLACK * size
    return torch.where((low >= 0) | (high <= 0), 0.0, found)  # nan where the interval is


@dataclass(frozen=True)
class Followed:
    """The neurons with multipliers, z = m + a d + e with |e| <= E on the ball.

    Attributes:
        index: their places among the entries of all ReLUs; any place where ``valid`` is False.
        valid: False for padding.
        directions: a, with their region.
        middle: m.
        rest: E.
    """

    index: Int[Tensor, "batch k"]
    valid: Float[Tensor, "batch k"]
    directions: Directions
    middle: Float[Tensor, "batch k"]
    rest: Float[Tensor, "batch k"]


def follow(bounds: Bounds, hinges: Hinges, cost: Float[Tensor, "batch entries"]) -> Followed:
    """Choose the costliest unstable neurons, and bound each by two planes that are parallel."""
    most = min(MOST, int(hinges.open.sum(1).max()))
    worth, index = cost.masked_fill(~hinges.open, -1.0).topk(most, dim=1)
    valid = worth >= 0
    x = bounds.balls.x.flatten(1)
    rows = x.new_zeros((*index.shape, x.shape[1]))
    middle, rest = x.new_zeros(index.shape), x.new_zeros(index.shape)
    for position, read, start in hinges.readers:
        size = shape_size(bounds.graph.nodes[position].shape)
        sample, slot = (valid & (index >= start) & (index < start + size)).nonzero(as_tuple=True)
        if not len(sample):
            continue
        below, low = plane(bounds, read, sample, index[sample, slot] - start, 1.0)
        above, high = plane(bounds, read, sample, index[sample, slot] - start, -1.0)
        direction = (below - above) / 2
        low = low + bounds.least_on_cut_balls(below - direction, sample)
        high = -(high + bounds.least_on_cut_balls(above + direction, sample))
        rows[sample, slot], middle[sample, slot] = direction, (low + high) / 2
        rest[sample, slot] = (high - low).clamp_min(0.0) / 2 * WIDER
    low, high = (end.flatten(1) - x for end in bounds.balls.box())
    directions = Directions.of(rows, low, high, bounds.balls.eps)
    return Followed(index, valid.to(x.dtype), directions, middle, rest)


def plane(
    bounds: Bounds, node: int, samples: Int[Tensor, " rows"], entries: Int[Tensor, " rows"], sign: float
) -> tuple[Float[Tensor, "rows pixels"], Float[Tensor, " rows"]]:
    """Bound ``sign * node[entry]`` from below by a linear function of the perturbation; return slopes and constant."""
    shape, image = bounds.graph.nodes[node].shape, bounds.graph.nodes[0].shape
    x, slopes, values = bounds.balls.x.reshape(len(bounds.balls), *image), [], []
    for chunk in bounds.blocks(node, len(samples)):
        signs = x.new_full((len(chunk),), sign)
        back = BackwardRows.at_entries(node, shape, samples[chunk], entries[chunk], signs, bounds.noise)
        for position in range(node, 0, -1):
            bounds.step(back, position, (node, 0 if sign > 0 else 1))
        rows = back.pending.get(0, Rows(x.new_zeros((len(chunk), *image)))).dense(image)
        slopes.append(rows.values.flatten(1))
        values.append(back.constant + rows.dot(x, back.samples))
    return torch.cat(slopes), torch.cat(values)


def open_pass(
    bounds: Bounds,
    hinges: Hinges,
    slopes: Tensor | None = None,
    weights: Tensor | None = None,
    middle: Tensor | None = None,
) -> Pass:
    """Build a pass over propagated bounds; without slopes it chooses CROWN's, and no multipliers."""
    found = Pass(bounds.graph, bounds.balls, intervals=bounds.intervals, noise=bounds.noise, cut=bounds.cut)
    found.relaxations = bounds.relaxations
    found.hinges, found.slopes, found.weights, found.middle = hinges, slopes, weights, middle
    return found


def pushed(
    run: Pass, specification: Float[Tensor, "batch rows classes"]
) -> tuple[Float[Tensor, "batch rows pixels"], Float[Tensor, "batch rows"], Float[Tensor, "batch rows"]]:
    """Push the specification back to the image; return slopes, values at the centre, and rounding."""
    start, samples = run.merged(specification)
    image, x = run.graph.nodes[0].shape, run.balls.x
    x = x.reshape(len(x), *image)
    block = block_of(max(shape_size(node.shape) for node in run.graph.nodes))
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in torch.arange(len(samples), device=x.device).split(block):
        back = BackwardRows.begin(run.graph.output, start.take(start.values[chunk]), samples[chunk], run.noise)
        for position in range(run.graph.output, 0, -1):
            run.step(back, position, (run.graph.output, 0), chunk)
        rows = back.pending.get(0, Rows(x.new_zeros((len(chunk), *image)))).dense(image)
        found.append((rows.values.flatten(1), back.constant + rows.dot(x, back.samples), back.rounding))
    shape = specification.shape[:2]
    slopes, value, rounding = (torch.cat(parts) for parts in zip(*found, strict=True))
    return slopes.unflatten(0, shape), value.reshape(shape), rounding.reshape(shape)


def coefficients_at(run: Pass, place: tuple[int, int, int], rows: int) -> Float[Tensor, "rows entries"]:
    """Return the coefficients of the rows at a ReLU; zeros if no row meets it."""
    size = shape_size(run.graph.nodes[place[0]].shape)
    kept = run.coefficients.get(place[0], [])
    return torch.cat(kept) if kept else run.balls.x.new_zeros((rows, size))
