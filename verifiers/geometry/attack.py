"""Attack the predicted class by PGD, and move a counterexample as near to the image as possible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.apgd import Apgd
from verifiers.geometry.attacks.losses import margin, ranked, targeted_margin
from verifiers.geometry.attacks.search import Aimed, Reached, Run, Victims, in_turn, slopes_of
from verifiers.geometry.balls import Balls, noise_like, norms, per_sample
from verifiers.geometry.margins import margins


class Found(NamedTuple):
    """The result of an attack, one value per sample.

    Attributes:
        broken: a point of the ball has another class.
        margin: the margin of the predicted class there, or the smallest margin found if there is no such point.
        point: that point; nan if there is none.
        distance: its distance from the image, in float64; nan if there is none.
    """

    broken: Bool[Tensor, " batch"]
    margin: Float[Tensor, " batch"]
    point: Float[Tensor, "batch *shape"]
    distance: Float[Tensor, " batch"]


@dataclass(frozen=True)
class Attack:
    """PGD with falling steps within eps: from the image on the margin, then towards the most likely classes in turn.

    Attributes:
        eps, norm: the ball.
        seed: keys the random starts.
        steps: steps of each run.
        restarts: runs. Those after the first aim at one class each, on the samples that keep theirs. Once every class
            had its run, they begin at random points.

    Sources: Madry et al., arXiv 1706.06083; steps: Croce and Hein, arXiv 2003.01690; margin loss: Carlini and Wagner,
    arXiv 1608.04644.
    """

    eps: float
    norm: Norm
    seed: int = 0
    steps: int = 30
    restarts: int = 4

    def __call__(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        predicted: Int[Tensor, " batch"],
        indices: Sequence[int],
    ) -> Found:
        """Attack every sample within eps; all images stay in [0, 1]."""
        return self.within(model, Balls.around(x, self.eps, self.norm), predicted, indices)

    def within(self, model: nn.Module, balls: Balls, predicted: Int[Tensor, " batch"], indices: Sequence[int]) -> Found:
        """Attack every sample within its own ball instead."""
        victims = Victims(model, balls, predicted, indices, self.seed)
        return nearest(victims, in_turn(victims, self._runs(victims)))

    def _runs(self, victims: Victims) -> Iterator[Run]:
        """Yield the runs: on the margin, then towards each class, from the image and then from random points."""
        yield Aimed(Apgd(margin, self.steps, stops=False), victims.own)
        targets = ranked(victims.logits(), victims.own, self.restarts)
        aimed = Apgd(targeted_margin, self.steps, stops=False)
        for restart in range(1, self.restarts):
            lap, place = divmod(restart - 1, targets.shape[1])
            yield Aimed(aimed, targets[:, place], lap or None)


def nearest(victims: Victims, reached: Reached) -> Found:
    """Bring every counterexample as near to its image as the segment between them allows, and measure it."""
    balls, predicted, model = victims.balls, victims.own, victims.model
    x, point, margin = balls.x, reached.point.clone(), reached.margin.clone()
    broken = margin < 0
    distance = torch.full(x.shape[:1], float("nan"), dtype=torch.float64, device=x.device)
    if bool(broken.any()):
        point[broken] = _shorten(model, balls.take(broken), point[broken], predicted[broken])
        distance[broken] = norms(point[broken].double() - x[broken].double(), balls.norm)
        with torch.no_grad():
            margin[broken] = margins(model(point[broken]), predicted[broken])
    point[~broken] = float("nan")
    return Found(broken, margin, point, distance)


def _shorten(model: nn.Module, balls: Balls, adversarial: Tensor, predicted: Tensor, steps: int = 12) -> Tensor:
    """Find the counterexample nearest to x on the segment between them, by bisection; each end is evaluated."""
    x = balls.x
    low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    nearest = adversarial.clone()
    for _ in range(steps):
        middle = (low + high) / 2
        point = (x + per_sample(middle.to(x.dtype), x) * (adversarial - x)).clamp(*balls.edges())
        with torch.no_grad():
            fooled = (margins(model(point), predicted) < 0) & balls.contain(point)
        nearest[fooled] = point[fooled]
        high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
    return nearest


def has_slope(network: nn.Module, first: Float[Tensor, "some *shape"]) -> bool:
    """Return whether the logits have a gradient at images or at noise: behind signs and steps there is none."""
    images = torch.cat([first, noise_like(first)]).requires_grad_(True)
    with torch.enable_grad():
        logits = network(images)
        weights = torch.linspace(1.0, 2.0, logits[0].numel()).to(logits).reshape(logits[0].shape)
        return bool(slopes_of((logits * weights).flatten(1).sum(1), images).any())
