"""Every operator against onnxruntime, one small file each, in the forms of several opsets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from certkd.networks.onnx import network as onnx_network
from certkd.networks.onnx import quantized
from certkd.networks.onnx.call import Call
from certkd.networks.onnx.file import read
from certkd.networks.onnx.operators import OPERATORS
from certkd.networks.onnx.reference import Reference
from tests.certkd.exchange.models import IMAGE, head, random, save
from tests.marks import thin
from verifiers.graph.capture import capture

node = helper.make_node
ints = lambda *values: np.array(values, dtype=np.int64)  # noqa: E731
number = lambda value: np.array(value, dtype=np.float32)  # noqa: E731

#: name: (opset, nodes from x to h, constants)
CASES: dict[str, tuple[int, list[Any], dict[str, np.ndarray]]] = {}


def case(name: str, opset: int, nodes: list[Any], **constants: np.ndarray) -> None:
    CASES[f"{name}-{opset}"] = (opset, nodes, constants)


def simple(name: str, opset: int = 13, inputs: tuple[str, ...] = (), **attributes: Any) -> list[Any]:
    return [node(name, ["x", *inputs], ["h"], **attributes)]


for kind in "Abs Exp Neg Relu Sigmoid Tanh Softplus Erf Selu Elu Celu LeakyRelu HardSigmoid Identity".split():
    case(kind, 13, simple(kind))
for kind in ("GlobalAveragePool", "GlobalMaxPool"):
    case(kind, 13, simple(kind))
case("HardSwish", 14, simple("HardSwish"))
case("Gelu", 20, simple("Gelu"))
case("GeluTanh", 20, simple("Gelu", approximate="tanh"))
case("Mish", 18, simple("Mish"))
case("Elu alpha", 13, simple("Elu", alpha=0.5))
case("Selu alpha", 13, simple("Selu", alpha=0.5, gamma=2.0))
case("LeakyRelu slope", 13, simple("LeakyRelu", alpha=0.3))
case("HardSigmoid sixth", 13, simple("HardSigmoid", alpha=1 / 6))
for kind in ("Sqrt", "Log", "Reciprocal"):
    nodes = [node("Abs", ["x"], ["a"]), node("Add", ["a", "one"], ["b"]), node(kind, ["b"], ["h"])]
    case(kind, 13, nodes, one=number(1.0))
for kind in ("Add", "Sub", "Mul", "Div"):
    case(kind, 13, simple(kind, inputs=("k",)), k=random(2, 1, 1) + 3)
    case(f"{kind} number", 13, simple(kind, inputs=("k",)), k=number(1.7))
    case(f"{kind} left", 13, [node("Exp", ["x"], ["p"]), node(kind, ["k", "p"], ["h"])], k=number(1.7))
case("Sum", 13, [node("Sum", ["x", "k", "x"], ["h"])], k=random(2, 6, 6))
case("Pow", 13, simple("Pow", inputs=("k",)), k=number(2.0))
case("PRelu", 13, simple("PRelu", inputs=("k",)), k=random(2, 1, 1))
case("PRelu one", 13, simple("PRelu", inputs=("k",)), k=random(1))
case("PRelu each", 13, simple("PRelu", inputs=("k",)), k=random(2, 6, 6))
case("Clip", 6 + 1, simple("Clip", min=-0.5, max=0.7))
case("Clip", 13, simple("Clip", inputs=("lo", "hi")), lo=number(-0.5), hi=number(0.7))
case("Clip above", 13, simple("Clip", inputs=("", "hi")), hi=number(0.7))
case("ConvTranspose to one channel", 13, simple("ConvTranspose", inputs=("w", "b")), w=random(2, 1, 2, 2), b=random(1))
case("Dropout", 10, simple("Dropout", ratio=0.5))
case("Dropout", 13, simple("Dropout", inputs=("p",)), p=number(0.5))
case("Cast", 13, simple("Cast", to=1))
case(
    "Conv", 13, simple("Conv", inputs=("w", "b"), strides=[2, 1], pads=[1, 0, 1, 0]), w=random(4, 2, 3, 3), b=random(4)
)
case("Conv group", 13, simple("Conv", inputs=("w",), group=2, dilations=[2, 1]), w=random(4, 1, 2, 2))
case("Conv uneven", 13, simple("Conv", inputs=("w",), pads=[0, 1, 2, 0]), w=random(3, 2, 3, 3))
case("Conv same", 13, simple("Conv", inputs=("w",), auto_pad="SAME_UPPER", strides=[2, 2]), w=random(3, 2, 3, 3))
case("Conv same low", 13, simple("Conv", inputs=("w",), auto_pad="SAME_LOWER"), w=random(3, 2, 2, 2))
case("Conv valid", 13, simple("Conv", inputs=("w",), auto_pad="VALID"), w=random(3, 2, 2, 2))
case("MaxPool", 13, simple("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]))
case("MaxPool ceil", 13, simple("MaxPool", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1))
case("MaxPool uneven", 13, simple("MaxPool", kernel_shape=[2, 2], pads=[0, 0, 1, 1]))
case("AveragePool", 13, simple("AveragePool", kernel_shape=[2, 2], strides=[2, 2]))
case("AveragePool pad", 13, simple("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]))
case("AveragePool count", 13, simple("AveragePool", kernel_shape=[3, 3], pads=[0, 1, 1, 1], count_include_pad=1))
statistics = {"s": random(2), "b": random(2), "m": random(2), "v": np.abs(random(2)) + 0.5}
case("BatchNormalization", 9, simple("BatchNormalization", inputs=("s", "b", "m", "v"), epsilon=0.01), **statistics)
case("BatchNormalization", 15, simple("BatchNormalization", inputs=("s", "b", "m", "v")), **statistics)
case("InstanceNormalization", 13, simple("InstanceNormalization", inputs=("s", "b")), s=random(2), b=random(2))
case("LayerNormalization", 17, simple("LayerNormalization", inputs=("s", "b"), axis=-1), s=random(6), b=random(6))
case("LayerNormalization two", 17, simple("LayerNormalization", inputs=("s",), axis=2), s=random(6, 6))
for kind in ("Softmax", "LogSoftmax"):
    case(kind, 11, simple(kind, axis=2))
    case(kind, 13, simple(kind, axis=2))
    case(f"{kind} default", 11, simple(kind))
    case(f"{kind} default", 13, simple(kind))
case("MatMul", 13, simple("MatMul", inputs=("k",)), k=random(6, 3))
case("MatMul left", 13, [node("MatMul", ["k", "x"], ["h"])], k=random(3, 6))
case("MatMul both", 13, [node("Exp", ["x"], ["e"]), node("MatMul", ["x", "e"], ["h"])])
flat = node("Flatten", ["x"], ["f"])
case("Gemm", 13, [flat, node("Gemm", ["f", "k", "b"], ["h"])], k=random(72, 3), b=random(3))
case("Gemm scaled", 13, [flat, node("Gemm", ["f", "k", "b"], ["h"], alpha=0.5, beta=2.0)], k=random(72, 3), b=random(3))
case("Gemm bare", 11, [flat, node("Gemm", ["f", "k"], ["h"], transB=1)], k=random(3, 72))
case("Flatten", 13, [node("Flatten", ["x"], ["h"], axis=-3)])
rows = [node("Flatten", ["x"], ["r"], axis=2), node("MatMul", ["r", "w"], ["p"]), node("Reshape", ["p", "k"], ["h"])]
case("Flatten rows", 13, rows, w=random(36, 3), k=ints(-1, 6))
case("Transpose", 13, simple("Transpose", perm=[0, 2, 3, 1]))
case("Reshape", 13, simple("Reshape", inputs=("k",)), k=ints(0, -1, 4))
case("Reshape rows", 13, simple("Reshape", inputs=("k",)), k=ints(-1, 72))
case("Squeeze", 11, [node("ReduceMean", ["x"], ["m"], axes=[2]), node("Squeeze", ["m"], ["h"], axes=[2])])
case("Squeeze", 13, [node("ReduceMean", ["x"], ["m"], axes=[2]), node("Squeeze", ["m", "k"], ["h"])], k=ints(-2))
case("Unsqueeze", 11, simple("Unsqueeze", axes=[1, -1]))
case("Unsqueeze", 13, simple("Unsqueeze", inputs=("k",)), k=ints(1, -1))
for kind in ("ReduceMean", "ReduceSum"):
    case(kind, 11, simple(kind, axes=[-1], keepdims=0))
    case(kind, 18, simple(kind, inputs=("k",)), k=ints(2, 3))
case("Concat", 13, [node("Exp", ["x"], ["e"]), node("Concat", ["x", "e"], ["h"], axis=-1)])
case("Split", 11, [node("Split", ["x"], ["p", "q"], axis=2, split=[2, 4]), node("Concat", ["q", "p"], ["h"], axis=2)])
case(
    "Split",
    13,
    [node("Split", ["x", "k"], ["p", "q"], axis=2), node("Concat", ["q", "p"], ["h"], axis=2)],
    k=ints(2, 4),
)
case("Split", 18, [node("Split", ["x"], ["p", "q"], axis=3, num_outputs=2), node("Mul", ["q", "p"], ["h"])])
case("Slice", 9, simple("Slice", starts=[1, -3], ends=[9223372036854775807, -1], axes=[1, 3]))
slicing = {"s": ints(1), "e": ints(6), "a": ints(-1), "t": ints(2)}
case("Slice", 13, simple("Slice", inputs=("s", "e", "a", "t")), **slicing)
case("Gather", 13, simple("Gather", inputs=("k",), axis=2), k=np.array(-1))
case("Gather several", 13, simple("Gather", inputs=("k",), axis=3), k=ints(4, 0, -2))
case("Gather table", 13, simple("Gather", inputs=("k",), axis=3), k=ints(4, 0, 1, 2).reshape(2, 2))
case("Pad", 10, simple("Pad", pads=[0, 0, 1, 0, 0, 0, 0, 2], value=0.5))
case("Pad", 13, simple("Pad", inputs=("k", "v")), k=ints(0, 1, 1, 0, 0, 0, 0, 2), v=number(0.5))
case("Pad reflect", 13, simple("Pad", inputs=("k",), mode="reflect"), k=ints(0, 0, 1, 0, 0, 0, 0, 2))
case("Pad edge", 18, simple("Pad", inputs=("k", "", "a"), mode="edge"), k=ints(1, 0, 2, 0), a=ints(2, 3))
half_pixel = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
larger = np.array([1, 1, 2, 1.5], np.float32)
case("Resize", 11, simple("Resize", inputs=("e", "s"), **half_pixel), e=random(0), s=larger)
case("Resize", 13, simple("Resize", inputs=("", "s"), **half_pixel), s=larger)
floor = {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
case("Resize nearest", 13, simple("Resize", inputs=("", "s"), **floor), s=np.array([1, 1, 2, 2], np.float32))
tokens = [  # a class token for as many images as there are
    node("Shape", ["x"], ["shape"]),
    node("Gather", ["shape", "zero"], ["count"], axis=0),
    node("Unsqueeze", ["count"], ["row"], axes=[0]),
    node("Concat", ["row", "rest"], ["size"], axis=0),
    node("Expand", ["token", "size"], ["tokens"]),
    node("Concat", ["tokens", "x"], ["h"], axis=1),
]
case("Expand", 11, tokens, zero=np.array(0), rest=ints(1, 6, 6), token=random(1, 1, 1, 6))
case(
    "Expand image",
    13,
    [node("ReduceMean", ["x"], ["m"], axes=[3]), node("Expand", ["m", "k"], ["h"])],
    k=ints(1, 1, 6, 3),
)
filled = [
    *tokens[:4],
    node("ConstantOfShape", ["size"], ["zeros"]),
    node("Add", ["zeros", "token"], ["tokens"]),
    tokens[5],
]
case("ConstantOfShape", 11, filled, zero=np.array(0), rest=ints(1, 6, 6), token=random(1, 1, 1, 6))
scale = [  # 1 / sqrt(width), from the shape in floats
    node("Shape", ["x"], ["shape"]),
    node("Slice", ["shape", "three", "four"], ["width"]),
    node("Cast", ["width"], ["float"], to=1),
    node("Sqrt", ["float"], ["root"]),
    node("Div", ["one", "root"], ["scale"]),
    node("Mul", ["x", "scale"], ["h"]),
]
case("shape in floats", 13, scale, three=ints(3), four=ints(4), one=np.ones(1, np.float32))


for kind in "Ceil Floor Cos Sin Sign Softsign".split():
    case(kind, 13, simple(kind))
case("ThresholdedRelu", 13, simple("ThresholdedRelu", alpha=0.4))
case("LpNormalization", 13, simple("LpNormalization", axis=-1, p=2))
case("LpNormalization one", 13, simple("LpNormalization", axis=1, p=1))
case("LRN", 13, simple("LRN", size=3, alpha=0.5, beta=0.6, bias=1.5))
kernel = random(2, 3, 3, 3)
for name, options in {
    "": {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
    " uneven": {"pads": [1, 0, 0, 2]},
    " shape": {"strides": [2, 2], "output_shape": [12, 12]},
    " same": {"strides": [2, 2], "auto_pad": "SAME_UPPER"},
    " spread": {"dilations": [2, 1]},
}.items():
    case(f"ConvTranspose{name}", 13, simple("ConvTranspose", inputs=("w", "b"), **options), w=kernel, b=random(3))
case("ConvTranspose group", 13, simple("ConvTranspose", inputs=("w",), group=2), w=random(2, 2, 2, 2))
lines = [node("Reshape", ["x", "k"], ["l"]), node("ConvTranspose", ["l", "w"], ["h"], strides=[2])]
case("ConvTranspose line", 13, lines, k=ints(-1, 4, 18), w=random(4, 3, 3))
case(
    "DepthToSpace",
    13,
    [node("Conv", ["x", "w"], ["v"]), node("DepthToSpace", ["v"], ["h"], blocksize=2)],
    w=random(8, 2, 1, 1),
)
case("SpaceToDepth", 13, simple("SpaceToDepth", blocksize=3))
case("Tile", 13, simple("Tile", inputs=("k",)), k=ints(1, 2, 1, 3))
case("Einsum", 13, simple("Einsum", inputs=("k",), equation="...hw,wd->...dh"), k=random(6, 3))
case("Einsum both", 13, [node("Exp", ["x"], ["e"]), node("Einsum", ["x", "e"], ["h"], equation="bchw,bcvw->bchv")])
grouped = [node("Conv", ["x", "w"], ["v"]), node("GroupNormalization", ["v", "s", "b"], ["h"], num_groups=2)]
case("GroupNormalization", 18, grouped, w=random(4, 2, 1, 1), s=random(2), b=random(2))
case("GroupNormalization", 21, grouped, w=random(4, 2, 1, 1), s=random(4), b=random(4))
for kind in ("Max", "Min", "Mean"):
    case(kind, 13, [node("Exp", ["x"], ["e"]), node(kind, ["x", "e", "k"], ["h"])], k=random(2, 1, 1))
for kind in ("Max", "Min"):
    case(f"{kind} number", 13, simple(kind, inputs=("k",)), k=number(0.3))
case("Max zero", 13, simple("Max", inputs=("k",)), k=number(0.0))
for kind in ("ReduceL1", "ReduceL2", "ReduceMax", "ReduceMin", "ReduceSumSquare"):
    case(kind, 11, simple(kind, axes=[-1], keepdims=0))
    case(kind, 18, simple(kind, inputs=("k",)), k=ints(2, 3))
for kind in ("Greater", "GreaterOrEqual", "Less", "LessOrEqual"):
    case(
        kind,
        13,
        [node(kind, ["x", "k"], ["g"]), node("Where", ["g", "x", "n"], ["h"])],
        k=number(0.2),
        n=random(2, 6, 6),
    )
logic = [node("Greater", ["x", "k"], ["g"]), node("Less", ["x", "l"], ["e"]), node("Not", ["e"], ["n"])]
case(
    "Or",
    13,
    [*logic, node("Or", ["g", "e"], ["o"]), node("Where", ["o", "x", "k"], ["h"])],
    k=number(0.3),
    l=number(-0.3),
)
case(
    "And",
    13,
    [*logic, node("And", ["g", "n"], ["o"]), node("Where", ["o", "x", "k"], ["h"])],
    k=number(-1),
    l=number(0.3),
)
case("Where", 13, [node("Where", ["m", "n", "x"], ["h"])], m=np.eye(6, dtype=bool), n=number(2.0))
case("Upsample", 7, simple("Upsample", mode="nearest", scales=[1.0, 1.0, 2.0, 1.0]))
case("Upsample", 9, simple("Upsample", inputs=("s",), mode="linear"), s=np.array([1, 1, 2, 2], np.float32))
case(
    "Slice back",
    13,
    simple("Slice", inputs=("s", "e", "a", "t")),
    s=ints(-2, 5),
    e=ints(0, -(2**63)),
    a=ints(2, 3),
    t=ints(-2, -1),
)
uneven = [node("Split", ["v"], ["p", "q", "r"], axis=3, num_outputs=3), node("Concat", ["r", "p", "q"], ["h"], axis=3)]
case("Split uneven", 18, [node("Conv", ["x", "w"], ["v"]), *uneven], w=random(2, 2, 1, 2))
odd = np.array([1, 1, 1.5, 0.75], np.float32)
for mode in ("half_pixel", "align_corners", "asymmetric", "pytorch_half_pixel"):
    for kind in ("linear", "cubic"):
        options = {"mode": kind, "coordinate_transformation_mode": mode}
        case(f"Resize {kind} {mode}", 13, simple("Resize", inputs=("", "k"), **options), k=odd)
for mode in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil"):
    case(f"Resize {mode}", 13, simple("Resize", inputs=("", "k"), nearest_mode=mode), k=odd)
case("Resize default", 18, simple("Resize", inputs=("", "s"), axes=[2, 3]), s=np.array([1.5, 2], np.float32))
case("Resize antialias", 18, simple("Resize", inputs=("", "k"), mode="linear", antialias=1), k=odd)
case(
    "Resize symmetric",
    19,
    simple("Resize", inputs=("", "s"), mode="linear", coordinate_transformation_mode="half_pixel_symmetric"),
    s=np.array([1, 1, 1.3, 0.7], np.float32),
)
case("Resize outside", 13, simple("Resize", inputs=("", "k"), mode="cubic", exclude_outside=1), k=odd)
case("GatherND", 13, [node("Transpose", ["x"], ["t"], perm=[1, 2, 3, 0]), node("GatherND", ["t", "k"], ["p"]),
    node("Transpose", ["p"], ["h"], perm=[2, 0, 1])], k=np.array([[0, 1], [1, -1], [0, 1]]))  # fmt: skip
for kind, given in (("ReduceLogSum", "e"), ("ReduceLogSumExp", "x")):
    case(kind, 13, [node("Exp", ["x"], ["e"]), node(kind, [given], ["h"], axes=[2], keepdims=0)])


def recurrent(name: str, kind: str, gates: int, *, count: int = 1, bias: bool = True, **attributes: Any) -> None:
    """A layer of three units on the images as sequences of three steps."""
    nodes = [
        node("Reshape", ["x", "rows"], ["s"]),
        node("Transpose", ["s"], ["t"], perm=[1, 0, 2]),
        node(kind, ["t", "w", "r", *(["b"] if bias else [])], ["o", "last"], hidden_size=3, **attributes),
        node("Concat", ["o1", "last"], ["j"], axis=0),
        node("Transpose", ["j"], ["h"], perm=[1, 0, 2]),
    ]
    nodes.insert(3, node("Reshape", ["o", "places"], ["o1"]))
    weights = {"w": 0.3 * random(count, 3 * gates, 24), "r": random(count, 3 * gates, 3, seed=1)}
    if bias:
        weights["b"] = random(count, 6 * gates, seed=2)
    case(name, 14, nodes, rows=ints(0, 3, 24), places=ints(3 * count, -1, 3), **weights)


recurrent("LSTM", "LSTM", 4)
recurrent("LSTM without biases", "LSTM", 4, bias=False)
recurrent("LSTM backwards", "LSTM", 4, direction="reverse")
recurrent("LSTM both ways", "LSTM", 4, count=2, direction="bidirectional")
recurrent("GRU", "GRU", 3)
recurrent("GRU of torch", "GRU", 3, linear_before_reset=1)
recurrent("RNN", "RNN", 1)
last_state = [
    node("Reshape", ["x", "rows"], ["s"]),
    node("Transpose", ["s"], ["x1"], perm=[1, 0, 2]),
    node("Tanh", ["x1"], ["x2"]),
    node("LSTM", ["x1", "w", "r"], ["", "h1"], hidden_size=3),
    node("LSTM", ["x2", "w", "r"], ["", "h2"], hidden_size=3),
    node("Sub", ["h1", "h2"], ["d"]),
    node("Transpose", ["d"], ["h"], perm=[1, 0, 2]),
]
long = {"rows": ints(0, 3, 24), "w": 0.3 * random(1, 12, 24), "r": random(1, 12, 3, seed=1)}
case("LSTM, the last state", 14, last_state, **long)
recurrent("RNN relu", "RNN", 1, activations=["Relu"])


def microsoft(name: str, inputs: tuple[str, ...] = (), outputs: tuple[str, ...] = ("h",), **attributes: Any) -> Any:
    return node(name, ["x", *inputs], list(outputs), domain="com.microsoft", **attributes)


case("BiasGelu", 13, [microsoft("BiasGelu", ("k",))], k=random(6))
case("FastGelu", 13, [microsoft("FastGelu", ("k",))], k=random(6))
case("Microsoft's Gelu", 13, [microsoft("Gelu")])
case("QuickGelu", 13, [microsoft("QuickGelu", alpha=1.5)])
filters = {"w": random(3, 2, 3, 3), "b": random(3)}
case("FusedConv", 13, [microsoft("FusedConv", ("w", "b"), activation="Relu", pads=[1] * 4)], **filters)
sloped = microsoft("FusedConv", ("w", "b"), activation="LeakyRelu", activation_params=[0.3])
case("FusedConv of a slope", 13, [sloped], **filters)
case("FusedMatMul", 13, [microsoft("FusedMatMul", ("k",), transB=1, alpha=0.5)], k=random(5, 6))
joined = [node("Reshape", ["x", "rows"], ["t"]), node("Tanh", ["t"], ["u"])]
normed = node("SkipLayerNormalization", ["t", "u", "g", "k"], ["h"], domain="com.microsoft", epsilon=1e-3)
case("SkipLayerNormalization", 13, [*joined, normed], rows=ints(0, 3, 24), g=random(24), k=random(24, seed=1))


def written(name: str, path: Path) -> Path:
    """The case's file, with a linear layer as its end."""
    opset, nodes, constants = CASES[name]
    probe = save(path / "probe.onnx", nodes, constants, opset=opset, outputs=("h",))
    session = onnxruntime.InferenceSession(probe, providers=["CPUExecutionProvider"])
    features = session.run(None, {"x": np.zeros((1, *IMAGE), np.float32)})[0].size
    last, weights = head(features)
    return save(path / "net.onnx", [*nodes, *last], {**constants, **weights}, opset=opset)


