"""A classifier as an ONNX file: pixels in [0, 1] in, any number of images, normalisation inside."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from certkd.checkpoint import write_whole
from certkd.exchange.onnx_file import Reference, packages, read
from certkd.exchange.onnx_network import TOLERANCE, load
from certkd.models import Classifier
from verifiers.errors import InputError

#: The first with layer normalisation as one operator; it has attention too.
OPSET = 17


def export(model: Classifier, path: Path) -> None:
    """Write a network's ONNX file and hold it against the network.

    On random images the file's logits agree with the network's, as onnxruntime runs it, one by one and in a batch, and
    as certkd reads it again.

    Args:
        model: in eval mode, on the CPU.
        path: of the file; its folder is made. It has one input ``image`` [batch, *shape] and one output ``logits``.

    Raises:
        InputError: missing packages, a network that torch cannot write as ONNX, a file with other logits (it is not
            kept), or a folder that cannot be written.
    """
    packages()
    write_whole(path, lambda temporary: _write_checked(model, temporary))


def _write_checked(model: Classifier, path: Path) -> None:
    _write(model, path)
    images = np.random.default_rng(1).random((4, *model.spec.shape), dtype=np.float32)
    with torch.no_grad():
        expected = model(torch.from_numpy(images)).numpy()
        again = load(path)[0](torch.from_numpy(images)).numpy()
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    for found in (Reference(read(path))(images), again):
        difference = float(np.abs(found - expected).max())
        if not difference <= limit:
            raise InputError(
                f"{model.spec.name} cannot be written as ONNX: the file's logits differ by {difference:.3g}"
            )


def _write(model: Classifier, path: Path) -> None:
    content = io.BytesIO()
    try:
        with _quiet(), torch.no_grad():
            torch.onnx.export(
                model,
                (torch.zeros(1, *model.spec.shape),),
                content,  # type: ignore[arg-type] # a file's name or a stream
                dynamo=False,  # needs no package besides onnx
                opset_version=OPSET,
                input_names=["image"],
                output_names=["logits"],
                dynamic_axes={"image": {0: "batch"}, "logits": {0: "batch"}},
            )
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{model.spec.name} cannot be written as ONNX: {why}") from None
    path.write_bytes(content.getvalue())


@contextmanager
def _quiet() -> Iterator[None]:
    """torch warns about its own tracing."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
