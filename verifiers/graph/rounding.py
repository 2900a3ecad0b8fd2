"""Bound how far float32 is from exact arithmetic, operation by operation.

The model of a machine: IEEE float32, round to nearest, subnormals kept. An operation gives the exact result times
1 + d with |d| <= ``UNIT``; if that is subnormal, it is off by at most half of ``TINY`` instead. Sums are taken in any
order, with or without fused multiply-add. If each term passes through at most k operations, a sum is off by at most
gamma(k) times the sum of its terms' magnitudes (Higham, Accuracy and Stability of Numerical Algorithms, chapter 3).

Library functions are accurate to ``LIBRARY`` roundings, that is, to 4 ulp. Sources: SLEEF's vectorised exp, expm1, log,
log1p and tanh, which torch calls on CPUs (the suffix u10 means 1.0 ulp); glibc's "Known Maximum Errors in Math
Functions" (at most 2 ulp for these); the CUDA programming guide's table of maximum errors (at most 2 ulp for expf,
expm1f, logf, log1pf, tanhf, erff and rsqrtf). Square roots and quotients are correctly rounded on all of these; they
are given the same bound, which covers a quotient that is a product with a reciprocal.

Reduced precision (TF32, bfloat16), Winograd and Fourier convolutions, fast-math flags and hardware that flushes
subnormals to zero are other machines.
"""

from functools import lru_cache
from math import inf

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.core.errors import Unsupported

#: The unit roundoff of float32.
UNIT = 2.0**-24
#: The smallest positive float32 number.
TINY = 2.0**-149
#: The smallest positive number with a full significand.
NORMAL = 2.0**-126
#: The largest float32 number.
LARGEST = (2 - 2.0**-23) * 2.0**127
#: Roundings that a library function may be off by: 4 ulp, and 1 ulp is at most 2 units of roundoff.
LIBRARY = 8
#: Covers the rounding of bounds that are themselves computed in float64, of sums of up to 2^22 terms.
UP = 1 + 2.0**-30
#: Errors of nodes grow by this factor, which covers the sums of the engine that bounds them. An error is at least 2^-24
#: times the terms of its node, so the factor adds 2^-34 of them; sums of up to 2^19 terms in float64 lose less.
ENGINE = 1 + 2.0**-10


@lru_cache
def _gamma(steps: int | float) -> float:
    share = UNIT * steps
    return share / (1 - share) * UP if share < 0.5 else inf


def gamma(steps: int | float | Tensor) -> Tensor:
    """Compute the relative error of a chain of roundings, k u / (1 - k u); infinite for 2^23 of them or more."""
    if not isinstance(steps, Tensor):
        return torch.tensor(_gamma(steps), dtype=torch.float64)
    share = UNIT * steps.to(torch.float64)
    return torch.where(share < 0.5, share / (1 - share) * UP, torch.inf)


def common_value(counts: Int[Tensor, "*shape"]) -> int | Int[Tensor, "*shape"]:
    """Return the number that all counts are, with which bounds are computed faster; the counts if they differ."""
    first = counts.flatten()[0]
    return int(first) if bool((counts == first).all()) else counts


def magnitude(box: tuple[Tensor, Tensor]) -> Float[Tensor, "batch *shape"]:
    """Compute the largest absolute value of each entry."""
    return torch.maximum(box[0].abs(), box[1].abs())


def accumulated(
    size: Float[Tensor, "batch *shape"],
    steps: int | float | Tensor,
    *,
    tiny: int | float | Tensor = 1.0,
    largest: int | float | Tensor = 1.0,
) -> Float[Tensor, "batch *shape"]:
    """Bound the error of results whose terms have magnitudes that add up to ``size``.

    Args:
        size: the sum of the magnitudes of the terms.
        steps: the roundings that each term passes through.
        tiny: how many times ``TINY`` the results that underflow change the result by.
        largest: intermediate results are at most this many times ``size``; if one may overflow, the error is infinite.
    """
    chain = gamma(steps).to(size) if isinstance(steps, Tensor) else _gamma(steps)
    error = (chain * size + tiny * TINY) * UP
    reached = size + error
    within = reached <= LARGEST if isinstance(largest, float) and largest == 1.0 else reached * largest <= LARGEST
    return error.where(within, torch.inf)


def counted(activation: object, steps: int | float, size: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Bound the error of a function that float32 computes with a known number of roundings: gamma(steps) |f|.

    Raises:
        Unsupported: the number is not known.
    """
    if steps == torch.inf:
        name = type(activation).__name__
        raise Unsupported(f"{name} does not say how many roundings float32 makes: set `steps` in {name}")
    return accumulated(size, steps, tiny=steps)


def nearest(value: Tensor) -> Tensor:
    """Round to float32."""
    return value.float().to(value.dtype)


def representable(value: int | float | Tensor) -> bool:
    """Return whether every entry is a float32 number."""
    exact = torch.as_tensor(value, dtype=torch.float64)
    return bool((nearest(exact) == exact).all())


def steps_of(scale: int | float | Tensor) -> int:
    """Count the roundings of a product with a constant: none by 0 and 1, one by a float32 number, else two.

    A constant beyond float32 has no bound: as many as ``gamma`` has none for.
    """
    exact = torch.as_tensor(scale, dtype=torch.float64)
    if bool((exact.abs() > LARGEST).any()):
        return 2**23
    if bool(((exact.abs() == 1) | (exact == 0)).all()):
        return 0
    return 1 if representable(exact) else 2
