"""Odd and broken ONNX files: one line each; and how a file's images relate to the data's."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from certkd.networks import resolve as networks
from certkd.networks.onnx import file as onnx_file
from certkd.networks.onnx import network as onnx_network
from certkd.networks.onnx.classifier import classifier
from certkd.networks.onnx.reference import Reference
from tests.certifying import certify
from tests.certkd.exchange.models import IMAGE, head, random, save
from tests.cli import refused
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.runtime.fingerprint import structure_sha256

node = helper.make_node
NODES, WEIGHTS = head(72)
RELU = [node("Relu", ["x"], ["h"], name="act"), *NODES]


def good(path: Path, **options: Any) -> Path:
    return save(path / "net.onnx", RELU, WEIGHTS, **options)


def content(data: bytes) -> Callable[[Path], Path]:
    def write(path: Path) -> Path:
        (path / "net.onnx").write_bytes(data)
        return path / "net.onnx"

    return write


def operators(*nodes: Any, **options: Any) -> Callable[[Path], Path]:
    """A file of these nodes from x to h, and a linear layer."""
    constants = options.pop("constants", {})
    return lambda path: save(path / "net.onnx", [*nodes, *NODES], {**WEIGHTS, **constants}, **options)


def truncated(path: Path) -> Path:
    data = good(path).read_bytes()
    return content(data[: len(data) // 2])(path)


def external(path: Path) -> Path:
    """Weights in a second file, which is lost."""
    model = onnx.load(good(path))
    onnx.save(model, path / "net.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path / "weights.bin").unlink()
    return path / "net.onnx"


def double(path: Path) -> Path:
    weights = {name: 1e300 * value.astype(np.float64) for name, value in WEIGHTS.items()}
    return save(path / "net.onnx", RELU, weights, kind=TensorProto.DOUBLE)


def trees(path: Path) -> Path:
    model = onnx.load(good(path))
    del model.opset_import[:]
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    onnx.save(model, path / "net.onnx")
    return path / "net.onnx"


def branch(path: Path) -> Path:
    value = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    part = helper.make_graph([node("Relu", ["x"], ["b"])], "part", [], [value])
    nodes = [node("ReduceSum", ["x"], ["t"], keepdims=0), node("Cast", ["t"], ["yes"], to=9)]
    return operators(*nodes, node("If", ["yes"], ["h"], then_branch=part, else_branch=part))(path)


def outputs(path: Path) -> Path:
    return save(path / "net.onnx", RELU, WEIGHTS, outputs=("y", "h"))


def inputs(path: Path) -> Path:
    return good(path, inputs=[helper.make_tensor_value_info("z", TensorProto.FLOAT, [1])])


def picture(path: Path) -> Path:
    return save(path / "net.onnx", [node("Relu", ["x"], ["y"])])


def mixing(path: Path) -> Path:
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[0]), node("Sub", ["x", "m"], ["h"])]
    return operators(*nodes)(path)


def constant(path: Path) -> Path:
    return save(path / "net.onnx", [node("Relu", ["c"], ["y"])], {"c": random(1, 4)}, shape=(1, *IMAGE))


def training(path: Path) -> Path:
    names = ("s", "b", "m", "v")
    made = node("BatchNormalization", ["x", *names], ["h", "m2", "v2"], training_mode=1)
    return operators(made, constants=dict.fromkeys(names, np.ones(2, np.float32)), opset=15)(path)


HTML, POINTER = b"<!DOCTYPE html><html></html>", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda path: path / "net.onnx", "no such ONNX file"),
    "folder": (lambda path: ((path / "net.onnx").mkdir(), path / "net.onnx")[1], "is a folder"),
    "empty": (content(b""), "is empty"),
    "html": (content(HTML), "HTML page"),
    "pointer": (content(POINTER), "git lfs pull"),
    "text": (content(b"hello, I am not a network at all\n" * 9), "not an ONNX file"),
    "truncated": (truncated, "truncated"),
    "old": (lambda path: good(path, opset=0), "opset 0"),
    "new": (lambda path: good(path, opset=99), "opset 99"),
    "external": (external, "must be in the same folder"),
    "dynamic": (lambda path: good(path, shape=("N", 2, "H", 6)), "'H'"),
    "batch": (lambda path: good(path, shape=(5000, *IMAGE)), "5000 images at a time"),
    "vector": (lambda path: good(path, shape=("N",)), "takes an input of shape"),
    "inputs": (inputs, "2 inputs ('x', 'z')"),
    "outputs": (outputs, "2 outputs ('y', 'h')"),
    "picture": (picture, "only one row of float logits"),
    "constant": (constant, "does not depend on the image"),
    "mixing": (mixing, "mixes the images of a batch"),
    "double": (double, "too large for float32"),
    "integers": (lambda path: good(path, kind=TensorProto.UINT8), "uint8 images"),
    "trees": (trees, "has operators of 'ai.onnx.ml' only: it is not a neural network"),
    "branch": (branch, "fixed path"),
    "training": (training, "eval mode"),
    "unknown": (operators(node("Hardmax", ["x"], ["h"], name="odd")), "node 'odd' (Hardmax, opset 13)"),
    "foreign": (operators(node("Relu", ["x"], ["h"], domain="com.acme")), "com.acme"),
    "wrong shape": (
        lambda path: save(path / "net.onnx", RELU, {**WEIGHTS, "W": random(4, 9)}),
        "cannot be run as a torch network",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    write, told = BROKEN[name]
    path = write(tmp_path)
    with pytest.raises(InputError) as caught:
        onnx_network.load(path)
    message = str(caught.value)
    assert told in message and str(path) in message and "\n" not in message, message


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_missing_packages_are_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = good(tmp_path)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(InputError, match=r"pip install 'certkd\[onnx\]'"):
        networks.load(str(path))


def test_other_logits_than_onnxruntimes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Reference.__call__
    for change, told in (
        (lambda y: y + 1e-2, "by 0.01"),
        (lambda y: y * np.nan, "nan or infinity for pixels"),
        (lambda y: y[:, :3], "shape"),
    ):
        monkeypatch.setattr(Reference, "__call__", lambda self, images, change=change: change(run(self, images)))
        with pytest.raises(InputError, match=told):
            onnx_network.load(good(tmp_path))


def test_weights_may_be_listed_as_inputs(tmp_path: Path) -> None:
    network, file, _ = onnx_network.load(good(tmp_path, listed=True, opset=8))
    assert file.shape == IMAGE and sum(weight.numel() for weight in network.parameters()) == 4 * 72 + 4


def test_files_for_one_image_take_batches(tmp_path: Path) -> None:
    nodes = [node("Reshape", ["x", "k"], ["f"]), node("Concat", ["one", "f"], ["h"], axis=1)]
    constants = {"k": np.array([1, -1]), "one": random(1, 3), **head(75)[1]}
    path = save(tmp_path / "net.onnx", [*nodes, *head(75)[0]], constants, shape=(1, *IMAGE))
    network, _, _ = onnx_network.load(path)  # compares a batch with single images
    images = torch.rand(5, *IMAGE)
    torch.testing.assert_close(network(images), torch.cat([network(image[None]) for image in images]))


def test_an_input_without_a_batch_axis_is_one_image(tmp_path: Path) -> None:
    nodes = [node("MatMul", ["x", "a"], ["m"]), node("Relu", ["m"], ["h"]), node("MatMul", ["h", "b"], ["y"])]
    weights = {"a": random(4, 5), "b": random(5, 3, seed=1)}
    path = save(tmp_path / "flat.onnx", nodes, weights, shape=(4,))
    model, images = classifier(path).model, torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert model.spec.shape == (4,) and model.spec.classes == 3
    expected = (images @ torch.from_numpy(weights["a"])).relu() @ torch.from_numpy(weights["b"])
    torch.testing.assert_close(model(images), expected)
    found = certify(model, images, expected.argmax(1), eps="1/1000", methods=("ibp", "crown"))
    assert all((rows.columns["status"] == Status.CERTIFIED).all() for rows in found.methods.values())


def test_a_networks_identity_is_its_weights_and_its_file(tmp_path: Path) -> None:
    first, again = classifier(good(tmp_path)), classifier(good(tmp_path))
    assert first.sha256 == again.sha256
    assert structure_sha256(first.model) == structure_sha256(again.model)
    other = classifier(save(tmp_path / "other.onnx", RELU, {**WEIGHTS, "c": WEIGHTS["c"] + 1}))
    assert other.sha256 != first.sha256
    tanh = classifier(save(tmp_path / "tanh.onnx", [node("Tanh", ["x"], ["h"]), *NODES], WEIGHTS))
    assert tanh.sha256 == first.sha256 and structure_sha256(tanh.model) != structure_sha256(first.model)


def test_layouts_are_one_function(tmp_path: Path) -> None:
    """The same network written for channels first, channels last and flat images."""
    images, mean, std = torch.rand(3, *IMAGE), (0.2, 0.3), (0.5, 0.25)
    last = [node("Transpose", ["x"], ["p"], perm=[0, 3, 1, 2]), node("Relu", ["p"], ["h"]), *NODES]
    paths = {
        "nchw": good(tmp_path),
        "nhwc": save(tmp_path / "last.onnx", last, WEIGHTS, shape=("N", 6, 6, 2)),
        "flat": save(tmp_path / "flat.onnx", RELU, WEIGHTS, shape=("N", 72)),
    }
    plain = onnx_network.load(paths["nchw"])[0]
    scaled = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    for layout, path in paths.items():
        model = classifier(path, shape=IMAGE, layout=layout, mean=mean, std=std).model
        assert model.spec.name == f"onnx:{path.stem}" and model.spec.shape == IMAGE
        torch.testing.assert_close(model(images), plain(scaled), rtol=1e-4, atol=1e-4)


def test_a_wrong_layout_names_the_right_one(tmp_path: Path) -> None:
    path = save(tmp_path / "flat.onnx", RELU, WEIGHTS, shape=("N", 72))
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"shape": IMAGE}, "--layout flat would fit"),
        ({"shape": (3, 8, 8), "layout": "flat"}, "same size"),
        ({"layout": "nwhc"}, "Did you mean 'nhwc'"),
        ({"shape": IMAGE, "layout": "flat", "mean": (0.5,), "std": (0.5,)}, "one per channel"),
    ]
    for options, told in wrong:
        with pytest.raises(InputError, match=told):
            classifier(path, **options)


def test_options_that_do_not_belong_to_onnx(tmp_path: Path) -> None:
    path = str(good(tmp_path))
    assert "drop --arch" in refused(
        "certify", "--model", path, "--eps", "0.1", "--arch", "certkd:mlp", "--data", "digits"
    )
    assert "layout" in refused(
        "certify", "--model", "certkd:mlp", "--eps", "0.1", "--layout", "flat", "--data", "digits"
    )
    assert "name it with --data" in refused("certify", "--model", path, "--eps", "0.1")
    assert "(1, 8, 8)" in refused("certify", "--model", path, "--eps", "0.1", "--data", "digits")
    assert "not be trained" in refused("train", "--config", "configs/digits/kdiga.yaml", "--set", f"model.name={path}")


def test_old_names_of_tensors_become_parameters(tmp_path: Path) -> None:
    """Dots, slashes, leading digits and names that torch uses itself."""
    names = ["0.weight", "onnx::MatMul_1", "keys", "a/b", "a.b"]
    nodes, value = [], "x"
    for i, name in enumerate(names):
        nodes.append(node("Add", [value, name], [f"v{i}"], name="values" if i == 0 else f"{i}"))
        value = f"v{i}"
    constants = {name: random(2, 6, 6, seed=i) for i, name in enumerate(names)}
    path = save(tmp_path / "net.onnx", [*nodes, node("Relu", [value], ["h"]), *NODES], {**constants, **WEIGHTS})
    network, _, _ = onnx_network.load(path)
    assert len(list(network.parameters())) == len(names) + 2


def test_networks_reads_it_by_its_suffix(tmp_path: Path) -> None:
    path = good(tmp_path)
    assert networks.is_path(str(path)) and networks.load(str(path)).model.spec.classes == 4
    with pytest.raises(InputError, match="--mean"):
        networks.load(str(path), form=networks.FileFormat(mean=(0.5, 0.5)))


def test_scalar_weights_stay_weights(tmp_path: Path) -> None:
    """A convolution with a single weight is still hashed as a weight."""
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[1]), node("Conv", ["m", "w"], ["h"]), *head(36)[0]]
    path = save(tmp_path / "net.onnx", nodes, {"w": random(1, 1, 1, 1), **head(36)[1]})
    assert "weights.w" in dict(onnx_network.load(path)[0].named_parameters())


def test_selu_of_the_first_opset_has_its_own_defaults(tmp_path: Path) -> None:
    """1.6732 and 1.0507, which opset 6 gave more digits; onnxruntime has no kernel for the old one."""
    nodes = [node("Selu", ["x"], ["h"]), *NODES]
    old, new = (save(tmp_path / f"{opset}.onnx", nodes, WEIGHTS, opset=opset) for opset in (5, 7))
    chosen = [helper.get_attribute_value(each) for each in onnx_file.read(old).model.graph.node[0].attribute]
    assert np.float32(chosen).tolist() == np.float32([1.6732, 1.0507]).tolist()
    assert not onnx_file.read(new).model.graph.node[0].attribute
