"""Small files in the habits of exporters, from an image x of shape (2, 4, 4) to logits y."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from onnx import AttributeProto, TensorProto, helper, numpy_helper

from tests.certkd.exchange.models import random, save

IMAGE = (2, 4, 4)
Build = Callable[[Path], Path]
BUILDS: dict[str, Build] = {}


def n(kind: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    """A node; "_" leaves an input out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(kind, names, outputs.split(), **attributes)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def value(name: str, given: np.ndarray) -> Any:
    """A Constant node."""
    return n("Constant", "", name, value=numpy_helper.from_array(given))


def head(features: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """From h to logits y: flatten and a linear layer."""
    nodes = [n("Flatten", "h", "last_x"), n("Gemm", "last_x last_w last_b", "y", transB=1)]
    return nodes, {"last_w": 0.3 * random(4, features, seed=8), "last_b": random(4, seed=9)}


def case(name: str, opset: int, features: int, *nodes: Any, options: Any = None, **constants: np.ndarray) -> None:
    """A file whose nodes lead from x to h, which has so many features, and a linear layer to y."""
    last, weights = head(features)
    whole(name, opset, *nodes, *last, options=options, **{**constants, **weights})


def whole(name: str, opset: int, *nodes: Any, options: Any = None, **constants: np.ndarray) -> None:
    """A file whose nodes lead from x to y."""
    given = {"shape": ("N", *IMAGE), **(options or {})}
    BUILDS[name] = lambda path: save(path / "n.onnx", nodes, constants, opset=opset, **given)


conv = {"w": random(3, 2, 3, 3), "b": random(3)}
CONV = n("Conv", "x w b", "c", kernel_shape=[3, 3], pads=[1] * 4)
RELU = n("Relu", "c", "r")
BLOCK = (CONV, RELU)
POOL = n("MaxPool", "r", "h", kernel_shape=[2, 2], strides=[2, 2])

# PyTorch, by tracing

case("torch: convolution, ReLU, max-pooling, opset 9", 9, 12, *BLOCK, POOL, **conv)
case("torch: the same, opset 17", 17, 12, *BLOCK, POOL, **conv)
size = (n("Shape", "r", "s"), value("zero", np.array(0)), n("Gather", "s zero", "g", axis=0))
case(
    "torch: view by the batch size, opset 11",
    11,
    48,
    *BLOCK,
    *size,
    n("Unsqueeze", "g", "u", axes=[0]),
    value("rest", ints(-1)),
    n("Concat", "u rest", "k", axis=0),
    n("Reshape", "r k", "h"),
    **conv,
)
case(
    "torch: view by the batch size, opset 13",
    13,
    48,
    *BLOCK,
    *size,
    n("Unsqueeze", "g axes", "u"),
    value("rest", ints(-1)),
    n("Concat", "u rest", "k", axis=0),
    n("Reshape", "r k", "h"),
    axes=ints(0),
    **conv,
)
case("torch: reshape by constants", 13, 48, *BLOCK, n("Reshape", "r k", "h"), k=ints(-1, 48), **conv)
case("torch: adaptive pooling", 13, 3, *BLOCK, n("GlobalAveragePool", "r", "h"), **conv)
case("torch: mean by attribute", 11, 3, *BLOCK, n("ReduceMean", "r", "h", axes=[2, 3], keepdims=0), **conv)
case("torch: mean by input", 18, 3, *BLOCK, n("ReduceMean", "r a", "h", keepdims=0), a=ints(2, 3), **conv)
case("torch: relu6 by attributes", 10, 32, n("Clip", "x", "h", min=0.0, max=6.0))
case(
    "torch: relu6 by constant nodes",
    11,
    32,
    value("lo", np.float32(0)),
    value("hi", np.float32(6)),
    n("Clip", "x lo hi", "h"),
)
case(
    "torch: hard-swish written out",
    11,
    32,
    n("Add", "x three", "p"),
    n("Clip", "p zero six", "q"),
    n("Div", "q six", "d"),
    n("Mul", "x d", "h"),
    three=np.float32(3),
    zero=np.float32(0),
    six=np.float32(6),
)
norm = {"s": random(3), "o": random(3, seed=1), "m": random(3, seed=2), "v": np.abs(random(3, seed=3)) + 0.5}
for opset in (9, 15):
    case(
        f"torch: batch normalisation that is not fused, opset {opset}",
        opset,
        48,
        n("Conv", "x w", "c", pads=[1] * 4),
        n("BatchNormalization", "c s o m v", "d", epsilon=1e-5, momentum=0.9),
        n("Relu", "d", "h"),
        w=conv["w"],
        **norm,
    )
case("torch: dropout, opset 7", 7, 48, *BLOCK, n("Dropout", "r", "h", ratio=0.5), **conv)
case(
    "torch: dropout, opset 12",
    12,
    48,
    *BLOCK,
    n("Dropout", "r p t", "h"),
    p=np.float32(0.5),
    t=np.array(False),
    **conv,
)
case("torch: upsampling, opset 9", 9, 128, n("Upsample", "x k", "h", mode="nearest"), k=floats(1, 1, 2, 2))
case("torch: upsampling, opset 7", 7, 128, n("Upsample", "x", "h", mode="linear", scales=[1.0, 1.0, 2.0, 2.0]))
case("torch: upsampling, opset 10", 10, 128, n("Resize", "x k", "h", mode="nearest"), k=floats(1, 1, 2, 2))
corners = {"mode": "linear", "coordinate_transformation_mode": "align_corners"}
case("torch: align_corners", 13, 98, n("Resize", "x _ _ k", "h", **corners), k=ints(1, 2, 7, 7))
cubic = {"mode": "cubic", "coordinate_transformation_mode": "pytorch_half_pixel", "cubic_coeff_a": -0.75}
case("torch: bicubic", 13, 70, n("Resize", "x _ k", "h", **cubic), k=floats(1, 1, 1.25, 1.75))
case(
    "torch: a size that is computed",
    11,
    128,
    n("Shape", "x", "s"),
    n("Slice", "s none two", "front"),
    n("Concat", "front tall", "k", axis=0),
    n(
        "Resize",
        "x empty empty k",
        "h",
        mode="nearest",
        coordinate_transformation_mode="asymmetric",
        nearest_mode="floor",
    ),
    none=ints(0),
    two=ints(2),
    tall=ints(8, 8),
    empty=random(0),
)
shuffled = {"k": ints(-1, 2, 2, 2, 4, 4), "l": ints(-1, 2, 8, 8), "w": random(8, 2, 1, 1)}
case(
    "torch: pixel shuffle as reshapes",
    9,
    128,
    n("Conv", "x w", "c"),
    n("Reshape", "c k", "d"),
    n("Transpose", "d", "e", perm=[0, 1, 4, 2, 5, 3]),
    n("Reshape", "e l", "h"),
    **shuffled,
)
for mode in ("CRD", "DCR"):
    case(
        f"torch: DepthToSpace {mode}",
        11,
        128,
        n("Conv", "x w", "c"),
        n("DepthToSpace", "c", "h", blocksize=2, mode=mode),
        w=shuffled["w"],
    )
case("tf: space to depth", 13, 32, n("SpaceToDepth", "x", "d", blocksize=2), n("Relu", "d", "h"))
case(
    "torch: group normalisation as instance normalisation",
    11,
    32,
    n("Reshape", "x k", "a"),
    n("InstanceNormalization", "a s o", "i"),
    n("Shape", "x", "z"),
    n("Reshape", "i z", "j"),
    n("Mul", "j g", "p"),
    n("Add", "p e", "h"),
    k=ints(0, 2, -1),
    s=floats(1, 1),
    o=floats(0, 0),
    g=random(2, 1, 1),
    e=random(2, 1, 1, seed=1),
)
layer = (
    n("ReduceMean", "x", "m", axes=[-1]),
    n("Sub", "x m", "d"),
    n("Pow", "d two", "p"),
    n("ReduceMean", "p", "q", axes=[-1]),
    n("Add", "q eps", "v"),
    n("Sqrt", "v", "t"),
    n("Div", "d t", "z"),
    n("Mul", "z g", "f"),
    n("Add", "f e", "h"),
)
numbers = {"two": np.float32(2), "eps": np.float32(1e-5)}
case("torch: layer normalisation written out", 11, 32, *layer, **numbers, g=random(4), e=random(4, seed=1))
halves = (
    n("Div", "x root", "a"),
    n("Erf", "a", "e"),
    n("Add", "e one", "p"),
    n("Mul", "x p", "m"),
    n("Mul", "m half", "h"),
)
case("torch: GELU written out", 9, 32, *halves, root=np.float32(2**0.5), one=np.float32(1), half=np.float32(0.5))
attention = (
    n("Reshape", "x k", "t"),  # 4 tokens of 8 numbers
    n("MatMul", "t wq", "q"),
    n("MatMul", "t wk", "r"),
    n("MatMul", "t wv", "u"),
    n("Transpose", "r", "rt", perm=[0, 2, 1]),
    n("MatMul", "q rt", "qk"),
    n("Mul", "qk scale", "sc"),
    n("Softmax", "sc", "a", axis=-1),
    n("MatMul", "a u", "h"),
)
tokens = {
    "k": ints(-1, 4, 8),
    **{f"w{key}": 0.3 * random(8, 8, seed=i) for i, key in enumerate("qkv")},
    "scale": np.float32(8**-0.5),
}
case("torch: attention", 13, 32, *attention, **tokens)
case(
    "torch: several heads from one product",
    13,
    32,
    n("Reshape", "x k", "t"),
    n("MatMul", "t w", "f"),
    n("Reshape", "f l", "g"),  # batch, tokens, parts, heads, numbers
    n("Transpose", "g", "p", perm=[2, 0, 3, 1, 4]),
    n("Gather", "p zero", "q", axis=0),
    n("Gather", "p one", "r", axis=0),
    n("Gather", "p two", "u", axis=0),
    n("Transpose", "r", "rt", perm=[0, 1, 3, 2]),
    n("MatMul", "q rt", "qk"),
    n("Softmax", "qk", "a", axis=-1),
    n("MatMul", "a u", "o"),
    n("Transpose", "o", "ot", perm=[0, 2, 1, 3]),
    n("Reshape", "ot m", "h"),
    k=ints(0, 4, 8),
    l=ints(0, 4, 3, 2, 4),
    m=ints(0, 4, 8),
    w=0.3 * random(8, 24),
    zero=np.array(0),
    one=np.array(1),
    two=np.array(2),
)
case(
    "torch: a class token",
    11,
    40,
    n("Reshape", "x k", "t"),
    n("Shape", "t", "s"),
    n("Gather", "s zero", "g", axis=0),
    n("Unsqueeze", "g", "u", axes=[0]),
    n("Concat", "u rest", "z", axis=0),
    n("Expand", "token z", "e"),
    n("Concat", "e t", "h", axis=1),
    k=ints(0, 4, 8),
    zero=np.array(0),
    rest=ints(1, 8),
    token=random(1, 1, 8),
)
case("torch: chunks", 11, 16, n("Split", "x", "p q", axis=1, split=[1, 1]), n("Mul", "p q", "h"))
case("torch: chunks by input", 13, 16, n("Split", "x k", "p q", axis=1), n("Mul", "p q", "h"), k=ints(1, 1))
case(
    "torch: shuffled channels",
    9,
    64,
    n("Conv", "x w", "c"),
    n("Reshape", "c k", "d"),
    n("Transpose", "d", "e", perm=[0, 2, 1, 3, 4]),
    n("Reshape", "e l", "h"),
    w=random(4, 2, 1, 1),
    k=ints(-1, 2, 2, 4, 4),
    l=ints(-1, 4, 4, 4),
)
case(
    "torch: features of length 1",
    11,
    32,
    n("Flatten", "x", "f"),
    n("ReduceL2", "f", "s", axes=[1], keepdims=1),
    n("Clip", "s least", "c"),
    n("Shape", "f", "z"),
    n("Expand", "c z", "e"),
    n("Div", "f e", "h"),
    least=np.float32(1e-12),
)
transposed = {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]}
case(
    "torch: transposed convolution",
    11,
    192,
    n("ConvTranspose", "x w b", "h", **transposed),
    w=random(2, 3, 3, 3),
    b=random(3),
)
case("torch: masked scores", 13, 32, n("Where", "m low x", "h"), m=np.eye(4, dtype=bool), low=np.float32(-9))
back = {"s": ints(-1), "e": ints(-(2**63)), "a": ints(3), "t": ints(-1)}
case("torch: flipped", 11, 48, n("Slice", "x s e a t", "f"), n("Conv", "f w b", "h", pads=[1] * 4), **back, **conv)
case("torch: the image less its mirror", 13, 32, n("Slice", "x s e a t", "f"), n("Sub", "x f", "h"), **back)
case(
    "torch: padding that is computed, opset 11",
    11,
    70,
    value("p", ints(1, 2, 1, 0)),  # as F.pad has it
    value("left", ints(4)),
    n("ConstantOfShape", "left", "z", value=numpy_helper.from_array(ints(0))),
    n("Concat", "p z", "q", axis=0),
    value("pairs", ints(-1, 2)),
    n("Reshape", "q pairs", "r"),
    value("first", ints(-1)),
    value("last", ints(-(2**63) + 1)),
    value("axis", ints(0)),
    n("Slice", "r first last axis first", "turned"),
    n("Transpose", "turned", "columns", perm=[1, 0]),
    value("flat", ints(-1)),
    n("Reshape", "columns flat", "sides"),
    n("Cast", "sides", "pads", to=7),
    value("fill", np.float32(0.5)),
    n("Pad", "x pads fill", "g", mode="constant"),
    n("Tanh", "g", "h"),
)
case("torch: PReLU", 9, 32, n("PRelu", "x k", "h"), k=random(2, 1, 1))
case("torch: rounded up pooling", 11, 8, n("MaxPool", "x", "h", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))
case("torch: weights behind Identity", 13, 48, n("Identity", "w", "w2"), n("Conv", "x w2 b", "h", pads=[1] * 4), **conv)
case("torch: casts between floats", 13, 32, n("Cast", "x", "d", to=11), n("Cast", "d", "f", to=1), n("Relu", "f", "h"))

