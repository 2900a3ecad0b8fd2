"""CROWN's bounds of two small chains of one structure, with the differences of their neurons, over a batch of boxes.

Rows of both networks go back together. At a pair of ReLUs with values s and t, p relu(s) + q relu(t) is bounded from
below by ReLU's lines at s and at t, or as (p + q) relu(t) + p (relu(s) - relu(t)), with a line in d = s - t for the
difference: for copies d is small, and so is what that line loses. Intervals of s, t and d tighten each other.
"""

import copy
from enum import StrEnum
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from verifiers.bound_propagation.boxes.chains import Chain
from verifiers.bound_propagation.boxes.network import (
    Boxed,
    Found,
    Turned,
    blocks,
    joined,
    open_signs,
    repeated,
    selected,
    tightened_by,
)
from verifiers.bound_propagation.native.bounds import common
from verifiers.graph.operators import Interval
from verifiers.graph.relaxations.relu_difference import ReluDifference, relu_difference
from verifiers.graph.rounding import UNIT, gamma, magnitude

#: The student has no rows of its own where the width of the difference is at most this share of the teacher's.
CLOSE = 0.1


class Relations(StrEnum):
    """The relaxations of a pair of ReLUs."""

    JOINT = "joint"
    DIFFERENCE = "difference"
    BOTH = "both"


class Coupled(NamedTuple):
    """The lines of pairs of ReLUs.

    Attributes:
        all: first ``chord``: 1 where neither neuron is stable and relu(s) - relu(t) gets a plane, 0 where each ReLU
            gets a line. Then three pairs: the value for a positive coefficient p of relu(s), and what a negative one
            adds. They are the slope in s, the slope of the plane in -t, and the offset. Last, ReLU's lines at t.
        largest: a bound of all offsets, which does not grow as intervals shrink.
    """

    all: Float[Tensor, "*batch 10 neurons"]
    largest: Float[Tensor, "*batch neurons"]

    @classmethod
    def of(cls, s: Interval, t: Interval, d: Interval, at_s: Turned, at_t: Turned) -> "Coupled":
        """Relax pairs of ReLUs.

        The offset of a plane is at most 6 |d|, as relu(s) - relu(t) is between 0 and d, and its slopes in s and -t
        differ by at most 5 |d| over the width of t.
        """
        both, dtype = open_signs(s) & open_signs(t), at_s.low.dtype
        small = [Interval(x.low[both], x.high[both]) for x in (t, s, d)]
        planes = ReluDifference().relax([*small[:2], *small])
        slopes, zero = (at_s.low, at_s.low + at_s.turn), torch.zeros_like(at_s.low)
        pairs = [
            [old.masked_scatter(both, new.to(dtype)) for old, new in zip(each, plane, strict=True)]
            for each, plane in (
                (slopes, [plane.in_s for plane in planes]),
                ((zero, zero), [plane.in_t for plane in planes]),
                ((zero, at_s.offset), [plane.offset for plane in planes]),
            )
        ]
        lines = [each for one, other in pairs for each in (one, other - one)]
        largest = torch.maximum(torch.maximum(at_s.offset, at_t.offset), 6 * magnitude(d).where(both, 0.0))
        return cls(torch.stack([both.to(dtype), *lines, *at_t.all.unbind(-2)], -2), largest)

    def take(self, at: Int[Tensor, " rows"] | slice) -> "Coupled":
        """Select the lines of each row's box."""
        return Coupled(selected(self.all, at), self.largest)

    def apply(self, p: Tensor, q: Tensor) -> Float[Tensor, "sides rows"]:
        """Turn coefficients of the outputs into those of the inputs, in place; return the constants."""
        chord, slope, slope_turn, moved, moved_turn, offset, offset_turn = self.all[..., :7, :].unbind(-2)
        negative = p.clamp_max(0)
        q.addcmul_(p, chord)
        constant = (p * offset).addcmul_(negative, offset_turn).sum(-1) + Turned(self.all[..., 7:, :]).apply(q)
        q.addcmul_(p, moved, value=-1).addcmul_(negative, moved_turn, value=-1)
        p.mul_(slope).addcmul_(negative, slope_turn)
        return constant

    def slack(self, s: Interval, t: Interval) -> Float[Tensor, "batch neurons"]:
        """Bound what the rounding of ``apply`` moves a row by, per coefficient of either network.

        Each slope, product and sum is off by a unit of |p| or |q|, times |s|, |t| or |d|; there are fewer than 32.
        Constants are off by gamma(n + 4) of their terms, at most 3 for |p| and 1 for |q|, each at most the largest
        offset. Where both signs are known, coefficients are multiplied by 0 and 1, and nothing is rounded.
        """
        unstable = open_signs(s) | open_signs(t)
        terms = gamma(unstable.sum(1, keepdim=True) + 4) * 4 * self.largest.double()
        return (32 * UNIT * (magnitude(s) + magnitude(t)) + terms).where(unstable, 0.0)


