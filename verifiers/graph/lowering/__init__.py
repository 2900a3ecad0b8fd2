"""Lower torch.export's operators to operators with bounds: one function per operator, one table.

Each function takes the builder and the operator's arguments. A ``Ref`` depends on the image; a tensor is constant.
"""

from collections.abc import Callable
from typing import Any

import torch

from verifiers.graph.lowering.activations import elementwise, prelu
from verifiers.graph.lowering.arithmetic import (
    add,
    addmm,
    attention,
    div,
    log_softmax,
    log_sum_exp,
    matmul,
    mul,
    power,
    rsub,
    softmax,
    sub,
)
from verifiers.graph.lowering.contraction import einsum, glu
from verifiers.graph.lowering.integers import LOWERINGS as INTEGERS
from verifiers.graph.lowering.layers import (
    avg_pool1d,
    avg_pool2d,
    batch_norm,
    conv2d,
    convolution,
    fixed_batch_norm,
    group_norm,
    layer_norm,
    linear,
    max_pool2d,
)
from verifiers.graph.lowering.resampling import separable
from verifiers.graph.lowering.selection import (
    adaptive_max_pool,
    amax,
    clamped,
    compared,
    largest,
    masked_fill,
    max_pool1d,
    maximum,
    minimum,
    negated,
    where,
)
from verifiers.graph.lowering.shapes import (
    averaging,
    chunk,
    constant,
    converted,
    dropout,
    identity,
    interpolating,
    joined,
    pad,
    picking,
    reduced,
    reshape,
    reshaped_as,
    same_shape,
    split,
    unbind,
    windows,
)
from verifiers.graph.lowering.statistics import deviation, instance_norm, rms_norm, variance, vector_norm, with_mean
from verifiers.graph.relaxations.convex import Elu, Exp, Log, Reciprocal, Rsqrt, Softplus, Sqrt, Square
from verifiers.graph.relaxations.gelu import Gelu, Mish, Silu
from verifiers.graph.relaxations.piecewise import Abs, Clamp, HardSigmoid, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.sigmoidal import Erf, Sigmoid, Tanh
from verifiers.graph.relaxations.sign import Sign

aten = torch.ops.aten

#: Operators that keep the order of the entries, and those that only pick and copy them.
_RESHAPES = "view _unsafe_view reshape flatten unflatten unsqueeze squeeze"
_PICKS = (
    "permute transpose t numpy_T expand select slice narrow flip roll index index_select repeat reflection_pad2d "
    "replication_pad2d reflection_pad1d replication_pad1d upsample_nearest2d upsample_nearest1d broadcast_to "
    "pixel_shuffle pixel_unshuffle channel_shuffle tril triu im2col unfold diagonal movedim swapaxes"
)
_CONSTANTS = "new_zeros new_ones new_full zeros_like ones_like full_like"
#: The threshold of a softplus that is smooth everywhere.
ENDLESS = 1e30

softplus = elementwise(lambda beta=1.0, threshold=20.0: Softplus(beta, threshold))

