"""Export a classifier to ONNX: any number of images with pixels in [0, 1], normalisation inside."""

import ctypes
import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn

from certkd.files import write_whole
from certkd.networks.builders import Classifier
from certkd.networks.onnx.file import packages, read
from certkd.networks.onnx.network import TOLERANCE, load
from certkd.networks.onnx.reference import Reference
from verifiers.core.errors import Contradiction, InputError, Unsupported, one_line
from verifiers.graph.program import Program

#: The first opset with layer normalisation as one operator; it has attention too.
OPSET = 17


def export(model: Classifier, path: Path) -> str | None:
    """Write the program that is certified as ONNX and compare the file with it.

    The file's logits are compared with the network's on random images: in onnxruntime, one by one and in a batch, and
    in certkd's own reader.

    Args:
        model: the network, in eval mode, on the CPU.
        path: path of the file; its folder is created. It has one input ``image`` [batch, *shape] and one output
            ``logits``.

    Returns:
        The reason why certkd cannot read the file, if it has operators that only other tools support; otherwise None.

    Raises:
        InputError: packages are missing, torch cannot write the network as ONNX, the file's logits differ (the file is
            then deleted), or the folder cannot be written.
    """
    packages()
    images = np.random.default_rng(1).random((4, *model.spec.shape), dtype=np.float32)
    program = _program(model, torch.from_numpy(images))
    with torch.no_grad():
        expected = program(torch.from_numpy(images)).numpy()

    def write(temporary: Path) -> None:
        _write(model, program, temporary)
        _compare(model, Reference(read(temporary))(images), expected)

    write_whole(path, write)
    try:
        network, _, _ = load(path)
    except InputError as refusal:
        return str(refusal)
    with torch.no_grad():
        _compare(model, network(torch.from_numpy(images)).numpy(), expected)
    return None


def _compare(model: Classifier, found: np.ndarray, expected: np.ndarray) -> None:
    difference = float(np.abs(found - expected).max())
    if not difference <= TOLERANCE * max(1.0, float(np.abs(expected).max())):
        raise InputError(f"{model.spec.name} cannot be written as ONNX: the file's logits differ by {difference:.3g}")


def _program(model: Classifier, images: torch.Tensor) -> nn.Module:
    """Capture the program that is certified; the network itself if its program does not run on a batch as it is.

    Raises:
        InputError: the network cannot be captured, so tracing it would write one branch of it.
    """
    try:
        found = Program(model).capture(images).module
    except (Unsupported, Contradiction) as error:
        raise InputError(f"{model.spec.name} cannot be written as ONNX: {error}") from None
    together = getattr(found, "together", model)
    return model if together is None else together


def _write(model: Classifier, program: nn.Module, path: Path) -> None:
    content = io.BytesIO()
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                program,
                (torch.zeros(1, *model.spec.shape),),
                content,  # type: ignore[arg-type] # a file's name or a stream
                dynamo=False,  # needs no package besides onnx
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            )
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        why = one_line(error)
        raise InputError(f"{model.spec.name} cannot be written as ONNX: {why}") from None
    path.write_bytes(content.getvalue())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's warnings about tracing, and its print of unknown operators, which bypasses Python's streams."""
    before, stdout = logging.root.manager.disable, os.dup(1)
    logging.disable(logging.CRITICAL)
    sys.stdout.flush()
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        ctypes.CDLL(None).fflush(None)  # discard C's buffered output too
        os.dup2(stdout, 1)
        os.close(stdout)
        logging.disable(before)
