"""Attack every claimed radius: the program that is deployed, in its own precision, at the radius that is claimed."""

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.question import Question
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, keyed_start, norms, per_sample, project
from verifiers.geometry.margins import margins
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Batch
from verifiers.runtime.last_places import SAFETY, nudged

#: Points that are tried in each ball, besides the end of an ascent from the image.
POINTS, STEPS = 4, 5


class Refuted(NamedTuple):
    """Rows whose claim a point breaks.

    Attributes:
        broken: the point has another class.
        unsure: it has one in float64, by no more than float64's rounding can make of its logits.
    """

    broken: Bool[Tensor, " batch"]
    unsure: Bool[Tensor, " batch"]


class Judge:
    """Decide which points contradict a claim about the program in its arithmetic.

    In float32 the deployed program decides. Over the real numbers the program in float64 does, where its rounding
    cannot: a point may have another class in float32 alone.

    Attributes:
        network: the program in the arithmetic of the claim.
    """

    def __init__(self, program: Program, arithmetic: Arithmetic) -> None:
        self._deployed = arithmetic.deployed
        self.network = program.module if self._deployed else program.exact
        self._nudged: nn.Module | None = None

    def cast(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Give images the precision of the arithmetic."""
        return x if self._deployed else x.double()

    def __call__(self, points: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"]) -> Refuted:
        """Return which points have another class; nan has none."""
        with torch.no_grad():
            margin = margins(self.network(self.cast(points)), predicted)
            hit = margin < 0
            if self._deployed or not bool(hit.any()):
                return Refuted(hit, torch.zeros_like(hit))
            self._nudged = self._nudged or nudged(self.network)
            off = (margins(self._nudged(self.cast(points)), predicted) - margin).abs()
        sure = margin < -SAFETY * off
        return Refuted(hit & sure, hit & ~sure)


def refuted(program: Program, question: Question, batch: Batch, radius: Float[Tensor, " batch"]) -> Refuted:
    """Search each image's ball for a point with another class.

    The points are those that the batch knows, random ones, corners, and the end of a short ascent.

    Args:
        program: the captured network.
        question: the norm, the seed and the arithmetic of the claim.
        batch: images, with the class that is claimed on each ball.
        radius: the claimed radii.
    """
    judge = Judge(program, question.arithmetic)
    x, predicted, keys = judge.cast(batch.x), batch.predicted, batch.indices.tolist()
    broken, unsure = torch.zeros((2, len(x)), dtype=torch.bool, device=x.device)
    balls = Balls(x, radius.to(x.dtype) * (1 - 1e-6), question.norm)  # rounding moves few points out of the ball
    known = (torch.from_numpy(images).to(batch.x) for images in batch.known())
    for point in chain(known, _points(judge.network, balls, predicted, question.seed, keys)):
        inside = norms(point.double() - x.double(), question.norm) <= radius.double()  # false for nan
        found = judge(torch.where(per_sample(inside, x), point, x), predicted)
        broken, unsure = broken | (inside & found.broken), unsure | (inside & found.unsure)
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
