"""The losses of attacks: one value per sample, raised where the network comes nearer to another class.

Each takes logits, the class that the network is to leave, and the class that it is to reach; the first two ignore the
last.
"""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.geometry.margins import margins

#: Gives one value per sample from logits, the class to leave and the class to reach.
Loss = Callable[
    [Float[Tensor, "batch classes"], Int[Tensor, " batch"], Int[Tensor, " batch"]],
    Float[Tensor, " batch"],
]
#: Keeps the ratios finite where logits are equal.
TINY = 1e-12


def cross_entropy(
    logits: Float[Tensor, "batch classes"], own: Int[Tensor, " batch"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Compute the cross-entropy of the own class, in nats."""
    return nn.functional.cross_entropy(logits, own, reduction="none")


def margin(
    logits: Float[Tensor, "batch classes"], own: Int[Tensor, " batch"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Compute how far the best other class is above the own one, in logits."""
    return -margins(logits, own)


def targeted_margin(
    logits: Float[Tensor, "batch classes"], own: Int[Tensor, " batch"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Compute how far the target is above the own class, in logits."""
    return _of(logits, target) - _of(logits, own)


def targeted_ratio(
    logits: Float[Tensor, "batch classes"], own: Int[Tensor, " batch"], target: Int[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Compute the targeted difference of logits ratio: the targeted margin over the spread of the largest logits.

    The spread is the largest logit less the mean of the third and the fourth. With fewer than four classes the margin
    itself is used: a spread of the largest and the least logit cancels where these are the two classes.

    Source: Croce and Hein, arXiv 2003.01690, equation 7.
    """
    if logits.shape[1] < 4:
        return targeted_margin(logits, own, target)
    top = logits.topk(4, dim=1).values
    return targeted_margin(logits, own, target) / (top[:, 0] - top[:, 2:].mean(1) + TINY)


def ranked(
    logits: Float[Tensor, "batch classes"], own: Int[Tensor, " batch"], most: int
) -> Int[Tensor, "batch targets"]:
    """List the other classes by falling logit, at most so many."""
    others = logits.scatter(1, own[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    return others[:, : min(most, logits.shape[1] - 1)]


def _of(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None])[:, 0]
