"""The method ``pgd``: an attack that looks for a counterexample in the ball."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.columns import Column, Columns
from verifiers.core.quantities import Norm
from verifiers.core.status import Guarantee, Status
from verifiers.geometry.ascent import PerSampleLoss, ascend
from verifiers.geometry.balls import keyed_start, norms, per_sample, reachable
from verifiers.geometry.margins import margins
from verifiers.methods.base import MethodInfo, Request


@dataclass
class Pgd:
    """PGD against the predicted class: margin loss and cross-entropy in turn, random starts keyed by sample index."""

    model: nn.Module
    request: Request
    batch_size: int = 256
    notes: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        best, worst_margin = self._attack(x, predicted, indices)
        found = worst_margin < 0
        nearest = torch.full(x.shape[:1], float("nan"), dtype=torch.float64, device=x.device)
        if bool(found.any()):
            best[found] = self._shorten(x[found], best[found], predicted[found])
            nearest[found] = norms(best[found].double() - x[found].double(), self.request.norm)
            with torch.no_grad():
                worst_margin[found] = margins(self.model(best[found]), predicted[found])
        best[~found] = float("nan")
        status = torch.where(found, Status.FALSIFIED.value, Status.NOT_CERTIFIED.value)
        return {
            "status": status.cpu().numpy().astype("uint8"),
            "radius": np.zeros(len(x)),
            "margin": worst_margin.double().cpu().numpy(),
            "distance": nearest.cpu().numpy(),
            "counterexample": best.float().cpu().numpy(),
        }

    def _attack(self, x: Tensor, predicted: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The point of smallest margin over all restarts and both losses."""
        reach = reachable(self.request.eps.value, self.request.norm, x)
        eps = torch.full(x.shape[:1], reach, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            best, worst_margin = x.clone(), margins(self.model(x), predicted)
        losses: tuple[PerSampleLoss, ...] = (
            lambda z: -margins(self.model(z), predicted),
            lambda z: nn.functional.cross_entropy(self.model(z), predicted, reduction="none"),
        )
        for restart in range(int(self.request.options["restarts"])):
            start = (
                keyed_start(x, eps, self.request.norm, self.request.seed, indices.tolist(), restart)
                if restart
                else None
            )
            adversarial = ascend(
                losses[restart % 2],
                x,
                eps=eps,
                norm=self.request.norm,
                steps=int(self.request.options["steps"]),
                start=start,
            )
            with torch.no_grad():
                margin = margins(self.model(adversarial), predicted)
            better = (margin < worst_margin) & self._inside(x, adversarial)
            best[better], worst_margin[better] = adversarial[better], margin[better]
        return best, worst_margin

    def _inside(self, x: Tensor, point: Tensor) -> Tensor:
        return norms(point.double() - x.double(), self.request.norm) <= self.request.eps.value

    def _shorten(self, x: Tensor, adversarial: Tensor, predicted: Tensor, steps: int = 12) -> Tensor:
        """The counterexample nearest to x on the segment between them, by bisection; each end is evaluated."""
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
        nearest = adversarial.clone()
        for _ in range(steps):
            middle = (low + high) / 2
            point = (x + per_sample(middle.to(x.dtype), x) * (adversarial - x)).clamp(0.0, 1.0)
            with torch.no_grad():
                fooled = (margins(self.model(point), predicted) < 0) & self._inside(x, point)
            nearest[fooled] = point[fooled]
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
        return nearest


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> Pgd:
    return Pgd(model, request)


PGD = MethodInfo(
    name="pgd",
    guarantee=Guarantee.ESTIMATE,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="no counterexample found by projected gradient descent at eps, or one is stored",
    paper="Madry et al., arXiv 1706.06083; margin loss: Carlini and Wagner, arXiv 1608.04644",
    cost="2 x steps x restarts forward passes",
    prepare=_prepare,
    columns=(
        Column("distance", "float64", "pixels", "length of the shortest counterexample found; nan when none"),
        Column("counterexample", "float32", "pixels", "the misclassified image, inside the ball", axes=("image",)),
    ),
    options={"steps": 30, "restarts": 4},
)
