"""Attack the predicted class by PGD, and move a counterexample as near to the image as possible."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import ascend
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

    Sources: Madry et al., arXiv 1706.06083; margin loss: Carlini and Wagner, arXiv 1608.04644.
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
        """Attack every sample; all images stay in [0, 1]."""
        point, margin = self._weakest(model, x, predicted, indices)
        broken = margin < 0
        distance = torch.full(x.shape[:1], float("nan"), dtype=torch.float64, device=x.device)
        if bool(broken.any()):
            point[broken] = self._shorten(model, x[broken], point[broken], predicted[broken])
            distance[broken] = norms(point[broken].double() - x[broken].double(), self.norm)
            with torch.no_grad():
                margin[broken] = margins(model(point[broken]), predicted[broken])
        point[~broken] = float("nan")
        return Found(broken, margin, point, distance)

    def _weakest(self, model: nn.Module, x: Tensor, predicted: Tensor, indices: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Find the point of smallest margin over all restarts and both losses, and that margin."""
        limit = reachable(self.eps, self.norm, x)
        eps = torch.full(x.shape[:1], limit, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            best, worst_margin = x.clone(), margins(model(x), predicted)
        losses: tuple[Callable[[Tensor], Tensor], ...] = (
            lambda z: -margins(model(z), predicted),
            lambda z: nn.functional.cross_entropy(model(z), predicted, reduction="none"),
        )
        for restart in range(self.restarts):
            start = keyed_start(x, eps, self.norm, self.seed, indices, restart) if restart else None
            adversarial = ascend(losses[restart % 2], Balls(x, eps, self.norm), steps=self.steps, start=start)
            with torch.no_grad():
                margin = margins(model(adversarial), predicted)
            better = (margin < worst_margin) & self._inside(x, adversarial)
            best[better], worst_margin[better] = adversarial[better], margin[better]
        return best, worst_margin

    def _inside(self, x: Tensor, point: Tensor) -> Tensor:
        return norms(point.double() - x.double(), self.norm) <= self.eps

    def _shorten(self, model: nn.Module, x: Tensor, adversarial: Tensor, predicted: Tensor, steps: int = 12) -> Tensor:
        """Find the counterexample nearest to x on the segment between them, by bisection; each end is evaluated."""
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
        nearest = adversarial.clone()
        for _ in range(steps):
            middle = (low + high) / 2
            point = (x + per_sample(middle.to(x.dtype), x) * (adversarial - x)).clamp(0.0, 1.0)
            with torch.no_grad():
                fooled = (margins(model(point), predicted) < 0) & self._inside(x, point)
            nearest[fooled] = point[fooled]
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
        return nearest
