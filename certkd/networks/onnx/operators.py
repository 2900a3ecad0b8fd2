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

from certkd.networks.onnx import shaping
from certkd.networks.onnx.call import Call, Value, axes_of, number, sides_of, tensor


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


def conv(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Value = None,
    *,
    kernel_shape: Sequence[int] = (),
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    group: int = 1,
    auto_pad: str = "NOTSET",
) -> Tensor:
    size, step, spread = _window(tuple(weight.shape[2:]), strides, dilations)
    before, after = _padding(call, x, size, step, spread, pads, auto_pad)
    if before != after:
        x, before = F.pad(x, sides_of(before, after)), (0,) * len(size)
    return _of_rank(call, "conv", size)(x, weight, bias, step, before, spread, group)


def max_pool(
    call: Call,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    storage_order: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    if call.outputs > 1:
        raise call.refuse("also returns the positions of the maxima")
    size, step, spread = _window(kernel_shape, strides, dilations)
    before, after = _padding(call, x, size, step, spread, pads, auto_pad)
    if before != after:
        x, before = F.pad(x, sides_of(before, after), value=-torch.inf), (0,) * len(size)
    return _of_rank(call, "max_pool", size)(x, size, step, before, spread, bool(ceil_mode))


def average_pool(
    call: Call,
    x: Tensor,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] = (),
    pads: Sequence[int] = (),
    dilations: Sequence[int] = (),
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    auto_pad: str = "NOTSET",
) -> Tensor:
    size, step, spread = _window(kernel_shape, strides, dilations)
    if max(spread) > 1:
        raise call.refuse(f"dilations={spread} are not supported")
    before, after = _padding(call, x, size, step, spread, pads, auto_pad)
    if before != after:
        if not count_include_pad:
            raise call.refuse(f"pads={before + after} with count_include_pad=0 are not supported")
        x, before = F.pad(x, sides_of(before, after)), (0,) * len(size)
    return _of_rank(call, "avg_pool", size)(x, size, step, before, bool(ceil_mode), bool(count_include_pad))


