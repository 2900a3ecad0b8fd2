"""ONNX files from strangers: each is refused in one line before onnxruntime sees it or anything large is computed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from certkd.networks.onnx import network as onnx_network
from certkd.networks.onnx import wire
from certkd.networks.onnx.classifier import classifier
from certkd.networks.onnx.reference import Reference
from tests.certkd.exchange.models import head, random, save
from tests.fuzz.trial import WATCH
from verifiers.core.errors import InputError

node = helper.make_node
NODES, WEIGHTS = head(72)
RELU = [node("Relu", ["x"], ["h"], name="act"), *NODES]
Build = Callable[[Path], Path]


def refusal(path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The line that refuses a file, without onnxruntime and without another file."""

    def fail(*_: Any, **__: Any) -> Any:
        raise AssertionError("onnxruntime sees the file")

    monkeypatch.setattr(onnxruntime, "InferenceSession", fail)
    WATCH.seen, WATCH.active, WATCH.outside = [], True, path.parent / "outside"
    try:
        with pytest.raises(InputError) as caught:
            onnx_network.load(path)
    finally:
        WATCH.active = False
    assert not WATCH.seen, WATCH.seen
    message = str(caught.value)
    assert message.isprintable() and len(message) <= 700 and "onnxruntime sees" not in message, message
    return message


def nodes(*made: Any, constants: dict[str, np.ndarray] | None = None, **options: Any) -> Build:
    """A file of these nodes from x to h, and a linear layer."""
    return lambda path: save(path / "n.onnx", [*made, *NODES], {**WEIGHTS, **(constants or {})}, **options)


def changed(change: Callable[[Any], object]) -> Build:
    """A good file whose parsed model is changed."""

    def build(path: Path) -> Path:
        model = onnx.load(save(path / "n.onnx", RELU, WEIGHTS))
        change(model)
        (path / "n.onnx").write_bytes(model.SerializeToString())
        return path / "n.onnx"

    return build


def weight(**fields: Any) -> Build:
    """A good file whose first weight is another tensor."""

    def change(model: Any) -> None:
        values = {"name": "W", "data_type": 1, "dims": (4, 72), "raw_data": WEIGHTS["W"].tobytes(), **fields}
        model.graph.initializer[0].CopyFrom(onnx.TensorProto(**values))

    return changed(change)


def external(location: str, offset: str = "0", length: str | None = None) -> Build:
    """A good file whose first weight lies in another file."""

    def build(path: Path) -> Path:
        (path / "outside").mkdir(exist_ok=True)
        (path / "outside" / "w.bin").write_bytes(bytes(2000))
        (path / "inside").mkdir(exist_ok=True)
        (path / "inside" / "w.bin").write_bytes(bytes(1100))
        (path / "inside" / "link.bin").symlink_to(path / "outside" / "w.bin")
        (path / "inside" / "up").symlink_to(path / "outside")
        os.link(path / "outside" / "w.bin", path / "inside" / "hard.bin")
        os.mkfifo(path / "inside" / "fifo")
        model = onnx.load(save(path / "inside" / "n.onnx", RELU, WEIGHTS))
        tensor = model.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", length)):
            if value is not None:
                tensor.external_data.add(key=key, value=value)
        (path / "inside" / "n.onnx").write_bytes(model.SerializeToString())
        return path / "inside" / "n.onnx"

    return build


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def graph_of(*made: Any) -> Any:
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    return helper.make_graph(list(made) or [node("Relu", ["x"], ["b"])], "part", [], [value])


def filled(*shape: int, kind: str = "ConstantOfShape", then: str = "Add") -> Build:
    """A constant of this shape, added to the image."""
    return nodes(node(kind, ["s"], ["k"]), node(then, ["x", "k"], ["h"]), constants={"s": ints(*shape)})


def doubled(times: int) -> Build:
    """A value that grows to 2^times its size."""
    made = [node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=1) for i in range(times)]
    return nodes(node("Relu", ["x"], ["v0"]), *made, node("ReduceSum", [f"v{times}"], ["h"], axes=[2]), opset=11)


