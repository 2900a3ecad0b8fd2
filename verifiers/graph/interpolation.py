"""Bilinear interpolation, an affine operator whose positions round too."""

from collections.abc import Sequence

from torch import Tensor

from verifiers.graph.affine import General
from verifiers.graph.rounding import accumulated


class Interpolation(General):
    """Bilinear interpolation in the last two axes."""

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(8) of the largest magnitude M of a map, for the products and sums, and 8 u (height + width + 2) M for
        the positions: scale (i + 1/2) - 1/2 is off by at most 3 u (size + 1) on an axis, and neighbours by 2 M."""
        largest = sizes[0].amax((-2, -1), keepdim=True).expand(len(sizes[0]), *self.after)
        height, width = self.before[0][-2:]
        return accumulated(largest, self.steps + 8 * (height + width + 2), tiny=self.steps)
