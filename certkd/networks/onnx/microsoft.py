"""Translate the operators of onnxruntime's own domain that its optimiser writes; see ``operators``."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from certkd.networks.onnx import layers
from certkd.networks.onnx.call import Call, Value, tensor

#: Activations that are merged into a layer, with their parameters.
ACTIVATIONS: dict[str, Callable[..., Tensor]] = {
    "": lambda x: x,
    "Relu": F.relu,
    "Tanh": torch.tanh,
    "Sigmoid": torch.sigmoid,
    "LeakyRelu": lambda x, alpha=0.01: F.leaky_relu(x, alpha),
    "Clip": lambda x, low, high: torch.clamp(x, low, high),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: torch.clamp(alpha * x + beta, 0.0, 1.0),
}


def _activated(call: Call, x: Tensor, name: str, parameters: Sequence[float]) -> Tensor:
    if name not in ACTIVATIONS:
        raise call.refuse(f"activation={name!r} is not supported")
    return ACTIVATIONS[name](x, *parameters)


def fused_conv(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Value = None,
    added: Value = None,
    *,
    activation: str = "",
    activation_params: Sequence[float] = (),
    **attributes: Any,
) -> Tensor:
    found = layers.conv(call, x, weight, bias, **attributes)
    return _activated(call, found if added is None else found + tensor(added, found), activation, activation_params)


def fused_matmul(
    call: Call,
    left: Value,
    right: Value,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's names
    transB: int = 0,  # noqa: N803
) -> Tensor:
    like = left if isinstance(left, Tensor) else right
    left, right = tensor(left, like), tensor(right, like)
    left, right = left.mT if transA else left, right.mT if transB else right
    constant = right.dim() == 2 and not call.varying[1]
    product = F.linear(left, right.t()) if constant else torch.matmul(left, right)
    return product if alpha == 1 else alpha * product


def bias_gelu(call: Call, x: Tensor, bias: Value) -> Tensor:
    return F.gelu(x + tensor(bias, x))


def gelu(call: Call, x: Tensor) -> Tensor:
    return F.gelu(x)


def fast_gelu(call: Call, x: Tensor, bias: Value = None) -> Tensor:
    return F.gelu(x if bias is None else x + tensor(bias, x), approximate="tanh")


def quick_gelu(call: Call, x: Tensor, *, alpha: float = 1.702) -> Tensor:
    return x * torch.sigmoid(alpha * x)


def skip_layer_norm(
    call: Call,
    x: Tensor,
    skip: Tensor,
    scale: Tensor,
    shift: Value = None,
    bias: Value = None,
    *,
    epsilon: float = 1e-12,
) -> Tensor | tuple[Tensor | None, ...]:
    """Normalise the last axis of a sum, which is the fourth output."""
    if call.outputs not in (1, 4):
        raise call.refuse("also returns mean and deviation")
    total = x + skip if bias is None else x + skip + bias
    found = F.layer_norm(total, [int(total.shape[-1])], scale, shift, epsilon)
    return found if call.outputs == 1 else (found, None, None, total)


OPERATORS: dict[str, Callable[..., Any]] = {
    "com.microsoft:BiasGelu": bias_gelu,
    "com.microsoft:FastGelu": fast_gelu,
    "com.microsoft:FusedConv": fused_conv,
    "com.microsoft:FusedMatMul": fused_matmul,
    "com.microsoft:Gelu": gelu,
    "com.microsoft:QuickGelu": quick_gelu,
    "com.microsoft:SkipLayerNormalization": skip_layer_norm,
}
