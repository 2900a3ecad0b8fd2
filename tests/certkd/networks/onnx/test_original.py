"""Files that are rewritten equal the file as it was given, in onnxruntime; others are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import ModelProto, TensorProto, helper, numpy_helper

from certkd.networks.onnx import file as onnx_file
from certkd.networks.onnx import network as onnx_network
from certkd.networks.onnx.function import function
from certkd.networks.onnx.live import live
from tests.certkd.exchange.models import random, save
from tests.certkd.networks.onnx.exporters import BUILDS, IMAGE, head, ints, n, value
from verifiers.core.errors import InputError

RESULT = helper.make_tensor_value_info("r", TensorProto.FLOAT, None)
VERSIONS = [helper.make_opsetid("", 15), helper.make_opsetid("pkg", 1)]


def branch(*nodes: Any) -> Any:
    """A branch whose result is r."""
    return helper.make_graph(list(nodes), "branch", [], [RESULT])


def either(condition: str, output: str, then: Any, other: Any) -> Any:
    return n("If", condition, output, then_branch=branch(then), else_branch=branch(other))


def expected(path: Path, images: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": image[None]})[0].reshape(1, -1) for image in images])


def same(path: Path, shape: tuple[int, ...] = IMAGE) -> None:
    images = np.random.default_rng(5).random((2, *shape), dtype=np.float32)
    found = onnx_network.load(path)[0](torch.from_numpy(images)).numpy()
    np.testing.assert_allclose(found, expected(path, images), rtol=1e-5, atol=1e-5)


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as caught:
        onnx_network.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def made(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    return folder / name


# Functions


def calling(path: Path, body: list[Any], outputs: tuple[str, ...] = ("b",)) -> Path:
    """A file that calls a function of a twice; its first output is used."""
    last, weights = head(32)
    others = [" ".join(f" {name}{call}" for name in outputs[1:]) for call in (1, 2)]
    nodes = [n("f", "x", f"h1{others[0]}", domain="pkg"), n("f", "h1", f"h{others[1]}", domain="pkg"), *last]
    save(path / "n.onnx", nodes, weights, shape=("N", *IMAGE), opset=15)
    model = ModelProto.FromString((path / "n.onnx").read_bytes())
    model.ClearField("opset_import")
    model.opset_import.extend(VERSIONS)
    model.functions.append(helper.make_function("pkg", "f", ["a"], list(outputs), body, VERSIONS))
    (path / "n.onnx").write_bytes(model.SerializeToString())
    return path / "n.onnx"


BODIES: dict[str, list[Any]] = {
    "a constant branch": [
        value("yes", np.array(True)),
        n("Neg", "a", "h1"),  # a name of the graph's too
        either("yes", "b", n("Exp", "h1", "r"), n("Relu", "a", "r")),
    ],
    "a branch on a shape": [
        n("Shape", "a", "s"),
        value("two", ints(2)),
        n("Gather", "s two", "g"),
        value("four", ints(4)),
        n("Equal", "g four", "yes"),
        either("yes", "b", n("Sigmoid", "a", "r"), n("Relu", "a", "r")),
    ],
}


@pytest.mark.parametrize("name", BODIES)
def test_a_branch_in_a_function_is_taken(name: str, tmp_path: Path) -> None:
    same(calling(tmp_path, BODIES[name]))


def test_a_call_in_a_branch(tmp_path: Path) -> None:
    path = calling(tmp_path, [n("Neg", "a", "b")])
    model = ModelProto.FromString(path.read_bytes())
    model.graph.node[0].CopyFrom(either("yes", "h1", n("f", "x", "r", domain="pkg"), n("Relu", "x", "r")))
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    path.write_bytes(model.SerializeToString())
    same(path)


def test_what_a_function_computes_for_nothing_is_not_run(tmp_path: Path) -> None:
    small = [n("Neg", "a", "b"), n("Exp", "a", "c")]
    same(calling(tmp_path, small, ("b", "c")))
    large = [n("Neg", "a", "b"), value("k", ints(10**6, 1, 1, 1, 1)), n("Expand", "a k", "c")]
    told = refusal(calling(tmp_path, large, ("b", "c")))
    assert "a function computes values by 'Expand' that nothing uses: save the file without functions" in told


# Branches


def on_axis(axis: int, length: int, *, count: int | str = "N") -> Callable[[Path], Path]:
    """torch's squeeze: one branch where an axis has a length, another one where it has not."""
    last, weights = head(32)
    nodes = [
        n("Relu", "x", "a"),
        n("Shape", "a", "s"),
        n("Gather", "s axis", "g"),
        n("Equal", "g length", "yes"),
        either("yes", "h", n("Exp", "a", "r"), n("Neg", "a", "r")),
        *last,
    ]
    constants = {**weights, "axis": np.array(axis), "length": np.array(length)}
    return lambda path: save(path / "n.onnx", nodes, constants, shape=(count, *IMAGE))


@pytest.mark.parametrize("length", [2, 3])
def test_a_branch_on_a_shape_is_taken(length: int, tmp_path: Path) -> None:
    path = on_axis(1, length)(tmp_path)
    same(path)
    found = function(path)
    image = np.random.default_rng(0).random(IMAGE, dtype=np.float32)
    np.testing.assert_allclose(found.reference(image), expected(path, image[None])[0], rtol=1e-5, atol=1e-5)


def test_a_branch_on_the_number_of_images_is_refused_unless_it_is_fixed(tmp_path: Path) -> None:
    assert "branches on the number of images: export it for a fixed number" in refusal(on_axis(0, 1)(tmp_path))
    same(on_axis(0, 1, count=1)(tmp_path))


