"""Attack every claimed radius: the program that is deployed, in its own precision, at the radius that is claimed."""

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.question import Question
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, keyed_start, norms, project
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program

#: Points that are tried in each ball, besides the end of an ascent from the image.
POINTS, STEPS = 4, 5


def refuted(
    program: Program,
    question: Question,
    x: Float[Tensor, "batch *shape"],
    predicted: Int[Tensor, " batch"],
    radius: Float[Tensor, " batch"],
    indices: Int[Tensor, " batch"],
) -> Bool[Tensor, " batch"]:
    """Return whether a point within each image's radius has another class.

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
    found, keys = torch.zeros(len(x), dtype=torch.bool, device=x.device), indices.tolist()
    balls = Balls(x, radius.to(x.dtype) * (1 - 1e-6), question.norm)  # rounding moves few points out of the ball
    for point in _points(network, balls, predicted, question.seed, keys):
        inside = norms(point.double() - x.double(), question.norm) <= radius.double()
        with torch.no_grad():
            found |= inside & (margins(network(point), predicted) < 0)
    return found


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
