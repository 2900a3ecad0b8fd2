"""Attacks for training and for model selection: FGSM and PGD on the cross-entropy of the true label."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.certificate import Norm
from verifiers.falsify import ascend, random_start
from verifiers.modes import eval_mode


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
    """Adversarial examples of projected gradient descent; the network is attacked in eval mode and left as it was.

    Args:
        model: from images in [0, 1] to logits.
        x: images in [0, 1].
        y: true labels.
        eps: radius in pixel units.
        norm: norm of the ball.
        steps: gradient steps.
        step_size: in pixel units; 2.5 eps / steps when None.
        generator: for the random start; none starts at x.

    Source: Madry et al., arXiv 1706.06083.
    """
    radius = torch.full(x.shape[:1], eps, dtype=x.dtype, device=x.device)
    start = random_start(x, radius, norm, generator) if generator is not None else None

    def loss(z: Tensor) -> Tensor:
        return nn.functional.cross_entropy(model(z), y, reduction="none")

    share = None if step_size is None else step_size / eps
    with eval_mode(model):
        return ascend(loss, x, eps=radius, norm=norm, steps=steps, start=start, step_size=share)


def fgsm(
    model: nn.Module,
    x: Float[Tensor, "batch *shape"],
    y: Int[Tensor, " batch"],
    *,
    eps: float,
    norm: Norm = Norm.LINF,
) -> Float[Tensor, "batch *shape"]:
    """One full step of size eps. Source: Goodfellow et al., arXiv 1412.6572."""
    return pgd(model, x, y, eps=eps, norm=norm, steps=1, step_size=eps)
