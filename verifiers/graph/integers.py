"""Operators of int8 networks, as torch operators that export and run in any precision of floats.

Values between layers are *centred codes*: an int8 or uint8 code minus its zero point, a whole number held as a float.
So padding is 0, ReLU and maxima act on codes as on real numbers, and float32 holds every code exactly. Weights and
biases are integer tensors. Sums of products are exact: they are added in float64, which holds all integers below 2^53,
and then rounded to the precision of the program, as an int32 is before it is multiplied by a scale.

Gradients go straight through rounding: that of a staircase is its scale where the code is inside of its range, else 0.
"""

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.grad import conv2d_input

from verifiers.core.errors import Unsupported

#: Begins the names of all operators here.
PREFIX = "certkd_int8::"
#: An image whose entries are all 0 has this scale.
NO_RANGE = 1.0

_library = torch.library.Library("certkd_int8", "DEF")
Function = TypeVar("Function", bound=Callable[..., Any])


def _operator(name: str, schema: str) -> Callable[[Function], Function]:
    """Define an operator by the function that runs it; callers then reach it through torch."""

    def define(function: Function) -> Function:
        _library.define(name + schema)
        _library.impl(name, function, "CompositeExplicitAutograd")
        return cast(Function, getattr(torch.ops.certkd_int8, name).default)

    return define


@_operator("linear", "(Tensor x, Tensor weight, Tensor? bias, bool floats) -> Tensor")
def linear(x: Tensor, weight: Tensor, bias: Tensor | None, floats: bool) -> Tensor:
    """Compute x W^T + b for codes, in exact integers.

    ``floats`` says that a runtime may also add up the dequantised values in float32, as it is free to do for a file
    in QDQ form; bounds cover both.
    """
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double()).to(x.dtype)


@_operator("conv", "(Tensor x, Tensor weight, Tensor? bias, int[] geometry, int groups, bool floats) -> Tensor")
def conv(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int], groups: int, floats: bool) -> Tensor:
    """Convolve codes over two axes, in exact integers.

    Args:
        x: centred codes.
        weight, bias: integers.
        geometry: strides, padding and dilations of both axes.
        groups: as in ``torch.nn.functional.conv2d``.
        floats: as in ``linear``.
    """
    given = x.double(), weight.double(), None if bias is None else bias.double()
    return F.conv2d(*given, *_sides(geometry), groups).to(x.dtype)


def _sides(geometry: list[int]) -> tuple[list[int], list[int], list[int]]:
    return list(geometry[:2]), list(geometry[2:4]), list(geometry[4:])


@_operator("requantize", "(Tensor x, Tensor scale, bool divide, float low, float high, float shift) -> Tensor")
def requantize(x: Tensor, scale: Tensor, divide: bool, low: float, high: float, shift: float) -> Tensor:
    """Round x / scale, or x times scale, to the nearest integer, halves to even, and clamp it to [low, high].

    ``shift`` is a zero point that a runtime adds before it rounds, and not after.
    """
    found = x / scale if divide else x * scale
    return (torch.round(found + shift) - shift if shift else torch.round(found)).clamp(low, high)


@_operator("add", "(Tensor a, Tensor b, Tensor ratios, Tensor zeros, float low, float high) -> Tensor")
def add(a: Tensor, b: Tensor, ratios: Tensor, zeros: Tensor, low: float, high: float) -> Tensor:
    """Add two values and round the sum to codes of a third scale.

    Args:
        a, b: centred codes.
        ratios: the scales of both, over that of the result.
        zeros: the zero points of a, b and the result: runtimes add them in float32 as well, which rounds.
        low, high: range of the result's centred codes.
    """
    fixed = zeros[2] - (ratios[0] * zeros[0] + ratios[1] * zeros[1])
    total = _fused(b + zeros[1], ratios[1], _fused(a + zeros[0], ratios[0], fixed))
    return (torch.round(total) - zeros[2]).clamp(low, high)


def _fused(x: Tensor, factor: Tensor, added: Tensor) -> Tensor:
    """Compute x times factor plus another value with one rounding."""
    return (x.double() * factor.double() + added.double()).to(x.dtype)


@_operator("dynamic", "(Tensor x) -> (Tensor, Tensor)")
def dynamic(x: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise one image's values to uint8 by their own range; return the centred codes and the scale."""
    least, most = x.min().clamp_max(0.0), x.max().clamp_min(0.0)
    scale = (most - least) / 255
    scale = torch.where(scale == 0, NO_RANGE, scale)
    zero = torch.round((-least / scale).clamp(0, 255))
    return torch.round(x / scale).clamp(-zero, 255 - zero), scale


# Shapes


@torch.library.register_fake(PREFIX + "linear")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, floats: bool) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


