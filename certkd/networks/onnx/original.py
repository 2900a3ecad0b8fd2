"""Compare a file that was rewritten with the file as it was given: both run in onnxruntime.

The operators of a file are known and its cost is limited before it is run here.
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from certkd.networks.onnx.checks import check_tensor
from certkd.networks.onnx.file import OnnxFile
from certkd.networks.onnx.live import bodies, live
from certkd.networks.onnx.reference import opened, session_of
from verifiers.core.errors import InputError, one_line, quoted

#: Largest difference of outputs, relative to the largest of them (at least 1): about a hundred roundings to 11 or 8
#: binary digits add up where the file is in half precision.
ROUNDING, TOLERANCES = 1e-4, {"float16": 0.05, "bfloat16": 0.4}
#: The conversions without which onnxruntime may not run a file.
NEEDED = ("float64", "float16", "bfloat16", "opset")
#: Operators whose results are no larger than their first input, whatever it is.
_SMALL = frozenset(
    "Abs BatchNormalization Cast CastLike Constant Dropout Elu Erf Exp Floor Identity LayerNormalization LeakyRelu Log "
    "Neg Not Reciprocal ReduceMax ReduceMean ReduceMin ReduceSum Relu Shape Sigmoid Size Softmax Sqrt Squeeze Tanh "
    "Unsqueeze".split()
)


def check_original(file: OnnxFile) -> None:
    """Compare the outputs of a rewritten file with those of the file as it was given, on random inputs.

    Raises:
        InputError: they differ, the file was changed meanwhile, or onnxruntime does not run it.
    """
    if not file.rewriting:
        return
    known = [kind for kind in file.unused if kind not in _SMALL]
    if known:
        raise InputError(
            f"{file.path}: a function computes values by {quoted(known[0])} that nothing uses: save the file without "
            "functions (onnx.inliner.inline_local_functions)"
        )
    model = _given(file)
    try:
        session = opened(model)
        sides = file.shape if file.single else (file.count or 1, *file.shape)
        rng = np.random.default_rng(1)
        inputs = [rng.random(sides, dtype=np.float32) * scale - shift for scale, shift in ((1, 0), (1, 0), (4, 2))]
        images = [_numbers(session, image) for image in inputs]
        theirs = [np.asarray(session.run([file.logits], {file.image: image})[0], np.float32) for image in images]
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no other common class
        # onnxruntime has no kernels for opsets before 7, and few for float64 and bfloat16. Nothing else here runs such
        # a file, so it is compared in float32 and in opset 7 alone.
        if any(change in NEEDED for change in file.rewriting):
            return
        raise InputError(f"{file.path} is not a network that onnxruntime runs: {one_line(error)}") from None
    ours, tolerance = session_of(file), max(TOLERANCES.get(change, ROUNDING) for change in file.rewriting)
    for image, expected, inside in zip(images, theirs, (True, True, False), strict=True):
        found = ours.run([file.logits], {file.image: image.astype(np.float32)})[0]
        _check(file, found, expected, tolerance, inside=inside)


def _check(file: OnnxFile, found: np.ndarray, expected: np.ndarray, tolerance: float, *, inside: bool) -> None:
    """Check that outputs are equal to rounding; outside of [0, 1] those that are not finite are not compared."""
    what = f"after a conversion ({', '.join(file.rewriting)})"
    if found.shape != expected.shape:
        raise InputError(f"{file.path} is read incorrectly: {what} its output has another shape than {expected.shape}")
    finite = np.isfinite(found) & np.isfinite(expected)
    if inside and not np.array_equal(np.isfinite(found), np.isfinite(expected)):
        raise InputError(f"{file.path} is read incorrectly: only {what} is its output finite, or not")
    size = max(1.0, float(np.abs(expected[finite]).max(initial=0.0)))
    gap = float(np.abs(found[finite] - expected[finite]).max(initial=0.0)) / size
    if not gap <= tolerance:
        raise InputError(
            f"{file.path} is read incorrectly: {what} its outputs in onnxruntime differ by {gap:.3g} of their size"
        )


def _given(file: OnnxFile) -> Any:
    """Parse the file again, without what its output does not depend on, and with its checked external weights.

    Raises:
        InputError: it is another file by now.
    """
    import onnx

    content = file.path.read_bytes()
    if hashlib.sha256(content).hexdigest() != file.sha256:
        raise InputError(f"{file.path} was changed while it was read: start again")
    model = onnx.ModelProto.FromString(content)
    graph = model.graph
    outputs = [value for value in graph.output if value.name == file.logits][:1]
    kept = [type(node).FromString(node.SerializeToString()) for node in live(graph.node, [file.logits])]
    for name in ("node", "output", "value_info", "quantization_annotation", "metadata_props"):
        graph.ClearField(name)
    graph.node.extend(kept)
    graph.output.extend(outputs)
    model.ClearField("training_info")
    for tensor in _tensors(graph, model.functions):
        check_tensor(tensor, file.path, f"weight {quoted(tensor.name)}")
    return model


def _tensors(*holders: Any) -> Iterator[Any]:
    """Yield the tensors of graphs and functions, those of their branches too."""
    stack = [each for holder in holders for each in (holder if isinstance(holder, Iterable) else [holder])]
    while stack:
        holder = stack.pop()
        yield from getattr(holder, "initializer", ())
        for node in holder.node:
            yield from (attribute.t for attribute in node.attribute if attribute.type == 4)
            stack += bodies(node)


def _numbers(session: Any, image: np.ndarray) -> np.ndarray:
    kinds = {"tensor(double)": np.float64, "tensor(float16)": np.float16}
    return image.astype(kinds.get(session.get_inputs()[0].type, np.float32))
