"""Load an ONNX file as a function of its own input and output, as properties need it: nothing is left out or added."""

import gzip
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float
from torch import nn

from certkd.networks.cost import check_cost
from certkd.networks.onnx.file import OnnxFile, read
from certkd.networks.onnx.network import TOLERANCE, OnnxNetwork
from certkd.networks.onnx.original import check_original
from certkd.networks.onnx.reference import session_of
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
        sha256: of the file.
    """

    module: nn.Module
    shape: tuple[int, ...]
    outputs: int
    reference: "Session"
    sha256: str


class Session:
    """Run a file in onnxruntime, one input at a time."""

    def __init__(self, file: OnnxFile) -> None:
        """Open the file; raises InputError if onnxruntime does not support it."""
        self._file, self._session = file, session_of(file)

    def __call__(self, image: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, " outputs"]:
        """Run one input, as often as the file takes inputs.

        Raises:
            InputError: onnxruntime fails, or the output is no float tensor.
        """
        file, count = self._file, self._file.count or 1
        given = image if file.single else np.repeat(image[None], count, axis=0)
        try:
            found = self._session.run([file.logits], {file.image: given})[0]
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no other common class
            raise InputError(f"{file.path} cannot be run on one input: {one_line(error)}") from None
        if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.size % count:
            raise InputError(f"{file.path} does not give one float32 tensor for an input")
        return found.reshape(count, -1)[0]


def function(path: Path) -> Function:
    """Load a file, packed by gzip or not, and compare it with onnxruntime on random inputs.

    Raises:
        InputError: as for ``network.load``; one output is enough here. Files that would have to be converted are
            refused: a property is about the network as it is.
    """
    with unpacked(path) as place, loading(place, "an ONNX file that can be read"):
        file = read(place)
        if file.remarks:
            raise InputError(f"{path}: {file.remarks[0]}; a property is about the file as it is: convert it first")
        session = Session(file)
        try:
            network, outputs = _compared(OnnxNetwork(file, literal=file.single), file, session)
        except InputError:  # perhaps its constants hold the number of inputs: only as many are right
            network, outputs = _compared(OnnxNetwork(file, literal=True), file, session)
        check_original(file)
        return Function(network, file.shape, outputs, session, file.sha256)


def _compared(network: OnnxNetwork, file: OnnxFile, session: Session) -> tuple[nn.Module, int]:
    """Compare a network with onnxruntime; return it with the number of its outputs.

    Raises:
        InputError: they differ, or the network cannot be run.
    """
    network.eval()
    check_cost(network, file.shape, str(file.path), strict=True)
    rng = np.random.default_rng(0)
    images = np.stack([rng.random(file.shape, dtype=np.float32) * scale for scale in (1, 4, -4)])
    expected = np.stack([session(image) for image in images])
    try:
        with torch.no_grad():
            alone = torch.cat([network(image) for image in torch.from_numpy(images).split(1)]).numpy()
            together = network(torch.from_numpy(images)).numpy()
    except InputError:
        raise
    except Exception as error:  # whatever torch raises is about the file
        raise InputError(f"{file.path} cannot be run as a torch network: {one_line(error)}") from error
    if not _same(alone, expected) or not _same(together, expected):
        raise InputError(f"{file.path} is read incorrectly: its outputs differ from onnxruntime's")
    return network, expected.shape[1]


def _same(found: np.ndarray, expected: np.ndarray) -> bool:
    """Return whether outputs are equal to rounding; what is not finite must not be so in both."""
    if found.shape != expected.shape or not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        return False
    found, expected = (values[np.isfinite(expected)] for values in (found, expected))
    return bool((np.abs(found - expected) <= TOLERANCE * max(1.0, np.abs(expected).max(initial=0.0))).all())


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