@pytest.mark.parametrize("name", thin(CASES))
@pytest.mark.thin(2)
def test_an_operator_is_onnxruntimes(name: str, tmp_path: Path) -> None:
    path = written(name, tmp_path)
    network, file, classes = onnx_network.load(path)
    assert (file.shape, classes) == (IMAGE, 4)
    images = np.random.default_rng(3).normal(size=(5, *IMAGE)).astype(np.float32)
    expected = Reference(read(path))(images)
    with torch.no_grad():
        found = network(torch.from_numpy(images)).numpy()
        double = network.double()(torch.from_numpy(images).double()).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(double, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected, axis=0).min() > 1e-3, "the case does not depend on the image"


def test_selu_with_rounded_numbers_is_not_the_usual_one() -> None:
    """SELU was published as 1.6733 and 1.0507; a file may round its numbers anywhere."""
    call = Call("", 13, 1, (True,))
    x = torch.tensor([-2.0, -0.5, 0.75], dtype=torch.float64)
    for alpha, gamma in ((1.67326, 1.0507), (1.6732632, 1.050701)):
        expected = [gamma * alpha * np.expm1(-2.0), gamma * alpha * np.expm1(-0.5), gamma * 0.75]
        found = OPERATORS["Selu"](call, x, alpha=alpha, gamma=gamma)
        np.testing.assert_allclose(found, expected, rtol=2e-7, err_msg=f"{alpha}, {gamma}")