def _window(
    size: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    ones = (1,) * len(size)
    return tuple(size), tuple(strides) or ones, tuple(dilations) or ones


def _padding(
    call: Call, x: Tensor, size: Sequence[int], step: Sequence[int], spread: Sequence[int], pads: Value, auto: str
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Compute the padding before and after each spatial axis."""
    rank = len(size)
    if auto in ("NOTSET", "VALID"):
        pads = tuple(pads) if auto == "NOTSET" and len(pads) else (0,) * (2 * rank)
        return pads[:rank], pads[rank:]
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        raise call.refuse(f"auto_pad={auto!r} is not supported")
    sides = [int(side) for side in x.shape[2:]]
    reach = [d * (k - 1) + 1 for k, d in zip(size, spread, strict=True)]
    wanted = [max(0, (-(-n // s) - 1) * s + r - n) for n, s, r in zip(sides, step, reach, strict=True)]
    less, more = tuple(w // 2 for w in wanted), tuple(w - w // 2 for w in wanted)
    return (less, more) if auto == "SAME_UPPER" else (more, less)


def _of_rank(call: Call, name: str, size: Sequence[int]) -> Callable[..., Tensor]:
    if not 1 <= len(size) <= 3:
        raise call.refuse(f"{len(size)} spatial axes are not supported")
    return getattr(F, f"{name}{len(size)}d")


def global_average_pool(call: Call, x: Tensor) -> Tensor:
    return _of_rank(call, "adaptive_avg_pool", x.shape[2:])(x, 1)


def global_max_pool(call: Call, x: Tensor) -> Tensor:
    size = tuple(int(side) for side in x.shape[2:])
    return _of_rank(call, "max_pool", size)(x, size)


def batch_norm(
    call: Call,
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    spatial: int = 1,
    training_mode: int = 0,
) -> Tensor:
    if training_mode or call.outputs > 1 or not spatial:
        raise call.refuse("is in training mode or not per channel: export the network in eval mode")
    return F.batch_norm(x, mean, var, scale, bias, False, 0.0, epsilon)


def instance_norm(call: Call, x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5) -> Tensor:
    return F.group_norm(x, len(scale), scale, bias, epsilon)


def layer_norm(
    call: Call,
    x: Tensor,
    scale: Tensor,
    bias: Value = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    shape = [int(side) for side in x.shape[axis:]]
    if call.outputs > 1:
        raise call.refuse("also returns mean and deviation")
    return F.layer_norm(x, shape, scale.expand(shape), None if bias is None else bias.expand(shape), epsilon)


def softmax(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Translate softmax: before opset 13 over all axes from ``axis`` on, since then over one axis."""

    def apply(call: Call, x: Tensor, *, axis: int | None = None) -> Tensor:
        if call.opset >= 13:
            return function(x, -1 if axis is None else axis)
        start = (1 if axis is None else axis) % x.dim()
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


def selu(call: Call, x: Tensor, *, alpha: float = 1.6732632, gamma: float = 1.0507010) -> Tensor:
    if abs(alpha - 1.6732632) > 1e-5 or abs(gamma - 1.0507010) > 1e-5:
        raise call.refuse(f"alpha={alpha} and gamma={gamma} are not those of SELU")
    return F.selu(x)


def gelu(call: Call, x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


def hard_sigmoid(call: Call, x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    usual = abs(alpha - 1 / 6) < 1e-7 and beta == 0.5
    return F.hardsigmoid(x) if usual else torch.clamp(alpha * x + beta, 0.0, 1.0)


def clip(call: Call, x: Tensor, low: Value = None, high: Value = None, **attributes: float) -> Tensor:
    unknown = attributes.keys() - {"min", "max"}
    if unknown:
        raise call.refuse(f"attribute {min(unknown)!r} is not known")
    least = attributes.get("min") if low is None else number(call, low)
    most = attributes.get("max") if high is None else number(call, high)
    if least is None and most is None:
        return x
    return F.relu(x) if least == 0 and most in (None, torch.inf) else torch.clamp(x, least, most)


def reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Translate a mean or sum over axes other than the batch."""

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
        if call.varying[0] and (not over or 0 in over):
            raise call.refuse("mixes the images of a batch: it reduces the first axis")
        return function(x, over or list(range(x.dim())), bool(keepdims))

    return apply


def dropout(call: Call, x: Tensor, ratio: Value = None, training: Value = None, **attributes: Any) -> Tensor:
    if training is not None and bool(np.asarray(training).any()):
        raise call.refuse("is in training mode: export the network in eval mode")
    return x


OPERATORS: dict[str, Callable[..., Any]] = {
    "Abs": elementwise(torch.abs),
    "Add": binary(torch.add),
    "AveragePool": average_pool,
    "BatchNormalization": batch_norm,
    "Cast": shaping.cast,
    "Celu": celu,
    "Clip": clip,
    "Concat": shaping.concat,
    "Conv": conv,
    "Div": binary(torch.div),
    "Dropout": dropout,
    "Elu": elu,
    "Erf": elementwise(torch.erf),
    "Exp": elementwise(torch.exp),
    "Expand": shaping.expand,
    "Flatten": shaping.flatten,
    "Gather": shaping.gather,
    "Gelu": gelu,
    "Gemm": gemm,
    "GlobalAveragePool": global_average_pool,
    "GlobalMaxPool": global_max_pool,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": elementwise(F.hardswish),
    "Identity": elementwise(lambda x: x),
    "InstanceNormalization": instance_norm,
    "LayerNormalization": layer_norm,
    "LeakyRelu": leaky_relu,
    "Log": elementwise(torch.log),
    "LogSoftmax": softmax(F.log_softmax),
    "MatMul": matmul,
    "MaxPool": max_pool,
    "Mish": elementwise(F.mish),
    "Mul": binary(torch.mul),
    "Neg": elementwise(torch.neg),
    "PRelu": prelu,
    "Pad": shaping.pad,
    "Pow": power,
    "Reciprocal": elementwise(torch.reciprocal),
    "ReduceMean": reduced(torch.mean),
    "ReduceSum": reduced(torch.sum),
    "Relu": elementwise(F.relu),
    "Resize": shaping.resize,
    "Reshape": shaping.reshape,
    "Selu": selu,
    "Sigmoid": elementwise(torch.sigmoid),
    "Silu": elementwise(F.silu),
    "Slice": shaping.slices,
    "Softmax": softmax(F.softmax),
    "Softplus": elementwise(F.softplus),
    "Split": shaping.split,
    "Sqrt": elementwise(torch.sqrt),
    "Squeeze": shaping.squeeze,
    "Sub": binary(torch.sub),
    "Sum": total,
    "Tanh": elementwise(torch.tanh),
    "Transpose": shaping.transpose,
    "Unsqueeze": shaping.unsqueeze,
}
