"""Compute the float32 rounding allowance that a margin must exceed."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: A margin's bound must exceed this many times the measured difference of float32 and float64 logits.
SAFETY = 16.0


ARITHMETIC = "float64; margins exceed 2^-17 x max(1, largest |logit|) and 16 x the measured float32 error"


def careful_allowance(
    network: nn.Module, exact: nn.Module, x: Float[Tensor, "batch *shape"], logits: Float[Tensor, "batch k"], eps: float
) -> Float[Tensor, " batch"]:
    """Compute each sample's allowance: the larger of the stated one and SAFETY times the measured float32 error."""
    return torch.maximum(rounding_allowance(logits), SAFETY * measured_rounding(network, exact, x, eps))


#: Bounds are computed in float64, but networks are deployed in float32. A float32 forward pass is off by some units of
#: 2^-23 times the size of the logits: up to 20 units on nets of 3 to 9 layers. A margin must exceed this many.
ROUNDING_UNITS = 64 * 2.0**-23


def rounding_allowance(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """Compute the stated allowance, which covers the rounding of an ordinary network in float32."""
    return ROUNDING_UNITS * logits.abs().amax(1).clamp_min(1.0).double()


def measured_rounding(
    network: nn.Module, exact: nn.Module, x: Float[Tensor, "batch *shape"], eps: float, probes: int = 8
) -> Float[Tensor, " batch"]:
    """Measure the largest difference of float32 and float64 logits on each image and random corners of its linf ball.

    Networks whose large hidden values cancel have errors far larger than their logits suggest.
    """
    generator = torch.Generator().manual_seed(0)
    worst = torch.zeros(len(x), dtype=torch.float64, device=x.device)
    for probe in range(probes):
        sign = torch.randint(0, 2, x[:1].shape, generator=generator).to(x) * 2 - 1  # the same for any batch
        point = (x + sign * eps).clamp(0.0, 1.0) if probe else x
        with torch.no_grad():
            worst = torch.maximum(worst, (network(point).double() - exact(point.double())).abs().amax(1))
    return worst
