"""From the operators of torch.export to those that have bounds: one function per operator, one table.

Each function gets the builder and the operator's own arguments; a ``Ref`` depends on the image, a tensor is constant.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.affine import Convolution, Dense, Function, General, Reshape, Scale, Sum
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.convex import Elu, Exp, Log, Reciprocal, Rsqrt, Softplus, Sqrt, Square
from verifiers.graph.relaxations.gelu import Gelu, Mish, Silu
from verifiers.graph.relaxations.lines import Activation
from verifiers.graph.relaxations.max_pool import MaxPool
from verifiers.graph.relaxations.normalization import Normalization
from verifiers.graph.relaxations.piecewise import Abs, Clamp, HardSigmoid, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.products import Product
from verifiers.graph.relaxations.sigmoidal import Sigmoid, Tanh
from verifiers.graph.relaxations.softmax import Softmax
from verifiers.graph.rows import Shape

aten = torch.ops.aten
Value = Any  # Ref, Tensor or number


def _pair(value: int | Sequence[int]) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def general(builder: Builder, function: Function, inputs: Sequence[Ref], absolute: Function | None = None) -> Ref:
    """An affine function of the inputs, by automatic differentiation."""
    shapes = [ref.shape for ref in inputs]
    after = tuple(function(*(builder.like.new_zeros(shape) for shape in shapes)).shape)
    return builder.add(General(function, shapes, after, builder.like, absolute), inputs, after)


def picking(target: Callable[..., Tensor]) -> Callable[..., Ref]:
    """The lowering of an operator that only picks, copies, adds and averages entries of its first argument."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        _refuse_refs(builder, args, kwargs)
        return general(builder, lambda value: target(value, *args, **kwargs), [x])

    return lower


def _refuse_refs(builder: Builder, args: Any, kwargs: Any) -> None:
    if any(isinstance(leaf, Ref) for leaf in torch.utils._pytree.tree_leaves((args, kwargs))):
        raise builder.refuse("an argument that must be constant depends on the image")


