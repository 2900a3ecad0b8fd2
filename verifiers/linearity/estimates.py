"""Estimate the distance of a margin or the cross-entropy from its linearisation, by attacks."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, random_start

#: One value per image.
Function = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, " batch"]]


#: Starting points of an attack on a residual.
STARTS = 4


class Estimates(NamedTuple):
    """The results of attacks, one value per sample: lower bounds, which prove nothing.

    Attributes:
        margin: the gamma of the margin to the runner-up, the larger side.
        loss: the gamma of the cross-entropy, the larger side.
        protocol: local linearity as the KDIGA authors measure it: cross-entropy, signed, 50 sign steps of 0.1.
    """

    margin: Float[Tensor, " batch"]
    loss: Float[Tensor, " batch"]
    protocol: Float[Tensor, " batch"]


def attacked(
    model: nn.Module, x: Tensor, predicted: Int[Tensor, " batch"], eps: float, norm: Norm, steps: int
) -> Estimates:
    """Attack the residuals of the margin and of the cross-entropy, in the dtype of x."""
    with torch.no_grad():
        rivals = runner_up(model(x), predicted)

    def margin(z: Tensor) -> Tensor:
        out = model(z)
        return (out.gather(1, predicted[:, None]) - out.gather(1, rivals[:, None]))[:, 0]

    found, loss = [], cross_entropy_of(model, predicted)
    for function in (margin, loss):
        sides = [climb(_Residual(function, x, sign), x, eps, norm, steps) for sign in (1.0, -1.0)]
        found.append(torch.maximum(*sides))
    limits = torch.full((len(x),), eps, dtype=x.dtype, device=x.device)
    start = random_start(x, limits, norm, torch.Generator().manual_seed(0))
    return Estimates(found[0], found[1], signed_linearity(loss, x, eps, norm, start))


def runner_up(logits: Float[Tensor, "batch classes"], y: Int[Tensor, " batch"]) -> Int[Tensor, " batch"]:
    """Return the class other than y with the largest logit."""
    return logits.scatter(1, y[:, None], -float("inf")).argmax(1)


def cross_entropy_of(model: nn.Module, y: Int[Tensor, " batch"]) -> Function:
    """Return the cross-entropy of the labels as a function of the images, in nats."""
    return lambda z: F.cross_entropy(model(z), y, reduction="none")


def climb(
    residual: Function, x: Float[Tensor, "batch *shape"], eps: float, norm: Norm, steps: int, seed: int = 0
) -> Tensor:
    """Maximise a residual by gradient steps from several points of the sphere; the result is at least 0.

    Near x, a piecewise linear network equals its linearisation: a start there would stay there.
    """
    limits = torch.full((len(x),), eps, dtype=x.dtype, device=x.device)
    generator, found = torch.Generator().manual_seed(seed), torch.zeros_like(limits)
    for _ in range(STARTS):
        far = random_start(x, limits, norm, generator)
        point = ascend(
            residual, Balls(x, limits, norm), steps=steps, start=(far.sign() if norm is Norm.LINF else far * 1e3)
        )
        with torch.no_grad():
            found = torch.fmax(found, residual(point))
    return found


def signed_linearity(
    function: Function,
    x: Float[Tensor, "batch *shape"],
    eps: float,
    norm: Norm,
    start: Float[Tensor, "batch *shape"],
) -> Float[Tensor, " batch"]:
    """Measure how far a function rises above its linearisation, by the protocol of Shao et al.'s published code.

    50 sign steps of 0.1 from the start, far larger than the ball, jump between its corners. The value is signed. The
    protocol is for linf; other norms give nan.
    """
    if norm is not Norm.LINF:
        return torch.full((len(x),), float("nan"), dtype=x.dtype, device=x.device)
    residual, limits = _Residual(function, x), torch.full((len(x),), eps, dtype=x.dtype, device=x.device)
    point = ascend(residual, Balls(x, limits, norm), steps=50, start=start, step_size=0.1 / eps)
    with torch.no_grad():
        return residual(point)


class _Residual:
    """The function z -> sign (g(z) - g(x) - <grad g(x), z - x>)."""

    def __init__(self, function: Function, x: Tensor, sign: float = 1.0) -> None:
        at = x.detach().requires_grad_(True)
        with torch.enable_grad():
            value = function(at)
            (self.gradient,) = torch.autograd.grad(value.sum(), at)
        self.function, self.x, self.value, self.sign = function, x, value.detach(), sign

    def __call__(self, z: Tensor) -> Tensor:
        return self.sign * (self.function(z) - self.value - (self.gradient * (z - self.x)).flatten(1).sum(1))
