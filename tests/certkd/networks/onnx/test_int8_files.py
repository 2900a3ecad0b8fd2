"""Int8 files are read to the last bit: against onnxruntime, and each operator against integers in plain loops."""

import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch

from certkd.networks.onnx import network as onnx_network
from tests.certkd.exchange.models import save
from tests.certkd.networks.onnx import int8
from tests.certkd.networks.onnx.exporters import n
from tests.certkd.networks.onnx.int8 import code
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import InputError, Unsupported
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.graph.integers import computes_in_int8
from verifiers.graph.program import Program

F = np.float32


def run(path: Path, images: np.ndarray) -> np.ndarray:
    """The logits by onnxruntime, of the file as it is."""
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": images})[0].reshape(len(images), -1)


def ours(path: Path, images: np.ndarray) -> np.ndarray:
    network, _, _ = onnx_network.load(path)
    assert computes_in_int8(network)
    with torch.no_grad():
        found: np.ndarray = network(torch.from_numpy(images)).numpy()
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("int8")


STATIC = [("QDQ", True, "QUInt8"), ("QOperator", True, "QUInt8")]
MORE = [("QOperator", False, "QInt8"), ("QDQ", False, "QUInt8")]


@pytest.mark.parametrize(
    ("form", "per_channel", "kind"), [*STATIC, *(pytest.param(*m, marks=pytest.mark.slow) for m in MORE)]
)
def test_a_static_file_equals_onnxruntime_to_the_last_bit(
    form: str, per_channel: bool, kind: str, folder: Path
) -> None:
    path = int8.static(folder, form, per_channel=per_channel, kind=kind)
    assert ("QLinearConv" in int8.kinds(path)) == (form == "QOperator")
    images = np.random.default_rng(1).random((500, *int8.IMAGE), dtype=F)
    expected, found = run(path, images), ours(path, images)
    np.testing.assert_array_equal(found, expected)
    assert np.ptp(expected, axis=0).min() > 0, "a logit does not depend on the image"


@pytest.mark.slow
def test_a_file_that_onnxruntime_runs_in_floats_is_refused_with_a_way_that_works(folder: Path) -> None:
    """It leaves layers of a QDQ file with int8 values in float32, so that means between two codes round either way."""
    path = int8.static(folder, kind="QInt8")
    with pytest.raises(
        InputError, match=r"differ from onnxruntime's by .*: quantise to QUInt8 values, or write QOperator"
    ):
        onnx_network.load(path)


@pytest.mark.slow
def test_a_dynamic_file_runs_one_image_at_a_time_and_proves_nothing(tmp_path: Path) -> None:
    path = int8.dynamic(tmp_path)
    assert "DynamicQuantizeLinear" in int8.kinds(path)
    network, file, _ = onnx_network.load(path)
    assert any("follow the range of each image" in remark for remark in file.remarks)
    images = np.random.default_rng(1).random((40, *int8.IMAGE), dtype=F)
    expected = np.concatenate([run(path, image[None]) for image in images])
    np.testing.assert_allclose(ours(path, images), expected, rtol=0, atol=1e-6)  # sums of floats have no order
    with pytest.raises(Unsupported, match="quantises by the range of its values"):
        Program(network).graph(torch.from_numpy(images[:2]))


# Each operator by loops over integers


def rounded(x: np.ndarray, zero: int) -> np.ndarray:
    return np.clip(np.rint(x) + zero, 0, 255).astype(np.int64)


def convolved(q: np.ndarray, w: np.ndarray, zero: int) -> np.ndarray:
    """Sums of products, with a border of the zero point."""
    padded = np.pad(q, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=zero)
    found = np.zeros((len(q), len(w), *q.shape[2:]), np.int64)
    for i, o, a, b in itertools.product(*map(range, found.shape)):
        found[i, o, a, b] = ((padded[i, :, a : a + 3, b : b + 3] - zero) * w[o].astype(np.int64)).sum()
    return found


