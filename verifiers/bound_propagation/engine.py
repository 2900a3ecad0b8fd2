"""What a bound-propagation engine offers, and the specification matrices it is asked about."""

from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.certificate import Norm

#: Bounds are computed in float64 while networks are deployed in float32, whose forward pass is off by some units of
#: 2^-23 times the size of the logits: up to 20 units measured on nets of 3 to 9 layers. A margin must exceed this many.
ROUNDING_UNITS = 64 * 2.0**-23


@runtime_checkable
class Engine(Protocol):
    """A network's graph, built once; bounds of linear functions of its logits over balls."""

    name: str
    batch_size: int

    def lower_bounds(
        self,
        x: Float[Tensor, "batch *shape"],
        eps: Float[Tensor, " batch"],
        specification: Float[Tensor, "batch rows classes"],
        *,
        norm: Norm,
        method: str,
    ) -> Float[Tensor, "batch rows"]:
        """Lower bounds of ``specification @ logits`` over each sample's own ball intersected with the image box."""


def margin_specification(
    predicted: Int[Tensor, " batch"], classes: int, dtype: torch.dtype
) -> Float[Tensor, "batch {classes}-1 {classes}"]:
    """Rows e_y - e_j for every class j other than the predicted y."""
    eye = torch.eye(classes, dtype=dtype, device=predicted.device)
    rows = eye[predicted][:, None, :] - eye[None, :, :]
    keep = predicted[:, None] != torch.arange(classes, device=predicted.device)[None, :]
    return rows[keep].reshape(len(predicted), classes - 1, classes)


def rounding_allowance(logits: Float[Tensor, "batch classes"]) -> Float[Tensor, " batch"]:
    """What a margin's lower bound must exceed to hold for the network as it runs in float32."""
    return ROUNDING_UNITS * logits.abs().amax(1).clamp_min(1.0).double()