def test_every_operator_has_a_case() -> None:
    made = [made for _, nodes, _ in CASES.values() for made in nodes]
    shown = {f"{each.domain}:{each.op_type}" if each.domain else each.op_type for each in made} | {"Flatten", "Gemm"}
    left = set(OPERATORS) - shown - set(quantized.OPERATORS)  # test_codes and test_int8_files
    assert left == {"Silu", "Standardise"}, "an operator without a test (two are only made by joining)"


def gated(*nodes: Any, opset: int = 13, **constants: np.ndarray) -> Callable[[Path], Path]:
    last, weights = head(72)
    return lambda path: save(path / "net.onnx", [*nodes, *last], {**constants, **weights}, opset=opset)


def gelu(*tail: Any, root: float = 2**0.5, one: float = 1.0, **numbers: float) -> Callable[[Path], Path]:
    """x, g = erf(x / root) + one, and what follows."""
    start = [node("Div", ["x", "root"], ["a"]), node("Erf", ["a"], ["e"]), node("Add", ["e", "one"], ["g"])]
    numbers = {"root": root, "one": one, "half": 0.5, **numbers}
    return gated(*start, *tail, **{name: number(value) for name, value in numbers.items()})


def normalised(tail: Any = None, axes: int = -1, square: Any = None, **options: Any) -> Callable[[Path], Path]:
    """(x - mean) / sqrt(mean of squares + epsilon), and what follows."""
    start = [
        node("ReduceMean", ["x"], ["m"], axes=[-1]),
        node("Sub", ["x", "m"], ["d"]),
        square or node("Pow", ["d", "two"], ["p"]),
        node("ReduceMean", ["p"], ["q"], axes=[axes], **options),
        node("Add", ["q", "eps"], ["v"]),
        node("Sqrt", ["v"], ["t"]),
        tail or node("Div", ["d", "t"], ["h"]),
    ]
    return gated(*start, two=number(2.0), eps=number(1e-3))