LOWERINGS: dict[str, Callable[..., Any]] = {
    **INTEGERS,
    **{name: reshape(getattr(aten, name)) for name in _RESHAPES.split()},
    **{name: picking(getattr(aten, name)) for name in _PICKS.split()},
    **{name: constant(getattr(aten, name)) for name in _CONSTANTS.split()},
    "mean": averaging(aten.mean, reduced),
    "sum": averaging(aten.sum, reduced),
    "adaptive_avg_pool1d": averaging(aten.adaptive_avg_pool1d, windows),
    "adaptive_avg_pool2d": averaging(aten.adaptive_avg_pool2d, windows),
    "avg_pool1d": avg_pool1d,
    "upsample_bilinear2d": interpolating(aten.upsample_bilinear2d),
    "_upsample_bilinear2d_aa": separable(aten._upsample_bilinear2d_aa),
    "upsample_bicubic2d": separable(aten.upsample_bicubic2d),
    "_upsample_bicubic2d_aa": separable(aten._upsample_bicubic2d_aa),
    "cumsum": averaging(aten.cumsum, lambda before, after: max(before)),
    "expand_as": same_shape,
    **dict.fromkeys(("view_as", "reshape_as"), reshaped_as),
    "constant_pad_nd": lambda builder, x, sides, value=0: pad(builder, x, sides, "constant", value),
    **dict.fromkeys("clone contiguous alias detach lift_fresh_copy positive _assert_tensor_metadata".split(), identity),
    "to": converted,
    "_to_copy": converted,
    "dropout": dropout,
    "feature_dropout": dropout,
    "linear": linear,
    "conv2d": conv2d,
    "conv1d": convolution(aten.conv1d),
    "conv3d": convolution(aten.conv3d),
    "conv_transpose1d": convolution(aten.conv_transpose1d, inputs=0),
    "conv_transpose2d": convolution(aten.conv_transpose2d, inputs=0),
    "conv_transpose3d": convolution(aten.conv_transpose3d, inputs=0),
    "_native_batch_norm_legit_no_training": batch_norm,
    "batch_norm": fixed_batch_norm,
    "layer_norm": layer_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "rms_norm": rms_norm,
    "linalg_vector_norm": vector_norm,
    "norm": vector_norm,
    "var": variance,
    "std": deviation,
    "var_mean": with_mean(variance),
    "std_mean": with_mean(deviation),
    "add": add,
    "add_": add,
    "sub": sub,
    "rsub": rsub,
    "mul": mul,
    "div": div,
    "neg": lambda builder, x: mul(builder, x, -1.0),
    "pow": power,
    "square": elementwise(Square),
    "einsum": einsum,
    "glu": glu,
    "matmul": matmul,
    "bmm": matmul,
    "mm": matmul,
    "addmm": addmm,
    "scaled_dot_product_attention": attention,
    "softmax": softmax,
    "_softmax": softmax,
    "log_softmax": log_softmax,
    "_log_softmax": log_softmax,
    "logsumexp": log_sum_exp,
    "max_pool1d": max_pool1d,
    "max_pool2d": max_pool2d,
    "adaptive_max_pool1d": adaptive_max_pool(1),
    "adaptive_max_pool2d": adaptive_max_pool(2),
    "adaptive_max_pool3d": adaptive_max_pool(3),
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
    "clamp": clamped,
    "clamp_min": clamped,
    "clamp_max": lambda builder, x, most: clamped(builder, x, None, most),
    "maximum": maximum,
    "minimum": minimum,
    "max": largest(1),
    "min": largest(-1),
    "amax": amax(1),
    "amin": amax(-1),
    "gt": compared(1, strict=True),
    "ge": compared(1, strict=False),
    "lt": compared(-1, strict=True),
    "le": compared(-1, strict=False),
    "logical_not": negated,
    "bitwise_not": negated,
    "where": where,
    "masked_fill": masked_fill,
    "hardsigmoid": elementwise(HardSigmoid),
    "hardswish": elementwise(HardSwish),
    "abs": elementwise(Abs),
    "sign": elementwise(Sign),
    "exp": elementwise(Exp),
    "log": elementwise(Log),
    "log1p": lambda builder, x: elementwise(Log)(builder, add(builder, x, 1.0)),
    "sqrt": elementwise(Sqrt),
    "rsqrt": elementwise(Rsqrt),
    "reciprocal": elementwise(Reciprocal),
    "softplus": softplus,
    "elu": elementwise(lambda alpha=1.0, scale=1.0, input_scale=1.0: Elu(alpha, scale, input_scale)),
    "selu": elementwise(lambda: Elu(1.6732632423543772, 1.0507009873554805, 1.0)),
    "celu": elementwise(lambda alpha=1.0: Elu(alpha, 1.0, 1.0 / alpha)),
    "tanh": elementwise(Tanh),
    "sigmoid": elementwise(Sigmoid),
    "erf": elementwise(Erf),
    "gelu": elementwise(lambda approximate="none": Gelu(approximate)),
    "silu": elementwise(Silu),
    "mish": elementwise(Mish),
    "log_sigmoid": lambda builder, x: mul(builder, softplus(builder, mul(builder, x, -1.0), threshold=ENDLESS), -1.0),
}
