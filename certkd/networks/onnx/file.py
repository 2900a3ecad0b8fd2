"""Read ONNX files; a file that is not a classifier of float32 images is rejected in one line."""

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from certkd.files import sniff
from certkd.networks.builders.build import MOST_PIXELS
from certkd.networks.onnx.checks import check_model
from certkd.networks.onnx.wire import check_parts
from verifiers.core.errors import InputError, one_line, quoted

INSTALL = "ONNX needs packages that are not installed: pip install 'certkd[onnx]'"
#: The oldest opset whose operators broadcast like today's.
OLDEST_OPSET = 7
DOMAINS = ("", "ai.onnx")


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file of one network.

    Attributes:
        path: path of the file.
        sha256: of its content.
        model: the parsed file, an ``onnx.ModelProto``.
        opset: version of its operators.
        image, logits: names of the graph's input and output.
        shape: shape of one image, without the batch.
        batch: True if the first axis may have any length; otherwise it is 1.
        constants: weights and other fixed values by name.
    """

    path: Path
    sha256: str
    model: Any
    opset: int
    image: str
    logits: str
    shape: tuple[int, ...]
    batch: bool
    constants: Mapping[str, np.ndarray]


def packages() -> tuple[ModuleType, ModuleType]:
    """Import onnx and onnxruntime, which are an extra.

    Raises:
        InputError: they are not installed; the message has the install command.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise InputError(INSTALL) from None
    return onnx, onnxruntime


def read(path: Path) -> OnnxFile:
    """Parse a file and check its opset, input, output and weights.

    Raises:
        InputError: packages are missing, the file is damaged or not ONNX, its external weights are missing, its opset
            is too old or too new, or its input or output is not one batch of float32 images or logits.
    """
    onnx, _ = packages()
    model, sha256 = _parse(path)
    graph, opset = model.graph, _opset(model, path)
    check_model(model, path)
    constants = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]  # old files list weights among them
    for what, values in (("input", inputs), ("output", graph.output)):
        if len(values) != 1:
            names = ", ".join(quoted(value.name) for value in values[:9]) or "none"
            raise InputError(f"{path} has {len(values)} {what}s ({names}): only networks with one image in, logits out")
    shape, batch = _image(inputs[0], path)
    return OnnxFile(path, sha256, model, opset, inputs[0].name, graph.output[0].name, shape, batch, constants)


def _parse(path: Path) -> tuple[Any, str]:
    """Return the parsed file, and the SHA-256 of its content."""
    import onnx
    from google.protobuf.message import DecodeError

    sniff(path, "ONNX file")
    try:
        content = path.read_bytes()
        check_parts(content, path)
        model = onnx.ModelProto.FromString(content)
    except InputError:
        raise
    except (DecodeError, RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{path} is damaged, truncated or not an ONNX file: {one_line(error)}") from None
    if not model.graph.node:
        raise InputError(f"{path} is not an ONNX file, or truncated: it holds no network")
    return model, hashlib.sha256(content).hexdigest()


def _opset(model: Any, path: Path) -> int:
    import onnx

    versions = [entry.version for entry in model.opset_import if entry.domain in DOMAINS]
    if not versions:
        raise InputError(f"{path} is damaged: it does not name its operators' opset")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= versions[0] <= newest:
        advice = "update onnx and certkd" if versions[0] > newest else "convert it with onnx.version_converter"
        raise InputError(f"{path} has opset {versions[0]}, not one of {OLDEST_OPSET} to {newest}: {advice}")
    return int(versions[0])


def _image(value: Any, path: Path) -> tuple[tuple[int, ...], bool]:
    """Return the shape of an image, and whether the batch size is free."""
    import onnx

    tensor = value.type.tensor_type
    if tensor.elem_type != onnx.TensorProto.FLOAT:
        kinds = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
        kind = kinds.get(tensor.elem_type, f"unknown ({tensor.elem_type})")
        raise InputError(f"{path} takes {kind} images: only float32 networks are read, convert it first")
    sides = [side.dim_value if side.HasField("dim_value") else side.dim_param or "?" for side in tensor.shape.dim]
    if len(sides) < 2 or any(not isinstance(side, int) or side < 1 for side in sides[1:]):
        raise InputError(
            f"{path} takes an input of shape {quoted(sides)}: only the first axis, the batch, may be open or be left "
            "to the file; fix the others when exporting"
        )
    if isinstance(sides[0], int) and sides[0] > 1:
        raise InputError(f"{path} takes exactly {sides[0]} images at a time: export it for one, or any number of them")
    shape = tuple(int(side) for side in sides[1:])
    if len(shape) > 5 or math.prod(shape) > MOST_PIXELS:
        raise InputError(f"{path} takes images of shape {quoted(shape)}: at most {MOST_PIXELS} numbers are supported")
    return shape, sides[0] != 1


class Reference:
    """Run a file in onnxruntime."""

    def __init__(self, file: OnnxFile) -> None:
        """Open the file; raises InputError if onnxruntime does not support it."""
        _, onnxruntime = packages()
        options = onnxruntime.SessionOptions()
        options.log_severity_level, options.intra_op_num_threads = 4, 1
        self._file = file
        try:
            content = file.model.SerializeToString()  # as it was checked; its other parts are not used
            self._session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no other common class
            why = one_line(Exception(str(error).replace(str(file.path), "the file")))
            raise InputError(f"{file.path} is not a network that onnxruntime runs: {why}") from None

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Run each image alone and, if the file allows it, all at once; the outputs must agree.

        Raises:
            InputError: the output is not one row of two or more logits per image, or depends on the rest of the batch.
        """
        rows = [self._run(image[None]) for image in images]
        if rows[0].ndim != 2 or rows[0].shape[1] < 2 or len(rows[0]) != 1 or rows[0].dtype != np.float32:
            what = f"{rows[0].dtype} of shape {rows[0].shape}"
            raise InputError(f"{self._file.path} gives {what} for an image: only one row of two or more float32 logits")
        alone = np.concatenate(rows)
        if self._file.batch:
            together = self._run(images)
            if together.shape != alone.shape or not np.allclose(together, alone, rtol=1e-4, atol=1e-4):
                raise InputError(f"{self._file.path} mixes the images of a batch: export it in eval mode")
        return alone

    def _run(self, images: np.ndarray) -> np.ndarray:
        try:
            return self._session.run([self._file.logits], {self._file.image: images})[0]
        except Exception as error:  # noqa: BLE001 - see above
            raise InputError(f"{self._file.path} cannot be run on {len(images)} images: {one_line(error)}") from None
