"""Find points that satisfy a property, and accept only those that satisfy it in every float32 machine at hand."""

import time
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
from verifiers.geometry.attacks.hunt import Hunt
from verifiers.geometry.attacks.search import Victims
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


class WitnessSearch:
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
        steps, restarts: steps of every restart, and restarts.
        seed: keys the random starts.
        queries: of the random search where gradients find nothing.
    """

    steps: int = 40
    restarts: int = 8
    seed: int = 0
    queries: int = 2500

    def first(self, search: WitnessSearch, spaces: HalfSpaces) -> None:
        """Descend from the centre towards the nearest case at every step."""
        cube, values = _Cube(search, spaces).parts
        search.tries(self._end(search, cube, lambda z: -values(z).amin(1), None, 2.5 / self.steps), spaces)

    def __call__(self, search: WitnessSearch, spaces: HalfSpaces, deadline: float) -> None:
        """Descend from random starts, each towards one case, the nearest first, until a point is found.

        Each restart continues with ever smaller steps, because the unsafe sets of several conditions are thin. None of
        these begins that would end after the deadline, on ``time.monotonic``.
        """
        pace = 0.0  # seconds of the last ones
        cube, values = _Cube(search, spaces).parts
        with torch.no_grad():
            nearest = values(cube.x)[0].argsort().tolist()
        for restart in range(self.restarts):
            target = nearest[restart % len(nearest)]
            goal: PerSampleLoss = lambda z, case=target: -values(z)[:, case]  # type: ignore[misc] # noqa: E731
            generator = torch.Generator().manual_seed(1000 * self.seed + restart)
            start = random_start(cube.x, cube.eps, cube.norm, generator)
            for finer in (1, 8, 64):
                started = time.monotonic()
                if started + pace > deadline or search.found is not None:
                    return
                end = self._end(search, cube, goal, start, 2.5 / self.steps / finer)
                search.tries(end, spaces)
                start = (end - search.low) / (search.high - search.low).clamp_min(1e-30) - cube.x
                pace = time.monotonic() - started

    def hunt(self, search: WitnessSearch, spaces: HalfSpaces, deadline: float) -> None:
        """Search at random from several starts, then by small steps, for a point of the nearest case.

        Nothing begins after the deadline, on ``time.monotonic``.
        """
        cube, values = _Cube(search, spaces).parts
        victims = Victims(_Scores(values), cube, torch.zeros(1, dtype=torch.long), [0], self.seed)
        place = Hunt(queries=self.queries, deadline=deadline).run(victims).point
        search.tries(search.low + (search.high - search.low) * place, spaces)

    def _end(
        self, search: WitnessSearch, cube: Balls, goal: PerSampleLoss, start: Tensor | None, step: float
    ) -> Float[Tensor, "1 *shape"]:
        place = ascend(goal, cube, steps=self.steps, start=start, step_size=step)
        return search.low + (search.high - search.low) * place


class _Cube:
    """The unit cube in the place of a box, with the values of the cases on it."""

    def __init__(self, search: WitnessSearch, spaces: HalfSpaces) -> None:
        self.search, self.spaces = search, spaces

    @property
    def parts(self) -> tuple[Balls, Callable[[Tensor], Tensor]]:
        """The cube, and the function that gives the largest value of every case at its points."""
        return Balls.around(torch.full_like(self.search.low, 0.5), 0.5, Norm.LINF).to(torch.float32), self.values

    def values(self, place: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch cases"]:
        low, high = self.search.low, self.search.high
        x = low + (high - low) * place
        return self.spaces.values(x, self.search.module(x).flatten(1))


class _Scores(nn.Module):
    """Score places of the cube as attacks expect it: the value of the nearest case for the own class, 0 for another."""

    def __init__(self, values: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.values = values

    def forward(self, place: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch 2"]:
        nearest = self.values(place).amin(1)
        return torch.stack([nearest, torch.zeros_like(nearest)], 1)