class BoxedPair:
    """Two networks on a batch of boxes.

    Args:
        chains: student and teacher, of one structure.
        box: the boxes.
        signs: known signs of neurons of both; they hold on the boxes.
        rounded: bound every float32 machine, by rows in float32; else the exact networks, by rows in float64.
        relations: the relaxations.

    Attributes:
        student, teacher: the networks.
        apart: by layer, intervals of the difference of the two.
        lines: by ReLU, its lines.
        found: functions below the neurons of the student, the teacher and the difference.
        part: True for parts of other boxes.
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
        self.chains, self.relations, self.box = chains, relations, box
        self.student, self.teacher = (
            Boxed(chain, box, part, rounded=rounded) for chain, part in zip(chains, signs.chunk(2, 1), strict=True)
        )
        self.apart: list[Interval] = []
        self.lines: list[Coupled] = []
        self.found: tuple[list[Found], list[Found], list[Found]] = [], [], []
        self.part = False

    @property
    def overflow(self) -> Bool[Tensor, " batch"]:
        """Boxes where a value may overflow."""
        return self.student.overflow | self.teacher.overflow

    def run(self) -> None:
        """Bound every layer."""
        last = len(self.chains[0].layers) - 1
        for layer in range(last):
            s, t = self.student.enter(layer), self.teacher.enter(layer)
            if self.relations is Relations.JOINT:
                if layer:
                    s, t = (self._alone(side, layer, x, open_signs(x)) for side, x in enumerate((s, t)))
                self._settle(s, t, None)
            else:
                self._settle(*self._related(layer, s, t))
        self.student.finish()
        self.teacher.finish()
        self._share()

    def _settle(self, s: Interval, t: Interval, d: Interval | None) -> None:
        nets, active = (self.student, self.teacher), (s.high > 0) | (t.high > 0)
        for net, interval in zip(nets, (s, t), strict=True):
            net.settle(interval, active)
        self._share()
        if d is not None:
            self.apart.append(d)
            self.lines.append(self._coupled(len(self.lines), s, t, d))
            slack = self.lines[-1].slack(s, t)
            for net in nets:
                net.slack[-1] = torch.maximum(net.slack[-1], slack)

    def _coupled(self, layer: int, s: Interval, t: Interval, d: Interval) -> Coupled:
        return Coupled.of(s, t, d, self.student.lines[layer], self.teacher.lines[layer])

    def _share(self) -> None:
        """Charge rows of either network for results of both that underflow."""
        nets = self.student, self.teacher
        tiny = sum(net.charges[-1].tiny for net in nets)
        for net in nets:
            net.charges[-1] = net.charges[-1]._replace(tiny=tiny)

    def _related(self, layer: int, s: Interval, t: Interval) -> tuple[Interval, Interval, Interval]:
        """Bound a layer of both networks and their difference.

        The student's own rows are left out where its value is known as well from the teacher's and the difference.
        """
        s, t, d = self._mutual(s, t, self._difference(layer))
        if not layer:
            return s, t, d
        t = self._alone(1, layer, t, open_signs(t))
        s, t, d = self._mutual(s, t, d)
        d = self._rows_of(layer, open_signs(s) | open_signs(t), d)
        s, t, d = self._mutual(s, t, d)
        if self.relations is Relations.BOTH:
            apart = d.high - d.low > CLOSE * (t.high - t.low)
            s = self._alone(0, layer, s, open_signs(s) & apart)
            s, t, d = self._mutual(s, t, d)
        return s, t, d

    def _alone(self, side: int, layer: int, interval: Interval, chosen: Tensor) -> Interval:
        interval, found = (self.student, self.teacher)[side].rows_of(layer, interval, chosen)
        self.found[side].append(found)
        return interval

    def _difference(self, layer: int) -> Interval:
        """Bound s - t by intervals."""
        ours, theirs = (chain.layers[layer] for chain in self.chains)
        low, high = _product(ours.weight - theirs.weight, self.teacher.after(layer))
        if layer:
            before = self.teacher.before[layer - 1], self.student.before[layer - 1], self.apart[layer - 1]
            moved = _product(ours.weight, relu_difference(*before))
            low, high = low + moved.low, high + moved.high
        bias, noise = ours.bias - theirs.bias, self.student.noise[layer] + self.teacher.noise[layer]
        return Interval(low + bias - noise, high + bias + noise)

    def _rows_of(self, layer: int, chosen: Tensor, d: Interval) -> Interval:
        """Tighten chosen differences by rows of both networks."""

        def below(entry: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
            (p, first), (q, second) = (net.start(layer, entry) for net in (self.student, self.teacher))
            less = second.flip(0)  # the teacher's rows are subtracted
            return self.back(layer, p, q.neg_(), first + less, at)

        d, found = tightened_by(below, layer, d, chosen, self.box, self.chains[0].shape[layer])
        self.found[2].append(found)
        return d

    def _mutual(self, s: Interval, t: Interval, d: Interval) -> tuple[Interval, Interval, Interval]:
        """Intersect each of s, t and d = s - t with what the other two leave."""
        s = common(s, Interval(t.low + d.low, t.high + d.high))
        if self.relations is Relations.BOTH:
            t = common(t, Interval(s.low - d.high, s.high - d.low))
            d = common(d, Interval(s.low - t.high, s.high - t.low))
        return s, t, d

    def on(self, parents: Int[Tensor, " parts"], box: Interval) -> "BoxedPair":
        """Return the pair on parts of the boxes, with what the functions below its neurons give there."""
        made, nets = copy.copy(self), (self.student, self.teacher)
        s, t = (net.narrowed(parents, box, found) for net, found in zip(nets, self.found, strict=False))
        together: list[tuple[Interval, Interval, Interval]] = []
        if self.apart:
            d = [Interval(*(end[parents] for end in each)) for each in self.apart]
            for each in self.found[2]:
                d[each.layer] = each.within(self.apart[each.layer], parents, box)
            together = [self._mutual(*each) for each in zip(s, t, d, strict=True)]
            s, t = ([each[side] for each in together] for side in (0, 1))
        made.student, made.teacher = (net.on(parents, box, each) for net, each in zip(nets, (s, t), strict=True))
        made.part = True
        made.box, made.lines = box, [made._coupled(layer, *each) for layer, each in enumerate(together)]
        return made

    def back(
        self, layer: int, p: Tensor, q: Tensor, constant: Tensor, at: Int[Tensor, " rows"] | slice
    ) -> tuple[Tensor, Tensor]:
        """Push rows of both networks' inputs of a layer, in place, to the shared inputs."""
        for i in range(layer - 1, -1, -1):
            constant = constant + self.lines[i].take(at).apply(p, q)
            p, constant = self.student.affine(i, p, constant)
            q, constant = self.teacher.affine(i, q, constant)
        return p.double() + q.double(), constant

    def values(self, rows: Float[Tensor, "values both"]) -> list[tuple[Tensor, Tensor]]:
        """Bound linear functions of both outputs, by each of the relaxations.

        On parts of boxes those of both networks together have to do: they are nearly always the better ones.
        """
        last, parts = len(self.chains[0].layers) - 1, rows.chunk(2, 1)
        nets, zero = (self.student, self.teacher), rows.new_zeros(len(rows))
        starts = [net.affine(last, part.contiguous(), zero) for net, part in zip(nets, parts, strict=True)]
        found: list[list[tuple[Tensor, Tensor]]] = [[], []]
        for part in blocks(len(self.box.low), 2 * starts[0][0].numel()):
            repeats = [repeated(*start, part, self.student.dtype) for start in starts]
            if self.lines:
                p, q = (each[0].clone() for each in repeats)
                found[0].append(self.back(last, p, q, repeats[0][1] + repeats[1][1], part))
            if not self.lines or (self.relations is Relations.BOTH and not self.part):
                done = [net.back(last, *each, part) for net, each in zip(nets, repeats, strict=True)]
                found[1].append((done[0][0] + done[1][0], done[0][1] + done[1][1]))
        return [joined(each) for each in found if each]


def _product(weight: Tensor, box: Interval) -> Interval:
    """Bound a product with a matrix."""
    center, half = box.center @ weight.T, box.half_width @ weight.abs().T
    return Interval(center - half, center + half)
