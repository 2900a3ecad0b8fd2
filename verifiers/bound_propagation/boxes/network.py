"""CROWN's bounds of one small chain over a batch of boxes, by products of matrices.

The bounds are those of the native engine: intervals forward; rows of neurons whose sign is unknown backward, from both
sides; and rows of the values. The native engine serves any graph and pays for it at every step; this serves thousands
of boxes of a small network at once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from verifiers.bound_propagation.boxes.chains import Chain
from verifiers.bound_propagation.native.bounds import common
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.piecewise import Relu

#: The most coefficients of the rows that go back together; more fall out of the processor's cache.
BLOCK = 2**16


class Turned(NamedTuple):
    """The lines of ReLUs: slopes ``low`` below, ``low + turn`` above; only the upper line has an offset."""

    low: Float[Tensor, "*batch neurons"]
    turn: Float[Tensor, "*batch neurons"]
    offset: Float[Tensor, "*batch neurons"]

    @classmethod
    def of(cls, interval: Interval) -> "Turned":
        """Relax ReLU on an interval."""
        lines = Relu().lines(*interval)
        return cls(lines.lower_slope, lines.upper_slope - lines.lower_slope, lines.upper_offset)

    def take(self, at: Int[Tensor, " rows"]) -> "Turned":
        """Repeat the lines of each row's box."""
        return Turned(self.low[at], self.turn[at], self.offset[at])

    def apply(self, rows: Tensor) -> Float[Tensor, "sides rows"]:
        """Turn coefficients of ReLU's outputs into those of its inputs, in place; return the constants."""
        negative = rows.clamp_max(0)
        constant = (negative * self.offset).sum(-1)
        rows.mul_(self.low).addcmul_(negative, self.turn)
        return constant


@dataclass(frozen=True)
class Found:
    """Bounds of neurons and of their negations, with the functions of the inputs behind them.

    Attributes:
        at: the box of each row.
        neuron: its neuron, counted through the network.
        bound: lower bounds of the neuron and of its negation.
        slopes: the functions whose least values over the box they are.
    """

    at: Int[Tensor, " rows"]
    neuron: Int[Tensor, " rows"]
    bound: Float[Tensor, "2 rows"]
    slopes: Float[Tensor, "2 rows inputs"]


