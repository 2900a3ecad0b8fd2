"""CROWN of an int8 network against CROWN of its float original, in CPU time.

OMP_NUM_THREADS=1 python -m bench.int8
"""

import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from torch import nn

from certkd.networks.onnx.network import load
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

SHAPE, CLASSES, REPEATS = (1, 28, 28), 10, 5


class Images(CalibrationDataReader):
    """Random calibration images."""

    def __init__(self) -> None:
        self.images: Iterator[np.ndarray] = iter(np.random.default_rng(0).random((16, 1, *SHAPE), dtype=np.float32))

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else {"image": image}


def network() -> nn.Module:
    """Two convolutions and two linear layers, as in the other benchmarks."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, CLASSES)).eval()


def files(folder: Path) -> dict[str, Path]:
    """Write the float network and its int8 copy."""
    real, copy = folder / "real.onnx", folder / "int8.onnx"
    axes = {"image": {0: "batch"}, "logits": {0: "batch"}}
    names = {"input_names": ["image"], "output_names": ["logits"], "dynamic_axes": axes}
    torch.onnx.export(network(), (torch.zeros(1, *SHAPE),), real, dynamo=False, opset_version=17, **names)
    settings = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
    quantize_static(real, copy, Images(), quant_format=QuantFormat.QDQ, **settings)
    return {"float": real, "int8": copy}


def main() -> None:
    """Alternate both networks, and print medians and their ratio."""
    logging.disable(logging.WARNING)
    x = torch.rand(8, *SHAPE, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        networks = {name: load(path)[0].eval() for name, path in files(Path(folder)).items()}
    engines = {name: Native(each, x, arithmetic=Arithmetic.FLOAT32) for name, each in networks.items()}
    for eps in (1 / 255, 2 / 255, 8 / 255):
        spent: dict[str, list[float]] = {name: [] for name in engines}
        for _ in range(REPEATS):
            for name, engine in engines.items():
                rows = margin_specification(networks[name](x).argmax(1), CLASSES, torch.float64)
                started = time.process_time()
                engine.ask(Balls.around(x.double(), eps, Norm.LINF), rows, "crown")
                spent[name].append(time.process_time() - started)
        medians = {name: statistics.median(times) for name, times in spent.items()}
        shown = ", ".join(f"{name} {seconds:.3f} s" for name, seconds in medians.items())
        print(f"eps {255 * eps:.0f}/255: {shown}, ratio {medians['int8'] / medians['float']:.2f}")


if __name__ == "__main__":
    main()
