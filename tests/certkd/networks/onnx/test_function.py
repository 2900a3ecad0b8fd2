"""ONNX files as functions: their own input and output, next to onnxruntime."""

import gzip
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from certkd.networks.onnx import function as module
from certkd.networks.onnx.file import read
from certkd.networks.onnx.function import Function, function, unpacked
from tests.certkd.exchange.models import random, save
from verifiers.core.errors import InputError, Unsupported
from verifiers.graph.program import Program

GEMM = [helper.make_node("Gemm", ["x", "w", "b"], ["h"], transB=1)]


def made(path: Path, nodes: Sequence[Any], shape: Sequence[int | str] = ("N", 4), outputs: int = 3) -> Function:
    constants = {"w": random(outputs, 4), "b": random(outputs, seed=1)}
    return function(save(path, [*GEMM, *nodes], constants, shape=shape))


@pytest.mark.parametrize(
    ("end", "outputs"),
    [
        (helper.make_node("Softmax", ["h"], ["y"], axis=1), 3),
        (helper.make_node("Sigmoid", ["h"], ["y"]), 1),
        (helper.make_node("Relu", ["h"], ["y"]), 5),
        (helper.make_node("Identity", ["h"], ["y"]), 2),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else str(value),
)
def test_nothing_is_left_out_at_the_end(end: Any, outputs: int, tmp_path: Path) -> None:
    found = made(tmp_path / "net.onnx", [end], outputs=outputs)
    assert (found.shape, found.outputs) == ((4,), outputs)
    for image in random(5, 4, seed=2):
        expected = image @ random(outputs, 4).T + random(outputs, seed=1)
        if end.op_type == "Softmax":
            expected = np.exp(expected) / np.exp(expected).sum()
        elif end.op_type == "Sigmoid":
            expected = 1 / (1 + np.exp(-expected))
        elif end.op_type == "Relu":
            expected = expected.clip(0)
        with torch.no_grad():
            ours = found.module(torch.from_numpy(image)[None])[0].numpy()
        np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.reference(image), expected, rtol=1e-5, atol=1e-6)
        assert found.reference(image).dtype == np.float32


def test_a_fixed_batch_of_one_and_outputs_of_any_shape(tmp_path: Path) -> None:
    nodes = [helper.make_node("Reshape", ["h", "s"], ["y"])]
    constants = {"w": random(6, 4), "b": random(6, seed=1), "s": np.array([-1, 2, 3], np.int64)}
    found = function(save(tmp_path / "net.onnx", [*GEMM, *nodes], constants, shape=(1, 4)))
    assert found.outputs == 6
    with torch.no_grad():
        rows = found.module(torch.from_numpy(random(3, 4)))
    assert rows.shape == (3, 6)
    np.testing.assert_allclose(rows[1].numpy(), found.reference(random(3, 4)[1]), rtol=1e-5, atol=1e-6)


def test_a_network_that_onnxruntime_runs_differently_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.Session, "__call__", lambda self, image: np.zeros(3, np.float32))
    with pytest.raises(InputError, match="differ from onnxruntime's"):
        made(tmp_path / "net.onnx", [helper.make_node("Relu", ["h"], ["y"])])


def test_outputs_that_are_infinite_in_both_are_the_same(tmp_path: Path) -> None:
    nodes = [helper.make_node("Mul", ["h", "big"], ["m"]), helper.make_node("Exp", ["m"], ["y"])]
    constants = {"w": np.abs(random(2, 4)), "b": np.ones(2, np.float32), "big": np.full(1, 1e6, np.float32)}
    found = function(save(tmp_path / "net.onnx", [*GEMM, *nodes], constants, shape=("N", 4)))
    assert np.isinf(found.reference(np.ones(4, np.float32))).all()


def test_packed_files_are_named_in_messages(tmp_path: Path) -> None:
    path = save(tmp_path / "net.onnx", [helper.make_node("Nonsense", ["x"], ["y"])], shape=("N", 4))
    packed = tmp_path / "packed.onnx.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(InputError) as caught:
        function(packed)
    assert str(packed) in str(caught.value)


