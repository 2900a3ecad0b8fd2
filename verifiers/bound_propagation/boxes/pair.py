"""CROWN's bounds of two small chains of one structure, with the differences of their neurons, over a batch of boxes.

Rows of both networks go back together. At a pair of ReLUs with values s and t, p relu(s) + q relu(t) is bounded from
below by ReLU's lines at s and at t, or as (p + q) relu(t) + p (relu(s) - relu(t)), with a line in d = s - t for the
difference: for copies d is small, and so is what that line loses. Intervals of s, t and d tighten each other.
"""

from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Float, Int, Int8
from torch import Tensor

from verifiers.bound_propagation.boxes.chains import Chain
from verifiers.bound_propagation.boxes.network import BLOCK, Boxed, Found, Turned, tightened
from verifiers.bound_propagation.native.bounds import common
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.relaxations.relu_difference import relu_difference


class Relations(StrEnum):
    """The relaxations of a pair of ReLUs."""

    JOINT = "joint"
    DIFFERENCE = "difference"
    BOTH = "both"


class Coupled(NamedTuple):
    """The lines of pairs of ReLUs.

    Attributes:
        lines: four pairs: the value for a positive coefficient p of relu(s), and what a negative one adds. They are 1
            where the line in d is taken, its slope in d there and in s elsewhere, the product of both, and its offset.
        teacher: ReLU's lines at t.
    """

    lines: Float[Tensor, "8 *batch neurons"]
    teacher: Turned

    @classmethod
    def of(cls, s: Interval, t: Interval, d: Interval) -> "Coupled":
        """Choose, for every pair, the line that is nearer to the difference at the centre, above and below."""
        at_s, at_t, up, down = Relu().lines(*s), Relu().lines(*t), Relu().lines(*d), Relu().lines(-d.high, -d.low)
        middle = [each.center for each in (s, t, d)]
        # relu(x) >= x, with equality where x >= 0: the difference is at most d where s >= 0, at least d where t >= 0
        above = up.upper_slope.where(s.low < 0, 1.0), up.upper_offset.where(s.low < 0, 0.0)
        below = down.upper_slope.where(t.low < 0, 1.0), (-down.upper_offset).where(t.low < 0, 0.0)
        unstable = (at_s.lower_slope != at_s.upper_slope) | (at_t.lower_slope != at_t.upper_slope)
        apart_above = at_s.upper_slope * middle[0] + at_s.upper_offset - at_t.lower_slope * middle[1]
        apart_below = at_s.lower_slope * middle[0] - at_t.upper_slope * middle[1] - at_t.upper_offset
        over = unstable & (above[0] * middle[2] + above[1] < apart_above)
        under = unstable & (below[0] * middle[2] + below[1] > apart_below)
        slope = below[0].where(under, at_s.lower_slope), above[0].where(over, at_s.upper_slope)
        offset = below[1].where(under, 0.0), above[1].where(over, at_s.upper_offset)
        chord = under.to(slope[0]), over.to(slope[0])
        moved = slope[0] * chord[0], slope[1] * chord[1]
        pairs = [each for one in (chord, slope, moved, offset) for each in (one[0], one[1] - one[0])]
        return cls(torch.stack(pairs), Turned.of(t))

    def take(self, at: Int[Tensor, " rows"]) -> "Coupled":
        """Repeat the lines of each row's box."""
        return Coupled(self.lines[:, at], self.teacher.take(at))

    def apply(self, p: Tensor, q: Tensor) -> Float[Tensor, "sides rows"]:
        """Turn coefficients of the outputs into those of the inputs, in place; return the constants."""
        chord, chord_turn, slope, slope_turn, moved, moved_turn, offset, offset_turn = self.lines
        negative = p.clamp_max(0)
        q.addcmul_(p, chord).addcmul_(negative, chord_turn)
        constant = (p * offset).addcmul_(negative, offset_turn).sum(-1) + self.teacher.apply(q)
        q.addcmul_(p, moved, value=-1).addcmul_(negative, moved_turn, value=-1)
        p.mul_(slope).addcmul_(negative, slope_turn)
        return constant