# The comparison


def test_a_wrong_conversion_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Functions without their slope, a branch that is not taken, a weight that is not right."""
    inline, fold, convert = onnx_file.inline_functions, onnx_file.fold_branches, onnx_file.to_float32

    def without_slope(model: Any, path: Any) -> None:
        inline(model, path)
        for node in model.graph.node:
            if node.op_type == "LeakyRelu":
                node.ClearField("attribute")

    def wrong_side(model: Any, path: Any, decide: Any) -> list[str]:
        return fold(model, path, lambda *given: not decide(*given))

    def doubled(model: Any, path: Any) -> str | None:
        said = convert(model, path)
        weight = model.graph.initializer[0]
        weight.CopyFrom(numpy_helper.from_array(2 * numpy_helper.to_array(weight), weight.name))
        return said

    wrong: list[tuple[str, Any, Path, str]] = [
        ("inline_functions", without_slope, BUILDS["dynamo: functions"](tmp_path), "functions"),
        ("fold_branches", wrong_side, on_axis(1, 2)(made(tmp_path, "b")), "branches"),
        ("to_float32", doubled, BUILDS["float64 network"](made(tmp_path, "c")), "float64"),
        ("to_float32", doubled, BUILDS["float16 network"](made(tmp_path, "d")), "float16"),
    ]
    for name, by, path, word in wrong:
        assert word in onnx_network.load(path)[1].rewriting
        with monkeypatch.context() as patched:
            patched.setattr(onnx_file, name, by)
            told = refusal(path)
        assert f"is read incorrectly: after a conversion ({word}) its outputs in onnxruntime differ by" in told


def test_a_file_that_changes_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = on_axis(1, 2)(tmp_path)
    fold = onnx_file.fold_branches

    def changed(*given: Any) -> list[str]:
        on_axis(1, 3)(tmp_path)
        return fold(*given)

    monkeypatch.setattr(onnx_file, "fold_branches", changed)
    assert "was changed while it was read" in refusal(path)


def test_values_of_branches_are_followed() -> None:
    inside = either("yes", "q", n("Neg", "far", "r"), n("Relu", "near", "r"))
    nodes = [n("Exp", "x", "far"), n("Exp", "x", "near"), n("Exp", "x", "unused"), n("Not", "k", "yes"), inside]
    assert live(nodes, ["q"]) == [nodes[0], nodes[1], nodes[3], nodes[4]]
    assert live(nodes, ["near"]) == [nodes[1]] and live(nodes, ["x"]) == []
    twice = [n("Exp", "x", "y"), n("Neg", "x", "y")]
    assert live(twice, ["y"]) == twice, "a value that two nodes compute is refused later"


# Files without an axis for the batch


def test_one_image_without_an_axis_for_the_batch(tmp_path: Path) -> None:
    """Ten logits from the whole of (10, 10) and of (2, 4, 4), as a row, as a vector and as a column."""
    for shape in ((10, 10), IMAGE):
        weights = {"w": random(int(np.prod(shape)), 10), "row": ints(1, -1), "flat": ints(10), "column": ints(10, 1)}
        flat, dense = n("Reshape", "x row", "f"), n("MatMul", "f w", "z")
        for end in ("row", "flat", "column"):
            path = save(tmp_path / "n.onnx", [flat, dense, n("Reshape", f"z {end}", "y")], weights, shape=shape)
            network, file, classes = onnx_network.load(path)
            assert file.shape == shape and file.count == 1 and classes == 10
            said = f"its input of shape {list(shape)} has no axis for the batch: it is read as one image"
            assert file.remarks == (said,)
            image = np.random.default_rng(1).random(shape, dtype=np.float32)
            logits = network(torch.from_numpy(image)[None]).numpy()
            np.testing.assert_allclose(logits[0], image.reshape(-1) @ weights["w"], rtol=1e-4, atol=1e-4)


def test_an_input_that_is_neither_a_batch_nor_an_image(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", [n("MatMul", "w x", "y")], {"w": random(10, 10)}, shape=(10, 10))
    told = refusal(path)
    assert "mixes the images of a batch: export it in eval mode; read as one image of shape [10, 10]" in told
    assert "gives float32 of shape (10, 10) for 1 image: only one row of float logits" in told


def test_weights_that_are_filled_with_one_number(tmp_path: Path) -> None:
    """Published networks without their training: a large weight is two numbers in the file."""
    filling = numpy_helper.from_array(np.array([0.25], np.float32))
    nodes = [
        n("ConstantOfShape", "sides", "w", value=filling),
        n("Flatten", "x", "f"),
        n("Gemm", "f w", "g"),
        n("Reshape", "g apart", "r"),
        n("ReduceMean", "r", "y", axes=[2], keepdims=0),
    ]
    constants = {"sides": ints(32, 200_000), "apart": ints(0, 4, -1)}
    path = save(tmp_path / "n.onnx", nodes, constants, shape=("N", *IMAGE))
    network, _, classes = onnx_network.load(path)
    images = np.random.default_rng(0).random((1, *IMAGE), dtype=np.float32)
    logits = network(torch.from_numpy(images)).numpy()
    assert classes == 4
    np.testing.assert_allclose(logits, np.full((1, 4), 0.25 * images.sum()), rtol=1e-4)
    path = save(tmp_path / "n.onnx", nodes, {**constants, "sides": ints(32, 20_000_000)}, shape=("N", *IMAGE))
    assert "it would compute more than 67108864 constant numbers" in refusal(path)
