"""Mean-value form: f(x) = f(c) + J(z) (x - c) for a z between c and x, with the Jacobian bounded over the box.

If J(z) is within G -+ E entrywise for every z of the box, and |x - c| <= r, then f_i(x) is within
f_i(c) + G_i (x - c) -+ (E r)_i. If that band is wider than the range of f_i, the range replaces it.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.rows import Rows, Shape

#: Applies G^T to rows: (values, gather) -> values, where ``gather`` selects each row's own sample.
Transpose = Callable[[Tensor, Callable[[Tensor], Tensor]], Tensor]


class MeanValue:
    """The relaxation of a vector function of one input of the same shape.

    Args:
        value: f(c).
        error: E r.
        span: a range of f over the box.
        center: c.
        transpose: G^T.
        shape: the node's shape.
    """

    def __init__(
        self, value: Tensor, error: Tensor, span: Interval, center: Tensor, transpose: Transpose, shape: Shape
    ) -> None:
        self.sloped = 2 * error < span.high - span.low
        self.low = torch.where(self.sloped, value - error, span.low)
        self.high = torch.where(self.sloped, value + error, span.high)
        self.center, self.transpose, self.shape = center, transpose, shape

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        rows = rows.dense(self.shape)

        def gather(maps: Tensor) -> Tensor:
            return rows.gather(maps, samples)

        positive = rows.values.clamp_min(0)
        negative = rows.values - positive
        values = self.transpose(rows.values * gather(self.sloped.to(rows.values.dtype)), gather)
        constant = positive * gather(self.low) + negative * gather(self.high) - values * gather(self.center)
        return Pushed([Rows(values)], constant.flatten(1).sum(1))