@torch.library.register_fake(PREFIX + "conv")
def _(x: Tensor, weight: Tensor, bias: Tensor | None, geometry: list[int], groups: int, floats: bool) -> Tensor:
    return F.conv2d(x, weight.to(x.dtype), None, *_sides(geometry), groups)


@torch.library.register_fake(PREFIX + "requantize")
def _(x: Tensor, scale: Tensor, divide: bool, low: float, high: float, shift: float) -> Tensor:
    return x * scale


@torch.library.register_fake(PREFIX + "add")
def _(a: Tensor, b: Tensor, ratios: Tensor, zeros: Tensor, low: float, high: float) -> Tensor:
    return a + b


@torch.library.register_fake(PREFIX + "dynamic")
def _(x: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(x), x.new_empty(())


# Gradients


def _keep_linear(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])


def _linear_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    return grad @ ctx.saved_tensors[0].to(grad.dtype), None, None, None


def _keep_conv(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.shape, ctx.geometry = inputs[0].shape, (*_sides(inputs[3]), inputs[4])


def _conv_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    weight = ctx.saved_tensors[0].to(grad.dtype)
    back = conv2d_input(ctx.shape, weight, grad, *ctx.geometry)
    return back, *[None] * 5


def _keep_staircase(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, scale, ctx.divide, ctx.low, ctx.high, _ = inputs
    ctx.save_for_backward(x, scale)


def _staircase_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    x, scale = ctx.saved_tensors
    factor = 1 / scale if ctx.divide else scale
    return _inside(grad, x * factor, ctx.low, ctx.high) * factor, *[None] * 5


def _keep_add(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    a, b, ratios, _, ctx.low, ctx.high = inputs
    ctx.save_for_backward(a, b, ratios)


def _add_back(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    a, b, ratios = ctx.saved_tensors
    through = _inside(grad, a * ratios[0] + b * ratios[1], ctx.low, ctx.high)
    return through * ratios[0], through * ratios[1], *[None] * 4


def _inside(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
    return torch.where((x >= low - 0.5) & (x <= high + 0.5), grad, 0.0)


def _keep_dynamic(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(output[0], output[1])


def _dynamic_back(ctx: Any, grad: Tensor, of_scale: Tensor) -> Tensor:
    return grad / ctx.saved_tensors[1]


torch.library.register_autograd(PREFIX + "linear", _linear_back, setup_context=_keep_linear)
torch.library.register_autograd(PREFIX + "conv", _conv_back, setup_context=_keep_conv)
torch.library.register_autograd(PREFIX + "requantize", _staircase_back, setup_context=_keep_staircase)
torch.library.register_autograd(PREFIX + "add", _add_back, setup_context=_keep_add)
torch.library.register_autograd(PREFIX + "dynamic", _dynamic_back, setup_context=_keep_dynamic)


def refuse_codes(program: fx.GraphModule, engine: str) -> None:
    """Refuse a program with operators of codes, for an engine that has none.

    Raises:
        Unsupported: the message names the engine.
    """
    found = (str(node.target) for node in program.graph.nodes if node.op == "call_function")
    if any(name.startswith("certkd_int8.") for name in found):
        raise Unsupported(f"{engine} has no operators for the codes of int8 networks; use the native engine")


#: How to quantise a network in a form that is read.
QUANTIZE = (
    "export the float network to ONNX and quantise that file statically with "
    "onnxruntime.quantization.quantize_static, which is read and certified as it runs"
)


def other_form(network: nn.Module) -> str | None:
    """Say why an int8 network of torch's own tools is not read as it is, and what to do; None for other networks."""
    if (why := dynamic_form(network)) is not None:
        return why
    for name, module in network.named_modules():
        place = f"{type(module).__module__}."
        if place.startswith("torch.ao.nn") and ".quantized." in place:
            return (
                f"{name or 'the network'!r}: torch.ao's quantised modules hold their integers where no graph shows "
                "them: write them with certkd.in_integers(network, image_shape), and certify what it returns"
            )
    for name, weight in network.named_parameters():
        if f"{type(weight).__module__}.".startswith("torchao."):
            return (
                f"{name!r}: torchao's tensors run kernels that no graph shows (files of Int8WeightOnlyConfig's are "
                f"read); {QUANTIZE}"
            )
    return None


def dynamic_form(network: nn.Module) -> str | None:
    """Say why a network of torch.ao's dynamic modules is not read; None for others."""
    for name, module in network.named_modules():
        if f"{type(module).__module__}.".startswith("torch.ao.nn.quantized.dynamic."):
            return f"{name!r}: torch.ao's dynamic modules quantise by the range of a whole batch; {QUANTIZE}"
    return None


def computes_in_int8(network: nn.Module) -> bool:
    """Return whether a network says of itself that it computes in codes, by a module's attribute ``int8``."""
    return any(getattr(module, "int8", False) is True for module in network.modules())
