"""Refute cases on a box by halving it until bounds refute them on every part."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int8
from torch import Tensor

from verifiers.bound_propagation.boxes.bounders import Bounded, Bounder, bounder_of, pair_bounder_of
from verifiers.bound_propagation.half_spaces import Ended, HalfSpaces
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.engine import Native
from verifiers.geometry.boxes import Boxes

#: The most numbers in the corners and signs of all waiting boxes.
WAITING = 2**28
#: A side that is shorter than this share of its ends holds only a few float32 numbers and is not split.
SHORTEST = 2.0**-22
#: Boxes are split up to this many inputs; with more, neurons are.
FEW_INPUTS = 12
#: How often the parts of a box are halved and bounded by the functions below its neurons, before these are renewed.
LEVELS = 5
#: They are renewed earlier where less than this share of the parts was refuted by them.
SHARE = 0.5

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


def last_parts(waiting: list[Parts], size: int) -> Parts:
    """Take the last parts, at most ``size``, out of the list."""
    taken = []
    while waiting and size > 0:
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
            halves = self._round(last_parts(waiting, size))
            if halves is None:
                return Ended(False, self.count, reason="parts of the box became too small to be split")
            waiting += [part for part in halves if len(part.low)]
        return Ended(not self.hit, self.count, bound=torch.nan if self.hit else self.least)

    def _in_time(self) -> int:
        """Return how many boxes to bound in a round: at most those of half of the time that is left, if any fits in."""
        left, size = max(0.0, self.deadline - time.monotonic()), self.bounder.size
        if not self.pace:
            return size * (left > 0)
        fit = left / self.pace
        return min(size, int(fit / 2) or int(fit >= 1))

    def _round(self, parts: "Parts") -> list["Parts"] | None:
        """Bound some boxes; return the parts of those that are left, or None if one of them cannot be split.

        Where parts are bounded at a small share of the cost, open ones are halved again at once.
        """
        started, boxes = time.monotonic(), len(parts.low)
        here, inner = self.bounder(parts.low, parts.high, parts.signs)
        origin, level = torch.arange(boxes, device=parts.low.device), 0
        while True:
            left = self._left(parts.left, here.values)
            self.count += len(left)
            open_ = left.any(1).nonzero().flatten()
            parts = parts._replace(left=left, signs=here.signs).take(open_)
            here, origin = here.take(open_), origin[open_]
            if not len(open_) or level == LEVELS or (level > 1 and len(open_) > (1 - SHARE) * len(left)):
                break
            self._descend(parts, here.slopes)
            if self.hit:
                return []
            if (halves := self._halves(parts, here)) is None:
                return None
            parts, origin, level = halves[0], origin.repeat(2)[halves[1]], level + 1
            if inner is None or not len(origin):
                break
            here = inner(origin, parts.low, parts.high)
        self.pace = (time.monotonic() - started) / boxes
        return [parts]

    def _left(self, left: Tensor, values: Tensor) -> Tensor:
        """Return which of the cases that are left are not refuted by bounds of their values."""
        largest = self.spaces.largest(values)
        refuted = left & (largest > 0)
        if bool(refuted.any()):
            self.least = min(self.least, float(largest[refuted].amin()))
        return left & ~refuted

    def _descend(self, parts: "Parts", slopes: Tensor) -> None:
        """Try the centre of every box, and its corner where the open values are least."""
        low, high = parts.low, parts.high
        slope = torch.einsum("bv,bvi->bi", self._weight(parts), slopes).reshape(low.shape)
        corner = torch.where(slope > 0, low, high)
        self.hit = bool(self.tries(torch.cat([low / 2 + high / 2, corner])).any())

    def _weight(self, parts: "Parts") -> Float[Tensor, "parts values"]:
        """Return 1 for the values of open cases, else 0."""
        return parts.left[:, self.spaces.case].to(parts.low)

    def _sides(self, parts: "Parts", slopes: Tensor) -> Tensor | None:
        """Choose the side of every box that its open values depend on most; None if a box has none to cut."""
        low, high = parts.low.flatten(1), parts.high.flatten(1)
        splittable = high - low > SHORTEST * torch.maximum(low.abs(), high.abs())
        if not bool(splittable.any(1).all()):
            return None
        size = slopes.abs().nan_to_num(0.0, 0.0, 0.0)
        effect = torch.einsum("bv,bvi->bi", self._weight(parts), size) * (high - low)
        return (effect + 1e-12 * (high - low)).masked_fill(~splittable, -1.0).argmax(1)

    def _halves(self, parts: "Parts", here: Bounded) -> tuple["Parts", Tensor] | None:
        """Halve boxes, and leave out the halves on which the functions behind the bounds refute every case.

        Returns:
            The halves, lower ones first, and the numbers of those that are left; None if a box cannot be cut.
        """
        if (side := self._sides(parts, here.slopes)) is None:
            return None
        at, low, high = side[:, None], parts.low.flatten(1), parts.high.flatten(1)
        middle = (low / 2 + high / 2).gather(1, at)
        ends = low.gather(1, at), high.gather(1, at)
        lower = parts._replace(high=high.scatter(1, at, middle).reshape(parts.high.shape))
        upper = parts._replace(low=low.scatter(1, at, middle).reshape(parts.low.shape))
        both = Parts(*(torch.cat(pair) for pair in zip(lower, upper, strict=True)))
        along = here.slopes.gather(2, side[:, None, None].expand(*here.slopes.shape[:2], 1))[:, :, 0]
        rise = torch.cat([-along.clamp_max(0) * (ends[1] - middle), along.clamp_min(0) * (middle - ends[0])])
        both = both._replace(left=self._left(both.left, here.values.repeat(2, 1) + rise))
        left = both.left.any(1).nonzero().flatten()
        return both.take(left), left


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
