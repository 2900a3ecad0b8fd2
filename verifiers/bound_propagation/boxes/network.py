"""CROWN's bounds of one small chain over a batch of boxes, by products of matrices.

The bounds are those of the native engine: intervals forward; rows of neurons whose sign is unknown backward, from both
sides; and rows of the values. The native engine serves any graph and pays for it at every step; this serves thousands
of boxes of a small network at once.

Rows that bound float32 machines are in float32 themselves, and lose what their own rounding may add: see ``charge``.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from verifiers.bound_propagation.boxes.chains import Chain
from verifiers.bound_propagation.native.bounds import common
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.rounding import NORMAL, UNIT, gamma, magnitude

#: The most coefficients of the rows that go back together: few calls, and memory that the processor's caches hold.
BLOCK = 2**19
#: Covers the rounding of charges in float32, of sums of up to 2^13 terms.
CHARGE = 1 + 2.0**-10


class Line(NamedTuple):
    """A line at least as large as ReLU on intervals."""

    slope: Float[Tensor, "batch neurons"]
    offset: Float[Tensor, "batch neurons"]

    @classmethod
    def above(cls, interval: Interval, dtype: torch.dtype) -> "Line":
        """Take the chord, moved up by its rounding to a dtype.

        Any slope that is at least the chord's will do, with an offset of at least -low times the slope.
        """
        _, _, slope, offset = Relu().lines(*interval)
        if dtype == torch.float64:
            return cls(slope, offset)
        slope = up(slope).clamp_max(1.0)
        return cls(slope, up(-interval.low.clamp_max(0.0) * slope.double() * (1 + 2.0**-40)))


def up(value: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Round to float32, up; 0 stays 0."""
    near = value.float()
    return torch.where(near < value, near.nextafter(near.new_tensor(torch.inf)), near)


class Turned(NamedTuple):
    """The lines of ReLUs: slopes ``low`` below, ``low + turn`` above; only the upper line has an offset.

    All stand in one tensor, as every row selects those of its box.
    """

    all: Float[Tensor, "*batch 3 neurons"]

    @classmethod
    def of(cls, interval: Interval, dtype: torch.dtype) -> "Turned":
        """Relax ReLU on an interval; the lower slope is 0 or 1."""
        above = Line.above(interval, dtype)
        low = (interval.high > -interval.low).to(dtype)
        return cls(torch.stack([low, above.slope - low, above.offset], -2))

    @property
    def low(self) -> Float[Tensor, "*batch neurons"]:
        return self.all[..., 0, :]

    @property
    def turn(self) -> Float[Tensor, "*batch neurons"]:
        return self.all[..., 1, :]

    @property
    def offset(self) -> Float[Tensor, "*batch neurons"]:
        return self.all[..., 2, :]

    def take(self, at: Int[Tensor, " rows"] | slice) -> "Turned":
        """Select the lines of each row's box."""
        return Turned(selected(self.all, at))

    def apply(self, rows: Tensor) -> Float[Tensor, "sides rows"]:
        """Turn coefficients of ReLU's outputs into those of its inputs, in place; return the constants."""
        low, turn, offset = self.all.unbind(-2)
        negative = rows.clamp_max(0)
        constant = (negative * offset).sum(-1)
        rows.mul_(low).addcmul_(negative, turn)
        return constant


def selected(each: Float[Tensor, "batch *shape"], at: Int[Tensor, " rows"] | slice) -> Float[Tensor, "rows *shape"]:
    """Select each row's box."""
    return each[at] if isinstance(at, slice) else each.index_select(0, at)


class Charge(NamedTuple):
    """Hold the losses of a row: per coefficient, in two dtypes, and for results that underflow."""

    double: Float[Tensor, " out"]
    single: Float[Tensor, " out"]
    tiny: float


