"""Quantise a network to int8 after its training, as the ONNX file that is deployed (onnxruntime.quantization)."""

import json
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certkd.config.copies import Int8
from certkd.files import write_whole
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.onnx.classifier import classifier
from certkd.networks.onnx.export import export
from certkd.networks.onnx.file import packages
from verifiers.core.errors import InputError, loading, one_line


def quantise(original: Checkpoint, how: Int8, images: Tensor, out: Path) -> None:
    """Write the int8 copy of a network.

    Args:
        original: the network.
        how: form and scales.
        images: training images in [0, 1], whose values set the ranges of all layers.
        out: path of the file; its logits are those of a batch of images.

    Raises:
        InputError: packages are missing, or the network cannot be written as ONNX or quantised.
    """
    packages()
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Images(CalibrationDataReader):
        """The images, one by one."""

        def __init__(self) -> None:
            self.images: Iterator[np.ndarray] = iter(images.float().cpu().numpy()[:, None])

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"image": image}

    def write(temporary: Path) -> None:
        import onnx

        quantize_static(
            real,
            temporary,
            Images(),
            quant_format=QuantFormat.QDQ if how.format == "qdq" else QuantFormat.QOperator,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=how.scales == "per-channel",
        )
        made = onnx.load(temporary)
        about = {"of": original.sha256, "how": how.model_dump(mode="json")}
        made.metadata_props.add(key="certkd", value=json.dumps(about))
        onnx.save(made, temporary)

    with tempfile.TemporaryDirectory() as folder:
        real = Path(folder) / "float.onnx"
        export(original.model, real)
        before = logging.root.manager.disable
        logging.disable(logging.WARNING)  # advice to optimise the graph first, which the export does
        try:
            write_whole(out, write)
        except InputError:
            raise
        except (ValueError, KeyError, NotImplementedError) as error:
            raise InputError(f"{original.model.spec.name} cannot be quantised: {one_line(error)}") from error
        finally:
            logging.disable(before)


def made_by(path: Path) -> dict[str, Any]:
    """Return what an int8 copy says of itself, as ``of`` and ``how``; {} for other ONNX files."""
    import onnx

    with loading(path, "an ONNX file"):
        told = {one.key: one.value for one in onnx.load(path, load_external_data=False).metadata_props}
        found = json.loads(told.get("certkd", "{}"))
        return found if isinstance(found, dict) else {}


def agreement(original: Checkpoint, copy: Path, images: Tensor) -> float:
    """Return the share of images to which a copy gives the original's class.

    Raises:
        InputError: the copy is not read.
    """
    quantised = classifier(copy, shape=original.model.spec.shape).model
    with torch.no_grad():
        same = original.model(images).argmax(1) == quantised(images).argmax(1)
    return float(same.float().mean())
