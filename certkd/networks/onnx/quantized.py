"""Translate the operators of int8 files; see ``operators`` and ``codes``.

A function returns ``NotImplemented`` if its inputs are not codes in a form that runs on integers: then the operator
runs on real numbers.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certkd.networks.onnx import layers
from certkd.networks.onnx.call import Call, Value, axis_of, integers, number
from certkd.networks.onnx.codes import Added, Averaged, Codes, Joined, Lazy, Reals, Target, quantized
from certkd.networks.onnx.microsoft import ACTIVATIONS
from certkd.networks.onnx.sums import fit, units
from verifiers.graph import integers as exact

#: Inputs that are integer weights, by operator.
WEIGHTS: dict[str, tuple[int, ...]] = {
    "DequantizeLinear": (0,),
    "QLinearConv": (3, 8),
    "QLinearMatMul": (3,),
    "com.microsoft:QGemm": (3, 6),
    "ConvInteger": (1,),
    "MatMulInteger": (1,),
}
#: The operator that follows the range of its values.
DYNAMIC = "DynamicQuantizeLinear"
ONE_BY_ONE = "its scales follow the range of each image: images are run one by one"


def target_of(call: Call, scale: Value, zero: Value) -> Target:
    """Read a scale and a zero point, whose type is that of the codes."""
    code = np.asarray(0 if zero is None else zero)
    kind = np.dtype(np.uint8) if zero is None else code.dtype
    if kind not in (np.uint8, np.int8, np.uint16, np.int16):
        raise call.refuse(f"has codes of type {kind}: only integers of 8 and 16 bits are read")
    step, first = np.float32(number(call, scale)), int(number(call, zero if zero is not None else 0))
    if not (np.isfinite(step) and step > 0):
        raise call.refuse(f"has the scale {step}: it must be a positive number")
    info = np.iinfo(kind)
    return Target(step, first, float(info.min - first), float(info.max - first))


def quantize(call: Call, x: Any, scale: Value, zero: Value = None, *, axis: int = 1, saturate: int = 1) -> Codes:
    """Round a value to codes."""
    target = target_of(call, scale, zero)
    return Codes(quantized(x, target), target.zero, target.low, target.high)


def dequantize(call: Call, x: Any, scale: Value, zero: Value = None, *, axis: int = 1) -> Reals:
    """Give codes or weights their scale."""
    scales = np.asarray(scale, np.float32)
    if not ((scales >= 0) & (scales < np.inf)).all():
        raise call.refuse("has a scale below zero or no finite one")
    if isinstance(x, Codes):
        if scales.size > 1:
            raise call.refuse("has a scale for each channel of a value: only weights are read so")
        codes = x.around(integers(zero)[0] if zero is not None else 0)
        return Reals(codes.values, scales.reshape(()), source=codes)
    if not isinstance(x, Tensor) or x.is_floating_point():
        raise call.refuse("dequantises what is no code")
    along = axis_of(axis, x.dim()) if scales.size > 1 else 0
    return Reals(_less_zero(x, zero, along), scales if scales.size > 1 else scales.reshape(()), along)


def _less_zero(weight: Tensor, zero: Value, axis: int) -> Tensor:
    """Subtract the zero points of weights, one for all or one for each entry of an axis."""
    zeros = np.asarray(0 if zero is None else zero).astype(np.int64)
    if not zeros.any():
        return weight
    sides = (-1, *(1,) * (weight.dim() - 1 - axis)) if zeros.size > 1 else ()
    return weight.to(torch.int32) - torch.as_tensor(zeros.astype(np.int32), device=weight.device).reshape(sides)


def conv(call: Call, x: Any, weight: Any, bias: Any = None, *, floats: bool = True, **geometry: Any) -> Any:
    """Convolve codes, if inputs are."""
    scale = fit(x, weight, 0)
    if scale is None:
        return NotImplemented
    if weight.values.dim() != 4:
        if isinstance(bias, Tensor):
            raise call.refuse("adds a bias of floats to codes over other than two axes")
        return NotImplemented
    sums = _convolved(call, x.values, weight.values, units(call, bias, scale), floats, **geometry)
    return Reals(sums, scale, 1)


def _convolved(
    call: Call,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    floats: bool,
    *,
    group: int = 1,
    kernel_shape: Sequence[int] = (),
    **geometry: Any,
) -> Tensor:
    x, *steps = layers.placed(call, x, tuple(weight.shape[2:]), **geometry)
    return exact.conv(x, weight, bias, [side for sides in steps for side in sides], group, floats)


def matmul(call: Call, x: Any, weight: Any, *, floats: bool = True) -> Any:
    """Multiply codes by a matrix of weights, if inputs are codes."""
    scale = fit(x, weight, 1)
    if scale is None or weight.values.dim() != 2:
        return NotImplemented
    layer = (x, weight) if floats else None
    return Reals(exact.linear(x.values, weight.values.t(), None, floats), scale, -1, layer=layer)


def gemm(call: Call, x: Any, weight: Any, bias: Any = None, *, floats: bool = True, **settings: Any) -> Any:
    """Apply a linear layer to codes, if inputs are."""
    transposed = bool(settings.get("transB", 0))
    scale = fit(x, weight, 0 if transposed else 1)
    if scale is None:
        return NotImplemented
    if not settings.get("alpha", 1.0) == settings.get("beta", 1.0) == 1.0 or settings.get("transA", 0):
        raise call.refuse("multiplies codes with alpha, beta or transA, which runtimes round in different ways")
    turned = weight.values if transposed else weight.values.t()
    added = units(call, bias, scale)
    if added is not None and added.shape != turned.shape[:1]:
        raise call.refuse(f"adds a bias of shape {list(added.shape)} to {len(turned)} sums of codes")
    return Reals(exact.linear(x.values, turned, added, floats), scale, -1)


def add(call: Call, left: Any, right: Any) -> Any:
    """Add two dequantised values, or a bias to products: onnxruntime merges it with the layer."""
    for sums, bias in ((left, right), (right, left)):
        if isinstance(sums, Reals) and sums.layer is not None and isinstance(bias, Tensor):
            x, weight = sums.layer
            return gemm(call, x, weight, bias.reshape(-1)) if bias.numel() == len(weight.values.t()) else NotImplemented
    both = [isinstance(each, Reals) and each.source is not None and each.plain for each in (left, right)]
    known = all(both) and left.source.zero is not None and right.source.zero is not None
    return Added(left, right) if known and left.values.dim() == right.values.dim() else NotImplemented


def relu(call: Call, x: Any) -> Any:
    """Clamp a value in codes at 0."""
    if isinstance(x, Reals) and x.source is not None and x.plain:
        codes = Codes(torch.relu(x.values), x.source.zero, max(x.source.low, 0.0), x.source.high)
        return Reals(codes.values, x.scale, source=codes)
    return x.limited(0.0, np.inf) if isinstance(x, Reals | Added) else NotImplemented


def clip(call: Call, x: Any, low: Value = None, high: Value = None) -> Any:
    """Clamp a value in codes."""
    if not isinstance(x, Reals | Added) or any(isinstance(end, Tensor | Lazy) for end in (low, high)):
        return NotImplemented
    ends = [
        float(np.asarray(end).reshape(())) if end is not None else far for end, far in ((low, -np.inf), (high, np.inf))
    ]
    return x.limited(*ends)


def concat(call: Call, *parts: Any, axis: int) -> Any:
    """Join codes or dequantised values."""
    if all(isinstance(part, Codes) for part in parts):
        first = parts[0]
        if any((part.zero, part.low, part.high) != (first.zero, first.low, first.high) for part in parts):
            raise call.refuse("joins codes of several zero points or types")
        return Codes(torch.cat([part.values for part in parts], axis), first.zero, first.low, first.high)
    lazy = all(isinstance(part, Lazy) for part in parts)
    return Joined(parts, axis) if lazy else NotImplemented


def global_average(call: Call, x: Any, *, floats: bool = True) -> Any:
    """Average codes over all their entries."""
    if not isinstance(x, Reals) or x.source is None or not x.plain or x.values.dim() < 3:
        return NotImplemented
    flat = x.values.flatten(2)
    ones = torch.ones((1, int(flat.shape[2])), dtype=torch.int8, device=flat.device)
    sums = exact.linear(flat, ones, None, floats).reshape(*x.values.shape[:2], *(1,) * (x.values.dim() - 2))
    return Reals(sums, x.scale, count=int(flat.shape[2]))


def average(call: Call, x: Any, *, floats: bool = True, **settings: Any) -> Any:
    """Average dequantised values over windows: sums of codes if the only window is the image, as runtimes compute."""
    if not isinstance(x, Reals) or x.source is None or not x.plain:
        return NotImplemented
    whole = list(x.values.shape[2:]) == settings.get("kernel_shape") and not any(settings.get("pads", ()))
    if whole and len(x.values.shape) == 4 and settings.get("auto_pad", "NOTSET") in ("NOTSET", "VALID"):
        return global_average(call, x, floats=floats)
    return Averaged(layers.average_pool(call, x.real(), **settings))


# QOperator files: the layer and the rounding in one node


def q_conv(
    call: Call,
    x: Any,
    xs: Value,
    xz: Value,
    w: Any,
    ws: Value,
    wz: Value,
    ys: Value,
    yz: Value,
    b: Any = None,
    **geometry: Any,
) -> Codes:
    """Convolve codes and round."""
    layer = dequantize(call, x, xs, xz), dequantize(call, w, ws, wz, axis=0)
    return _rounded(call, conv(call, *layer, _bias(b, *layer), floats=False, **geometry), ys, yz)


def q_matmul(call: Call, x: Any, xs: Value, xz: Value, w: Any, ws: Value, wz: Value, ys: Value, yz: Value) -> Codes:
    """Multiply codes by a matrix and round."""
    layer = dequantize(call, x, xs, xz), dequantize(call, w, ws, wz, axis=1)
    return _rounded(call, matmul(call, *layer, floats=False), ys, yz)


def q_gemm(
    call: Call,
    x: Any,
    xs: Value,
    xz: Value,
    w: Any,
    ws: Value,
    wz: Value,
    b: Any = None,
    ys: Value = None,
    yz: Value = None,
    **settings: Any,
) -> Any:
    """Apply a linear layer to codes; round if there is a scale."""
    layer = dequantize(call, x, xs, xz), dequantize(call, w, ws, wz, axis=0 if settings.get("transB") else 1)
    found = gemm(call, *layer, _bias(b, *layer), floats=False, **settings)
    return _rounded(call, found, ys, yz) if ys is not None else _known(call, found)


def _bias(bias: Any, x: Reals, weight: Reals) -> Reals | None:
    return None if bias is None else Reals(bias, np.asarray(x.single * weight.scale, np.float32))


def _known(call: Call, found: Any) -> Any:
    if found is NotImplemented:
        raise call.refuse("has a form that is not read: weights that are no constants, or other settings than usual")
    return found


def _rounded(call: Call, found: Any, scale: Value, zero: Value) -> Codes:
    return quantize(call, _known(call, found), scale, zero)


def q_add(call: Call, a: Any, sa: Value, za: Value, b: Any, sb: Value, zb: Value, sc: Value, zc: Value = None) -> Codes:
    """Add codes and round."""
    parts = [dequantize(call, each, s, z) for each, s, z in ((a, sa, za), (b, sb, zb))]
    return _rounded(call, add(call, *parts), sc, zc)


def q_global_average(
    call: Call, x: Any, xs: Value, xz: Value, ys: Value, yz: Value, *, channels_last: int = 0
) -> Codes:
    """Average codes over all their entries and round."""
    if channels_last:
        raise call.refuse("has its channels last")
    return _rounded(call, global_average(call, dequantize(call, x, xs, xz), floats=False), ys, yz)


def q_average(
    call: Call, x: Any, xs: Value, xz: Value, ys: Value, yz: Value, *, channels_last: int = 0, **settings: Any
) -> Codes:
    """Average codes over windows and round."""
    if channels_last:
        raise call.refuse("has its channels last")
    return quantize(call, average(call, dequantize(call, x, xs, xz), floats=False, **settings), ys, yz)


def q_activation(name: str) -> Callable[..., Codes]:
    """Translate an activation of codes, which runtimes look up in a table of 256 entries."""

    def apply(call: Call, x: Any, xs: Value, xz: Value, ys: Value, yz: Value = None, **settings: float) -> Codes:
        return quantize(call, ACTIVATIONS[name](dequantize(call, x, xs, xz).real(), **settings), ys, yz)

    return apply


def q_concat(call: Call, ys: Value, yz: Value, *parts: Any, axis: int) -> Codes:
    """Join codes, each rounded to the common scale."""
    triples = [parts[i : i + 3] for i in range(0, len(parts), 3)]
    return quantize(call, Joined(tuple(dequantize(call, *triple) for triple in triples), axis), ys, yz)


# Dynamic quantisation, and sums of integers


def dynamic(call: Call, x: Tensor) -> tuple[Codes, Tensor, None]:
    """Quantise by the range of the values."""
    codes, scale = exact.dynamic(x)
    return Codes(codes, None, -255.0, 255.0), scale, None


def conv_integer(call: Call, x: Any, w: Tensor, xz: Value = None, wz: Value = None, **geometry: Any) -> Tensor:
    """Convolve codes without a scale."""
    if w.dim() != 4:
        raise call.refuse("convolves over other than two axes")
    return _convolved(call, _centred(call, x, xz), _less_zero(w, wz, 0), None, False, **geometry)


def matmul_integer(call: Call, x: Any, w: Tensor, xz: Value = None, wz: Value = None) -> Tensor:
    """Multiply codes by a matrix, without a scale."""
    if w.dim() != 2:
        raise call.refuse("multiplies by other than a matrix")
    return exact.linear(_centred(call, x, xz), _less_zero(w, wz, 1).t(), None, False)


def _centred(call: Call, x: Any, zero: Value) -> Tensor:
    if not isinstance(x, Codes):
        raise call.refuse("multiplies what is no code")
    return x.values if x.zero is None else x.around(integers(zero)[0] if zero is not None else 0).values


#: Operators that move and pick entries, or take their maxima: the same on codes as on real numbers.
MOVES = frozenset(
    "DepthToSpace Dropout Expand Flatten Gather GlobalMaxPool Identity MaxPool Reshape Slice SpaceToDepth Squeeze Tile "
    "Transpose Unsqueeze".split()
)


def moved(function: Callable[..., Any], call: Call, x: Any, *others: Value, **settings: Any) -> Any:
    """Apply an operator of ``MOVES`` to the integers of a value."""
    if isinstance(x, Codes):
        return Codes(function(call, x.values, *others, **settings), x.zero, x.low, x.high)
    if isinstance(x, Reals) and x.plain and x.source is not None:
        codes = moved(function, call, x.source, *others, **settings)
        return Reals(codes.values, x.scale, source=codes)
    return NotImplemented


#: Operators that only int8 files have.
OPERATORS: dict[str, Callable[..., Any]] = {
    "ConvInteger": conv_integer,
    "DequantizeLinear": dequantize,
    "DynamicQuantizeLinear": dynamic,
    "MatMulInteger": matmul_integer,
    "QLinearConv": q_conv,
    "QLinearMatMul": q_matmul,
    "QuantizeLinear": quantize,
    "com.microsoft:DequantizeLinear": dequantize,
    "com.microsoft:QGemm": q_gemm,
    "com.microsoft:QLinearAdd": q_add,
    "com.microsoft:QLinearAveragePool": q_average,
    "com.microsoft:QLinearConcat": q_concat,
    "com.microsoft:QLinearGlobalAveragePool": q_global_average,
    "com.microsoft:QLinearLeakyRelu": q_activation("LeakyRelu"),
    "com.microsoft:QLinearSigmoid": q_activation("Sigmoid"),
    "com.microsoft:QuantizeLinear": quantize,
}
#: Operators of all files that also run on codes.
ON_CODES: dict[str, Callable[..., Any]] = {
    "Add": add,
    "AveragePool": average,
    "Clip": clip,
    "Concat": concat,
    "Conv": conv,
    "Gemm": gemm,
    "GlobalAveragePool": global_average,
    "MatMul": matmul,
    "Relu": relu,
}


def run(function: Callable[..., Any], kind: str, call: Call, inputs: Sequence[Any], settings: Mapping[str, Any]) -> Any:
    """Run an operator of which an input is in codes; the function is that of real numbers.

    Raises:
        InputError: it has no meaning for integers without a scale.
    """
    found = NotImplemented
    if kind in ON_CODES:
        found = ON_CODES[kind](call, *inputs, **settings)
    elif kind in MOVES and not any(isinstance(other, Codes | Lazy) for other in inputs[1:]):
        found = moved(function, call, *inputs, **settings)
    if found is not NotImplemented:
        return found
    if any(isinstance(value, Codes) for value in inputs):
        raise call.refuse("computes with codes in a form that is not read")
    return NotImplemented