W = np.random.default_rng(2).integers(-127, 128, (3, 2, 3, 3)).astype(np.int8)
M = np.random.default_rng(3).integers(-127, 128, (18, 4)).astype(np.int8)
B = np.array([900, -2000, 40], np.int32)
SX, SW, SY, ZX, ZY = F(0.011), np.array([0.003, 0.005, 0.0007], F), F(0.09), 7, 120
SCALES = {"sx": SX, "zx": code(ZX), "sw": SW, "zw": np.zeros(3, np.int8), "sy": SY, "zy": code(ZY)}


def of_conv(q: np.ndarray) -> np.ndarray:
    scale = (SX * SW) / SY
    sums = (convolved(q, W, ZX) + B[:, None, None]).astype(F)
    return rounded(sums * scale[:, None, None], ZY)


def of_matmul(q: np.ndarray) -> np.ndarray:
    sums = (q.reshape(len(q), 18) - ZX) @ M.astype(np.int64)
    return rounded(sums.astype(F) * F(F(SX * SW[0]) / SY), ZY)


def of_average(q: np.ndarray) -> np.ndarray:
    sums = (q - ZX).sum((2, 3), keepdims=True)
    return rounded(sums.astype(F) * F(SX / F(SY * F(9))), ZY)


def of_windows(q: np.ndarray) -> np.ndarray:
    """Means of real numbers, to which the zero point is added before they are rounded."""
    parts = [((q[:, :, a : a + 2, b : b + 2] - ZX).astype(F) * SX) for a in (0, 1) for b in (0, 1)]
    means = (((parts[0] + parts[1]) + parts[2]) + parts[3]) / F(4)
    return np.clip(np.rint(means / SY + F(ZY)), 0, 255).astype(np.int64)


def of_sum(q: np.ndarray) -> np.ndarray:
    ratio = F(SX / SY)
    fixed = F(ZY) - F(ratio * F(ZX) + ratio * F(ZX))
    total = (np.float64(ratio) * q + fixed).astype(F)
    total = (np.float64(ratio) * q + total).astype(F)
    return np.clip(np.rint(total), 0, 255).astype(np.int64)


def of_sigmoid(q: np.ndarray) -> np.ndarray:
    return rounded(torch.sigmoid(torch.from_numpy(((q - ZX) * SX).astype(F))).numpy() / SY, ZY)


MS = {"domain": "com.microsoft"}
PADDED = {"kernel_shape": [3, 3], "pads": [1] * 4}
CODES = "q sx zx"
OPERATORS: dict[str, tuple[list[Any], Callable[[np.ndarray], np.ndarray]]] = {
    "convolution": ([n("QLinearConv", f"{CODES} w sw zw sy zy B", "h", **PADDED)], of_conv),
    "matrix": (
        [n("Flatten", "q", "f"), n("QLinearMatMul", "f sx zx m s0 z0 sy zy", "h")],
        of_matmul,
    ),
    "linear": ([n("Flatten", "q", "f"), n("QGemm", "f sx zx m s0 z0 _ sy zy", "h", **MS)], of_matmul),
    "sum": ([n("QLinearAdd", f"{CODES} {CODES} sy zy", "h", **MS)], of_sum),
    "mean": ([n("QLinearGlobalAveragePool", f"{CODES} sy zy", "h", **MS)], of_average),
    "means": ([n("QLinearAveragePool", f"{CODES} sy zy", "h", kernel_shape=[2, 2], **MS)], of_windows),
    "sigmoid": ([n("QLinearSigmoid", f"{CODES} sy zy", "h", **MS)], of_sigmoid),
}
QDQ: dict[str, tuple[list[Any], Callable[[np.ndarray], np.ndarray]]] = {
    "convolution in QDQ": (
        [
            n("DequantizeLinear", CODES, "d"),
            n("DequantizeLinear", "w sw zw", "v", axis=0),
            n("DequantizeLinear", "B sb", "b", axis=0),
            n("Conv", "d v b", "c", **PADDED),
            n("QuantizeLinear", "c sy zy", "h"),
        ],
        of_conv,
    ),
    "means in QDQ": (
        [
            n("DequantizeLinear", CODES, "d"),
            n("AveragePool", "d", "c", kernel_shape=[2, 2]),
            n("QuantizeLinear", "c sy zy", "h"),
        ],
        of_windows,
    ),
    "integers": (
        [
            n("ConvInteger", "q w zx", "i", **PADDED),
            n("Cast", "i", "j", to=1),
            n("Mul", "j s0", "c"),
            n("QuantizeLinear", "c sy zy", "h"),
        ],
        lambda q: rounded((convolved(q, W, ZX).astype(F) * SW[0]) / SY, ZY),
    ),
}


