"""Attack a relation of two networks: search the ball for a point where it fails."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import PerSampleLoss, ascend
from verifiers.geometry.balls import Balls, keyed_start, norms, per_sample, reachable, within_eps
from verifiers.geometry.margins import margins

#: Computes by how much logits of student and teacher break the relation, for a teacher's class at the image.
Violation = Callable[[Tensor, Tensor, Tensor], Float[Tensor, " points"]]
#: Halvings of a segment, and places tried between the two networks' changes of class.
HALVINGS, PLACES = 26, 5
#: The size of the last steps, as a share of eps, which raise the violation of a point that was found.
FINE = 0.02


class Disagreeing(NamedTuple):
    """The result of an attack on a pair, one value per sample.

    Attributes:
        found: the relation fails at a point of the ball.
        violation: by how much, for the point alone in float32; nan if there is none.
        point: that point; nan if there is none.
        distance: its distance from the image; nan if there is none.
    """

    found: Bool[Tensor, " batch"]
    violation: Float[Tensor, " batch"]
    point: Float[Tensor, "batch *shape"]
    distance: Float[Tensor, " batch"]


@dataclass(frozen=True)
class PairAttack:
    """PGD on the violation of a relation, on the networks' difference, and on the margin of each network alone.

    Where one network changes its class on the way to a point, and the other elsewhere, they disagree in between: every
    end of PGD is followed back to the image.

    Attributes:
        student, teacher: map the same images in [0, 1] to logits.
        violation: by how much the relation fails.
        eps, norm: the ball.
        seed: keys the random starts.
        steps, restarts: steps, and starts for every objective; the first one is the image.
        follow: follow the ends back to the image, for relations of classes.
        deadline: no start begins after it, on ``time.monotonic``.
    """

    student: nn.Module
    teacher: nn.Module
    violation: Violation
    eps: float
    norm: Norm
    seed: int = 0
    steps: int = 40
    restarts: int = 4
    follow: bool = True
    deadline: float = math.inf

    def __call__(
        self,
        x: Float[Tensor, "batch *shape"],
        indices: Sequence[int],
        known: Sequence[Float[Tensor, "batch *shape"]] = (),
    ) -> Disagreeing:
        """Attack every sample within its ball; all points stay in [0, 1].

        ``known`` are counterexamples of one of the networks, nan where there is none; they are tried first.
        """
        with torch.no_grad():
            c = self.teacher(x).argmax(1)
        best, size = x.clone(), self.at(x, c)
        for ends in known:
            there = ~ends.flatten(1).isnan().any(1)
            point, value = self.along(x, torch.where(per_sample(there, x), ends, x), c)
            better = value > size
            best, size = torch.where(per_sample(better, x), point, best), torch.where(better, value, size)
        reach = x.new_full((len(x),), reachable(self.eps, self.norm, x))
        number = 0
        for restart in range(self.restarts):
            for make in self._objectives(x):
                left = (size <= 0).nonzero().flatten()
                if not len(left) or time.monotonic() > self.deadline:
                    break
                own, goal = c[left], make(c[left])
                some, chosen = x[left], [indices[i] for i in left.tolist()]
                start = keyed_start(some, reach[left], self.norm, self.seed, chosen, number) if restart else None
                number += 1
                end = ascend(goal, Balls(some, reach[left], self.norm), steps=self.steps, start=start)
                point, value = self.along(some, end, own)
                better = value > size[left]
                best[left[better]], size[left[better]] = point[better], value[better]
        return self._kept(x, best, c, size > 0)

    def along(
        self, x: Float[Tensor, "batch *shape"], end: Float[Tensor, "batch *shape"], c: Int[Tensor, " batch"]
    ) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, " batch"]]:
        """Return the point of the segment from the image to a point where the relation fails most, and by how much.

        It tries the end, and places around and between the changes of class of both networks, found by bisection.
        """
        best, size = x, torch.full(x.shape[:1], -torch.inf, dtype=torch.float64, device=x.device)
        for place in self._places(x, end):
            point = (x + per_sample(place, x) * (end - x)).clamp(0.0, 1.0)
            value = self.at(point, c).where(within_eps(x, point, self.eps, self.norm), -torch.inf)
            better = value > size
            best, size = torch.where(per_sample(better, x), point, best), torch.where(better, value, size)
        return best, size

    def _places(self, x: Tensor, end: Tensor) -> list[Float[Tensor, " batch"]]:
        """List the places to try, as shares of each segment."""
        whole = torch.ones_like(x.flatten(1)[:, 0])
        if not self.follow:
            return [whole]
        changes = [self._change(network, x, end) for network in (self.student, self.teacher)]
        first, last = torch.minimum(*changes), torch.maximum(*changes)
        between = [first + (last - first) * (i + 0.5) / PLACES for i in range(PLACES)]
        return [whole, *between, *(last + (1 - last) * share for share in (0.1, 0.5))]

    def _change(self, network: nn.Module, x: Tensor, end: Tensor) -> Float[Tensor, " batch"]:
        """Find where a network changes its class between the image and the end; 1 where both have one class."""
        with torch.no_grad():
            own = network(x).argmax(1)
            low, high = torch.zeros_like(x.flatten(1)[:, 0]), torch.ones_like(x.flatten(1)[:, 0])
            for step in range(HALVINGS + 1):
                middle = (low + high) / 2 if step else high
                changed = network((x + per_sample(middle, x) * (end - x)).clamp(0.0, 1.0)).argmax(1) != own
                if not step:
                    if not bool(changed.any()):
                        return high
                    stays = ~changed
                high, low = torch.where(changed, middle, high), torch.where(changed, low, middle)
        return torch.where(stays, 1.0, high)

    def at(self, points: Float[Tensor, "points *shape"], c: Int[Tensor, " points"]) -> Float[Tensor, " points"]:
        """Return by how much points break the relation, in float32, compared in float64."""
        with torch.no_grad():
            return self.violation(self.student(points).double(), self.teacher(points).double(), c)

    def _objectives(self, x: Tensor) -> Iterator[Callable[[Tensor], PerSampleLoss]]:
        """Yield the objectives: the violation, KL both ways, and the margin of each network."""
        s, t = self.student, self.teacher
        yield lambda c: lambda z: self.violation(s(z), t(z), c)
        yield lambda c: lambda z: _divergence(t(z), s(z))
        yield lambda c: lambda z: -margins(s(z), c)
        yield lambda c: lambda z: _divergence(s(z), t(z))
        yield lambda c: lambda z: -margins(t(z), c)

    def _kept(self, x: Tensor, point: Tensor, c: Tensor, found: Tensor) -> Disagreeing:
        """Raise the violations that were found, and keep the points that break the relation alone, in float32."""
        size, distance = (torch.full((len(x),), torch.nan, dtype=torch.float64, device=x.device) for _ in range(2))
        chosen = found.nonzero().flatten()
        if len(chosen):
            raised = self._raised(x[chosen], point[chosen], c[chosen])
            point[chosen] = raised
        for i in chosen.tolist():
            value = self.alone(point[i], c[i])
            if value > 0:
                size[i] = value
                distance[i] = norms(point[i : i + 1].double() - x[i : i + 1].double(), self.norm)[0]
        found = ~size.isnan()
        return Disagreeing(found, size, point.where(per_sample(found, x), torch.nan), distance)

    def alone(self, point: Float[Tensor, "*shape"], c: Int[Tensor, ""]) -> float:
        """Return by how much one point breaks the relation, run alone."""
        return float(self.at(point[None], c[None])[0])

    def _raised(self, x: Tensor, point: Tensor, c: Tensor) -> Tensor:
        reach = x.new_full((len(x),), reachable(self.eps, self.norm, x))
        value = self.at(point, c)
        for size in (FINE, FINE / 10, FINE / 100):
            moved = ascend(
                lambda z: self.violation(self.student(z), self.teacher(z), c),
                Balls(x, reach, self.norm),
                steps=5,
                start=point - x,
                step_size=size,
            )
            new = self.at(moved, c).where(within_eps(x, moved, self.eps, self.norm), -torch.inf)
            better = new > value
            point, value = torch.where(per_sample(better, x), moved, point), torch.where(better, new, value)
        return point


def _divergence(one: Tensor, other: Tensor) -> Float[Tensor, " batch"]:
    """Compute KL(softmax of one || softmax of the other) of each sample, in nats."""
    p, q = one.log_softmax(1), other.log_softmax(1)
    return (p.exp() * (p - q)).sum(1)
