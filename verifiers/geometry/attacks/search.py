"""The seam of all searches: they attack a batch, and keep the point of least margin of every sample."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls, finite, keyed_start, per_sample
from verifiers.geometry.margins import margins
from verifiers.runtime.deadline import TimeUp, left


@dataclass(frozen=True)
class Victims:
    """Samples under attack.

    Attributes:
        model: maps images to logits.
        balls: their regions; no point outside counts.
        own: the classes that the network is to leave.
        indices: the samples' indices in the data set, which key all randomness.
        seed: keys it too.
    """

    model: nn.Module
    balls: Balls
    own: Int[Tensor, " batch"]
    indices: Sequence[int]
    seed: int = 0

    def __len__(self) -> int:
        return len(self.own)

    def take(self, chosen: Int[Tensor, " some"]) -> "Victims":
        """Select some of the samples by position."""
        indices = [self.indices[i] for i in chosen.tolist()]
        return Victims(self.model, self.balls.take(chosen), self.own[chosen], indices, self.seed)

    def logits(self) -> Float[Tensor, "batch classes"]:
        """Run the network on the images."""
        with torch.no_grad():
            return self.model(self.balls.x)


class Reached(NamedTuple):
    """The point of least margin that a search found for each sample.

    Attributes:
        point: that point, inside the region.
        margin: the margin of the own class there; negative where the network has another class.
        flat: the loss had no slope at all where the search began.
    """

    point: Float[Tensor, "batch *shape"]
    margin: Float[Tensor, " batch"]
    flat: Bool[Tensor, " batch"]

    @property
    def left(self) -> Int[Tensor, " some"]:
        """The positions of the samples that keep their class."""
        return (~(self.margin < 0)).nonzero().flatten()

    def improved(self, rows: Int[Tensor, " some"], other: "Reached", balls: Balls) -> "Reached":
        """Take over the points of some rows that are inside their regions and have less margin."""
        better = (other.margin < self.margin[rows]) & balls.contain(other.point)
        point = torch.where(per_sample(better, other.point), other.point, self.point[rows])
        margin = torch.where(better, other.margin, self.margin[rows])
        flat = self.flat[rows] | other.flat
        return Reached(
            self.point.index_copy(0, rows, point),
            self.margin.index_copy(0, rows, margin),
            self.flat.index_copy(0, rows, flat),
        )


#: One run of a search on samples, given with their positions among all.
Run = Callable[[Victims, Int[Tensor, " some"]], Reached]


@runtime_checkable
class Search(Protocol):
    """A search that aims at classes; it begins at the images plus ``start``, or at the images themselves."""

    def run(
        self, victims: Victims, target: Int[Tensor, " batch"], start: Float[Tensor, "batch *shape"] | None = None
    ) -> Reached: ...


@dataclass(frozen=True)
class Aimed:
    """A run of a search towards one class for each sample.

    Attributes:
        search: the search.
        target: the classes, one for each of all samples.
        number: of the run's random start, which it keys; None to begin at the images.
    """

    search: Search
    target: Int[Tensor, " all"]
    number: int | None = None

    def __call__(self, victims: Victims, rows: Int[Tensor, " some"]) -> Reached:
        start = None if self.number is None else _drawn(victims, self.number)
        return self.search.run(victims, self.target[rows], start)


def _drawn(victims: Victims, number: int) -> Float[Tensor, "batch *shape"]:
    """Draw a perturbation in each ball; in l1 one that is far outside, whose nearest point in the ball is sparse."""
    balls = victims.balls
    noise = keyed_start(balls.x, balls.eps.to(balls.x.dtype), balls.norm, victims.seed, victims.indices, number)
    return noise * balls.x[0].numel() if balls.norm is Norm.L1 and len(balls) else noise


def slopes_of(values: Float[Tensor, " batch"], at: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """Return the gradient of each sample's value; 0 where there is none or it is no number."""
    return finite(torch.autograd.grad(values.sum(), at)[0]) if values.requires_grad else torch.zeros_like(at)


def at_rest(victims: Victims) -> Reached:
    """Begin with the images themselves."""
    margin = margins(victims.logits(), victims.own)
    return Reached(victims.balls.x.clone(), margin, torch.zeros_like(margin, dtype=torch.bool))


def in_turn(victims: Victims, runs: Iterable[Run]) -> Reached:
    """Make one run after another, each on the samples that keep their class so far; none ends after a time limit."""
    reached = at_rest(victims)
    for run in runs:
        rows = reached.left
        if not len(rows) or left() < 0:
            break
        some = victims.take(rows)
        with suppress(TimeUp):
            reached = reached.improved(rows, run(some, rows), some.balls)
    return reached
