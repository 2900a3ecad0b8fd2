"""FAB: move along the linearised boundary of two classes towards the image."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.geometry.attacks.losses import targeted_margin
from verifiers.geometry.attacks.planes import onto_planes
from verifiers.geometry.attacks.search import Reached, Victims, slopes_of
from verifiers.geometry.balls import norms, per_sample
from verifiers.geometry.margins import margins
from verifiers.runtime.deadline import check

#: How far steps go beyond the boundary, how far a point of another class moves back, and the image's largest share.
BEYOND, BACK, TOWARDS = 1.05, 0.9, 0.1


@dataclass(frozen=True)
class Fab:
    """The targeted fast adaptive boundary attack; a run drops a sample once a point of its region has another class.

    Attributes:
        steps: steps of a run.

    Source: Croce and Hein, arXiv 1907.02044.
    """

    steps: int = 100

    def run(
        self,
        victims: Victims,
        target: Int[Tensor, " batch"],
        start: Float[Tensor, "batch *shape"] | None = None,
    ) -> Reached:
        """Search from a perturbation of half its length, or from the images."""
        balls = victims.balls
        low, high = balls.edges()
        z = balls.x if start is None else (balls.x + start / 2).clamp(low, high)
        point, margin = balls.x.clone(), torch.full(z.shape[:1], torch.inf, dtype=z.dtype, device=z.device)
        flat = torch.zeros_like(margin, dtype=torch.bool)
        rows = torch.arange(len(z), device=z.device)
        for step in range(self.steps):
            check()
            some = victims.take(rows)
            gap, slopes = _linearised(some, z, target[rows])
            if step == 0:
                flat = ~slopes.flatten(1).any(1)
            z = self._moved(some, z, -gap, slopes)
            with torch.no_grad():
                here = margins(victims.model(z), some.own)
            hit = here < 0
            inside = hit & some.balls.contain(z)
            found = rows[inside]
            point[found], margin[found] = z[inside], here[inside]
            z = torch.where(per_sample(hit, z), some.balls.x + BACK * (z - some.balls.x), z)
            z, rows = z[~inside], rows[~inside]
            if not len(rows):
                break
        return Reached(point, margin, flat)

    def _moved(self, some: Victims, z: Tensor, values: Tensor, slopes: Tensor) -> Tensor:
        """Step onto the plane from the iterate and from the image, and mix both by their lengths."""
        x, norm, edges = some.balls.x, some.balls.norm, some.balls.edges()
        ours = onto_planes(z, slopes, values, edges, norm)
        theirs = onto_planes(x, slopes, values + (slopes * (z - x)).flatten(1).sum(1), edges, norm)
        lengths = [norms(move, norm).clamp_min(1e-8) for move in (ours, theirs)]
        share = per_sample((lengths[0] / (lengths[0] + lengths[1])).clamp_max(TOWARDS), z)
        return ((z + BEYOND * ours) * (1 - share) + (x + BEYOND * theirs) * share).clamp(*edges)


def _linearised(some: Victims, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far the target is above the own class, and the gradient of that."""
    z = z.detach().requires_grad_(True)
    with torch.enable_grad():
        gap = targeted_margin(some.model(z), some.own, target)
        return gap.detach(), slopes_of(gap, z)
