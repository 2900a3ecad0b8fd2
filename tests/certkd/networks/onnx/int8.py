"""Int8 ONNX files: made by onnxruntime's quantiser from a small network of our own, or node by node."""

import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static

from tests.certkd.exchange.models import random, save
from tests.certkd.networks.onnx.exporters import n

IMAGE = (1, 6, 6)
LAYERS = [
    n("Conv", "x w1 b1", "c1", kernel_shape=[3, 3], pads=[1] * 4),
    n("Relu", "c1", "r1"),
    n("Conv", "r1 w2 b2", "c2", kernel_shape=[3, 3], pads=[1] * 4),
    n("Add", "c2 r1", "a"),
    n("Relu", "a", "r2"),
    n("MaxPool", "r2", "m", kernel_shape=[2, 2], strides=[2, 2]),
    n("AveragePool", "m", "p", kernel_shape=[2, 2]),
    n("Flatten", "p", "f"),
    n("Gemm", "f w3 b3", "g", transB=1),
    n("Relu", "g", "r3"),
    n("Gemm", "r3 w4 b4", "y", transB=1),
]
WEIGHTS = {
    "w1": 0.5 * random(3, 1, 3, 3, seed=1),
    "b1": 0.1 * random(3, seed=2),
    "w2": 0.3 * random(3, 3, 3, 3, seed=3),
    "b2": 0.1 * random(3, seed=4),
    "w3": 0.4 * random(6, 12, seed=5),
    "b3": 0.1 * random(6, seed=6),
    "w4": 0.6 * random(4, 6, seed=7),
    "b4": 0.1 * random(4, seed=8),
}


class Calibration(CalibrationDataReader):
    """A few random images."""

    def __init__(self) -> None:
        self.images: Iterator[np.ndarray] = iter(np.random.default_rng(0).random((8, 1, *IMAGE), dtype=np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"x": image}


def real(path: Path) -> Path:
    """The network before it is quantised."""
    return save(path / "real.onnx", LAYERS, WEIGHTS, shape=("N", *IMAGE))


@functools.cache
def _static(form: str, per_channel: bool, kind: str, folder: Path) -> Path:
    file = folder / f"{form}{per_channel}{kind}.onnx"
    logging.disable(logging.WARNING)
    try:
        quantize_static(
            real(folder),
            file,
            Calibration(),
            quant_format=QuantFormat[form],
            per_channel=per_channel,
            activation_type=QuantType[kind],
            weight_type=QuantType.QInt8,
            reduce_range=kind == "QInt8",  # onnxruntime clips sums of int8 values on processors without VNNI
        )
    finally:
        logging.disable(logging.NOTSET)
    return file


def static(folder: Path, form: str = "QDQ", *, per_channel: bool = True, kind: str = "QUInt8") -> Path:
    """The network as onnxruntime's static quantiser writes it."""
    return _static(form, per_channel, kind, folder)


def dynamic(folder: Path) -> Path:
    """The network as onnxruntime's dynamic quantiser writes it."""
    file = folder / "dynamic.onnx"
    logging.disable(logging.WARNING)
    try:
        quantize_dynamic(real(folder), file, per_channel=True)
    finally:
        logging.disable(logging.NOTSET)
    return file


def kinds(path: Path) -> set[str]:
    """The operators of a file."""
    return {node.op_type for node in onnx.load(path).graph.node}


def code(value: int, kind: Any = np.uint8) -> np.ndarray:
    """A zero point."""
    return np.array(value, kind)