def grown(times: int) -> Build:
    """A constant that grows to 2^times its size."""
    made = [node("Concat", [f"v{i}", f"v{i}"], [f"v{i + 1}"], axis=0) for i in range(times)]
    return nodes(*made, node("Add", ["x", f"v{times}"], ["h"]), constants={"v0": random(1, 2, 6, 6)})


def functions(*bodies: tuple[str, list[Any]], domain: str = "own", opset: int = 13) -> Build:
    """A good file with functions from a to b, the first of which is called instead of ReLU."""

    def change(model: Any) -> None:
        versions = [helper.make_opsetid("", opset), helper.make_opsetid("own", 1)]
        for name, body in bodies:
            model.functions.append(helper.make_function(domain, name, ["a"], ["b"], body, versions))
        model.graph.node[0].domain, model.graph.node[0].op_type = domain, bodies[0][0]
        model.opset_import.append(helper.make_opsetid("own", 1))

    return changed(change)


def large_function(path: Path) -> Path:
    """A constant of 80,000 bytes that is in the file once, and after inlining a thousand times."""
    constant = node("Constant", [], ["k"], value=numpy_helper.from_array(random(20_000)))
    body = [constant, node("ReduceSum", ["k"], ["s"], keepdims=0), node("Add", ["a", "s"], ["b"])]
    calls = [node("f", [f"v{i}" if i else "a"], [f"v{i + 1}"], domain="own") for i in range(1000)]
    return functions(("g", [*calls, node("Relu", ["v1000"], ["b"])]), ("f", body))(path)


def nested(times: int) -> Build:
    """Functions that call the next one twice."""
    bodies = [
        (f"f{i}", [node(f"f{i + 1}", ["a"], ["c"], domain="own"), node(f"f{i + 1}", ["c"], ["b"], domain="own")])
        for i in range(times)
    ]
    return functions(*bodies, (f"f{times}", [node("Relu", ["a"], ["b"])]))


def attribute(make: Callable[[Any], object], kind: str = "Relu") -> Build:
    def change(model: Any) -> None:
        first = model.graph.node[0]
        first.op_type = kind
        make(first.attribute.add())

    return changed(change)


def set_input(*sides: int) -> Build:
    return nodes(node("Relu", ["x"], ["h"]), shape=("N", *sides))


def pooled(**attributes: Any) -> Build:
    return nodes(node("MaxPool", ["x"], ["h"], **{"kernel_shape": [1, 1], **attributes}))


def convolved(shape: tuple[int, ...] = (2, 2, 1, 1), **attributes: Any) -> Build:
    return nodes(node("Conv", ["x", "w"], ["h"], **attributes), constants={"w": random(*shape)})