# PyTorch, by torch.export

case("dynamo: opset 18", 18, 48, *BLOCK, value("k", ints(-1, 48)), n("Reshape", "r k", "h", allowzero=1), **conv)
case("dynamo: layer normalisation", 17, 32, n("LayerNormalization", "x g e", "h", axis=-1), g=random(4), e=random(4))
case("dynamo: GELU", 20, 32, n("Gelu", "x", "h", approximate="tanh"))
groups = {"num_groups": 2, "epsilon": 1e-5}
grouped = (n("Conv", "x w", "c"), n("GroupNormalization", "c s o", "h", **groups))
case("dynamo: group normalisation", 21, 64, *grouped, w=random(4, 2, 1, 1), s=random(4), o=random(4, seed=1))
case("dynamo: split in equal parts", 18, 16, n("Split", "x", "p q", axis=2, num_outputs=2), n("Sub", "p q", "h"))
case("dynamo: einsum", 18, 24, n("Einsum", "x w", "h", equation="bchw,wd->bchd"), w=random(4, 3))
case("dynamo: the largest of two", 18, 32, n("Mul", "x k", "m"), n("Max", "x m", "h"), k=np.float32(0.1))
last = {"s": ints(0), "e": ints(2**63 - 1), "a": ints(2), "t": ints(2)}
case("dynamo: every second row", 18, 16, n("Slice", "x s e a t", "h"), **last)