def elementwise(make: Callable[..., Activation]) -> Callable[..., Ref]:
    """The lowering of an activation, made from the operator's other arguments."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        _refuse_refs(builder, args, kwargs)
        activation = make(*args, **kwargs)
        if not holds(activation, builder.like):
            raise builder.refuse("its relaxation does not enclose it with these arguments")
        return builder.add(Elementwise(activation), [x], x.shape)

    return lower


def holds(activation: Activation, like: Tensor, intervals: int = 200, points: int = 33) -> bool:
    """Whether an activation stays within its lines and range on random intervals: a guard against wrong arguments."""
    generator = torch.Generator().manual_seed(0)
    middle = 4 * torch.randn(intervals, generator=generator, dtype=torch.float64)
    width = 10 ** (4 * torch.rand(intervals, generator=generator, dtype=torch.float64) - 2.5)
    low, high = ((middle + sign * width).to(like) for sign in (-1, 1))
    (bottom, top), lines = activation.interval(low, high), activation.lines(low, high)
    x = low[:, None] + (high - low)[:, None] * torch.linspace(0, 1, points).to(like)
    value = activation(x)
    slack = 64 * torch.finfo(like.dtype).eps * (value.abs() + lines.upper_slope.abs()[:, None] * x.abs() + 1)
    under = lines.lower_slope[:, None] * x + lines.lower_offset[:, None] - slack
    over = lines.upper_slope[:, None] * x + lines.upper_offset[:, None] + slack
    wrong = (under > value) | (over < value) | (bottom[:, None] - slack > value) | (top[:, None] + slack < value)
    return not bool(wrong.any())


def identity(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    return x


def converted(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
    """A change of device; one of dtype would round."""
    dtypes = [leaf for leaf in (*args, *kwargs.values()) if isinstance(leaf, torch.dtype)]
    if any(dtype != builder.like.dtype for dtype in dtypes):
        raise builder.refuse(f"conversion to {dtypes[0]} inside the network")
    return x


def dropout(builder: Builder, x: Ref, p: float, train: bool) -> Ref:
    if train and p > 0:
        raise builder.refuse("dropout that is active in eval mode")
    return x


def constant(target: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The lowering of an operator that takes no more than the shape and the dtype of its first argument."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Tensor:
        _refuse_refs(builder, args, kwargs)
        return target(builder.like.new_zeros(x.shape), *args, **kwargs)

    return lower


def reshape(target: Callable[..., Tensor]) -> Callable[..., Ref]:
    """The lowering of an operator that keeps the order of the entries."""

    def lower(builder: Builder, x: Ref, *args: Any, **kwargs: Any) -> Ref:
        after = tuple(target(builder.like.new_zeros(x.shape), *args, **kwargs).shape)
        return builder.add(Reshape(x.shape, after), [x], after) if after != x.shape else x

    return lower


def linear(builder: Builder, x: Ref, weight: Value, bias: Value = None) -> Ref:
    _refuse_refs(builder, (weight, bias), {})
    if not isinstance(x, Ref):
        raise builder.refuse("weights that depend on the image")
    after = (*x.shape[:-1], len(weight))
    return builder.add(Dense(weight, bias, after), [x], after)


def conv2d(
    builder: Builder,
    x: Ref,
    weight: Value,
    bias: Value = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Ref:
    _refuse_refs(builder, (weight, bias), {})
    if isinstance(padding, str):
        x, padding = _same(builder, x, weight, padding, _pair(dilation))
    arguments = (_pair(stride), _pair(padding), _pair(dilation), groups)
    like = builder.like.new_zeros(x.shape)
    after = tuple(torch.nn.functional.conv2d(like, weight, None, *arguments).shape)
    return builder.add(Convolution(weight, bias, *arguments, before=x.shape, after=after), [x], after)


def _same(builder: Builder, x: Ref, weight: Tensor, padding: str, dilation: tuple[int, int]) -> tuple[Ref, Any]:
    """padding="same" puts the odd row and column at the end."""
    if padding == "valid":
        return x, 0
    total = [dilation[i] * (weight.shape[i + 2] - 1) for i in (0, 1)]
    before = [t // 2 for t in total]
    if all(t % 2 == 0 for t in total):
        return x, before
    sides = [before[1], total[1] - before[1], before[0], total[0] - before[0]]
    return general(builder, lambda value: aten.constant_pad_nd(value, sides), [x]), 0


def convolution(target: Callable[..., Tensor]) -> Callable[..., Ref]:
    """Convolutions of other dimensions, and transposed ones."""

    def lower(builder: Builder, x: Ref, weight: Value, bias: Value = None, *args: Any, **kwargs: Any) -> Ref:
        _refuse_refs(builder, (weight, bias, args), kwargs)
        magnitude = weight.abs()
        return general(
            builder,
            lambda value: target(value, weight, bias, *args, **kwargs),
            [x],
            lambda reach: target(reach, magnitude, None, *args, **kwargs),
        )

    return lower


def batch_norm(
    builder: Builder, x: Ref, weight: Value, bias: Value, mean: Tensor, var: Tensor, momentum: float, eps: float
) -> list[Ref]:
    scale = (var + eps).rsqrt() * (1.0 if weight is None else weight)
    shift = (0.0 if bias is None else bias) - mean * scale
    return [_channels(builder, x, scale, shift)]


def fixed_batch_norm(
    builder: Builder,
    x: Ref,
    weight: Value,
    bias: Value,
    mean: Tensor | None,
    var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Ref:
    if training or mean is None or var is None:
        raise builder.refuse("it takes its statistics from the batch")
    return batch_norm(builder, x, weight, bias, mean, var, momentum, eps)[0]


def _channels(builder: Builder, x: Ref, scale: Tensor | None, shift: Tensor | None) -> Ref:
    """scale x + shift with one value per channel, the second axis."""
    if scale is None and shift is None:
        return x
    tail = (1,) * (len(x.shape) - 2)
    scale = builder.like.new_ones(x.shape[1]) if scale is None else scale
    made = Scale(scale.reshape(-1, *tail), None if shift is None else shift.reshape(-1, *tail), x.shape)
    return builder.add(made, [x], x.shape)


def layer_norm(
    builder: Builder, x: Ref, shape: Sequence[int], weight: Value = None, bias: Value = None, eps: float = 1e-5, *_: Any
) -> Ref:
    lead = x.shape[: len(x.shape) - len(shape)]
    normal = _normalized(builder, x, (*lead, math.prod(shape)), eps)
    if weight is None and bias is None:
        return normal
    scale = builder.like.new_ones(tuple(shape)) if weight is None else weight
    return builder.add(Scale(scale, bias, x.shape), [normal], x.shape)


def group_norm(
    builder: Builder, x: Ref, groups: int, weight: Value = None, bias: Value = None, eps: float = 1e-5, *_: Any
) -> Ref:
    normal = _normalized(builder, x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups), eps)
    return _channels(builder, normal, weight, bias)


def _normalized(builder: Builder, x: Ref, folded: Shape, eps: float) -> Ref:
    if folded != x.shape:
        inner = builder.add(Reshape(x.shape, folded), [x], folded)
        normal = builder.add(Normalization(eps, folded), [inner], folded)
        return builder.add(Reshape(folded, x.shape), [normal], x.shape)
    return builder.add(Normalization(eps, folded), [x], folded)


def add(builder: Builder, left: Value, right: Value, *, alpha: int | float = 1) -> Ref:
    return _plus(builder, left, 1, right, alpha)


def sub(builder: Builder, left: Value, right: Value, *, alpha: int | float = 1) -> Ref:
    return _plus(builder, left, 1, right, -alpha)


def rsub(builder: Builder, left: Value, right: Value, alpha: int | float = 1) -> Ref:
    return _plus(builder, left, -alpha, right, 1)


def _plus(builder: Builder, left: Value, a: int | float, right: Value, b: int | float) -> Ref:
    """a left + b right."""
    if not isinstance(left, Ref):
        left, a, right, b = right, b, left, a
    if isinstance(right, Ref):
        if left.shape == right.shape and {abs(a), abs(b)} == {1}:
            return builder.add(Sum([round(a), round(b)]), [left, right], left.shape)
        return general(builder, lambda x, y: a * x + b * y, [left, right], lambda x, y: abs(a) * x + abs(b) * y)
    shift = b * torch.as_tensor(right, dtype=builder.like.dtype, device=builder.like.device)
    if torch.broadcast_shapes(shift.shape, left.shape) == left.shape:
        made = Scale(builder.like.new_tensor(float(a)), shift, left.shape)
        return builder.add(made, [left], left.shape)
    return general(builder, lambda x: a * x + shift, [left], lambda x: abs(a) * x + 0 * shift)


def mul(builder: Builder, left: Value, right: Value) -> Ref:
    if not isinstance(left, Ref):
        left, right = right, left
    if not isinstance(right, Ref):
        scale = torch.as_tensor(right, dtype=builder.like.dtype, device=builder.like.device)
        if torch.broadcast_shapes(scale.shape, left.shape) == left.shape:
            return builder.add(Scale(scale, None, left.shape), [left], left.shape)
        return general(builder, lambda x: x * scale, [left], lambda x: x * scale.abs())
    if left == right:
        return builder.add(Elementwise(Square()), [left], left.shape)
    after = tuple(torch.broadcast_shapes(left.shape, right.shape))
    return builder.add(Product(torch.mul, left.shape, right.shape, after), [left, right], after)


def div(builder: Builder, left: Value, right: Value) -> Ref:
    if isinstance(right, Ref):
        return mul(builder, left, builder.add(Elementwise(Reciprocal()), [right], right.shape))
    return mul(builder, left, 1 / torch.as_tensor(right, dtype=builder.like.dtype, device=builder.like.device))


def power(builder: Builder, x: Ref, exponent: Value) -> Ref:
    known: dict[float, Callable[[], Activation]] = {2: Square, 0.5: Sqrt, -0.5: Rsqrt, -1: Reciprocal}
    if isinstance(exponent, Ref | Tensor) or not isinstance(x, Ref) or exponent not in known:
        raise builder.refuse(f"exponent {exponent}: only 2, 1/2, -1/2 and -1 have bounds")
    return builder.add(Elementwise(known[exponent]()), [x], x.shape)


def matmul(builder: Builder, left: Value, right: Value) -> Ref:
    if isinstance(left, Ref) and isinstance(right, Ref):
        if left == right or min(len(left.shape), len(right.shape)) < 2:
            raise builder.refuse("a product of a value with itself, or of vectors")
        after = tuple(torch.matmul(builder.like.new_zeros(left.shape), builder.like.new_zeros(right.shape)).shape)
        return builder.add(Product(torch.matmul, left.shape, right.shape, after), [left, right], after)
    if isinstance(left, Ref):
        return general(builder, lambda x: x @ right, [left], lambda x: x @ right.abs())
    return general(builder, lambda x: left @ x, [right], lambda x: left.abs() @ x)


def addmm(builder: Builder, bias: Value, left: Value, right: Value) -> Ref:
    return _plus(builder, matmul(builder, left, right), 1, bias, 1)


def attention(
    builder: Builder,
    query: Value,
    key: Value,
    value: Value,
    mask: Value = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: int | float | None = None,
    enable_gqa: bool = False,
) -> Ref:
    """softmax(q k^T / sqrt(d) + mask) v."""
    if is_causal or enable_gqa or dropout_p or isinstance(mask, Ref) or (mask is not None and mask.dtype == torch.bool):
        raise builder.refuse("only attention without causal, boolean or grouped masks and without dropout has bounds")
    if mask is not None and not bool(torch.isfinite(mask).all()):
        raise builder.refuse("a mask with infinite entries")
    if not all(isinstance(part, Ref) for part in (query, key, value)):
        raise builder.refuse("attention to constants")
    keys = general(builder, lambda x: x.mT, [key])
    scores = mul(builder, matmul(builder, query, keys), query.shape[-1] ** -0.5 if scale is None else scale)
    scores = scores if mask is None else add(builder, scores, mask)
    return matmul(builder, softmax(builder, scores, -1), value)


def softmax(builder: Builder, x: Ref, dim: int, *_: Any) -> Ref:
    return builder.add(Softmax(dim if dim < 0 else dim - len(x.shape), x.shape), [x], x.shape)


def max_pool2d(
    builder: Builder,
    x: Ref,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> Ref:
    arguments = (_pair(kernel), _pair(stride or kernel), _pair(padding), _pair(dilation), ceil_mode)
    after = tuple(torch.nn.functional.max_pool2d(builder.like.new_zeros(x.shape), *arguments).shape)
    return builder.add(MaxPool(*arguments, before=x.shape, after=after, like=builder.like), [x], after)


def avg_pool2d(
    builder: Builder,
    x: Ref,
    kernel: Any,
    stride: Any = (),
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor: int | None = None,
) -> Ref:
    """A depthwise convolution where every window has the same divisor."""
    size, channels = _pair(kernel), x.shape[-3]
    if ceil_mode or (any(_pair(padding)) and not count_include_pad):
        return picking(aten.avg_pool2d)(builder, x, kernel, stride, padding, ceil_mode, count_include_pad, divisor)
    weight = builder.like.new_full((channels, 1, *size), 1 / (divisor or size[0] * size[1]))
    return conv2d(builder, x, weight, None, stride or kernel, padding, 1, channels)


def split(builder: Builder, x: Ref, size: int | Sequence[int], dim: int = 0) -> list[Ref]:
    parts = torch.split(torch.arange(x.shape[dim]), size if isinstance(size, int) else list(size))
    return [_slice(builder, x, dim, int(part[0]), int(part[-1]) + 1) for part in parts]


def chunk(builder: Builder, x: Ref, chunks: int, dim: int = 0) -> list[Ref]:
    return split(builder, x, -(-x.shape[dim] // chunks), dim)


def unbind(builder: Builder, x: Ref, dim: int = 0) -> list[Ref]:
    return [picking(aten.select)(builder, x, dim, i) for i in range(x.shape[dim])]


def _slice(builder: Builder, x: Ref, dim: int, start: int, end: int) -> Ref:
    return general(builder, lambda value: value.narrow(dim, start, end - start), [x])


def joined(join: Callable[..., Tensor]) -> Callable[..., Ref]:
    """cat and stack; constant parts, like class tokens, become constants of the function."""

    def lower(builder: Builder, parts: Sequence[Value], dim: int = 0) -> Ref:
        inputs = [part for part in parts if isinstance(part, Ref)]

        def function(*values: Tensor) -> Tensor:
            rest = iter(values)
            return join([next(rest) if isinstance(part, Ref) else part for part in parts], dim)

        return general(builder, function, inputs)

    return lower


def prelu(builder: Builder, x: Ref, weight: Tensor) -> Ref:
    _refuse_refs(builder, (weight,), {})
    slope = weight.reshape(-1, *(1,) * (len(x.shape) - 2)) if len(weight) > 1 else weight
    return builder.add(Elementwise(LeakyRelu(slope)), [x], x.shape)


def clamp(builder: Builder, x: Ref, minimum: Value = None, maximum: Value = None) -> Ref:
    if any(isinstance(end, Ref | Tensor) for end in (minimum, maximum)):
        raise builder.refuse("bounds that are tensors")
    return builder.add(Elementwise(Clamp(minimum, maximum)), [x], x.shape)


def pad(builder: Builder, x: Ref, sides: Sequence[int], mode: str = "constant", value: float | None = None) -> Ref:
    return general(builder, lambda image: torch.nn.functional.pad(image, list(sides), mode, value), [x])


#: Operators that keep the order of the entries, and those that only pick, copy, add and average them.
_RESHAPES = "view _unsafe_view reshape flatten unflatten unsqueeze squeeze"
_PICKS = (
    "permute transpose t numpy_T expand select slice narrow flip roll index index_select repeat mean sum "
    "adaptive_avg_pool1d adaptive_avg_pool2d avg_pool1d constant_pad_nd reflection_pad2d replication_pad2d "
    "upsample_nearest2d upsample_bilinear2d pixel_shuffle pixel_unshuffle tril triu"
)
_CONSTANTS = "new_zeros new_ones new_full zeros_like ones_like full_like"

LOWERINGS: dict[str, Callable[..., Any]] = {
    **{name: reshape(getattr(aten, name)) for name in _RESHAPES.split()},
    **{name: picking(getattr(aten, name)) for name in _PICKS.split()},
    **{name: constant(getattr(aten, name)) for name in _CONSTANTS.split()},
    **dict.fromkeys("clone contiguous alias detach lift_fresh_copy positive _assert_tensor_metadata".split(), identity),
    "to": converted,
    "_to_copy": converted,
    "dropout": dropout,
    "feature_dropout": dropout,
    "linear": linear,
    "conv2d": conv2d,
    "conv1d": convolution(aten.conv1d),
    "conv3d": convolution(aten.conv3d),
    "conv_transpose2d": convolution(aten.conv_transpose2d),
    "_native_batch_norm_legit_no_training": batch_norm,
    "batch_norm": fixed_batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "add": add,
    "add_": add,
    "sub": sub,
    "rsub": rsub,
    "mul": mul,
    "div": div,
    "neg": lambda builder, x: mul(builder, x, -1.0),
    "pow": power,
    "square": elementwise(Square),
    "matmul": matmul,
    "bmm": matmul,
    "mm": matmul,
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "softmax": softmax,
    "_softmax": softmax,
    "max_pool2d": max_pool2d,
    "avg_pool2d": avg_pool2d,
    "split": split,
    "split_with_sizes": split,
    "chunk": chunk,
    "unbind": unbind,
    "cat": joined(torch.cat),
    "stack": joined(torch.stack),
    "pad": pad,
    "relu": elementwise(Relu),
    "relu6": elementwise(lambda: Clamp(0.0, 6.0)),
    "leaky_relu": elementwise(lambda slope=0.01: LeakyRelu(slope)),
    "prelu": prelu,
    "hardtanh": elementwise(lambda minimum=-1.0, maximum=1.0: Clamp(minimum, maximum)),
    "clamp": clamp,
    "clamp_min": clamp,
    "clamp_max": lambda builder, x, maximum: clamp(builder, x, None, maximum),
    "hardsigmoid": elementwise(HardSigmoid),
    "hardswish": elementwise(HardSwish),
    "abs": elementwise(Abs),
    "exp": elementwise(Exp),
    "log": elementwise(Log),
    "sqrt": elementwise(Sqrt),
    "rsqrt": elementwise(Rsqrt),
    "reciprocal": elementwise(Reciprocal),
    "softplus": elementwise(lambda beta=1.0, threshold=20.0: Softplus(beta, threshold)),
    "elu": elementwise(lambda alpha=1.0, scale=1.0, input_scale=1.0: Elu(alpha, scale, input_scale)),
    "selu": elementwise(lambda: Elu(1.6732632423543772, 1.0507009873554805, 1.0)),
    "celu": elementwise(lambda alpha=1.0: Elu(alpha, 1.0, 1.0 / alpha)),
    "tanh": elementwise(Tanh),
    "sigmoid": elementwise(Sigmoid),
    "gelu": elementwise(lambda approximate="none": Gelu(approximate)),
    "silu": elementwise(Silu),
    "mish": elementwise(Mish),
}