STRANGE: dict[str, tuple[Build, str]] = {
    # weights
    "a weight of 2^80 entries": (weight(dims=(2**40, 2**40)), "number of entries"),
    "a negative side": (weight(dims=(4, -72)), "shape"),
    "a side too many": (weight(dims=(4, 73)), "number of entries"),
    "an unknown type": (weight(data_type=99), "type 99"),
    "no type": (weight(data_type=0), "type 0"),
    "texts": (weight(data_type=8), "type 8"),
    "complex numbers": (weight(data_type=14), "type 14"),
    "numbers of 4 bits": (weight(data_type=22), "type 22"),
    "half the numbers": (weight(data_type=11), "number of entries"),
    "no numbers": (weight(raw_data=b""), "number of entries"),
    "numbers twice": (weight(float_data=[1.0]), "number of entries"),
    "numbers of another kind": (weight(raw_data=b"", int64_data=[1] * 288), "number of entries"),
    "many sides": (weight(dims=[1] * 100), "shape"),
    "a name in control characters": (weight(name="\x1b[2J", dims=(1,)), "\\x1b"),
    "a name of a megabyte": (weight(name="W" * 2**20, dims=(1,)), "number of entries"),
    "a weight twice": (changed(lambda m: m.graph.initializer.append(m.graph.initializer[0])), "weight twice"),
    "sparse weights": (changed(lambda m: m.graph.sparse_initializer.add()), "sparse"),
    "weights beyond float32": (
        changed(lambda m: m.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((4, 72), 1e39), "W"))),
        "too large for float32",
    ),
    # other files
    "an absolute path": (external("/etc/passwd"), "outside of the file's folder"),
    "the folder above": (external("../outside/w.bin"), "outside of the file's folder"),
    "a way round": (external("x/../../outside/w.bin"), "outside of the file's folder"),
    "a symbolic link": (external("link.bin"), "link out of the file's folder"),
    "a linked folder": (external("up/w.bin"), "link out of the file's folder"),
    "a hard link": (external("hard.bin"), "link out of the file's folder"),
    "a pipe": (external("fifo"), "must be in the same folder"),
    "the folder itself": (external("."), "must be in the same folder"),
    "no name": (external(""), "outside of the file's folder"),
    "a name with a zero": (external("w\0.bin"), "outside of the file's folder"),
    "a lost file": (external("lost.bin"), "must be in the same folder"),
    "an offset beyond the end": (external("w.bin", "1000"), "other than 1152 bytes"),
    "a negative offset": (external("w.bin", "-1"), "other than 1152 bytes"),
    "an offset that is a word": (external("w.bin", "x"), "other than 1152 bytes"),
    "a length of 2^60": (external("w.bin", "0", str(2**60)), "other than 1152 bytes"),
    "a file too short": (external("w.bin"), "other than 1152 bytes"),
    # the graph
    "functions that double": (nested(25), "more than 10000 nodes"),
    "functions that are deep": (nested(40), "functions that call themselves"),
    "a function that calls itself": (functions(("f", [node("f", ["a"], ["b"], domain="own")])), "call themselves"),
    "a function with a large constant": (large_function, "that call themselves or grow"),
    "a function twice": (functions(("f", [node("Relu", ["a"], ["b"])]), ("f", [])), "a function twice"),
    "a function for an operator": (functions(("Relu", [node("Tanh", ["a"], ["b"])]), domain=""), "of an operator"),
    "a function of another opset": (functions(("f", [node("Relu", ["a"], ["b"])]), opset=9), "another opset"),
    "a function of the graph's values": (functions(("f", [node("Relu", ["x"], ["b"])])), "nothing computes"),
    "a loop": (nodes(node("Loop", ["", "", "x"], ["h"], body=graph_of())), "fixed path"),
    "a scan": (nodes(node("Scan", ["x"], ["h"], body=graph_of(), num_scan_inputs=1)), "fixed path"),
    "a graph in another operator": (nodes(node("Relu", ["x"], ["h"], body=graph_of())), "not a number"),
    "a cycle": (
        nodes(node("Add", ["x", "b"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["h"])),
        "itself",
    ),
    "a node on itself": (nodes(node("Add", ["x", "h"], ["h"])), "itself"),
    "a value twice": (nodes(node("Relu", ["x"], ["h"]), node("Tanh", ["x"], ["h"])), "two nodes compute"),
    "a weight that is computed": (nodes(node("Relu", ["x"], ["W"]), node("Relu", ["x"], ["h"])), "two nodes compute"),
    "the image computed": (nodes(node("Relu", ["c"], ["x"]), node("Relu", ["x"], ["h"])), "two nodes compute"),
    "a value from nowhere": (nodes(node("Add", ["x", "nowhere"], ["h"])), "nothing computes"),
    "no output": (nodes(node("Relu", ["x"], []), node("Relu", ["x"], ["h"])), "has no output"),
    "a deep graph": (
        nodes(
            *(node("Relu", [f"v{i}" if i else "x"], [f"v{i + 1}"]) for i in range(10_001)),
            node("Relu", ["v10001"], ["h"]),
        ),
        "more than 10000 nodes",
    ),
    "a wide node": (nodes(node("Sum", ["x"] * 100_001, ["h"])), "inputs of nodes"),
    "another domain": (nodes(node("Relu", ["x"], ["h"], domain="ai.onnx.ml")), "without translation"),
    "a domain in control characters": (nodes(node("Relu", ["x"], ["h"], domain="\x1b[2J")), "without translation"),
    "an operator of a megabyte": (nodes(node("R" * 2**20, ["x"], ["h"])), "without translation"),
    "a random constant": (
        nodes(node("RandomNormal", [], ["k"], shape=[1]), node("Add", ["x", "k"], ["h"])),
        "constants",
    ),
    "an image decoder": (
        nodes(
            node("ImageDecoder", ["b"], ["k"]),
            node("Add", ["x", "k"], ["h"]),
            constants={"b": np.zeros(9, np.uint8)},
            opset=20,
        ),
        "constants",
    ),
    # attributes
    "an attribute twice": (
        changed(lambda m: m.graph.node[1].attribute.extend([helper.make_attribute("axis", 1)] * 2)),
        "twice",
    ),
    "an attribute of no type": (attribute(lambda a: setattr(a, "name", "alpha")), "not a number"),
    "an attribute of an unknown type": (
        changed(lambda m: m.graph.node[0].attribute.append(onnx.AttributeProto.FromString(b"\x0a\x01a\xa0\x01\x63"))),
        "not a number",
    ),
    "a reference": (attribute(lambda a: (setattr(a, "name", "b"), setattr(a, "ref_attr_name", "c"))), "not a number"),
    "an unknown attribute": (nodes(node("Relu", ["x"], ["h"], alpha=1.0)), "unknown inputs or attributes"),
    "too few inputs": (nodes(node("Add", ["x"], ["h"])), "unknown inputs or attributes"),
    "too many inputs": (nodes(node("Relu", ["x", "x"], ["h"])), "unknown inputs or attributes"),
    "an axis that does not exist": (nodes(node("Softmax", ["x"], ["h"], axis=9)), "torch network"),
    "an axis of 2^62": (nodes(node("Concat", ["x", "x"], ["h"], axis=2**62)), "torch network"),
    "a stride of 0": (pooled(strides=[0, 0]), "torch network"),
    "a negative stride": (pooled(strides=[-1, -1]), "torch network"),
    "a window of 0": (pooled(kernel_shape=[0, 0]), "torch network"),
    "a window of 2^40": (pooled(kernel_shape=[2**40, 2**40]), "torch network"),
    "padding of 2^40": (convolved(pads=[2**40] * 4), "n.onnx"),
    "padding of 20000": (convolved(pads=[20_000] * 4), "it is too large"),
    "padding of another rank": (convolved(pads=[1] * 3), "n.onnx"),
    "groups of 0": (convolved(group=0), "torch network"),
    "groups of 2^40": (convolved(group=2**40), "torch network"),
    "groups that do not fit": (convolved((2, 2, 1, 1), group=2), "torch network"),
    "a convolution without a kernel": (convolved((2, 2)), "n.onnx"),
    "a dilation of 0": (convolved(dilations=[0, 0]), "torch network"),
    # constants and values that grow
    "a constant of 2^60": (filled(2**30, 2**30), "constant numbers"),
    "a constant of 2^40": (filled(2**40), "constant numbers"),
    "a constant of a negative size": (filled(-5), "cannot be computed"),
    "a constant of -1 squared": (filled(-1, -1), "n.onnx"),
    "a constant of many sides": (filled(*[1] * 1000), "cannot be computed"),
    "a range of 2^60": (
        nodes(
            node("Range", ["a", "b", "c"], ["k"]),
            node("Cast", ["k"], ["f"], to=1),
            node("Add", ["x", "f"], ["h"]),
            constants={"a": np.array(0), "b": np.array(2**60), "c": np.array(1)},
        ),
        "constant numbers",
    ),
    "a range without a step": (
        nodes(
            node("Range", ["a", "b", "c"], ["k"]),
            node("Cast", ["k"], ["f"], to=1),
            node("Add", ["x", "f"], ["h"]),
            constants={"a": np.array(0), "b": np.array(5), "c": np.array(0)},
        ),
        "without a step",
    ),
    "a tile of 2^60": (
        nodes(
            node("Tile", ["w", "s"], ["k"]),
            node("Add", ["x", "k"], ["h"]),
            constants={"w": random(1, 2, 6, 6), "s": ints(2**30, 1, 2**30, 1)},
        ),
        "constant numbers",
    ),
    "an expanded constant": (
        nodes(
            node("Expand", ["w", "s"], ["k"]),
            node("Add", ["x", "k"], ["h"]),
            constants={"w": random(1, 2, 6, 6), "s": ints(2**30, 2, 6, 6)},
        ),
        "constant numbers",
    ),
    "a padded constant": (
        nodes(
            node("Pad", ["w", "s"], ["k"]),
            node("Add", ["x", "k"], ["h"]),
            constants={"w": random(1, 2, 6, 6), "s": ints(0, 0, 2**30, 0, 0, 0, 0, 0)},
        ),
        "constant numbers",
    ),
    "a constant that doubles": (grown(60), "constant numbers"),
    "a gathered constant": (
        nodes(
            node("Gather", ["w", "s"], ["k"], axis=0),
            node("Add", ["x", "k"], ["h"]),
            constants={"w": random(2, 600), "s": np.zeros(10_000, np.int64)},
        ),
        "constant numbers",
    ),
    "an outer sum": (
        nodes(
            node("Add", ["a", "b"], ["k"]),
            node("Add", ["x", "k"], ["h"]),
            constants={"a": random(9000, 1), "b": random(1, 9000)},
        ),
        "constant numbers",
    ),
    "an outer product": (
        nodes(
            node("MatMul", ["a", "b"], ["k"]),
            node("Add", ["x", "k"], ["h"]),
            constants={"a": random(9000, 1), "b": random(1, 9000)},
        ),
        "constant numbers",
    ),
    "an image that doubles": (doubled(40), "it is too large"),
    "an expanded image": (
        nodes(
            node("Expand", ["x", "s"], ["e"]),
            node("ReduceSum", ["e"], ["h"], axes=[0]),
            opset=11,
            constants={"s": ints(2**20, 1, 2, 6, 6)},
        ),
        "it is too large",
    ),
    "a padded image": (
        nodes(node("Pad", ["x", "s"], ["h"]), constants={"s": ints(0, 0, 0, 0, 0, 0, 20_000, 20_000)}),
        "it is too large",
    ),
    "a resized image": (
        nodes(
            node("Resize", ["x", "", "s"], ["h"], mode="linear"),
            constants={"s": np.array([1, 1, 9e3, 9e3], np.float32)},
        ),
        "it is too large",
    ),
    "a resized image without end": (
        nodes(
            node("Resize", ["x", "", "s"], ["h"], mode="linear"),
            constants={"s": np.array([1, 1, np.inf, 1], np.float32)},
        ),
        "n.onnx",
    ),
    "an outer product of the image": (
        nodes(
            node("Mul", ["x", "w"], ["h"]), constants={"w": random(100, 100, 1, 1, 2, 1, 1)}, shape=("N", 2, 100, 100)
        ),
        "it is too large",
    ),
    "many operations": (
        nodes(
            *(node("Conv", [f"v{i}" if i else "x", "w"], [f"v{i + 1}"], pads=[1] * 4) for i in range(2000)),
            node("Relu", ["v2000"], ["h"]),
            constants={"w": random(32, 32, 3, 3)},
            shape=("N", 32, 128, 128),
        ),
        "it is too large",
    ),
    "many images at a time": (
        nodes(node("Tile", ["x", "s"], ["h"]), constants={"s": ints(1, 1, 60, 60)}, shape=(1000, 2, 6, 6)),
        "it is too large",
    ),
    # images
    "images of 2^60": (set_input(2**30, 2**30), "images of shape"),
    "images of 2^40 sides": (set_input(*[2] * 40), "images of shape"),
    "images without pixels": (set_input(0, 6, 6), "shape"),
    "images of negative sides": (set_input(2, -6, 6), "shape"),
    "images of an unknown type": (
        changed(lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99)),
        "unknown (99)",
    ),
    "images that are a list": (
        changed(lambda m: m.graph.input[0].type.sequence_type.elem_type.tensor_type.SetInParent()),
        "n.onnx",
    ),
    "no opset": (changed(lambda m: m.ClearField("opset_import")), "opset"),
    "an opset of -5": (changed(lambda m: setattr(m.opset_import[0], "version", -5)), "opset -5"),
    "no graph": (changed(lambda m: m.ClearField("graph")), "no network"),
    "an output that is the image": (changed(lambda m: setattr(m.graph.output[0], "name", "x")), "n.onnx"),
    "an output that is a weight": (changed(lambda m: setattr(m.graph.output[0], "name", "W")), "n.onnx"),
    "an output that nothing computes": (changed(lambda m: setattr(m.graph.output[0], "name", "z")), "n.onnx"),
}