# Keras and TensorFlow, by tf2onnx and keras2onnx

NHWC = {"shape": ("N", 4, 4, 2)}
case(
    "keras: channels last",
    13,
    48,
    n("Transpose", "x", "t", perm=[0, 3, 1, 2]),
    n("Conv", "t w b", "c", auto_pad="SAME_UPPER"),
    n("Relu", "c", "r"),
    n("Transpose", "r", "l", perm=[0, 2, 3, 1]),
    n("Reshape", "l k", "h"),
    options=NHWC,
    k=ints(-1, 48),
    **conv,
)
for opset, squeeze, extra in (
    (11, n("Squeeze", "g", "h", axes=[2, 3]), {}),
    (13, n("Squeeze", "g a", "h"), {"a": ints(2, 3)}),
):
    case(
        f"keras: squeezed, opset {opset}", opset, 3, *BLOCK, n("GlobalAveragePool", "r", "g"), squeeze, **conv, **extra
    )
whole(
    "keras: MatMul and Add for a dense layer",
    9,
    n("Flatten", "x", "f"),
    n("MatMul", "f w1", "p"),
    n("Add", "p b1", "q"),
    n("Relu", "q", "r"),
    n("MatMul", "r w2", "s"),
    n("Add", "s b2", "y"),
    w1=random(32, 6),
    b1=random(6),
    w2=random(6, 3),
    b2=random(3),
)
case(
    "keras: pooling that pads one side",
    13,
    12,
    *BLOCK,
    n("MaxPool", "r", "h", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    **conv,
)
case(
    "keras: average pooling that pads one side",
    13,
    12,
    *BLOCK,
    n("AveragePool", "r", "h", kernel_shape=[3, 3], strides=[2, 2], auto_pad="SAME_UPPER"),
    **conv,
)
case(
    "keras: batch normalisation as Mul and Add",
    13,
    48,
    *BLOCK,
    n("Mul", "r g", "m"),
    n("Add", "m e", "h"),
    **conv,
    g=random(1, 3, 1, 1),
    e=random(1, 3, 1, 1, seed=1),
)
case(
    "tf: strided slice",
    13,
    12,
    n("Slice", "x s e a", "p"),
    n("Squeeze", "p b", "h"),
    s=ints(0, 1),
    e=ints(1, 4),
    a=ints(1, 2),
    b=ints(1),
)
case("keras: hard sigmoid", 9, 32, n("HardSigmoid", "x", "h", alpha=0.2, beta=0.5))
case("keras: global max-pooling", 13, 3, *BLOCK, n("ReduceMax", "r", "h", axes=[2, 3], keepdims=0), **conv)
case("tf: tiled", 13, 64, n("Tile", "x k", "t"), n("Tanh", "t", "h"), k=ints(1, 2, 1, 1))
for opset in (11, 13):
    logits = (n("Flatten", "x", "f"), n("MatMul", "f w", "z"), n("Softmax", "z", "y"))
    whole(f"keras: softmax at the end, opset {opset}", opset, *logits, w=random(32, 3))
whole("keras2onnx: the last node first", 13, *logits[::-1], w=random(32, 3))
signs = (n("Sub", "x half", "d"), n("Sign", "d", "s"), n("Add", "s tenth", "a"), n("Sign", "a", "h"))
case("larq: signs", 13, 32, *signs, half=np.float32(0.5), tenth=np.float32(0.1))
case("tf: local response normalisation", 9, 32, n("LRN", "x", "h", size=3, alpha=0.1, beta=0.75, bias=1.0))

# Older tools

case(
    "caffe2: sums by axis, opset 6",
    6,
    48,
    n("Conv", "x w", "c", pads=[1] * 4),
    n("Add", "c b", "s", axis=1, broadcast=1),
    n("Relu", "s", "h"),
    **conv,
)
tested = (n("BatchNormalization", "c s o m v", "d", is_test=1), n("Dropout", "d", "h mask", is_test=1, ratio=0.5))
case("caffe2: batch normalisation and dropout, opset 6", 6, 48, CONV, *tested, **conv, **norm)
case("CNTK: reshape by attribute, opset 3", 3, 48, *BLOCK, n("Reshape", "r", "h", shape=[-1, 48]), **conv)
case("old: PReLU per channel, opset 6", 6, 32, n("PRelu", "x k", "h"), k=random(2))
case(
    "old: Gemm with broadcast, opset 6",
    6,
    3,
    n("Flatten", "x", "f"),
    n("Gemm", "f w b", "h", broadcast=1),
    w=random(32, 3),
    b=random(3),
)
case("mxnet: pads of all axes", 8, 72, n("Pad", "x", "h", pads=[0, 0, 1, 1, 0, 0, 1, 1], mode="constant", value=0.0))
whole("squeezenet: a map of 1x1", 9, n("Conv", "x w", "c"), n("GlobalAveragePool", "c", "y"), w=random(3, 2, 1, 1))
case(
    "paddle: a batch of -1",
    11,
    48,
    *BLOCK,
    n("Reshape", "r k", "h"),
    options={"shape": (-1, *IMAGE)},
    k=ints(-1, 48),
    **conv,
)

# Batches and precisions

case(
    "fixed: ten images",
    13,
    48,
    *BLOCK,
    n("Reshape", "r k", "h"),
    options={"shape": (10, *IMAGE)},
    k=ints(10, 48),
    **conv,
)
case(
    "fixed: ten images by -1",
    13,
    48,
    *BLOCK,
    n("Reshape", "r k", "h"),
    options={"shape": (10, *IMAGE)},
    k=ints(-1, 48),
    **conv,
)
folded = (
    n("Reshape", "x rows", "a"),  # all tokens of all images as rows
    n("Gemm", "a w", "b"),
    n("Reshape", "b five", "c"),
    n("Squeeze", "c axes", "d"),
    n("Relu", "d", "h"),
)
for count in (1, 3):
    case(
        f"fixed: the batch in the tokens, {count} at a time",
        13,
        48,
        *folded,
        options={"shape": (count, *IMAGE)},
        rows=ints(count * 4, 8),
        w=random(8, 12),
        five=ints(count, 4, 1, 12, 1),
        axes=ints(2, 4),
    )
case(
    "fixed: the first axis squeezed away",
    13,
    32,
    n("Squeeze", "x", "s"),
    n("Relu", "s", "t"),
    n("Unsqueeze", "t a", "h"),
    options={"shape": (1, *IMAGE)},
    a=ints(0),
)
whole(
    "fixed: a row without a batch",
    13,
    n("Reshape", "x k", "f"),
    n("MatMul", "f w", "y"),
    options={"shape": (1, *IMAGE)},
    k=ints(32),
    w=random(32, 3),
)
case("free: constants for one image", 13, 32, n("Reshape", "x k", "t"), n("Tanh", "t", "h"), k=ints(1, 32))
for name, kind, dtype in (("float64", TensorProto.DOUBLE, np.float64), ("float16", TensorProto.FLOAT16, np.float16)):
    given = {"w1": random(32, 5).astype(dtype), "w2": random(5, 3).astype(dtype)}
    dense = (n("Flatten", "x", "f"), n("MatMul", "f w1", "a"), n("Relu", "a", "b"), n("MatMul", "b w2", "y"))
    whole(f"{name} network", 13, *dense, options={"kind": kind}, **given)


def with_functions(path: Path) -> Path:
    """PyTorch 2.1's exporter: an operator in a function in a function, whose slope is an attribute of the call."""
    versions = [helper.make_opsetid("", 18), helper.make_opsetid("pkg", 1)]
    last, weights = head(32)
    leaky = n("LeakyRelu", "a", "b")
    leaky.attribute.append(AttributeProto(name="alpha", ref_attr_name="slope", type=AttributeProto.FLOAT))
    inner = helper.make_function("pkg", "leaky", ["a"], ["b"], [leaky], versions, attributes=["slope"])
    body = [n("leaky", "a", "c", domain="pkg", slope=0.25), n("Tanh", "c", "b")]
    outer = helper.make_function("pkg", "block", ["a"], ["b"], body, versions)
    image, logits = (
        helper.make_tensor_value_info(*value)
        for value in (("x", TensorProto.FLOAT, ["N", *IMAGE]), ("y", TensorProto.FLOAT, None))
    )
    nodes = [n("block", "x", "c", domain="pkg"), n("block", "c", "h", domain="pkg"), *last]
    constants = [numpy_helper.from_array(given, name) for name, given in weights.items()]
    graph = helper.make_graph(nodes, "test", [image], [logits], constants)
    model = helper.make_model(graph, opset_imports=versions, functions=[outer, inner], ir_version=8)
    (path / "n.onnx").write_bytes(model.SerializeToString())
    return path / "n.onnx"


BUILDS["dynamo: functions"] = with_functions
case(
    "torch: positions of maxima that nothing reads",
    12,
    8,
    n("MaxPool", "x", "h i", kernel_shape=[2, 2], strides=[2, 2]),
)
normed = (n("LayerNormalization", "p g e", "q", axis=-1), n("Gelu", "q", "r"), n("Add", "x r", "h"))
case("torch: layers of weights", 20, 32, *normed, p=random(2, 4, 4), g=random(4), e=random(4, seed=1))
