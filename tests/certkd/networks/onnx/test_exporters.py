"""Files in the habits of exporters equal onnxruntime; others are refused with the true reason."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper

import certkd
from certkd.networks.onnx import network as onnx_network
from certkd.networks.onnx.classifier import classifier
from certkd.networks.onnx.file import read
from certkd.networks.onnx.reference import Reference
from tests.certkd.exchange.models import random, save
from tests.certkd.networks.onnx.exporters import BUILDS, IMAGE, Build, head, n, value
from tests.cli import refused
from tests.marks import thin
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls

DTYPES = {"tensor(float)": np.float32, "tensor(double)": np.float64, "tensor(float16)": np.float16}


def original(path: Path, images: np.ndarray) -> np.ndarray:
    """The logits of the file as it is, in its own precision, on as many images at a time as it takes."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    given = session.get_inputs()[0]
    count = given.shape[0] if isinstance(given.shape[0], int) and given.shape[0] > 0 else 1
    images = images.astype(DTYPES[given.type])
    batches = [np.repeat(image[None], count, 0) for image in images]
    rows = [session.run(["y"], {given.name: batch})[0].reshape(-1)[:, None] for batch in batches]
    return np.concatenate([row.reshape(count, -1)[:1] for row in rows]).astype(np.float32)


@pytest.mark.parametrize("name", thin(BUILDS))
def test_a_file_is_read_as_onnxruntime_reads_it(name: str, tmp_path: Path) -> None:
    path = BUILDS[name](tmp_path)
    network, file, classes = onnx_network.load(path)
    assert file.shape in (IMAGE, (4, 4, 2))
    images = np.random.default_rng(5).random((3, *file.shape), dtype=np.float32)
    old = "opset 6" in name or "opset 3" in name  # onnxruntime begins at opset 7
    expected = Reference(read(path))(images) if old else original(path, images)
    with torch.no_grad():
        found = network(torch.from_numpy(images)).numpy()
    tolerance = 4e-3 if "float16" in name else 1e-4  # half precision rounds by 5e-4
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)
    assert found.shape == (3, classes) and np.ptp(expected, axis=0).max() > 1e-3, "it does not depend on the image"
    assert ("float16" in name or "float64" in name) == any("float32" in remark for remark in file.remarks)


def test_there_are_sixty_files() -> None:
    assert len(BUILDS) >= 60


BOUNDED = [
    "larq: signs",
    "torch: masked scores",
    "dynamo: einsum",
    "keras: global max-pooling",
    "torch: bicubic",
    "keras: average pooling that pads one side",
    "fixed: the batch in the tokens, 3 at a time",
    "torch: align_corners",
    "torch: DepthToSpace DCR",
    "keras: pooling that pads one side",
    "torch: transposed convolution",
    "torch: the image less its mirror",
    "torch: layer normalisation written out",
    "torch: padding that is computed, opset 11",
    "fixed: the first axis squeezed away",
    "tf: local response normalisation",
    "dynamo: the largest of two",
]


@pytest.mark.parametrize("name", thin(BOUNDED, every=4))
def test_bounds_of_a_file_hold(name: str, tmp_path: Path) -> None:
    """Random points and corners of a ball, in onnxruntime too."""
    path, eps = BUILDS[name](tmp_path), 0.03
    model, generator = classifier(path).model, torch.Generator().manual_seed(1)
    x = torch.rand(1, *IMAGE, generator=generator)
    engine, balls = Native(model, x), Balls.around(x.double(), eps, Norm.LINF)
    steps = 2 * torch.rand(120, *IMAGE, generator=generator) - 1
    points = (x + eps * torch.cat([steps, steps.sign()])).clamp(0, 1)
    with torch.no_grad():
        values = torch.cat([model(points), torch.from_numpy(original(path, points[::40].numpy()))]).double()
    eye = torch.eye(values.shape[1], dtype=torch.float64)[None]
    for method in ("ibp", "crown"):
        low, high = (sense * engine.ask(balls, sense * eye, method).bound[0] for sense in (1, -1))
        assert bool((values >= low - 1e-4).all()) and bool((values <= high + 1e-4).all()), method
        assert bool((high - low < 12 * (values.amax(0) - values.amin(0)) + 0.1).all()), f"{method} is vacuous"


# Outputs

