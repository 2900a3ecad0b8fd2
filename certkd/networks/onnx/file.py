"""Read ONNX files; a file that is not a classifier of images is rejected in one line."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from certkd.files import sniff
from certkd.networks.builders.build import MOST_PIXELS
from certkd.networks.onnx.branches import fold_branches
from certkd.networks.onnx.checks import check_model
from certkd.networks.onnx.conditions import truth_of
from certkd.networks.onnx.inline import inline_functions
from certkd.networks.onnx.live import keep_live, live
from certkd.networks.onnx.upgrade import (
    BROADCASTING,
    FLOAT32,
    OLDEST,
    OTHER_FLOATS,
    other_floats,
    to_broadcasting,
    to_float32,
)
from certkd.networks.onnx.wire import check_parts
from verifiers.core.errors import InputError, one_line, quoted

INSTALL = "ONNX needs packages that are not installed: pip install 'certkd[onnx]'"
DOMAINS = ("", "ai.onnx")
#: Most images that a file may take at a time, and most numbers in them.
MOST_IMAGES, MOST_NUMBERS = 4096, 1 << 26


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file of one network.

    Attributes:
        path: path of the file.
        sha256: of its content.
        model: the parsed file, an ``onnx.ModelProto``, in float32.
        opset: version of its operators.
        image, logits: names of the graph's input and output.
        shape: shape of one image, without the batch.
        count: number of images that it takes at a time; None for any number.
        single: True if it takes one flat image without an axis for the batch.
        constants: weights and other fixed values by name.
        remarks: what was converted or chosen, a line each.
        rewriting: the conversions that changed its nodes or numbers, in a word each.
        unused: operators in its functions and branches on which the output does not depend.
    """

    path: Path
    sha256: str
    model: Any
    opset: int
    image: str
    logits: str
    shape: tuple[int, ...]
    count: int | None
    constants: Mapping[str, np.ndarray]
    remarks: tuple[str, ...] = ()
    single: bool = False
    rewriting: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()


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


def read(path: Path, *, shape: Sequence[int] | None = None, output: str | int | None = None) -> OnnxFile:
    """Parse a file, check its opset, input, output and weights, and convert it to float32 and to a newer opset.

    Args:
        path: path of the file.
        shape: shape of an image, for axes that the file leaves open.
        output: name or place of the logits among several outputs.

    Raises:
        InputError: packages are missing, the file is damaged or not ONNX, its external weights are missing, its opset
            is too old or too new, or its input or output is not one batch of images or logits.
    """
    packages()
    model, sha256 = _parse(path)
    graph, opset = model.graph, _opset(model, path)
    chosen, remark = _output(graph, output, path)
    graph.ClearField("output")
    graph.output.append(chosen)
    keep_live(graph)
    branching = any(node.op_type == "If" for node in graph.node)
    changes = [word for word, there in (("functions", model.functions), ("branches", branching)) if there]
    inline_functions(model, path)
    conditions = fold_branches(model, path, lambda *given: truth_of(model, given, path, shape))
    unused = _unused(graph, [chosen.name, *conditions])
    found = finished(model, opset, path, shape)
    remarks = tuple(text for text in (remark, *found.remarks) if text is not None)
    return replace(
        found, sha256=sha256, remarks=remarks, rewriting=(*dict.fromkeys((*changes, *found.rewriting)),), unused=unused
    )


def _unused(graph: Any, names: Sequence[str]) -> tuple[str, ...]:
    """List the operators on which values do not depend."""
    outputs = {output for node in live(graph.node, names) for output in node.output}
    return tuple(sorted({node.op_type for node in graph.node if outputs.isdisjoint(node.output)}))


def finished(model: Any, opset: int, path: Path, shape: Sequence[int] | None) -> OnnxFile:
    """Check a file without functions and branches, and convert it to float32 and to a newer opset.

    Raises:
        InputError: as for ``read``.
    """
    onnx, _ = packages()
    graph = model.graph
    check_model(model, path)
    precisions, remark = other_floats(model), to_float32(model, path)
    changes = [*precisions, *(["opset"] if opset < BROADCASTING else [])]
    opset = to_broadcasting(model, opset, path)
    constants = {weight.name: onnx.numpy_helper.to_array(weight) for weight in graph.initializer}
    inputs = [value for value in graph.input if value.name not in constants]  # old files list weights among them
    if len(inputs) != 1:
        raise InputError(f"{path} has {len(inputs)} inputs ({_named(inputs)}): only networks of one image are read")
    sides, count = _image(inputs[0], path, shape)
    return OnnxFile(
        path=path,
        sha256="",
        model=model,
        opset=opset,
        image=inputs[0].name,
        logits=graph.output[0].name,
        shape=sides,
        count=count,
        constants=constants,
        remarks=() if remark is None else (remark,),
        single=len(inputs[0].type.tensor_type.shape.dim) == 1,
        rewriting=tuple(changes),
    )


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
        others = ", ".join(quoted(entry.domain) for entry in model.opset_import[:9])
        if others:
            raise InputError(f"{path} has operators of {others} only: it is not a neural network")
        raise InputError(f"{path} is damaged: it does not name its operators' opset")
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST <= versions[0] <= newest:
        advice = "update onnx and certkd" if versions[0] > newest else "convert it with onnx.version_converter"
        raise InputError(f"{path} has opset {versions[0]}, not one of {OLDEST} to {newest}: {advice}")
    return int(versions[0])


