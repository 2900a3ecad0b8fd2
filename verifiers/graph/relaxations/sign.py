"""Relax the sign, of binarised networks."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from verifiers.graph.relaxations.lines import Alpha, Lines

#: The steepest line; steeper ones would overflow where they are multiplied.
STEEPEST = 2.0**20


@dataclass(frozen=True)
class Sign:
    """1 for x > 0, -1 for x < 0, and 0 at 0.

    Sound: on low < 0 < high the line k x - 1 is below the sign for 0 <= k <= 2 / high: it is at most -1 up to 0, and at
    most 1 after it. By symmetry k x + 1 is above for 0 <= k <= 2 / -low. Elsewhere the lines are the range's ends.
    At alpha 1 a line is as steep as it may be, at alpha 0 flat; by default the lower one is steep if high > -low, else
    the upper one. An end that is nan is unknown. Nothing is rounded, and the boxes hold what float32 computes before.
    """

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        return torch.sign(x)

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        return torch.sign(low).where(~low.isnan(), -1.0), torch.sign(high).where(~high.isnan(), 1.0)

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        across, steep = (low < 0) & (high > 0), (high > -low).to(low.dtype)
        below, above = (steep, 1 - steep) if alpha is None else alpha
        zero = torch.zeros_like(low)
        lower, upper = (torch.where(across, free * _slope(end), zero) for free, end in ((below, high), (above, -low)))
        least, most = self.interval(low, high)
        return Lines(lower, least, upper, most)

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        least, most = self.interval(low, high)
        return least < most

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> None:
        """Exact."""
        return None


def _slope(end: Tensor) -> Tensor:
    """Compute the steepest slope, less its rounding; without a gradient where it is cut."""
    least = 2 / STEEPEST
    return 2 / end.clamp_min(least) * (1 - 4 * torch.finfo(end.dtype).eps)