@pytest.mark.parametrize("what", STRANGE)
@pytest.mark.thin(2)
def test_a_strange_file_is_refused(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build, words = STRANGE[what]
    message = refusal(build(tmp_path), monkeypatch)
    assert words in message, message


def length(size: int) -> bytes:
    """A number as a file writes it."""
    return bytes([size & 127 | 128, size >> 7 & 127 | 128, size >> 14 & 127 | 128, size >> 21 & 127])


@pytest.mark.parametrize("part", [b"\x0a\x00", b"\x2a\x00", b"\x6a\x00", b"\x0a\x02\x0a\x00", b"\x0a\x02\x2a\x00"])
def test_a_million_empty_parts_are_counted(part: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes, weights, value infos, inputs and attributes: two bytes in the file, eighty and more in memory."""
    monkeypatch.setattr(wire, "PARTS", 10_000)
    monkeypatch.setattr(wire, "SMALL", 100)
    body = part * 20_000
    (tmp_path / "n.onnx").write_bytes(b"\x3a" + length(len(body)) + body)
    assert "more than 10000 parts" in refusal(tmp_path / "n.onnx", monkeypatch)


def test_parts_of_usual_files_are_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "n.onnx", RELU, {**WEIGHTS, "big": random(1000, 1000)})
    monkeypatch.setattr(wire, "PARTS", 300)
    assert onnx_network.load(path)[2] == 4
    content = path.read_bytes()
    for size in (len(content) - 1, len(content) // 2):
        path.write_bytes(content[:size])
        assert "damaged, truncated or not an ONNX file" in refusal(path, monkeypatch)


def test_weights_beside_the_file_are_read(tmp_path: Path) -> None:
    whole, path = save(tmp_path / "whole.onnx", RELU, WEIGHTS), tmp_path / "n.onnx"
    onnx.save(onnx.load(whole), path, save_as_external_data=True, location="w.bin", size_threshold=0)
    assert (tmp_path / "w.bin").is_file(), "the weights are not beside the file"
    images = torch.rand(3, 2, 6, 6)
    assert torch.equal(onnx_network.load(path)[0](images), onnx_network.load(whole)[0](images))


def test_nodes_need_no_order(tmp_path: Path) -> None:
    sorted_, mixed = (save(tmp_path / f"{i}.onnx", made, WEIGHTS) for i, made in enumerate((RELU, RELU[::-1])))
    images = torch.rand(3, 2, 6, 6)
    assert torch.equal(onnx_network.load(sorted_)[0](images), onnx_network.load(mixed)[0](images))


def test_nodes_that_nothing_needs_are_not_computed(tmp_path: Path) -> None:
    idle = [node("ConstantOfShape", ["s"], ["big"]), node("Loop", ["", "", "x"], ["l"], body=graph_of())]
    path = save(tmp_path / "n.onnx", [*idle, *RELU], {**WEIGHTS, "s": ints(2**40)})
    assert onnx_network.load(path)[2] == 4


def test_onnxruntime_gets_what_was_checked(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", RELU, WEIGHTS)
    from certkd.networks.onnx.file import read

    file = read(path)
    path.write_bytes(b"")
    assert Reference(file)(np.zeros((2, 2, 6, 6), np.float32)).shape == (2, 4)


def test_a_long_name_is_cut(tmp_path: Path) -> None:
    path = save(tmp_path / f"{'n' * 240}.onnx", RELU, WEIGHTS)
    assert classifier(path).model.spec.name == f"onnx:{'n' * 150}"
