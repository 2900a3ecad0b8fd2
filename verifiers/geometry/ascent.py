"""Projected gradient ascent inside a ball, which every attack here uses."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.geometry.balls import Balls, finite, per_sample, project, steepest

#: One value per sample.
PerSampleLoss = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, " batch"]]


def ascend(
    objective: PerSampleLoss,
    balls: Balls,
    *,
    steps: int,
    start: Float[Tensor, "batch *shape"] | None = None,
    step_size: float | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Maximise ``objective`` by projected gradient steps over ball and image box; returns the last iterate.

    Args:
        objective: gives one value per sample, to be raised.
        balls: balls around images in [0, 1].
        steps: number of gradient steps.
        start: the first perturbation; zero when None.
        step_size: the step as a share of eps; 2.5 / steps when None.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083.
    """
    x, eps, norm = balls.x, balls.eps, balls.norm
    rate = per_sample(eps * (2.5 / steps if step_size is None else step_size), x)
    delta = torch.zeros_like(x) if start is None else project(start, eps, norm)
    adversarial = (x + delta).clamp(0.0, 1.0)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(adversarial).sum(), adversarial)
        gradient = finite(gradient)
        blocked = ((adversarial <= 0) & (gradient < 0)) | ((adversarial >= 1) & (gradient > 0))  # by the image box
        gradient = gradient.masked_fill(blocked, 0.0)
        delta = project(adversarial.detach() - x + rate * steepest(gradient, norm), eps, norm)
        adversarial = (x + delta).clamp(0.0, 1.0)
    return adversarial.detach()
