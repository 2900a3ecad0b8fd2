"""Refute cases on a box by halving it until bounds refute them on every part."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from verifiers.bound_propagation.boxes.bounders import Bounded, Bounder, Cuts, bounder_of, pair_bounder_of
from verifiers.bound_propagation.half_spaces import Ended, HalfSpaces
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.engine import Native
from verifiers.geometry.boxes import Boxes

#: The most numbers in the corners and signs of all waiting boxes.
WAITING = 2**28
#: A side that is shorter than this share of its ends holds only a few float32 numbers and is not split.
SHORTEST = 2.0**-22

#: Tries points of the box, in the dtype of the bounds; returns which of them are counterexamples.
Tries = Callable[[Float[Tensor, "points *shape"]], Bool[Tensor, " points"]]


class Parts(NamedTuple):
    """Parts of a box.

    Attributes:
        low, high: their corners.
        left: the cases that are not refuted on them.
        signs: known signs of neurons.
    """

    low: Float[Tensor, "parts *shape"]
    high: Float[Tensor, "parts *shape"]
    left: Bool[Tensor, "parts cases"]
    signs: Int8[Tensor, "parts neurons"]

    @property
    def numbers(self) -> int:
        """The memory that the parts need, in numbers of 8 bytes."""
        return 2 * self.low.numel() + (self.left.numel() + self.signs.numel()) // 8

    def take(self, chosen: Tensor | slice) -> "Parts":
        """Select some of the parts."""
        return Parts(*(each[chosen] for each in self))


def _last(waiting: list[Parts], size: int) -> Parts:
    """Take the last parts, at most ``size``, out of the list."""
    taken = []
    while waiting and size:
        part = waiting.pop()
        if len(part.low) > size:
            waiting.append(part.take(slice(0, -size)))
            part = part.take(slice(-size, None))
        taken.append(part)
        size -= len(part.low)
    return Parts(*(torch.cat(each) for each in zip(*taken, strict=True)))


class InputSplitting:
    """Refute cases on a box by halving it until CROWN refutes them on every part.

    Each part is halved along the side that the bounds of its open cases depend on most: the largest product of slope
    and length. For networks with few inputs this ends where splits of neurons do not.

    Args:
        native: the engine, or bounds of the same cases.
        spaces: the cases.
        deadline: on ``time.monotonic``.
        tries: tries points.
    """

    def __init__(self, native: Native | Bounder, spaces: HalfSpaces, *, deadline: float, tries: Tries) -> None:
        self.bounder = bounder_of(native, spaces) if isinstance(native, Native) else native
        self.spaces, self.deadline, self.tries = spaces, deadline, tries
        self.pace, self.count, self.hit = 0.0, 0, False  # pace: seconds of the last round per box
        self.least = torch.inf  # the least bound that refuted a case

    def run(self, boxes: Boxes) -> Ended:
        """Split boxes until every case is refuted, a counterexample is found, or time, memory or splits run out."""
        low, high = boxes.box()
        left = torch.ones((len(low), self.spaces.cases), dtype=torch.bool, device=low.device)
        signs = torch.zeros((len(low), self.bounder.neurons), dtype=torch.int8, device=low.device)
        waiting = [Parts(low, high, left, signs)]
        while waiting and not self.hit:
            if not (size := self._in_time()):
                return Ended(False, self.count, late=True)
            if sum(part.numbers for part in waiting) > WAITING:
                return Ended(False, self.count, reason="memory could run out from the parts of the box", full=True)
            halves = self._round(_last(waiting, size))
            if halves is None:
                return Ended(False, self.count, reason="parts of the box became too small to be split")
            waiting += [part for part in halves if len(part.low)]
        return Ended(not self.hit, self.count, bound=torch.nan if self.hit else self.least)

    def _in_time(self) -> int:
        """Return how many boxes can be bounded before the deadline, at most those of a round."""
        left, size = self.deadline - time.monotonic(), self.bounder.size
        return max(0, min(size, int(left / self.pace))) if self.pace else size * (left > 0)

    def _round(self, parts: "Parts") -> list["Parts"] | None:
        """Bound some boxes; return the halves of those that are left, or None if one of them cannot be split."""
        started = time.monotonic()
        bounded = self.bounder(parts.low, parts.high, parts.signs)
        left = self._left(parts.left, bounded.values)
        self.count += len(left)
        open_ = left.any(1).nonzero().flatten()
        low, high, left, slopes = parts.low[open_], parts.high[open_], left[open_], bounded.slopes[open_]
        halves: list[Parts] | None = []
        if len(open_):
            self._descend(low, high, left, slopes)
            if (side := self._sides(low, high, left, slopes)) is None:
                halves = None
            else:
                halves = [self._halves(low, high, left, bounded, open_, side)]
        self.pace = (time.monotonic() - started) / len(parts.low)
        return halves

    def _left(self, left: Tensor, values: Tensor) -> Tensor:
        """Return which of the cases that are left are not refuted by bounds of their values."""
        largest = self.spaces.largest(values)
        refuted = left & (largest > 0)
        if bool(refuted.any()):
            self.least = min(self.least, float(largest[refuted].amin()))
        return left & ~refuted

    def _descend(self, low: Tensor, high: Tensor, left: Tensor, slopes: Tensor) -> None:
        """Try the centre of every box, and its corner where the open values are least."""
        weight = left[:, self.spaces.case].to(slopes)
        slope = torch.einsum("bv,bvi->bi", weight, slopes).reshape(low.shape)
        corner = torch.where(slope > 0, low, high)
        self.hit = bool(self.tries(torch.cat([low / 2 + high / 2, corner])).any())

    def _sides(self, low: Tensor, high: Tensor, left: Tensor, slopes: Tensor) -> Tensor | None:
        """Choose the side of every box that its open values depend on most; None if a box has none to cut."""
        sides, weight = (high - low).flatten(1), left[:, self.spaces.case].to(slopes)
        splittable = sides > SHORTEST * torch.maximum(low.abs(), high.abs()).flatten(1)
        if not bool(splittable.any(1).all()):
            return None
        effect = torch.einsum("bv,bvi->bi", weight, slopes.abs().nan_to_num(0.0, 0.0, 0.0)) * sides
        return (effect + 1e-12 * sides).masked_fill(~splittable, -1.0).argmax(1)

    def _halves(
        self, low: Tensor, high: Tensor, left: Tensor, bounded: Bounded, open_: Tensor, side: Tensor
    ) -> "Parts":
        """Halve boxes, and leave out the halves on which the functions behind the bounds refute every case."""
        flat, at = (low.flatten(1), high.flatten(1)), side[:, None]
        middle = (flat[0] / 2 + flat[1] / 2).gather(1, at)
        ends = [end.gather(1, at) for end in flat]
        cuts = Cuts(open_, side, torch.maximum(ends[1] - middle, middle - ends[0]).flatten())
        lower = Parts(low, flat[1].scatter(1, at, middle).reshape(high.shape), left, left)
        upper = Parts(flat[0].scatter(1, at, middle).reshape(low.shape), high, left, left)
        both = Parts(*(torch.cat(pair) for pair in zip(lower, upper, strict=True)))
        rise = torch.cat(cuts.rise(bounded.slopes[open_]))
        values = bounded.values[open_].repeat(2, 1) + rise
        both = both._replace(left=self._left(both.left, values), signs=bounded.halved(cuts))
        return both.take(both.left.any(1))


def split_pair(engine: JointEngine, spaces: HalfSpaces, boxes: Boxes, *, deadline: float, tries: Tries) -> Ended:
    """Refute cases on a box of a pair of networks by splitting the box.

    Args:
        engine: the pair.
        spaces: the cases, in the student's outputs followed by the teacher's.
        boxes: one box, or parts of one.
        deadline: on ``time.monotonic``.
        tries: tries points.
    """
    return InputSplitting(pair_bounder_of(engine, spaces), spaces, deadline=deadline, tries=tries).run(boxes)
