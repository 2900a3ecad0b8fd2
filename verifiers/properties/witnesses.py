"""Find points that satisfy a property, and accept only those that satisfy it in every float32 machine at hand."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from verifiers.bound_propagation import HalfSpaces
from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import PerSampleLoss, ascend
from verifiers.geometry.balls import Balls, random_start
from verifiers.properties.property import Box, Case

#: Runs another implementation of the network on one input; returns its outputs, flat.
Reference = Callable[[Float[np.ndarray, "*shape"]], Float[np.ndarray, " outputs"]]
#: Points that are checked exactly at a time, and the share of the largest value up to which a point is worth it.
MOST, NEAR = 4, 1e-6


@dataclass(frozen=True)
class Witness:
    """An input that satisfies a property.

    Attributes:
        point: the point of the box, exactly.
        image: its rounding to float32, which the network gets.
        outputs: the network's outputs at the image, flat.
    """

    point: list[Fraction]
    image: Float[np.ndarray, "*shape"]
    outputs: Float[np.ndarray, " outputs"]


def holds(cases: Sequence[Case], point: Sequence[Fraction], outputs: Float[np.ndarray, " outputs"]) -> bool:
    """Return whether a point of the box and its outputs, all finite, satisfy one of the cases."""
    if not np.isfinite(outputs).all():
        return False
    y = [Fraction(float(value)) for value in outputs]
    return any(all(inequality.holds(point, y) for inequality in case.inequalities) for case in cases)


class Search:
    """Try points of one box.

    Args:
        module: the network in float32.
        cases: cases of the box.
        shape: shape of one input.
        reference: another implementation that must agree; None for none.

    Attributes:
        found: a point that satisfies the property in both implementations.
        doubt: says that a point satisfies it in one implementation only; empty if there was none.
    """

    def __init__(
        self, module: nn.Module, cases: Sequence[Case], shape: tuple[int, ...], reference: Reference | None = None
    ) -> None:
        self.module, self.cases, self.shape, self.reference = module, cases, shape, reference
        self.box: Box = cases[0].box
        self.low, self.high = (torch.from_numpy(end).reshape(1, *shape) for end in self.box.images)
        self.found: Witness | None = None
        self.doubt = ""

    def tries(self, points: Float[Tensor, "points *shape"], spaces: HalfSpaces | None) -> Bool[Tensor, " points"]:
        """Round points into the box and check the nearest to the unsafe set; return which satisfy the property."""
        hits = torch.zeros(len(points), dtype=torch.bool, device=points.device)
        images = points.float().cpu()
        images = torch.maximum(torch.minimum(images, self.high), self.low)
        order = list(range(min(MOST, len(images))))
        if spaces is not None:
            with torch.no_grad():
                outputs = self.module(images).flatten(1)
                values = spaces.values(images, outputs).amin(1)
            slack = NEAR * outputs.double().abs().nan_to_num(0.0, 0.0, 0.0).amax(1).clamp_min(1e-30)
            near = (values <= slack).nonzero().flatten()
            order = near[values[near].argsort()][:MOST].tolist()
        for i in order:
            if self.found is None and self.check(images[i]):
                hits[i] = True
        return hits

    def check(self, image: Float[Tensor, "*shape"]) -> bool:
        """Run an input alone in both implementations, and keep it if it satisfies the property exactly in both."""
        point = self.box.point(image.flatten().numpy())
        with torch.no_grad():
            outputs = self.module(image[None]).flatten().float().numpy()
        ours = holds(self.cases, point, outputs)
        theirs = ours if self.reference is None else holds(self.cases, point, self.reference(image.numpy()))
        if ours and theirs:
            self.found = Witness(point, image.numpy(), outputs)
        elif ours != theirs:
            one, other = ("certkd", "onnxruntime") if ours else ("onnxruntime", "certkd")
            self.doubt = f"an input satisfies the property in float32 by {one} and not by {other}"
        return ours and theirs


@dataclass(frozen=True)
class Descent:
    """Projected gradient descent on the values of cases, within their box.

    Attributes:
        steps, restarts: steps of every restart, and restarts. The first starts at the centre and lowers the nearest
            case at every step; each of the others is for one case, the nearest first.
        seed: keys the random starts.
    """

    steps: int = 40
    restarts: int = 8
    seed: int = 0

    def __call__(self, search: Search, spaces: HalfSpaces, late: Callable[[], bool]) -> None:
        """Descend until a point is found or time is up."""
        low, high, module = search.low, search.high, search.module
        cube = Balls.around(torch.full_like(low, 0.5), 0.5, Norm.LINF).to(torch.float32)

        def values(place: Tensor) -> Tensor:
            x = low + (high - low) * place
            return spaces.values(x, module(x).flatten(1))

        with torch.no_grad():
            nearest = values(cube.x)[0].argsort().tolist()
        for restart in range(self.restarts):
            if late():
                return
            goal: PerSampleLoss = lambda z: -values(z).amin(1)  # noqa: E731 - as the others
            start = None
            if restart:
                target = nearest[(restart - 1) % len(nearest)]
                goal = lambda z, case=target: -values(z)[:, case]  # type: ignore[misc] # noqa: E731
                generator = torch.Generator().manual_seed(1000 * self.seed + restart)
                start = random_start(cube.x, cube.eps, cube.norm, generator)
            for step, share in self._phases():
                place = ascend(goal, cube, steps=step, start=start, step_size=share)
                search.tries(low + (high - low) * place, spaces)
                start = place - cube.x
                if late() or search.found is not None:
                    return

    def _phases(self) -> tuple[tuple[int, float], ...]:
        """Return numbers of steps with their sizes: ever finer, because unsafe sets of several conditions are thin."""
        first, half = 2.5 / self.steps, max(1, self.steps // 2)
        return (self.steps, first), (half, first / 8), (half, first / 64)
