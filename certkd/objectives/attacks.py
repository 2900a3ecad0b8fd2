"""Attack images during training and model selection: PGD on the cross-entropy or on any other loss."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import PerSampleLoss, ascend
from verifiers.geometry.balls import Balls, random_start
from verifiers.runtime.modes import eval_mode


@dataclass(frozen=True, kw_only=True)
class Pgd:
    """Projected gradient ascent; the network runs in eval mode and is then restored.

    Attributes:
        eps: radius in pixel units.
        norm: norm of the ball.
        steps: gradient steps.
        step_size: length of a step in pixel units; 2.5 eps / steps when None.

    Source: Madry et al., arXiv 1706.06083.
    """

    eps: float
    norm: Norm = Norm.LINF
    steps: int = 10
    step_size: float | None = None

    def raise_loss(
        self,
        model: nn.Module,
        loss: PerSampleLoss,
        x: Float[Tensor, "batch *shape"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Find images in the ball that raise a loss.

        Args:
            model: maps images in [0, 1] to logits; ``loss`` calls it.
            loss: gives one value per sample.
            x: images in [0, 1].
            generator: draws the random start; without one the attack starts at x.
        """
        radius = torch.full(x.shape[:1], self.eps, dtype=x.dtype, device=x.device)
        start = random_start(x, radius, self.norm, generator) if generator is not None else None
        share = None if self.step_size is None else self.step_size / self.eps
        with eval_mode(model):
            return ascend(loss, Balls(x, radius, self.norm), steps=self.steps, start=start, step_size=share)

    def fool(
        self,
        model: nn.Module,
        x: Float[Tensor, "batch *shape"],
        y: Int[Tensor, " batch"],
        generator: torch.Generator | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Find images in the ball that raise the cross-entropy of the true labels y; see ``raise_loss``."""

        def loss(z: Tensor) -> Tensor:
            return nn.functional.cross_entropy(model(z), y, reduction="none")

        return self.raise_loss(model, loss, x, generator)