def test_files_are_unpacked_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.txt").write_text("plain")
    with unpacked(tmp_path / "a.txt") as place:
        assert place == tmp_path / "a.txt"
    (tmp_path / "a.onnx.gz").write_bytes(gzip.compress(b"content"))
    with unpacked(tmp_path / "a.onnx.gz") as place:
        assert place.name == "a.onnx" and place.read_bytes() == b"content"
    assert not place.exists()
    monkeypatch.setattr(module, "LARGEST", 3)
    with pytest.raises(InputError, match="more than 3 bytes"), unpacked(tmp_path / "a.onnx.gz"):
        pass
    with pytest.raises(InputError, match="no such file"), unpacked(tmp_path / "b.onnx.gz"):
        pass


def test_a_network_of_other_floats_is_not_converted(tmp_path: Path) -> None:
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)]
    constants = {"w": random(3, 4).astype(np.float64), "b": random(3).astype(np.float64)}
    path = save(tmp_path / "net.onnx", nodes, constants, shape=("N", 4), kind=TensorProto.DOUBLE)
    with pytest.raises(InputError, match=r"float64 network.*convert it first"):
        function(path)


def threshold(place: Path, value: float, *, cast_first: bool) -> Path:
    """y = 1 where x_i is above a float64 constant: compared in float64, or cast to float32 and compared there."""
    if cast_first:
        nodes = [helper.make_node("Cast", ["c"], ["t"], to=TensorProto.FLOAT)]
        nodes += [helper.make_node("Greater", ["x", "t"], ["h"])]
    else:
        nodes = [helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.DOUBLE)]
        nodes += [helper.make_node("Greater", ["wide", "c"], ["h"])]
    nodes += [helper.make_node("Cast", ["h"], ["y"], to=TensorProto.FLOAT)]
    return save(place, nodes, {"c": np.array(value, np.float64)}, shape=("N", 4))


@pytest.mark.parametrize(
    ("value", "cast_first", "refused"),
    [(0.1, False, True), (0.1, True, False), (0.125, False, False), (1e-300, False, True)],
)
def test_a_float64_threshold_that_float32_rounds(value: float, cast_first: bool, refused: bool, tmp_path: Path) -> None:
    """At the float32 number 0.1 the answer of the file is 1, since that is above the float64 number 0.1."""
    path = threshold(tmp_path / "net.onnx", value, cast_first=cast_first)
    assert bool(read(path).remarks) == refused
    if refused:
        with pytest.raises(InputError, match=rf"float64 constant {value:.3g}.*convert it first"):
            function(path)
    else:
        assert function(path).outputs == 4


def test_a_file_for_several_inputs_at_a_time(tmp_path: Path) -> None:
    found = made(tmp_path / "net.onnx", [helper.make_node("Relu", ["h"], ["y"])], shape=(3, 4))
    image = random(4, seed=3)
    with torch.no_grad():
        rows = found.module(torch.from_numpy(image)[None].repeat(5, 1)).numpy()
    np.testing.assert_allclose(rows, np.tile(found.reference(image), (5, 1)), rtol=1e-5, atol=1e-6)


def test_a_file_for_one_input_without_a_batch_axis(tmp_path: Path) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node("Relu", ["h"], ["y"])]
    found = function(save(tmp_path / "net.onnx", nodes, {"w": random(4, 3)}, shape=(4,)))
    image = random(4, seed=3)
    expected = (image @ random(4, 3)).clip(0)
    assert (found.shape, found.outputs) == ((4,), 3) and expected.max() > 0
    np.testing.assert_allclose(found.reference(image), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        rows = found.module(torch.from_numpy(image)[None].repeat(5, 1)).numpy()
    np.testing.assert_allclose(rows, np.tile(expected, (5, 1)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("name", "shown"), [("/block/act.1", "/block/act.1"), ("", "Sin_1")])
def test_an_operator_without_bounds_is_named_as_the_file_names_it(name: str, shown: str, tmp_path: Path) -> None:
    found = made(tmp_path / "net.onnx", [helper.make_node("Sin", ["h"], ["y"], name=name)])
    program = Program(found.module, entire=True)
    with pytest.raises(Unsupported) as refusal:
        program.graph(torch.rand(2, 4))
    assert f"at 'ONNX node {shown}'" in str(refusal.value) and ".py" not in str(refusal.value)
