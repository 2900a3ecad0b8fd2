"""Attack every claimed radius: the program that is deployed, in its own precision, at the radius that is claimed."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.question import Question
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, keyed_start, norms, project
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.runtime.last_places import SAFETY, nudged

#: Points that are tried in each ball, besides the end of an ascent from the image.
POINTS, STEPS = 4, 5


class Refuted(NamedTuple):
    """The rows that a point breaks.

    Attributes:
        broken: a point within the radius has another class.
        unsure: such a point was found over the real numbers, by no more than float64's rounding can make of its logits.
    """

    broken: Bool[Tensor, " batch"]
    unsure: Bool[Tensor, " batch"]


def refuted(
    program: Program,
    question: Question,
    x: Float[Tensor, "batch *shape"],
    predicted: Int[Tensor, " batch"],
    radius: Float[Tensor, " batch"],
    indices: Int[Tensor, " batch"],
) -> Refuted:
    """Search each image's ball for a point with another class.

    The points are random, corners, and the end of a short ascent. In real arithmetic the program runs in float64.

    Args:
        program: the captured network.
        question: the norm, the seed and the arithmetic of the claim.
        x: images.
        predicted: the class that is claimed on each ball.
        radius: the claimed radii.
        indices: the images' indices, which key the random points.
    """
    deployed = question.arithmetic is Arithmetic.FLOAT32
    network, x = (program.module, x) if deployed else (program.exact, x.double())
    broken, unsure = torch.zeros((2, len(x)), dtype=torch.bool, device=x.device)
    keys, other = indices.tolist(), None
    balls = Balls(x, radius.to(x.dtype) * (1 - 1e-6), question.norm)  # rounding moves few points out of the ball
    for point in _points(network, balls, predicted, question.seed, keys):
        inside = norms(point.double() - x.double(), question.norm) <= radius.double()
        with torch.no_grad():
            margin = margins(network(point), predicted)
            hit = inside & (margin < 0)
            if not deployed and bool(hit.any()):
                other = other or nudged(network)
                sure = margin < -SAFETY * (margins(other(point), predicted) - margin).abs()
                unsure, hit = unsure | (hit & ~sure), hit & sure
        broken = broken | hit
    return Refuted(broken, unsure & ~broken)


def _points(
    network: nn.Module, balls: Balls, predicted: Tensor, seed: int, keys: Sequence[int]
) -> Iterator[Float[Tensor, "batch *shape"]]:
    x, eps, norm = balls.x, balls.eps, balls.norm
    for k in range(POINTS):
        delta = keyed_start(x, eps, norm, seed, keys, k + 1)
        if k % 2:  # a corner of the box, or a point of the sphere
            delta = project((delta.sign() if norm is Norm.LINF else delta) * 1e3, eps, norm)
        yield (x + delta).clamp(0.0, 1.0)
    with torch.enable_grad():
        yield ascend(lambda z: -margins(network(z), predicted), balls, steps=STEPS).detach()
