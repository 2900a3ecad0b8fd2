"""Small ONNX files, written by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper, numpy_helper

IMAGE = (2, 6, 6)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def save(
    path: Path,
    nodes: Sequence[Any],
    constants: Mapping[str, np.ndarray] = {},
    *,
    opset: int = 13,
    shape: Sequence[int | str] = ("N", *IMAGE),
    kind: int = TensorProto.FLOAT,
    listed: bool = False,
    inputs: Sequence[Any] = (),
    outputs: Sequence[str] = ("y",),
) -> Path:
    """A file with input x and outputs; ``listed`` names the constants among the inputs, as old exporters do."""
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    entries = [helper.make_tensor_value_info("x", kind, shape), *inputs]
    if listed:
        entries += [helper.make_tensor_value_info(w.name, w.data_type, w.dims) for w in weights]
    made = [helper.make_tensor_value_info(name, kind, None) for name in outputs]
    graph = helper.make_graph(list(nodes), "test", entries, made, weights)
    others = [helper.make_opsetid(domain, 1) for domain in sorted({each.domain for each in nodes} - {""})]
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset), *others])
    model.ir_version = 3 if listed else min(model.ir_version, 8)
    path.write_bytes(model.SerializeToString())
    return path


def head(features: int) -> tuple[list[Any], dict[str, np.ndarray]]:
    """From h to logits y: flatten and a linear layer."""
    nodes = [
        helper.make_node("Flatten", ["h"], ["flat"]),
        helper.make_node("Gemm", ["flat", "W", "c"], ["y"], transB=1),
    ]
    return nodes, {"W": 0.3 * random(4, features, seed=8), "c": random(4, seed=9)}
