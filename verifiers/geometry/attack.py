"""Attack the predicted class by PGD, and move a counterexample as near to the image as possible."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import PerSampleLoss, ascend
from verifiers.geometry.balls import Balls, keyed_start, norms, per_sample, reachable
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
    """PGD on margin and cross-entropy in turn, within eps, from the image and from random starts keyed by sample index.

    Attributes:
        eps, norm: the ball.
        seed: keys the random starts.
        steps, restarts: steps and restarts.
        targets: further restarts, each towards the next most likely class.

    Sources: Madry et al., arXiv 1706.06083; margin loss: Carlini and Wagner, arXiv 1608.04644.
    """

    eps: float
    norm: Norm
    seed: int = 0
    steps: int = 30
    restarts: int = 4
    targets: int = 0

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
        x = balls.x
        point, margin = self._weakest(model, balls, predicted, indices)
        broken = margin < 0
        distance = torch.full(x.shape[:1], float("nan"), dtype=torch.float64, device=x.device)
        if bool(broken.any()):
            point[broken] = _shorten(model, balls.take(broken), point[broken], predicted[broken])
            distance[broken] = norms(point[broken].double() - x[broken].double(), balls.norm)
            with torch.no_grad():
                margin[broken] = margins(model(point[broken]), predicted[broken])
        point[~broken] = float("nan")
        return Found(broken, margin, point, distance)

    def _weakest(
        self, model: nn.Module, balls: Balls, predicted: Tensor, indices: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Find the point of smallest margin over all restarts and losses, and that margin."""
        x, norm = balls.x, balls.norm
        eps = torch.stack([balls.eps.new_tensor(reachable(float(r), norm, x)) for r in balls.eps]).to(x.dtype)
        with torch.no_grad():
            logits = model(x)
            best, worst_margin = x.clone(), margins(logits, predicted)
        for restart, loss in enumerate(self._losses(model, logits, predicted)):
            start = keyed_start(x, eps, norm, self.seed, indices, restart) if restart else None
            adversarial = ascend(loss, Balls(x, eps, norm), steps=self.steps, start=start)
            with torch.no_grad():
                margin = margins(model(adversarial), predicted)
            better = (margin < worst_margin) & _inside(balls, adversarial)
            best[better], worst_margin[better] = adversarial[better], margin[better]
        return best, worst_margin

    def _losses(self, model: nn.Module, logits: Tensor, predicted: Tensor) -> Iterator[PerSampleLoss]:
        """Yield the loss of each restart: margin and cross-entropy in turn, then the gap to the most likely classes."""
        for restart in range(self.restarts):
            if restart % 2:
                yield lambda z: nn.functional.cross_entropy(model(z), predicted, reduction="none")
            else:
                yield lambda z: -margins(model(z), predicted)
        others = logits.scatter(1, predicted[:, None], -float("inf")).argsort(1, descending=True)
        for target in others[:, : min(self.targets, logits.shape[1] - 1)].unbind(1):
            yield lambda z, goal=target: _gap(model(z), goal, predicted)  # type: ignore[misc]


def _gap(logits: Tensor, goal: Tensor, predicted: Tensor) -> Tensor:
    """Compute how far the goal's logit is above the predicted class's."""
    return (logits.gather(1, goal[:, None]) - logits.gather(1, predicted[:, None]))[:, 0]


def _inside(balls: Balls, point: Tensor) -> Tensor:
    return inside(balls.x, point, balls.eps, balls.norm)


def inside(
    x: Float[Tensor, "batch *shape"],
    point: Float[Tensor, "batch *shape"],
    eps: float | Float[Tensor, " batch"],
    norm: Norm,
) -> Bool[Tensor, " batch"]:
    """Return which points are within eps of their images, computed in float64."""
    return norms(point.double() - x.double(), norm) <= eps


def _shorten(model: nn.Module, balls: Balls, adversarial: Tensor, predicted: Tensor, steps: int = 12) -> Tensor:
    """Find the counterexample nearest to x on the segment between them, by bisection; each end is evaluated."""
    x = balls.x
    low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
    nearest = adversarial.clone()
    for _ in range(steps):
        middle = (low + high) / 2
        point = (x + per_sample(middle.to(x.dtype), x) * (adversarial - x)).clamp(0.0, 1.0)
        with torch.no_grad():
            fooled = (margins(model(point), predicted) < 0) & _inside(balls, point)
        nearest[fooled] = point[fooled]
        high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
    return nearest


def has_slope(network: nn.Module, first: Float[Tensor, "some *shape"]) -> bool:
    """Return whether the logits have a gradient at images or at noise: behind signs and steps there is none."""
    noise = torch.rand(first.shape, generator=torch.Generator().manual_seed(0)).to(first)
    images = torch.cat([first, noise]).requires_grad_(True)
    with torch.enable_grad():
        logits = network(images)
        weights = torch.linspace(1.0, 2.0, logits[0].numel()).to(logits).reshape(logits[0].shape)
        slopes = torch.autograd.grad((logits * weights).sum(), images)[0] if logits.requires_grad else None
    return slopes is not None and bool(slopes.any())