class BoxedPair:
    """Two networks on a batch of boxes, with intervals of every layer.

    Args:
        chains: student and teacher, of one structure.
        box: the boxes.
        signs: known signs of neurons of both; they hold on the boxes.
        rounded: bound every float32 machine, not the exact networks.
        relations: the relaxations.
    """

    def __init__(
        self,
        chains: tuple[Chain, Chain],
        box: Interval,
        signs: Int8[Tensor, "batch neurons"],
        *,
        rounded: bool,
        relations: Relations = Relations.BOTH,
    ) -> None:
        self.relations = relations
        self.student, self.teacher = (
            Boxed(chain, box, part, rounded=rounded) for chain, part in zip(chains, signs.chunk(2, 1), strict=True)
        )
        self.box, self.hidden = box, chains[0].hidden
        self.lines: list[Coupled] = []
        self.found: list[Found] = []
        self.apart: list[Interval] = []
        for layer in range(len(chains[0].layers)):
            self._layer(layer, last=layer == len(chains[0].layers) - 1)

    @property
    def overflow(self) -> Tensor:
        """Boxes where a value may overflow."""
        return self.student.overflow | self.teacher.overflow

    def _layer(self, layer: int, *, last: bool) -> None:
        s, t = self.student.enter(layer), self.teacher.enter(layer)
        d = self._difference(layer)
        if last:
            return
        if layer:
            if self.relations is not Relations.DIFFERENCE:
                s, found = self.student.rows_of(layer, s)
                self.found.append(found)
            t, found = self.teacher.rows_of(layer, t)
            self.found.append(Found(found.at, found.neuron + self.hidden, found.bound, found.slopes))
        if self.relations is not Relations.JOINT:
            s, t, d = _mutual(s, t, d, self.relations)
            if layer:
                d = self._rows_of(layer, s, t, d)
                s, t, d = _mutual(s, t, d, self.relations)
            self.apart.append(d)
            self.lines.append(Coupled.of(s, t, d))
        self.student.settle(s)
        self.teacher.settle(t)

    def _difference(self, layer: int) -> Interval:
        """Bound s - t by intervals."""
        ours, theirs = self.student.chain.layers[layer], self.teacher.chain.layers[layer]
        weight, bias = ours.weight - theirs.weight, ours.bias - theirs.bias
        after = self.teacher.after(layer)
        low, high = _product(weight, after)
        low, high = low + bias, high + bias
        if layer and self.apart:
            before = self.teacher.before[layer - 1], self.student.before[layer - 1], self.apart[layer - 1]
            moved = _product(ours.weight, relu_difference(*before))
            low, high = low + moved.low, high + moved.high
        noise = self.student.noise[layer] + self.teacher.noise[layer]
        return Interval(low - noise, high + noise)

    def _rows_of(self, layer: int, s: Interval, t: Interval, d: Interval) -> Interval:
        """Tighten the differences of pairs of which one has an unknown sign."""
        open_ = [(each.low < 0) & (each.high > 0) for each in (s, t)]
        at, entry = (open_[0] | open_[1]).nonzero(as_tuple=True)
        nets = self.student, self.teacher
        ours, theirs = (net.chain.layers[layer] for net in nets)
        bias = ours.bias - theirs.bias
        less = self.student.noise[layer] + self.teacher.noise[layer]
        bounds = [bias.new_zeros((2, 0))]
        for part in torch.arange(len(at), device=at.device).split(max(1, BLOCK // (2 * ours.weight.shape[1]))):
            chosen = entry[part]
            p, q = (torch.stack([w, -w]) for w in (ours.weight[chosen], -theirs.weight[chosen]))
            constant = torch.stack([bias[chosen], -bias[chosen]]) - less[chosen]
            bounds.append(self.student.least(*self.back(layer, p, q, constant, at[part]), at[part]))
        return tightened(d, at, entry, torch.cat(bounds, 1))

    def back(self, layer: int, p: Tensor, q: Tensor, constant: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Push rows of both networks' inputs of a layer, in place, to the shared inputs."""
        for i in range(layer - 1, -1, -1):
            lines = self.lines[i] if at is None else self.lines[i].take(at)
            constant = constant + lines.apply(p, q)
            p, constant = self.student.affine(i, p, constant)
            q, constant = self.teacher.affine(i, q, constant)
        return p + q, constant

    def values(self, rows: Float[Tensor, "values both"]) -> list[tuple[Tensor, Tensor]]:
        """Bound linear functions of both outputs, by each of the relaxations."""
        last, batch, parts = len(self.student.chain.layers) - 1, len(self.box.low), rows.chunk(2, 1)
        zero = rows.new_zeros(len(rows))
        p, first = self.student.affine(last, parts[0].contiguous(), zero)
        q, second = self.teacher.affine(last, parts[1].contiguous(), zero)

        def start(values: Tensor) -> Tensor:
            return values[:, None].repeat(1, batch, *[1] * (values.ndim - 1))

        found = []
        if self.relations is not Relations.DIFFERENCE:
            ours = self.student.back(last, start(p), start(first), None)
            theirs = self.teacher.back(last, start(q), start(second), None)
            found.append((ours[0] + theirs[0], ours[1] + theirs[1]))
        if self.relations is not Relations.JOINT:
            found.append(self.back(last, start(p), start(q), start(first + second), None))
        return found


def _product(weight: Tensor, box: Interval) -> Interval:
    """Bound a product with a matrix."""
    center, half = box.center @ weight.T, box.half_width @ weight.abs().T
    return Interval(center - half, center + half)


def _mutual(s: Interval, t: Interval, d: Interval, relations: Relations) -> tuple[Interval, Interval, Interval]:
    """Intersect each of s, t and d = s - t with what the other two leave."""
    s = common(s, Interval(t.low + d.low, t.high + d.high))
    if relations is Relations.BOTH:
        t = common(t, Interval(s.low - d.high, s.high - d.low))
        d = common(d, Interval(s.low - t.high, s.high - t.low))
    return s, t, d