@pytest.mark.parametrize("name", [*OPERATORS, *QDQ])
def test_an_operator_equals_loops_over_integers_and_onnxruntime(name: str, tmp_path: Path) -> None:
    nodes, oracle = {**OPERATORS, **QDQ}[name]
    first, last = n("QuantizeLinear", "x sx zx", "q"), [n("DequantizeLinear", "h sy zy", "r"), n("Flatten", "r", "y")]
    more = {"s0": SW[0], "z0": code(0, np.int8), "w": W, "m": M, "B": B, "sb": SX * SW}
    used = {i for node in [first, *nodes, *last] for i in node.input}
    constants = {key: np.asarray(each) for key, each in {**SCALES, **more}.items() if key in used}
    path = save(tmp_path / "n.onnx", [first, *nodes, *last], constants, shape=("N", 2, 3, 3))
    images = np.random.default_rng(4).random((60, 2, 3, 3), dtype=F) * F(2.6) - F(0.1)
    codes = rounded(images / SX, ZX)
    expected = ((oracle(codes) - ZY) * SY).astype(F).reshape(60, -1)
    np.testing.assert_array_equal(run(path, images), expected, "the oracle is not onnxruntime")
    np.testing.assert_array_equal(ours(path, images), expected)


def test_halves_are_rounded_to_even_and_codes_are_clamped(tmp_path: Path) -> None:
    nodes = [n("QuantizeLinear", "x s z", "q"), n("DequantizeLinear", "q s z", "y")]
    path = save(tmp_path / "n.onnx", nodes, {"s": np.asarray(F(0.125)), "z": code(3)}, shape=("N", 8))
    images = np.array([[0.0625, 0.1875, 0.3125, -0.0625, -9, 99, 0.06251, 0.4375]], F)
    assert (ours(path, images) / 0.125).tolist() == [[0, 2, 2, 0, -3, 252, 1, 4]]
    np.testing.assert_array_equal(ours(path, images), run(path, images))


