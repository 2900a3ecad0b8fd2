"""Branch and bound over the codes of an image: an int8 network depends on the image by them alone.

A ball reaches finitely many codes. A part of them is a box of integers; bounds over it follow from the box, and a part
that is still open is halved along one pixel. A single point of codes leaves only the rounding of float32 open.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.bound_propagation.native.branch_and_bound import Outcome
from verifiers.geometry.balls import Balls
from verifiers.graph.affine import Affine
from verifiers.graph.graph import Graph
from verifiers.graph.operators import Interval

#: Parts that are halved at a time, and the most that wait.
TOGETHER, WAITING = 32, 2**16


def codes_of(graph: Graph) -> int | None:
    """Return the node of the codes of the image if all else depends on them alone; None if there is no such node."""
    first = [i for i, coded in enumerate(graph.coded) if coded and not graph.coded[graph.nodes[i].inputs[0]]]
    if len(first) != 1:
        return None
    before = {0}
    for i in range(1, first[0] + 1):
        if not graph.apart[i]:
            return None
        before.add(i)
    later = (i for node in graph.nodes[first[0] + 1 :] for i in node.inputs)
    return first[0] if not any(i in before - {first[0]} for i in later) else None


@dataclass
class CodeSearch:
    """Bound rows over the parts of one ball.

    Attributes:
        root: propagated bounds of the ball.
        specification: rows, ``(1, rows, classes)``.
        position: the node of the codes.
        deadline: on ``time.monotonic``.
        broken: returns which of some images, in the dtype of the bounds, are counterexamples.
    """

    root: Bounds
    specification: Float[Tensor, "1 rows classes"]
    position: int
    deadline: float
    broken: Callable[[Float[Tensor, "points *shape"]], Bool[Tensor, " points"]]
    count: int = field(default=0, init=False)

    def run(self) -> Outcome:
        """Halve parts until all are proved, a counterexample is found, or time, memory or codes run out."""
        with torch.no_grad():
            low, high = self.root.intervals[self.position]
            bound, stuck = self._bounds(low, high), math.inf
            proved = math.inf  # the least bound of the parts that are done
            while True:
                open_, single = ~(bound > 0), (high == low).flatten(1).all(1)
                proved = min(proved, *bound[~open_].tolist(), math.inf)
                stuck = min(stuck, *bound[open_ & single].tolist(), math.inf)
                low, high, bound = (each[open_ & ~single] for each in (low, high, bound))
                least = min(proved, stuck, *bound.tolist())
                late, full = time.monotonic() > self.deadline, len(bound) > WAITING
                if not len(bound) or late or full:
                    finished = not len(bound) and stuck == math.inf
                    return Outcome(least, self.count, None, finished, late=late and not finished, full=full)
                worst = bound.argsort()[:TOGETHER]
                rest = torch.ones_like(bound, dtype=torch.bool).index_fill(0, worst, False)
                lows, highs = self._halved(low[worst], high[worst])
                points = self.images(((lows + highs) / 2).floor())
                if bool((hit := self.broken(points)).any()):
                    return Outcome(least, self.count, points[hit][:1], finished=False)
                low, high = torch.cat([low[rest], lows]), torch.cat([high[rest], highs])
                bound = torch.cat([bound[rest], self._bounds(lows, highs)])

    def _halved(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Halve each part along the pixel with the most codes."""
        rows, widest = torch.arange(len(low), device=low.device), (high - low).flatten(1).argmax(1)
        ends = [end.flatten(1).clone() for end in (low, high)]
        middle = ((ends[0] + ends[1]) / 2).floor()[rows, widest]
        lows, highs = (torch.cat([end, end]) for end in ends)
        highs[rows, widest] = middle
        lows[len(low) + rows, widest] = middle + 1
        return lows.reshape(-1, *low.shape[1:]), highs.reshape(-1, *high.shape[1:])

    def _bounds(self, low: Tensor, high: Tensor) -> Float[Tensor, " parts"]:
        """Bound the least row over parts; nan and inf prove nothing."""
        found = []
        for lows, highs in zip(low.split(TOGETHER), high.split(TOGETHER), strict=True):
            count, balls = len(lows), self.root.balls
            parts = Balls(balls.x.expand(count, *balls.x.shape[1:]), balls.eps.expand(count), balls.norm)
            bounds = replace(
                self.root,
                balls=parts,
                known={self.position: Interval(lows, highs)},
                alphas={},
                intervals=[],
                relaxations={},
                refined=[],
                noise=None,
            )
            bounds.propagate(refine=True)
            rows = self.specification.expand(count, *self.specification.shape[1:])
            each = torch.fmax(bounds.by_rows(rows).bound, bounds.by_intervals(rows).bound)
            found.append(each.amin(1).nan_to_num(-math.inf, -math.inf, -math.inf))
            self.count += count
        return torch.cat(found)

    def images(self, codes: Float[Tensor, "points *shape"]) -> Float[Tensor, "points *image"]:
        """Return images of the ball that have some codes, up to rounding: before them the network is affine."""
        low, high = self.root.balls.box()
        ends, shape = [], self.root.balls.x.shape[1:]
        for end in (low, high):
            value = end.reshape(len(end), *self.root.graph.nodes[0].shape)
            for node in self.root.graph.nodes[1 : self.position]:
                assert isinstance(node.operator, Affine)
                value = node.operator.forward(value)
            ends.append(value.flatten(1))
        width = ends[1] - ends[0]
        share = torch.where(width == 0, 0.5, (codes.flatten(1) - ends[0]) / torch.where(width == 0, 1.0, width))
        start, size = low.flatten(1), (high - low).flatten(1)
        return (start + share.clamp(0.0, 1.0) * size).reshape(-1, *shape)