def _output(graph: Any, wanted: str | int | None, path: Path) -> tuple[Any, str | None]:
    """Choose the logits among the outputs; return them, and a remark if nobody named them.

    Raises:
        InputError: there is no such output, or several may be logits.
    """
    outputs = list({value.name: value for value in graph.output}.values())
    names = _named(outputs)
    if isinstance(wanted, str):
        found = [value for value in outputs if value.name == wanted]
        if not found and wanted.isdecimal():
            wanted = int(wanted)
        elif not found:
            raise InputError(f"{path} has no output {quoted(wanted)}: its outputs are {names}")
        else:
            return found[0], None
    if isinstance(wanted, int):
        if not 0 <= wanted < len(outputs):
            raise InputError(f"{path} has no output {wanted}: its {len(outputs)} outputs are {names}, counted from 0")
        return outputs[wanted], None
    rows = [value for value in outputs if _may_be_logits(value)]
    if len(outputs) > 1 and len(rows) == 1:
        return rows[0], f"of its outputs ({names}) {quoted(rows[0].name)} is read as the logits"
    if not outputs:
        raise InputError(f"{path} is damaged: it has no output")
    if len(outputs) != 1:
        raise InputError(f"{path} has {len(outputs)} outputs ({names}): name the logits with --output NAME")
    return outputs[0], None


def _may_be_logits(value: Any) -> bool:
    """Return whether an output is declared as rows of floats; an output without a shape may be anything."""
    tensor = value.type.tensor_type
    of_floats = tensor.elem_type == FLOAT32 or tensor.elem_type in OTHER_FLOATS
    return of_floats and (not tensor.HasField("shape") or len(tensor.shape.dim) == 2)


def _named(values: Sequence[Any]) -> str:
    return ", ".join(quoted(value.name) for value in values[:9]) or "none"


def _image(value: Any, path: Path, wanted: Sequence[int] | None) -> tuple[tuple[int, ...], int | None]:
    """Return the shape of an image, and the number of images at a time, None if it is free.

    Raises:
        InputError: the input is not a batch of float images, or leaves sides open that ``wanted`` does not fix.
    """
    import onnx

    tensor = value.type.tensor_type
    if tensor.elem_type != FLOAT32:
        kinds = {number: name.lower() for name, number in onnx.TensorProto.DataType.items()}
        kind = kinds.get(tensor.elem_type, f"unknown ({tensor.elem_type})")
        raise InputError(f"{path} takes {kind} images: only networks of float images are read")
    sides = [side.dim_value if side.HasField("dim_value") else side.dim_param or "?" for side in tensor.shape.dim]
    if not tensor.HasField("shape") and wanted is not None:
        sides = ["?", *wanted]
    if len(sides) == 1 and isinstance(sides[0], int) and sides[0] > 0:
        sides = [1, *sides]
    if tensor.HasField("shape") and len(sides) < 2:
        raise InputError(f"{path} takes an input of shape {quoted(sides)}: only a batch of images is supported")
    first = sides[0] if sides else 0
    shape = tuple(_fixed(sides, wanted))
    if len(sides) < 2 or any(side < 1 for side in shape):
        given = f", and the images have shape {quoted(tuple(wanted))}" if wanted is not None else ""
        raise InputError(
            f"{path} takes an input of shape {quoted(sides)}{given}: sides that it leaves open are those of the data, "
            "which must be named"
        )
    if len(shape) > 5 or math.prod(shape) > MOST_PIXELS:
        raise InputError(f"{path} takes images of shape {quoted(shape)}: at most {MOST_PIXELS} numbers are supported")
    count = first if isinstance(first, int) and first > 0 else None
    if count is not None and (count > MOST_IMAGES or count * math.prod(shape) > MOST_NUMBERS):
        raise InputError(f"{path} takes {count} images at a time: at most {MOST_IMAGES} are supported")
    return shape, count


def _fixed(sides: Sequence[int | str], wanted: Sequence[int] | None) -> list[int]:
    """Replace open sides of an image by those of the images in use; 0 if these are unknown or of another rank."""
    known = wanted if wanted is not None and len(wanted) == len(sides) - 1 else [0] * (len(sides) - 1)
    return [given if isinstance(given, int) else side for given, side in zip(sides[1:], known, strict=True)]