FEATURES = (n("Flatten", "x", "f"), n("MatMul", "f w", "y"), n("Relu", "f", "z"))


def several(path: Path, *outputs: Any, nodes: Any = FEATURES) -> Path:
    """A file with these outputs: a name with a type and a shape."""
    weights = [numpy_helper.from_array(random(32, 3), "w")]
    image = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *IMAGE])
    made = [helper.make_tensor_value_info(*output) for output in outputs]
    graph = helper.make_graph(list(nodes), "test", [image], made, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path = path / "n.onnx"
    path.write_bytes(model.SerializeToString())
    return path


LOGITS, ROWS = ("y", TensorProto.FLOAT, ["N", 3]), ("z", TensorProto.FLOAT, ["N", 32])
MAP, LABEL = ("x2", TensorProto.FLOAT, ["N", *IMAGE]), ("label", TensorProto.INT64, ["N"])


def test_the_logits_among_several_outputs_are_named(tmp_path: Path) -> None:
    path = several(tmp_path, LOGITS, ROWS)
    for output, classes in (("y", 3), (0, 3), ("1", 32), (1, 32), ("z", 32)):
        found = classifier(path, output=output)
        assert found.model.spec.classes == classes and found.model.spec.output == output and found.remarks == ()
    wrong: list[tuple[str | int | None, str]] = [
        (None, "2 outputs ('y', 'z'): name the logits with --output NAME"),
        ("w", "no output 'w': its outputs are 'y', 'z'"),
        (2, "no output 2: its 2 outputs are 'y', 'z', counted from 0"),
        ("7", "no output 7"),
    ]
    for output, told in wrong:
        with pytest.raises(InputError) as caught:
            classifier(path, output=output)
        assert told in str(caught.value)


def test_an_output_that_can_only_be_the_logits_is_taken(tmp_path: Path) -> None:
    """One of the outputs twice, features as a map, or a label: it is said."""
    assert classifier(several(tmp_path, LOGITS, LOGITS)).remarks == ()
    more = (*FEATURES, n("Relu", "x", "x2"), n("ArgMax", "y", "label", axis=1, keepdims=0))
    for other in (MAP, LABEL):
        found = classifier(several(tmp_path, other, LOGITS, nodes=more))
        assert found.model.spec.classes == 3
        assert found.remarks == (f"of its outputs ('{other[0]}', 'y') 'y' is read as the logits",)


def test_a_label_is_no_logits(tmp_path: Path) -> None:
    nodes = (*FEATURES, n("ArgMax", "y", "label", axis=1, keepdims=0))
    with pytest.raises(InputError, match="ArgMax"):
        classifier(several(tmp_path, LABEL, nodes=nodes))


def test_options_of_the_command_line(tmp_path: Path) -> None:
    path = several(tmp_path, LOGITS, ROWS)
    np.savez(
        tmp_path / "d.npz",
        x_test=np.random.default_rng(0).random((6, *IMAGE), dtype=np.float32),
        y_test=np.arange(6) % 3,
    )
    given = ("certify", "--model", str(path), "--eps", "0.01", "--data", str(tmp_path / "d.npz"), "--methods", "ibp")
    assert "name the logits with --output NAME" in refused(*given)
    assert "no output 'logits'" in refused(*given, "--output", "logits")
    assert "--output y is for .onnx files" in refused(
        "certify", "--model", "certkd:mlp", "--data", "digits", "--eps", "0.1", "--output", "y"
    )


@pytest.mark.slow
def test_one_score_is_two_classes(tmp_path: Path) -> None:
    """2 x1 - 1, with a sigmoid or without, on rows or without an axis: at (0.8, 0.5) the radius is 0.3."""
    constants = {"w": np.array([[2], [0]], np.float32), "b": np.float32(-1)}
    dense = (n("MatMul", "x w", "p"), n("Add", "p b", "z"))
    ends = {"z": (), "sigmoid": (n("Sigmoid", "z", "y"),), "flat": (n("Reshape", "z k", "y"),)}
    for end, more in ends.items():
        nodes = [*dense, *more] if more else [dense[0], n("Add", "p b", "y")]
        path = save(tmp_path / f"{end}.onnx", nodes, {**constants, "k": np.array([-1])}, shape=("N", 2))
        model = classifier(path).model
        assert model.spec.classes == 2
        x = torch.tensor([[0.8, 0.5], [0.1, 0.5]])
        question = certkd.CertifyConfig(eps="0.1", methods=["crown"], options={"cross_check": 0})
        with pytest.warns(UserWarning, match="one score"):
            found = certkd.certify(model, (x, torch.tensor([1, 0])), question)["crown"]
        np.testing.assert_allclose(np.asarray(found["radius"]), [0.3, 0.4], atol=2e-3)


# Shapes


def test_open_sides_are_those_of_the_images(tmp_path: Path) -> None:
    nodes = [n("Conv", "x w b", "c", pads=[1] * 4), n("Relu", "c", "r"), n("GlobalAveragePool", "r", "y")]
    constants = {"w": random(3, 2, 3, 3), "b": random(3)}
    path = save(tmp_path / "n.onnx", nodes, constants, shape=("N", 2, "H", "W"))
    for shape in ((2, 4, 6), (2, 5, 3)):
        assert classifier(path, shape=shape).model.spec.shape == shape
    last = [n("Transpose", "x", "t", perm=[0, 3, 1, 2]), n("Conv", "t w b", "c"), n("GlobalAveragePool", "c", "y")]
    path = save(tmp_path / "last.onnx", last, constants, shape=("N", "H", "W", 2))
    model = classifier(path, shape=(2, 5, 3), layout="nhwc").model
    assert model(torch.rand(4, 2, 5, 3)).shape == (4, 3)
    with pytest.raises(
        InputError, match=r"shape \['N', 'H', 'W', 2\]: sides that it leaves open are those of the data"
    ):
        classifier(path, layout="nhwc")
    with pytest.raises(InputError, match=r"and the images have shape \(6"):
        classifier(path, shape=(6,))


def test_a_function_of_pixels_alone_is_compared_on_pixels(tmp_path: Path) -> None:
    """A root, a logarithm and a power give nan below 0; a root of x - 1/2 gives nan for pixels."""
    first = {
        "root": [n("Sqrt", "x", "h")],
        "logarithm": [n("Add", "x k", "a"), n("Log", "a", "h")],
        "power": [n("Pow", "x k", "h")],
    }
    last, weights = head(32)
    for nodes in first.values():
        path = save(tmp_path / "n.onnx", [*nodes, *last], {**weights, "k": np.float32(0.4545)}, shape=("N", *IMAGE))
        assert onnx_network.load(path)[2] == 4
    nodes = [n("Sub", "x k", "a"), n("Sqrt", "a", "h")]
    path = save(tmp_path / "n.onnx", [*nodes, *last], {**weights, "k": np.float32(0.5)}, shape=("N", *IMAGE))
    with pytest.raises(InputError, match=r"gives nan or infinity for pixels in \[0, 1\]"):
        onnx_network.load(path)


# Refusals


def quantised(*nodes: Any, **constants: np.ndarray) -> Build:
    last, weights = head(32)
    return lambda path: save(path / "n.onnx", [*nodes, *last], {**constants, **weights}, shape=("N", *IMAGE))


def mixed(count: int | str) -> Build:
    """A mean over the images of a batch is subtracted."""
    last, weights = head(32)
    nodes = [n("ReduceMean", "x", "m", axes=[0]), n("Sub", "x m", "h"), *last]
    return lambda path: save(path / "n.onnx", nodes, weights, shape=(count, *IMAGE))


REFUSED: dict[str, tuple[Build, str]] = {
    "a batch that is mixed": (mixed("N"), "mixes the images of a batch"),
    "ten images that are mixed": (mixed(10), "mixes the images of a batch"),
    "peepholes": (
        quantised(
            n("LSTM", "x w r _ _ _ _ p", "h", hidden_size=2), w=random(1, 8, 4), r=random(1, 8, 2), p=random(1, 6)
        ),
        "(LSTM, opset 13): has peepholes: they are not supported",
    ),
    "other activations": (
        quantised(n("GRU", "x w r", "h", activations=["Tanh", "Tanh"]), w=random(1, 6, 4), r=random(1, 6, 2)),
        "(GRU, opset 13): activations=['Tanh', 'Tanh'] are not the usual ones",
    ),
    "whole numbers of the image": (
        quantised(n("Cast", "x", "i", to=6), n("Cast", "i", "h", to=1)),
        "converts a value that depends on the image to whole numbers",
    ),
    "indices of the image": (
        quantised(n("Floor", "x", "f"), n("Gather", "w f", "h"), w=random(4, 2)),
        "looks up indices that depend on the image",
    ),
    "a loop": (
        quantised(n("Loop", "_ _ x", "h", body=helper.make_graph([], "body", [], []))),
        "('Loop'): the network has a loop, export it for one fixed path",
    ),
    "positions of maxima": (
        quantised(n("MaxPool", "x", "m i", kernel_shape=[1, 1]), n("Cast", "i", "j", to=1), n("Add", "m j", "h")),
        "also returns the positions of the maxima",
    ),
}


@pytest.mark.parametrize("name", thin(REFUSED))
def test_a_refusal_tells_the_true_reason(name: str, tmp_path: Path) -> None:
    build, told = REFUSED[name]
    with pytest.raises(InputError) as caught:
        onnx_network.load(build(tmp_path))
    assert told in str(caught.value) and "\n" not in str(caught.value)


def branching(path: Path, condition: Any, *conditions: Any) -> Path:
    """Two branches, one with a weight of its own and a branch inside it; both read values from outside of them."""

    def part(*nodes: Any, **weights: np.ndarray) -> Any:
        result = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
        return helper.make_graph(
            nodes, "part", [], [result], [numpy_helper.from_array(w, k) for k, w in weights.items()]
        )

    slope = np.float32(3.0).reshape(1)
    deep, same, other = part(n("Mul", "r d", "b1"), d=slope), part(n("Identity", "r", "b2")), part(n("Neg", "r", "b4"))
    first = part(n("If", "no", "i", then_branch=same, else_branch=deep), n("Sub", "i e", "b3"), e=slope)
    last, weights = head(32)
    nodes = [n("Relu", "x", "r"), condition, value("no", np.array(False)), *conditions]
    nodes.append(n("If", "yes", "h", then_branch=first, else_branch=other))
    return save(path / "n.onnx", [*nodes, *last], weights, shape=("N", *IMAGE))


@pytest.mark.parametrize("truth", [True, False])
def test_a_constant_branch_is_taken(truth: bool, tmp_path: Path) -> None:
    path = branching(tmp_path, value("yes", np.array([truth])))
    images = np.random.default_rng(5).random((3, *IMAGE), dtype=np.float32)
    found = onnx_network.load(path)[0](torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, original(path, images), rtol=1e-5, atol=1e-5)


def test_a_branch_on_the_image_is_refused(tmp_path: Path) -> None:
    path = branching(tmp_path, n("ReduceMax", "x", "m", keepdims=0), n("Cast", "m", "yes", to=TensorProto.BOOL))
    with pytest.raises(InputError, match="branches on a computed value, export it for one fixed path"):
        onnx_network.load(path)


def test_the_first_opset(tmp_path: Path) -> None:
    """Names of attributes that later opsets do not have; onnxruntime begins at opset 7."""
    last, weights = head(100)
    pad = n("Pad", "x", "p", paddings=[0, 0, 0, 1, 0, 0, 1, 0])
    upsample = n("Upsample", "p", "h", height_scale=2.0, width_scale=1.0)
    path = save(tmp_path / "n.onnx", [pad, upsample, *last], weights, opset=1, shape=("N", *IMAGE))
    images = torch.rand(3, *IMAGE, generator=torch.Generator().manual_seed(0))
    features = F.interpolate(F.pad(images, (1, 0, 0, 1)), scale_factor=(2.0, 1.0)).flatten(1)
    expected = features @ torch.from_numpy(weights["last_w"]).T + torch.from_numpy(weights["last_b"])
    torch.testing.assert_close(onnx_network.load(path)[0](images), expected, rtol=1e-4, atol=1e-4)


def test_old_files_that_do_not_keep_to_their_opset(tmp_path: Path) -> None:
    last, weights = head(32)
    wrong = {
        "axis=-1 places a value that is no weight": n("Add", "x k", "h", axis=-1, broadcast=1),
        "'STRING'": n("Cast", "x", "h", to="STRING"),
    }
    for told, node in wrong.items():
        path = save(tmp_path / "n.onnx", [node, *last], {**weights, "k": random(2)}, opset=5, shape=("N", *IMAGE))
        with pytest.raises(InputError, match="has other attributes than its opset") as caught:
            onnx_network.load(path)
        assert told in str(caught.value)
