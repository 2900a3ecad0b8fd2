"""Attack images during training and model selection: PGD on the cross-entropy or on any other loss."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import PerSampleLoss, ascend
from verifiers.geometry.balls import random_start
from verifiers.runtime.modes import eval_mode


def attack(
    model: nn.Module,
    loss: PerSampleLoss,
    x: Float[Tensor, "batch *shape"],
    *,
    eps: float,
    norm: Norm = Norm.LINF,
    steps: int = 10,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Raise a loss by projected gradient ascent; the network is attacked in eval mode and left as it was.

    Args:
        model: from images in [0, 1] to logits; ``loss`` calls it.
        loss: one value per sample, to be raised.
        x: images in [0, 1].
        eps: radius in pixel units.
        norm: norm of the ball.
        steps: gradient steps.
        step_size: in pixel units; 2.5 eps / steps when None.
        generator: for the random start; none starts at x.

    Source: Madry et al., arXiv 1706.06083.
    """
    radius = torch.full(x.shape[:1], eps, dtype=x.dtype, device=x.device)
    start = random_start(x, radius, norm, generator) if generator is not None else None
    share = None if step_size is None else step_size / eps
    with eval_mode(model):
        return ascend(loss, x, eps=radius, norm=norm, steps=steps, start=start, step_size=share)


def pgd(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    *,
    eps: float,
    norm: Norm = Norm.LINF,
    steps: int = 10,
    step_size: float | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch *shape"]:
    """``attack`` on the cross-entropy of the true labels y."""

    def loss(z: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(z), y, reduction="none")

    return attack(model, loss, x, eps=eps, norm=norm, steps=steps, step_size=step_size, generator=generator)