QUANTIZE = n("QuantizeLinear", "x s z", "q")
LAST = [n("DequantizeLinear", "h s z", "y")]
MISTAKES: dict[str, tuple[list[Any], dict[str, np.ndarray], str]] = {
    "a scale that is negative": (
        [n("QuantizeLinear", "x s z", "h"), *LAST],
        {"s": np.asarray(F(-1))},
        "the scale -1.0",
    ),
    "codes without a scale": ([QUANTIZE, n("Sigmoid", "q", "y")], {}, "is not a network that onnxruntime runs"),
    "a value with a scale below zero, on which maxima would be minima": (
        [QUANTIZE, n("DequantizeLinear", "q t z", "d"), n("Relu", "d", "y")],
        {"t": np.asarray(F(-1))},
        "has a scale below zero",
    ),
    "a bias with a scale of its own": (
        [
            QUANTIZE,
            n("DequantizeLinear", "q s z", "d"),
            n("DequantizeLinear", "w s", "v"),
            n("DequantizeLinear", "b t", "c"),
            n("Gemm", "d v c", "y"),
        ],
        {"w": np.eye(4, dtype=np.int8), "b": np.ones(4, np.int32), "t": np.asarray(F(0.01 + 1e-7))},
        "has a bias whose scale is not the product",
    ),
    "a product of codes": (
        [QUANTIZE, n("QLinearMul", "q s z q s z s z", "h", **MS), *LAST],
        {},
        "(com.microsoft:QLinearMul, opset 13): is an operator without translation",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_other_forms_are_refused_with_the_node(name: str, tmp_path: Path) -> None:
    nodes, more, told = MISTAKES[name]
    constants = {"s": np.asarray(F(0.1)), "z": code(0), **more}
    path = save(tmp_path / "n.onnx", nodes, constants, shape=("N", 4))
    with pytest.raises(InputError) as caught:
        onnx_network.load(path)
    assert told in str(caught.value) or "computes with codes" in str(caught.value)


def test_the_upper_limit_of_the_last_clamp_wins(tmp_path: Path) -> None:
    """First to [0, 0.1], then to [0.3, 0.5]: all are 0.3."""
    limits = {"a": 0.0, "b": 0.1, "c": 0.3, "d": 0.5}
    nodes = [QUANTIZE, n("DequantizeLinear", "q s z", "r"), n("Clip", "r a b", "t"), n("Clip", "t c d", "u")]
    nodes += [n("Add", "u r", "y")]
    constants = {"s": np.asarray(F(0.1)), "z": code(0), **{key: np.asarray(F(each)) for key, each in limits.items()}}
    path = save(tmp_path / "n.onnx", nodes, constants, shape=("N", 4))
    images = np.random.default_rng(0).random((5, 4), dtype=F)
    np.testing.assert_allclose(ours(path, images), run(path, images), atol=1e-6)


#: Layers that onnxruntime rounds more often than the file says: a bias of floats to an integer (0.3 to 0), and the sum
#: of a product and its zero point to float32 (128.500001 to 128.5). Scales, and codes at which it matters.
ROUNDED = {
    "a bias": ([n("DequantizeLinear", "w t", "v"), n("Gemm", "d v b", "c")], 1 / 256, 0, 101),
    "a bias after a product with a matrix": (
        [n("DequantizeLinear", "w t", "v"), n("MatMul", "d v", "m"), n("Add", "m b", "c")],
        1 / 256,
        0,
        101,
    ),
    "a product": ([n("Mul", "d d", "c")], np.sqrt(0.5 * (1 + 2e-6)) / 100, 128, 100),
}


@pytest.mark.parametrize("name", ROUNDED)
def test_bounds_cover_what_onnxruntime_rounds_itself(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_network, "TOLERANCE", 1.0)  # the check of a file sees some of these differences
    nodes, scale, zero, at = ROUNDED[name]
    ends = [n("QuantizeLinear", "c o zo", "h"), n("DequantizeLinear", "h o zo", "y")]
    constants = {
        "s": np.asarray(F(scale)),
        "t": np.asarray(F(128)),
        "z": code(0),
        "o": np.asarray(F(1)),
        "zo": code(zero),
        "w": np.diag([1, 0]).astype(np.int8),
        "b": np.array([0.15, 0.0], F),
    }
    nodes = [QUANTIZE, n("DequantizeLinear", "q s z", "d"), *nodes, *ends]
    used = {i for node in nodes for i in node.input}
    path = save(tmp_path / "n.onnx", nodes, {i: each for i, each in constants.items() if i in used}, shape=("N", 2))
    images = np.array([[at, 3], [7, 200]], F) * F(scale)
    theirs, found = run(path, images), ours(path, images)
    assert found[0, 0] == theirs[0, 0] + 1, f"they round alike: {found} and {theirs}"
    network, x = onnx_network.load(path)[0].eval(), torch.from_numpy(images)
    engine = Native(network, x, arithmetic=Arithmetic.INT8)
    bounds = engine.bounds(Balls(x.double(), torch.zeros(2, dtype=torch.float64), Norm.LINF))
    bounds.propagate(refine=False)
    low, high = (end.reshape(2, 2).numpy() for end in bounds.intervals[-1])
    for values in (theirs, found):
        assert ((low <= values) & (values <= high)).all(), f"{values} are not within [{low}, {high}]"


@pytest.mark.slow
def test_its_program_is_the_same_in_every_process(folder: Path) -> None:
    """Sets have another order in each process: no look at a tensor may depend on it."""
    code = (
        "import sys, torch; from certkd.networks.onnx.classifier import classifier; "
        "from verifiers.graph.program import Program; network = classifier(sys.argv[1]).model; "
        "program = Program(network); program.hold(torch.rand(2, *network.spec.shape)); print(program.sha256)"
    )
    found = {
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, int8.static(folder)],
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in (1, 3, 5, 9)
    }
    assert len(found) == 1 and found.pop().strip()
