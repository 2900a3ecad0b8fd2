"""Refute cases on one box: by splitting the box, or by alpha-CROWN with branch and bound over neurons."""

import time
from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.bound_propagation.half_spaces import Ended, HalfSpaces, largest_values, lower_values
from verifiers.bound_propagation.native.alpha import optimized
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.engine import Native
from verifiers.geometry.balls import Balls
from verifiers.geometry.boxes import Boxes
from verifiers.graph.rows import shape_size

#: The most values in the nodes of one round's boxes, and the most boxes of a round.
ROUND, LARGEST = 2**21, 512
#: The most corners of all waiting boxes.
WAITING = 2**26
#: A side that is shorter than this share of its ends holds only a few float32 numbers and is not split.
SHORTEST = 2.0**-22
#: alpha-CROWN starts no step after this share of the time, so that some is left to branch and bound.
ALPHA_SHARE = 0.25

#: Tries points of the box, in the dtype of the bounds; returns which of them are counterexamples.
Tries = Callable[[Float[Tensor, "points *shape"]], Bool[Tensor, " points"]]


class InputSplitting:
    """Refute cases on a box by halving it until CROWN refutes them on every part.

    Each part is halved along the side that the bounds of its open cases depend on most: the largest product of slope
    and length. For networks with few inputs this ends where splits of neurons do not.

    Args:
        native: the engine.
        spaces: the cases.
        deadline: on ``time.monotonic``.
        tries: tries points.
    """

    def __init__(self, native: Native, spaces: HalfSpaces, *, deadline: float, tries: Tries) -> None:
        self.native, self.spaces, self.deadline, self.tries = native, spaces, deadline, tries
        self.size = max(1, min(LARGEST, ROUND // sum(shape_size(node.shape) for node in native.graph.nodes)))
        self.pace, self.count, self.hit = 0.0, 0, False  # pace: seconds of the last round per box

    def run(self, boxes: Boxes) -> Ended:
        """Split one box until every case is refuted, a counterexample is found, or time, memory or splits run out."""
        low, high = boxes.box()
        waiting = [(low, high, torch.ones((1, self.spaces.cases), dtype=torch.bool, device=low.device))]
        while waiting and not self.hit:
            low, high, left = (torch.cat(parts) for parts in zip(*waiting, strict=True))
            size = min(self.size, len(low), self._in_time())
            if not size:
                return Ended(False, self.count, late=True)
            if low.numel() > WAITING:
                return Ended(False, self.count, reason="memory could run out from the parts of the box", full=True)
            rest = slice(0, len(low) - size)
            chosen = slice(len(low) - size, None)
            halves = self._round(low[chosen], high[chosen], left[chosen])
            if halves is None:
                return Ended(False, self.count, reason="parts of the box became too small to be split")
            waiting = [part for part in ((low[rest], high[rest], left[rest]), halves) if len(part[0])]
        return Ended(not self.hit, self.count)

    def _in_time(self) -> int:
        """Return how many boxes can be bounded before the deadline."""
        left = self.deadline - time.monotonic()
        return max(0, int(left / self.pace)) if self.pace else self.size * (left > 0)

    def _round(self, low: Tensor, high: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        """Bound some boxes; return the halves of those that are left, or None if one of them cannot be split."""
        started = time.monotonic()
        boxes = Boxes.between(low, high)
        values, slopes = lower_values(self.native, boxes, self.spaces)
        left = left & ~(self.spaces.largest(values) > 0)
        self.count += len(low)
        open_ = left.any(1)
        low, high, left, slopes = low[open_], high[open_], left[open_], slopes[open_]
        if len(low):
            self._descend(low, high, left, slopes)
            halves = self._halves(low, high, left, slopes)
        else:
            halves = (low, high, left)
        self.pace = (time.monotonic() - started) / len(boxes)
        return halves

    def _descend(self, low: Tensor, high: Tensor, left: Tensor, slopes: Tensor) -> None:
        """Try the centre of every box, and its corner where the open values are least."""
        weight = left[:, self.spaces.case].to(slopes)
        slope = (slopes * weight[:, :, None]).sum(1).reshape(low.shape)
        corner = torch.where(slope > 0, low, high)
        self.hit = bool(self.tries(torch.cat([low / 2 + high / 2, corner])).any())

    def _halves(self, low: Tensor, high: Tensor, left: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor, Tensor] | None:
        sides, weight = (high - low).flatten(1), left[:, self.spaces.case].to(slopes)
        splittable = sides > SHORTEST * torch.maximum(low.abs(), high.abs()).flatten(1)
        if not bool(splittable.any(1).all()):
            return None
        effect = (slopes.abs().nan_to_num(0.0, 0.0, 0.0) * weight[:, :, None]).sum(1) * sides
        side = (effect + 1e-12 * sides).masked_fill(~splittable, -1.0).argmax(1, keepdim=True)
        middle = (low / 2 + high / 2).flatten(1).gather(1, side)
        upper = low.flatten(1).scatter(1, side, middle).reshape(low.shape)
        lower = high.flatten(1).scatter(1, side, middle).reshape(high.shape)
        return torch.cat([low, upper]), torch.cat([lower, high]), torch.cat([left, left])


def by_neurons(
    native: Native, spaces: HalfSpaces, region: Balls, *, iterations: int, deadline: float, tries: Tries
) -> Ended:
    """Refute cases on one region by alpha-CROWN, then by branch and bound over the signs of neurons.

    Args:
        native: the engine.
        spaces: the cases.
        region: one ball or box.
        iterations: steps of alpha-CROWN.
        deadline: on ``time.monotonic``.
        tries: tries points.
    """
    started = time.monotonic()
    graph = largest_values(native.graph, spaces)
    bounds = replace(native.bounds(region), graph=graph)
    rows = torch.eye(spaces.cases, dtype=region.x.dtype, device=region.x.device)[None]
    alone = started + ALPHA_SHARE * (deadline - started)
    proved = optimized(bounds, rows, iterations, alone).bound[0]
    if bounds.overflows:
        return Ended(False, reason="values of the network may overflow there")
    if bool(((proved > 0) & (proved < torch.inf)).all()):
        return Ended(True, bound=float(proved.amin()))
    end = BranchAndBound(bounds, rows, proved, 0.0, deadline=deadline, broken=tries).run()
    if end.finished or end.point is not None:
        return Ended(end.finished and end.point is None, end.domains, bound=end.bound)
    reason = "" if end.late else "every neuron was split" if not end.full else "memory could run out from the parts"
    return Ended(False, end.domains, end.late, reason, end.bound, end.full)