usual = (node("Mul", ["x", "g"], ["m"]), node("Mul", ["m", "half"], ["h"]))
sigmoid, hard = node("Sigmoid", ["x"], ["s"]), node("HardSigmoid", ["x"], ["s"])
sixth = node("HardSigmoid", ["x"], ["s"], alpha=1 / 6)
JOINED = {
    "torch's GELU": ("Gelu", gelu(*usual)),
    "half first": ("Gelu", gelu(node("Mul", ["half", "x"], ["m"]), node("Mul", ["m", "g"], ["h"]))),
    "half inside": ("Gelu", gelu(node("Mul", ["g", "half"], ["m"]), node("Mul", ["m", "x"], ["h"]))),
    "divided": ("Gelu", gelu(node("Mul", ["g", "x"], ["m"]), node("Div", ["m", "two"], ["h"]), two=2.0)),
    "SiLU": ("Silu", gated(sigmoid, node("Mul", ["x", "s"], ["h"]))),
    "hard-swish": ("HardSwish", gated(sixth, node("Mul", ["s", "x"], ["h"]))),
    "normalisation": ("Standardise", normalised()),
    "normalisation by a product": ("Standardise", normalised(square=node("Mul", ["d", "d"], ["p"]))),
}
APART = {
    "another root": gelu(*usual, root=1.4),
    "a root of six digits": gelu(*usual, root=1.414214),
    "a quarter": gelu(*usual, half=0.25),
    "plus two": gelu(*usual, one=2.0),
    "used twice": gelu(usual[0], node("Mul", ["m", "half"], ["k"]), node("Add", ["k", "e"], ["h"])),
    "divides": gelu(usual[0], node("Add", ["m", "three"], ["d"]), node("Div", ["half", "d"], ["h"]), three=3.0),
    "x twice": gelu(usual[0], node("Mul", ["m", "x"], ["n"]), node("Mul", ["n", "half"], ["h"])),
    "gate of another": gated(sigmoid, node("Exp", ["x"], ["z"]), node("Mul", ["z", "s"], ["h"])),
    "another slope": gated(hard, node("Mul", ["s", "x"], ["h"])),
    "another axis": normalised(axes=-2),
    "root over difference": normalised(node("Div", ["t", "d"], ["h"])),
    "difference of another": normalised(square=node("Pow", ["x", "two"], ["p"])),
}


@pytest.mark.parametrize("name", JOINED)
@pytest.mark.thin(2)
def test_what_exporters_write_out_is_one_operator(name: str, tmp_path: Path) -> None:
    kind, write = JOINED[name]
    network, _, _ = onnx_network.load(write(tmp_path))  # compares the logits
    kinds = [step.operation.kind for step in network.steps.values()]
    assert kind in kinds and "Erf" not in kinds and "Mul" not in kinds, kinds
    capture(network, torch.rand(1, *IMAGE))


@pytest.mark.parametrize("name", APART)
def test_what_only_looks_like_it_stays_apart(name: str, tmp_path: Path) -> None:
    network, _, _ = onnx_network.load(APART[name](tmp_path))
    kinds = {step.operation.kind for step in network.steps.values()}
    assert kinds.isdisjoint({"Gelu", "Silu", "HardSwish", "Standardise"}), kinds
