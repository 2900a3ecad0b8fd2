"""The scale of sums of products of codes and weights, and their bias."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from certkd.networks.onnx.call import Call
from certkd.networks.onnx.codes import Reals

#: A bias belongs to a sum if its scale is the product of the others, up to the rounding of both.
CLOSE = 2.0**-22


def fit(x: Any, weight: Any, out: int) -> np.ndarray | None:
    """Return the scale of the integer sums of a layer; None if it does not run on integers."""
    both = isinstance(x, Reals) and isinstance(weight, Reals)
    if not both or x.source is None or not x.plain or weight.source is not None or weight.values.is_floating_point():
        return None
    if weight.scale.size > 1 and weight.axis != out:
        return None
    scale = np.asarray(x.single * weight.scale, np.float32)
    return scale if (scale >= np.finfo(np.float32).tiny).all() else None


def units(call: Call, bias: Any, scale: np.ndarray) -> Tensor | None:
    """Convert a bias to units of the sums: integers, or real numbers, which a runtime may round to integers."""
    if bias is None:
        return None
    if isinstance(bias, Tensor) and bias.is_floating_point():
        return bias / torch.as_tensor(scale, device=bias.device)
    if not isinstance(bias, Reals) or bias.values.dtype != torch.int32 or bias.source is not None:
        raise call.refuse("adds a bias to sums of codes that is neither floats nor integers of 32 bits")
    if not np.allclose(bias.scale, scale, rtol=CLOSE, atol=0):
        raise call.refuse(
            "has a bias whose scale is not the product of the scales of the value and the weights: onnxruntime reads "
            "its integers as if it were"
        )
    return bias.values
