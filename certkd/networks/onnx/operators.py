"""Translate ONNX operators to torch's: one function per operator, one table.

Each function takes its call, the node's inputs and the node's attributes under their own names, so that an unknown
attribute is rejected. An input is a tensor if it depends on images or weights, an array if it is known from shapes and
constants alone, and None if it is left out. If an attribute became an input in a later opset, the function accepts
both. The first axis of a value that depends on images is the batch.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from certkd.networks.onnx import layers, microsoft, quantized, recurrent, resizing, shaping
from certkd.networks.onnx.call import Call, Value, axes_of, axis_of, number, tensor


def elementwise(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Translate an operator of one input without attributes."""

    def apply(call: Call, x: Tensor) -> Tensor:
        return function(x)

    return apply


def binary(function: Callable[[Any, Any], Tensor]) -> Callable[..., Tensor]:
    """Translate arithmetic with broadcasting; constant numbers stay numbers."""

    def apply(call: Call, left: Value, right: Value) -> Tensor:
        like = left if isinstance(left, Tensor) else right
        return function(_operand(left, like), _operand(right, like))

    return apply


def _operand(value: Value, like: Tensor) -> Any:
    single = isinstance(value, np.ndarray) and value.size == 1 and value.ndim <= like.ndim
    return float(value.reshape(())) if single else tensor(value, like)


def power(call: Call, x: Tensor, exponent: Value) -> Tensor:
    degree = number(call, exponent)
    return torch.pow(x, int(degree) if degree.is_integer() else degree)


def total(call: Call, *parts: Value) -> Tensor:
    like = next(part for part in parts if isinstance(part, Tensor))
    return functools.reduce(torch.add, (tensor(part, like) for part in parts))


def mean(call: Call, *parts: Value) -> Tensor:
    return total(call, *parts) / len(parts)


def extreme(function: Callable[[Tensor, Tensor], Tensor], clamp: Callable[[Tensor, float], Tensor]) -> Any:
    """Translate the largest or least of several values; constant numbers become ends of a clamp."""

    def apply(call: Call, *parts: Value) -> Tensor:
        like = next(part for part in parts if isinstance(part, Tensor))
        first, *others = sorted((_operand(part, like) for part in parts), key=lambda given: isinstance(given, float))
        found: Tensor = first  # a tensor: numbers come last
        for part in others:
            found = clamp(found, part) if isinstance(part, float) else function(found, part)
        return found

    return apply


def _clamp_min(x: Tensor, least: float) -> Tensor:
    return F.relu(x) if least == 0 else torch.clamp(x, min=least)


def _clamp_max(x: Tensor, most: float) -> Tensor:
    return torch.clamp(x, max=most)


def einsum(call: Call, *parts: Value, equation: str) -> Tensor:
    like = next(part for part in parts if isinstance(part, Tensor))
    return torch.einsum(equation, *(tensor(part, like) for part in parts))


def gemm(
    call: Call,
    left: Tensor,
    right: Tensor,
    bias: Value = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's names
    transB: int = 0,  # noqa: N803
) -> Tensor:
    left = left.t() if transA else left
    right = right if transB else right.t()
    fits = isinstance(bias, Tensor) and bias.dim() == 1 and beta == 1
    if alpha == 1 and (bias is None or fits):
        return F.linear(left, right, bias)
    product = alpha * F.linear(left, right)
    return product if bias is None else product + beta * tensor(bias, product)


def matmul(call: Call, left: Value, right: Value) -> Tensor:
    like = left if isinstance(left, Tensor) else right
    left, right = tensor(left, like), tensor(right, like)
    if right.dim() == 2 and not call.varying[1]:
        return F.linear(left, right.t())
    return torch.matmul(left, right)


def softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Translate softmax: before opset 13 over all axes from ``axis`` on, since then over one axis."""

    def apply(call: Call, x: Tensor, *, axis: int | None = None) -> Tensor:
        if call.opset >= 13:
            return function(x, -1 if axis is None else axis)
        start = axis_of(1 if axis is None else axis, x.dim())
        return function(x, -1) if start == x.dim() - 1 else function(x.flatten(start), -1).reshape(x.shape)

    return apply


def leaky_relu(call: Call, x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


def prelu(call: Call, x: Tensor, slope: Tensor) -> Tensor:
    wanted = (x.shape[1],) + (1,) * (x.dim() - 2)
    if slope.numel() == 1 or (tuple(slope.shape)[-len(wanted) :] == wanted and slope.numel() == x.shape[1]):
        return F.prelu(x, slope.reshape(-1))
    return F.relu(x) - slope * F.relu(-x)


def elu(call: Call, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


def celu(call: Call, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


def selu(
    call: Call, x: Tensor, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875
) -> Tensor:
    usual = abs(alpha - 1.6732632423543772) < 1e-7 and abs(gamma - 1.0507009873554805) < 1e-7
    return F.selu(x) if usual else gamma * F.elu(x, alpha)


def gelu(call: Call, x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def hard_sigmoid(call: Call, x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    usual = abs(alpha - 1 / 6) < 1e-7 and beta == 0.5
    return F.hardsigmoid(x) if usual else torch.clamp(alpha * x + beta, 0.0, 1.0)


def clip(call: Call, x: Tensor, low: Value = None, high: Value = None, **attributes: float) -> Tensor:
    unknown = attributes.keys() - {"min", "max"}
    if unknown:
        raise call.refuse(f"attribute {min(unknown)!r} is not known")
    least = _end(attributes.get("min") if low is None else number(call, low))
    most = _end(attributes.get("max") if high is None else number(call, high))
    if least is None and most is None:
        return x
    return F.relu(x) if least == 0 and most is None else torch.clamp(x, least, most)


def _end(value: float | None) -> float | None:
    """Read an end of an interval; None if it is infinite or the largest number of float32, which is no end."""
    return None if value is None or abs(value) >= shaping.ENDLESS else value


def softsign(call: Call, x: Tensor) -> Tensor:
    return x / (1 + torch.abs(x))


def thresholded_relu(call: Call, x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return torch.where(x > alpha, x, torch.zeros_like(x))


def normalised(call: Call, x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Divide by the norm along an axis."""
    if p not in (1, 2):
        raise call.refuse(f"p={p} is not a norm that is supported")
    size = x.abs().sum(axis, True) if p == 1 else (x * x).sum(axis, True).sqrt()
    return x / size


def reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Translate a sum, a mean or another value of all entries along axes."""

    def apply(
        call: Call,
        x: Tensor,
        given: Value = None,
        *,
        axes: Sequence[int] | None = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        over = axes_of(call, given, axes, x.dim())
        if not over and noop_with_empty_axes:
            return x
        return function(x, over or list(range(x.dim())), bool(keepdims))

    return apply


def dropout(call: Call, x: Tensor, ratio: Value = None, training: Value = None, **attributes: Any) -> Tensor:
    if training is not None and bool(np.asarray(training).any()):
        raise call.refuse("is in training mode: export the network in eval mode")
    return x


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": elementwise(torch.abs),
    "Add": binary(torch.add),
    "And": binary(torch.logical_and),
    "AveragePool": layers.average_pool,
    "BatchNormalization": layers.batch_norm,
    "Cast": shaping.cast,
    "Ceil": elementwise(torch.ceil),
    "Celu": celu,
    "Clip": clip,
    "Concat": shaping.concat,
    "Conv": layers.conv,
    "ConvTranspose": layers.conv_transpose,
    "Cos": elementwise(torch.cos),
    "DepthToSpace": shaping.depth_to_space,
    "Div": binary(torch.div),
    "Dropout": dropout,
    "Einsum": einsum,
    "Elu": elu,
    "Erf": elementwise(torch.erf),
    "Exp": elementwise(torch.exp),
    "Expand": shaping.expand,
    "Flatten": shaping.flatten,
    "Floor": elementwise(torch.floor),
    "Gather": shaping.gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GRU": recurrent.gru,
    "GatherND": shaping.gather_nd,
    "GlobalAveragePool": layers.global_average_pool,
    "GlobalMaxPool": layers.global_max_pool,
    "Greater": binary(torch.gt),
    "GreaterOrEqual": binary(torch.ge),
    "GroupNormalization": layers.group_norm,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": elementwise(F.hardswish),
    "Identity": elementwise(lambda x: x),
    "LSTM": recurrent.lstm,
    "LRN": layers.local_response,
    "InstanceNormalization": layers.instance_norm,
    "LayerNormalization": layers.layer_norm,
    "LeakyRelu": leaky_relu,
    "Less": binary(torch.lt),
    "LessOrEqual": binary(torch.le),
    "Log": elementwise(torch.log),
    "LogSoftmax": softmax(F.log_softmax),
    "LpNormalization": normalised,
    "MatMul": matmul,
    "Max": extreme(torch.maximum, _clamp_min),
    "MaxPool": layers.max_pool,
    "Mean": mean,
    "Min": extreme(torch.minimum, _clamp_max),
    "Mish": elementwise(F.mish),
    "Mul": binary(torch.mul),
    "Neg": elementwise(torch.neg),
    "Not": elementwise(torch.logical_not),
    "Or": binary(torch.logical_or),
    "PRelu": prelu,
    "Pad": shaping.pad,
    "Pow": power,
    "RNN": recurrent.rnn,
    "Reciprocal": elementwise(torch.reciprocal),
    "ReduceL1": reduced(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": reduced(lambda x, axes, keep: (x * x).sum(axes, keep).sqrt()),
    "ReduceLogSum": reduced(lambda x, axes, keep: x.sum(axes, keep).log()),
    "ReduceLogSumExp": reduced(torch.logsumexp),
    "ReduceMax": reduced(torch.amax),
    "ReduceMean": reduced(torch.mean),
    "ReduceMin": reduced(torch.amin),
    "ReduceSum": reduced(torch.sum),
    "ReduceSumSquare": reduced(lambda x, axes, keep: (x * x).sum(axes, keep)),
    "Relu": elementwise(F.relu),
    "Resize": resizing.resize,
    "Reshape": shaping.reshape,
    "Selu": selu,
    "Sigmoid": elementwise(torch.sigmoid),
    "Sign": elementwise(torch.sign),
    "Silu": elementwise(F.silu),
    "Sin": elementwise(torch.sin),
    "Slice": shaping.slices,
    "Softmax": softmax(F.softmax),
    "Softplus": elementwise(F.softplus),
    "Softsign": softsign,
    "SpaceToDepth": shaping.space_to_depth,
    "Split": shaping.split,
    "Standardise": layers.standardised,
    "Sqrt": elementwise(torch.sqrt),
    "Squeeze": shaping.squeeze,
    "Sub": binary(torch.sub),
    "Sum": total,
    "Tanh": elementwise(torch.tanh),
    "ThresholdedRelu": thresholded_relu,
    "Tile": shaping.tile,
    "Transpose": shaping.transpose,
    "Unsqueeze": shaping.unsqueeze,
    "Upsample": resizing.upsample,
    "Where": shaping.where,
    **microsoft.OPERATORS,
    **quantized.OPERATORS,
}
