"""Load an ONNX file as a function of its own input and output, as properties need it: nothing is left out or added."""

import gzip
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from certkd.networks.cost import check_cost
from certkd.networks.onnx.file import OnnxFile, packages, read
from certkd.networks.onnx.network import TOLERANCE, OnnxNetwork
from verifiers.core.errors import InputError, loading, one_line

#: The largest file that is unpacked, in bytes.
LARGEST = 1 << 32


@dataclass(frozen=True)
class Function:
    """A network as its file defines it.

    Attributes:
        module: maps a batch of inputs to outputs of shape (batch, outputs).
        shape: shape of one input.
        outputs: number of outputs.
        reference: runs one input in onnxruntime; returns the outputs, flat.
    """

    module: nn.Module
    shape: tuple[int, ...]
    outputs: int
    reference: "Session"


class Session:
    """Run a file in onnxruntime, one input at a time."""

    def __init__(self, file: OnnxFile) -> None:
        """Open the file; raises InputError if onnxruntime does not support it."""
        _, onnxruntime = packages()
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self._path, self._names = file.path, (file.logits, file.image)
        try:
            content = file.model.SerializeToString()
            self._session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no other common class
            raise InputError(f"{file.path} is not a network that onnxruntime runs: {one_line(error)}") from None

    def __call__(self, image: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, " outputs"]:
        """Run one input.

        Raises:
            InputError: onnxruntime fails.
        """
        logits, name = self._names
        try:
            found = self._session.run([logits], {name: image[None]})[0]
        except Exception as error:  # noqa: BLE001 - see above
            raise InputError(f"{self._path} cannot be run on one input: {one_line(error)}") from None
        return np.asarray(found, np.float32).reshape(-1)


class Flat(nn.Module):
    """Give a network's outputs in one row for each input."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Float[torch.Tensor, "batch *shape"]) -> Float[torch.Tensor, "batch outputs"]:
        return self.network(x).flatten(1)


def function(path: Path) -> Function:
    """Load a file, packed by gzip or not, and compare it with onnxruntime on random inputs.

    Raises:
        InputError: as for ``network.load``; one output is enough here.
    """
    with unpacked(path) as place, loading(place, "an ONNX file that can be read"):
        file = read(place)
        network = OnnxNetwork(file).eval()
        check_cost(network, file.shape, str(path), strict=True)
        session = Session(file)
        rng = np.random.default_rng(0)
        images = [rng.random(file.shape, dtype=np.float32) * scale for scale in (1, 4)]
        expected = [session(image) for image in images]
        module: nn.Module = network
        try:
            with torch.no_grad():
                found = [network(torch.from_numpy(image)[None]) for image in images]
        except InputError:
            raise
        except Exception as error:  # whatever torch raises is about the file
            raise InputError(f"{path} cannot be run as a torch network: {one_line(error)}") from error
        for one, other in zip(found, expected, strict=True):
            _compare(path, one.flatten().numpy(), other)
        if found[0].ndim != 2:
            module = Flat(network).eval()
        return Function(module, file.shape, math.prod(found[0].shape), session)


def _compare(path: Path, found: np.ndarray, expected: np.ndarray) -> None:
    same = found.shape == expected.shape and np.array_equal(np.isfinite(found), np.isfinite(expected))
    if same:  # values that are not finite in both are left out
        found, expected = (values[np.isfinite(expected)] for values in (found, expected))
        same = not (np.abs(found - expected) > TOLERANCE * max(1.0, np.abs(expected).max(initial=0.0))).any()
    if not same:
        raise InputError(f"{path} is read incorrectly: its outputs differ from onnxruntime's")


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """Give the path of a file that is not packed; messages name the file that was given.

    Raises:
        InputError: it is missing, damaged or too large.
    """
    if path.suffix.lower() != ".gz":
        yield path
        return
    with TemporaryDirectory() as folder:
        place = Path(folder) / path.stem
        with loading(path, "a file packed by gzip"), gzip.open(path) as packed, open(place, "wb") as plain:
            while block := packed.read(1 << 20):
                plain.write(block)
                if plain.tell() > LARGEST:
                    raise InputError(f"{path} holds more than {LARGEST} bytes: it is not read")
        try:
            yield place
        except InputError as error:
            raise InputError(str(error).replace(str(place), str(path))) from None