class Boxed:
    """A network on a batch of boxes.

    Args:
        chain: the network.
        box: the boxes.
        signs: known signs of neurons, 1, -1 or 0 for unknown; they hold on the boxes.
        rounded: bound every float32 machine, not the exact network.

    Attributes:
        before: intervals of the inputs of every ReLU so far, then of the outputs.
        noise: by layer, the largest error of float32 on any of the boxes; 0 if the network is exact.
        lines: by ReLU, its lines.
        overflow: boxes where a value may overflow.
    """

    def __init__(self, chain: Chain, box: Interval, signs: Int8[Tensor, "batch neurons"], *, rounded: bool) -> None:
        self.chain, self.box, self.rounded = chain, box, rounded
        self.center, self.radius = box.center, box.half_width
        self.signs = signs.split(chain.shape[1:-1], 1)
        self.starts = [sum(chain.shape[1 : 1 + i]) for i in range(len(chain.layers))]
        self.before: list[Interval] = []
        self.noise: list[Tensor] = []
        self.lines: list[Turned] = []
        self.overflow = torch.zeros(len(box.low), dtype=torch.bool, device=box.low.device)

    def after(self, layer: int) -> Interval:
        """Return the intervals of a layer's inputs."""
        return Interval(*(end.relu() for end in self.before[layer - 1])) if layer else self.box

    def enter(self, layer: int) -> Interval:
        """Bound a layer's outputs by intervals and by their known signs."""
        interval, error, over = self.chain.layers[layer].interval(*self.after(layer), rounded=self.rounded)
        self.overflow = self.overflow | over
        self.noise.append(error.amax(0))
        if layer < len(self.signs):
            sign = self.signs[layer]
            ends = (end.where(sign < 1, end.clamp_min(0)) for end in interval)
            interval = Interval(*(end.where(sign > -1, end.clamp_max(0)) for end in ends))
        return interval

    def settle(self, interval: Interval) -> None:
        """Keep the intervals of a layer's outputs, and relax the ReLU behind them."""
        self.before.append(interval)
        self.lines.append(Turned.of(interval))

    def affine(self, layer: int, rows: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
        """Push rows of a layer's outputs to its inputs."""
        here = self.chain.layers[layer]
        constant = constant + rows @ here.bias
        if self.rounded:
            constant = constant - rows.abs() @ self.noise[layer]
        return rows @ here.weight, constant

    def back(self, layer: int, rows: Tensor, constant: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Push rows of a layer's inputs, in place, to the network's; ``at`` gives each row's box if they differ."""
        for i in range(layer - 1, -1, -1):
            lines = self.lines[i] if at is None else self.lines[i].take(at)
            constant = constant + lines.apply(rows)
            rows, constant = self.affine(i, rows, constant)
        return rows, constant

    def least(self, rows: Tensor, constant: Tensor, at: Tensor | None) -> Float[Tensor, "sides rows"]:
        """Minimise rows of the inputs over their boxes."""
        center, radius = (end if at is None else end[at] for end in (self.center, self.radius))
        return constant + (rows * center).sum(-1) - (rows.abs() * radius).sum(-1)

    def rows_of(self, layer: int, interval: Interval) -> tuple[Interval, Found]:
        """Tighten the intervals of outputs whose sign they leave open."""
        at, entry = ((interval.low < 0) & (interval.high > 0)).nonzero(as_tuple=True)
        here, noise = self.chain.layers[layer], self.noise[layer]
        bounds, slopes = [here.bias.new_zeros((2, 0))], [here.bias.new_zeros((2, 0, self.box.low.shape[1]))]
        for part in torch.arange(len(at), device=at.device).split(max(1, BLOCK // here.weight.shape[1])):
            weight, bias = here.weight[entry[part]], here.bias[entry[part]]
            constant = torch.stack([bias, -bias]) - noise[entry[part]]
            pushed = self.back(layer, torch.stack([weight, -weight]), constant, at[part])
            bounds.append(self.least(*pushed, at[part]))
            slopes.append(pushed[0])
        found = Found(at, entry + self.starts[layer], torch.cat(bounds, 1), torch.cat(slopes, 1))
        return tightened(interval, at, entry, found.bound), found

    def run(self) -> list[Found]:
        """Bound every layer."""
        found: list[Found] = []
        last = len(self.chain.layers) - 1
        for layer in range(last):
            interval = self.enter(layer)
            if layer:
                interval, more = self.rows_of(layer, interval)
                found.append(more)
            self.settle(interval)
        self.before.append(self.enter(last))
        return found

    def values(self, rows: Float[Tensor, "values outputs"]) -> tuple[Tensor, Tensor]:
        """Bound linear functions of the outputs; return their rows of the inputs, and the constants."""
        last = len(self.chain.layers) - 1
        start, constant = self.affine(last, rows, rows.new_zeros(len(rows)))
        batch = len(self.center)
        return self.back(last, start[:, None].repeat(1, batch, 1), constant[:, None].repeat(1, batch), None)


def tightened(interval: Interval, at: Tensor, entry: Tensor, bound: Float[Tensor, "2 rows"]) -> Interval:
    """Intersect some entries with bounds of them and of their negations; bounds that are not finite do not count."""
    low, high = interval.low.clone(), interval.high.clone()
    here = Interval(low[at, entry], high[at, entry])
    ends = (new.where(new.isfinite(), old) for new, old in zip((bound[0], -bound[1]), here, strict=True))
    both = common(here, Interval(*ends))
    low[at, entry], high[at, entry] = both
    return Interval(low, high)


def settled(bound: Float[Tensor, "2 rows"]) -> tuple[Bool[Tensor, " rows"], Int8[Tensor, " rows"]]:
    """Return which neurons have a sign, from lower bounds of them and of their negations, and the signs."""
    positive, negative = bound >= 0
    return positive | negative, positive.to(torch.int8) - negative.to(torch.int8)
