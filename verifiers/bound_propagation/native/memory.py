"""Keep intervals for later questions about the same samples at smaller radii."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.graph.operators import Interval


class _Kept:
    """The tightened intervals of one question per sample, and the radius of its ball; -1 before the first."""

    def __init__(self, samples: int) -> None:
        self.eps = torch.full((samples,), -1.0, dtype=torch.float64)
        self.intervals: dict[int, Interval] = {}

    def write(self, rows: Tensor, eps: Tensor, intervals: dict[int, Interval]) -> None:
        self.eps = self.eps.to(eps.device)
        self.eps[rows] = eps.double()
        for position, new in intervals.items():
            if position not in self.intervals:
                blank = new.low.new_zeros((len(self.eps), *new.low.shape[1:]))
                self.intervals[position] = Interval(blank, blank.clone())
            for end, value in zip(self.intervals[position], new, strict=True):
                end[rows] = value

    def of(self, rows: Tensor, wanted: Bool[Tensor, " rows"]) -> dict[int, Interval]:
        """Return the intervals of rows; infinite where they are not wanted."""
        found = {}
        for position, (low, high) in self.intervals.items():
            mask = wanted.reshape(-1, *[1] * (low.ndim - 1))
            found[position] = Interval(low[rows].where(mask, -torch.inf), high[rows].where(mask, torch.inf))
        return found


class KnownIntervals:
    """Intervals of a batch of samples that hold on the balls of later questions.

    A bound on a ball holds on every smaller one. A search goes up until a proof fails, and stays below from then on.
    The memory therefore keeps the last question, and the one before the radius last went down. Neurons whose sign is
    settled on the larger ball need no more rows.
    """

    def __init__(self, samples: int) -> None:
        self._last, self._above = _Kept(samples), _Kept(samples)

    def known(self, rows: Int[Tensor, " rows"], eps: Float[Tensor, " rows"]) -> dict[int, Interval]:
        """Return intervals of nodes that hold on the balls of radius eps around the samples of the rows."""
        self._last.eps, self._above.eps = self._last.eps.to(eps.device), self._above.eps.to(eps.device)
        turned = self._last.eps[rows] >= eps
        if bool(turned.any()):
            down = rows[turned]
            self._above.write(down, self._last.eps[down], self._last.of(down, torch.ones_like(down, dtype=torch.bool)))
        return self._above.of(rows, self._above.eps[rows] >= eps)

    def keep(self, rows: Int[Tensor, " rows"], bounds: Bounds) -> None:
        """Store the bounds of a question."""
        found = {i: Interval(*(end.detach() for end in bounds.intervals[i])) for i in bounds.refined}
        self._last.write(rows, bounds.balls.eps, found)