@dataclass(frozen=True)
class Found:
    """Functions of the inputs below neurons, and below their negations.

    Attributes:
        layer: the neurons' layer.
        at: the box of each row, in order.
        entry: its neuron.
        slopes, constant: the functions.
    """

    layer: int
    at: Int[Tensor, " rows"]
    entry: Int[Tensor, " rows"]
    slopes: Float[Tensor, "2 rows inputs"]
    constant: Float[Tensor, "2 rows"]

    def within(self, before: Interval, parents: Int[Tensor, " parts"], box: Interval) -> Interval:
        """Tighten intervals of all boxes' neurons on parts of the boxes."""
        counts = torch.bincount(self.at, minlength=len(before.low))
        starts, many = counts.cumsum(0) - counts, counts[parents]
        part = torch.arange(len(parents), device=parents.device).repeat_interleave(many)
        first = (starts[parents] - (many.cumsum(0) - many)).repeat_interleave(many)
        row = first + torch.arange(len(part), device=part.device)
        bound = least(self.slopes[:, row], self.constant[:, row], Interval(*(end[part] for end in box)))
        return tightened(Interval(*(end[parents] for end in before)), part, self.entry[row], bound)


class Boxed:
    """A network on a batch of boxes.

    Args:
        chain: the network.
        box: the boxes.
        signs: known signs of neurons, 1, -1 or 0 for unknown; they hold on the boxes.
        rounded: bound every float32 machine, by rows in float32; else the exact network, by rows in float64.

    Attributes:
        before: intervals of the inputs of every ReLU so far, then of the outputs.
        noise: by layer, the largest error of float32 on any of the boxes; 0 if the network is exact.
        starts: by layer, what a row that starts at one of its outputs loses: the noise, and its own rounding.
        charges: by layer, what any row of its outputs loses.
        lines: by ReLU, its lines.
        slack: by ReLU, the rounding of relaxing it, per coefficient.
        overflow: boxes where a value may overflow.
    """

    def __init__(self, chain: Chain, box: Interval, signs: Int8[Tensor, "batch neurons"], *, rounded: bool) -> None:
        self.chain, self.box, self.rounded = chain, box, rounded
        self.dtype = torch.float32 if rounded else torch.float64
        self.signs = signs.split(chain.shape[1:-1], 1)
        self.before: list[Interval] = []
        self.noise: list[Tensor] = []
        self.starts: list[Tensor] = []
        self.charges: list[Charge] = []
        self.lines: list[Turned] = []
        self.slack: list[Tensor] = []
        self.overflow = torch.zeros(len(box.low), dtype=torch.bool, device=box.low.device)

    def after(self, layer: int) -> Interval:
        """Return the intervals of a layer's inputs."""
        return Interval(*(end.relu() for end in self.before[layer - 1])) if layer else self.box

    def enter(self, layer: int) -> Interval:
        """Bound a layer's outputs by intervals and by their known signs."""
        interval, error, over = self.chain.layers[layer].interval(*self.after(layer), rounded=self.rounded)
        self.overflow = self.overflow | over
        self.noise.append(error.amax(0))
        self.starts.append(self._start(layer))
        if layer < len(self.signs):
            sign = self.signs[layer]
            ends = (end.where(sign < 1, end.clamp_min(0)) for end in interval)
            interval = Interval(*(end.where(sign > -1, end.clamp_max(0)) for end in ends))
        return interval

    def _start(self, layer: int) -> Float[Tensor, " out"]:
        """Return what rows that start at a layer's outputs lose: noise, rounded weights, and the ReLUs before."""
        noise = self.noise[layer]
        if not self.rounded:
            return noise
        here, size = self.chain.layers[layer], magnitude(self.after(layer))
        reach = 2 * UNIT * size + (CHARGE * self.slack[layer - 1] if layer else 0.0)
        lost = (reach @ here.weight.abs().T).nan_to_num(torch.inf, torch.inf)
        return (noise + self._most(lost)) * CHARGE

    def _most(self, values: Float[Tensor, "batch out"]) -> Float[Tensor, " out"]:
        """Return the largest values on any of the boxes; where values may overflow nothing is proved anyway."""
        return values.where(~self.overflow[:, None], 0.0).amax(0)

    def charge(self, active: Bool[Tensor, "batch out"]) -> None:
        """Compute what rows of the last layer's outputs lose, per coefficient and for results that underflow.

        Let V be such a row, in float32, and m the magnitudes of the layer's inputs. Its n coefficients that are not 0
        are of active neurons. V W is off by at most gamma(n) |V| |W| entrywise, so the row's value by that times m;
        V b likewise. The rows V W then meet the ReLUs before the layer: see ``settle``.
        """
        layer = len(self.charges)
        if not self.rounded:
            self.charges.append(Charge(self.noise[layer], self.noise[layer], 0.0))
            return
        here, size = self.chain.layers[layer], magnitude(self.after(layer))
        terms = gamma(active.sum(1, keepdim=True) + 3) * (size @ here.weight.abs().T + here.bias.abs())
        each = self._most(terms.nan_to_num(torch.inf, torch.inf))
        wide = magnitude(self.before[layer - 1]) if layer else size
        tiny = NORMAL * 64 * (len(here.bias) + 8) * float(self._most(2 + wide).sum())
        each = self.starts[layer] + each * CHARGE
        self.charges.append(Charge(each, up(each), tiny))

    def settle(self, interval: Interval, active: Bool[Tensor, "batch neurons"] | None = None) -> None:
        """Keep the intervals of a layer's outputs, relax the ReLUs behind them, and bound the rounding of that.

        ``active`` are the neurons that rows may have coefficients of; those that are not always 0 if not given.

        A row loses 4 units of each coefficient's product, and gamma(n + 2) of the constants that are added up. Where a
        sign is known the lines are 0 or x, and nothing is rounded.
        """
        self.before.append(interval)
        self.lines.append(Turned.of(interval, self.dtype))
        unstable = open_signs(interval)
        offset = self.lines[-1].offset.double()
        slack = 8 * UNIT * magnitude(interval) + gamma(unstable.sum(1, keepdim=True) + 4) * offset
        self.slack.append(slack.where(unstable, 0.0))
        self.charge(interval.high > 0 if active is None else active)

    def finish(self) -> None:
        """Bound the outputs by intervals."""
        interval = self.enter(len(self.chain.layers) - 1)
        self.before.append(interval)
        self.charge(torch.ones_like(interval.low, dtype=torch.bool))

    def run(self) -> list[Found]:
        """Bound every layer."""
        found: list[Found] = []
        last = len(self.chain.layers) - 1
        for layer in range(last):
            interval = self.enter(layer)
            if layer:
                interval, more = self.rows_of(layer, interval, open_signs(interval))
                found.append(more)
            self.settle(interval)
        self.finish()
        return found

    def narrowed(self, parents: Int[Tensor, " parts"], box: Interval, found: list[Found]) -> list[Interval]:
        """Bound the inputs of every ReLU on parts of the boxes, by intervals first and then by functions below them."""
        hidden = self.before[: len(self.lines)]
        before = [Interval(*(end[parents] for end in each)) for each in hidden]
        if hidden:
            before[0] = common(before[0], self.chain.layers[0].interval(*box, rounded=self.rounded)[0])
        for each in found:
            before[each.layer] = each.within(hidden[each.layer], parents, box)
        return before

    def on(self, parents: Int[Tensor, " parts"], box: Interval, before: list[Interval]) -> "Boxed":
        """Return the network on parts of the boxes, given intervals of the inputs of every ReLU.

        What holds on the boxes holds on their parts: noise, and charges, which do not grow as intervals shrink.
        """
        made = copy.copy(self)
        made.box, made.before, made.overflow = box, before, self.overflow[parents]
        made.lines = [Turned.of(each, self.dtype) for each in before]
        return made

    def affine(self, layer: int, rows: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Push rows of a layer's outputs to its inputs."""
        weight, bias = self.chain.layers[layer].cast(rows.dtype)
        constant = constant + rows @ bias
        if self.rounded:
            charge = self.charges[layer]
            each = charge.double if rows.dtype == torch.float64 else charge.single
            constant = constant - (rows.abs() @ each + charge.tiny)
        return rows @ weight, constant

    def back(
        self, layer: int, rows: Tensor, constant: Tensor, at: Int[Tensor, " rows"] | slice
    ) -> tuple[Tensor, Tensor]:
        """Push rows of a layer's inputs, in place, to the network's; ``at`` gives each row's box."""
        for i in range(layer - 1, -1, -1):
            constant = constant + self.lines[i].take(at).apply(rows)
            rows, constant = self.affine(i, rows, constant)
        return rows.double(), constant

    def start(self, layer: int, entry: Tensor) -> tuple[Tensor, Tensor]:
        """Return the rows of neurons and of their negations at their layer's inputs, and the constants."""
        here, (weight, _) = self.chain.layers[layer], self.chain.layers[layer].cast(self.dtype)
        rows, bias = weight[entry], here.bias[entry]
        return torch.stack([rows, -rows]), torch.stack([bias, -bias]) - self.starts[layer][entry]

    def rows_of(self, layer: int, interval: Interval, chosen: Tensor) -> tuple[Interval, Found]:
        """Tighten the intervals of chosen outputs by rows."""

        def below(entry: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            return self.back(layer, *self.start(layer, entry), at)

        return tightened_by(below, layer, interval, chosen, self.box, self.chain.shape[layer])

    def values(self, rows: Float[Tensor, "values outputs"]) -> tuple[Tensor, Tensor]:
        """Bound linear functions of the outputs; return their rows of the inputs, and the constants."""
        last = len(self.chain.layers) - 1
        start, constant = self.affine(last, rows, rows.new_zeros(len(rows)))
        parts = [
            self.back(last, *repeated(start, constant, part, self.dtype), part)
            for part in blocks(len(self.box.low), start.numel())
        ]
        return joined(parts)


def blocks(boxes: int, each: int) -> list[slice]:
    """Split boxes into blocks whose rows fit into the cache, given the number of coefficients per box."""
    size = max(1, BLOCK // max(1, each))
    return [slice(start, min(start + size, boxes)) for start in range(0, boxes, size)]


def repeated(
    rows: Float[Tensor, "values entries"], constant: Float[Tensor, " values"], part: slice, dtype: torch.dtype
) -> tuple[Float[Tensor, "values boxes entries"], Float[Tensor, "values boxes"]]:
    """Repeat rows for every box of a block."""
    boxes = part.stop - part.start
    return rows.to(dtype)[:, None].repeat(1, boxes, 1), constant[:, None].repeat(1, boxes)


def joined(parts: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate the rows and the constants of blocks."""
    rows, constants = zip(*parts, strict=True)
    return torch.cat(rows, 1), torch.cat(constants, 1)


def least(rows: Float[Tensor, "sides rows inputs"], constant: Tensor, box: Interval) -> Float[Tensor, "sides rows"]:
    """Minimise rows of the inputs, each over its box."""
    return constant + (rows * box.center).sum(-1) - (rows.abs() * box.half_width).sum(-1)


def open_signs(interval: Interval) -> Bool[Tensor, "batch neurons"]:
    """Return which values may have either sign."""
    return (interval.low < 0) & (interval.high > 0)


def signs_of(intervals: list[Interval]) -> Int8[Tensor, "batch neurons"]:
    """Return the signs that intervals settle: 1, -1, or 0 if none."""
    ends = [torch.cat(each, 1) for each in zip(*intervals, strict=True)]
    return (ends[0] >= 0).to(torch.int8) - ((ends[1] <= 0) & (ends[0] < 0)).to(torch.int8)


def tightened_by(
    below: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    layer: int,
    interval: Interval,
    chosen: Bool[Tensor, "batch neurons"],
    box: Interval,
    width: int,
) -> tuple[Interval, Found]:
    """Tighten chosen entries of a layer's intervals by functions of the inputs.

    Args:
        below: returns slopes and constants below entries and their negations, given the entries and their boxes.
        layer: the layer.
        interval: its intervals.
        chosen: the entries.
        box: the boxes.
        width: the number of coefficients of a row at the layer's inputs.
    """
    at, entry = chosen.nonzero(as_tuple=True)
    slopes, constants = [box.low.new_zeros((2, 0, box.low.shape[1]))], [box.low.new_zeros((2, 0))]
    for part in torch.arange(len(at), device=at.device).split(max(1, BLOCK // (2 * width))):
        rows, constant = below(entry[part], at[part])
        slopes.append(rows)
        constants.append(constant)
    found = Found(layer, at, entry, torch.cat(slopes, 1), torch.cat(constants, 1))
    bound = least(found.slopes, found.constant, Interval(*(end[at] for end in box)))
    return tightened(interval, at, entry, bound), found


def tightened(interval: Interval, at: Tensor, entry: Tensor, bound: Float[Tensor, "2 rows"]) -> Interval:
    """Intersect some entries with bounds of them and of their negations; bounds that are not finite do not count."""
    low, high = interval.low.clone(), interval.high.clone()
    here = Interval(low[at, entry], high[at, entry])
    ends = (new.where(new.isfinite(), old) for new, old in zip((bound[0], -bound[1]), here, strict=True))
    low[at, entry], high[at, entry] = common(here, Interval(*ends))
    return Interval(low, high)
