"""Batch normalisation with fixed statistics: an affine operator that float32 computes in several ways."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.graph.affine import Scale
from verifiers.graph.rounding import LARGEST, NORMAL, accumulated
from verifiers.graph.rows import Shape

#: Roundings of a term: eps, its sum with the variance, the root and the reciprocal (4 ulp each at most), three products
#: and two sums. This many cover them in any of the forms below.
STEPS = 24


class BatchNorm(Scale):
    """(x - mean) / sqrt(var + eps) weight + bias, one value of each per channel, the second axis.

    Its error holds for (x - mean) invstd weight + bias, as CUDA and cuDNN compute it, and for x alpha + beta with
    alpha = invstd weight and beta = bias - mean alpha rounded before, as torch computes it on CPUs.
    """

    def __init__(
        self,
        weight: Float[Tensor, " channels"] | None,
        bias: Float[Tensor, " channels"] | None,
        mean: Float[Tensor, " channels"],
        var: Float[Tensor, " channels"],
        eps: float,
        shape: Shape,
    ) -> None:
        tail = (1,) * (len(shape) - 2)

        def channels(value: Tensor | None, fill: float) -> Tensor:
            return (torch.full_like(mean, fill) if value is None else value).reshape(-1, *tail)

        self.weight, self.bias = channels(weight, 1.0), channels(bias, 0.0)
        self.mean, self.variance = channels(mean, 0.0), channels(var + eps, 1.0)
        scale = self.variance.rsqrt() * self.weight
        super().__init__(scale, self.bias - self.mean * scale, shape)

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor:
        """gamma(24) ((|x| + |mean|) |scale| + |bias|); infinite where var + eps is subnormal.

        What underflows before the last product is multiplied by |x|, |mean| or |weight| afterwards.
        """
        moved = sizes[0] + self.mean.abs()
        size = moved * self.scale.abs() + self.bias.abs()
        tiny = STEPS * (1 + moved + self.weight.abs())
        largest = moved * self.variance.rsqrt().clamp_min(1.0)
        usable = (self.variance >= NORMAL) & (largest <= LARGEST / 2)
        return torch.where(usable, accumulated(size, STEPS, tiny=tiny), torch.inf)
