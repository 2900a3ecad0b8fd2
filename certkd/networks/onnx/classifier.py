"""Turn an ONNX file into a classifier: pixels in [0, 1], channels first, normalisation inside."""

import math
from collections.abc import Sequence
from pathlib import Path

from jaxtyping import Float
from torch import Tensor, nn

from certkd.networks.builders import Classifier, ModelSpec
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.onnx.network import load
from verifiers.core.errors import InputError, did_you_mean

#: Arrangements of a file's images: (channels, height, width), channels last, or another shape in the same order.
LAYOUTS = ("nchw", "nhwc", "flat")


class ChannelsLast(nn.Module):
    """Permute (channels, height, width) to (height, width, channels)."""

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch height width channels"]:
        return x.permute(0, 2, 3, 1)


class Reshaped(nn.Module):
    """Reshape images, keeping the order of the entries."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *other"]:
        return x.flatten(1) if len(self.shape) == 1 else x.reshape(-1, *self.shape)

    def extra_repr(self) -> str:
        return str(self.shape)


def classifier(
    path: str | Path,
    *,
    shape: tuple[int, ...] | None = None,
    layout: str = "nchw",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    output: str | int | None = None,
) -> Checkpoint:
    """Load the network of an ONNX file, for certification or as a teacher.

    Args:
        path: path of the file.
        shape: shape of the images, (channels, height, width), which fixes the sides that the file leaves open; None to
            derive it from the file and the layout.
        layout: one of ``LAYOUTS``.
        mean, std: the normalisation that the network expects, per channel; () for none.
        output: name or place of the logits among several outputs.

    Raises:
        InputError: as for ``network.load``, or the images have another shape, the layout is unknown, or the
            normalisation has another number of channels.
    """
    if layout not in LAYOUTS:
        raise InputError(f"unknown layout {layout!r}.{did_you_mean(layout, list(LAYOUTS))}")
    network, file, classes = load(path, shape=shape and _theirs(shape, layout), output=output)
    theirs = file.shape
    ours = shape or _channels_first(theirs, layout)
    if layout not in _fitting(ours, theirs):
        fitting = _fitting(ours, theirs)
        advice = f"--layout {fitting[0]} would fit" if fitting else "they must be of the same size"
        raise InputError(f"{path} takes images {theirs}, not {ours} with layout {layout}: {advice}")
    if mean and (len(ours) != 3 or len(mean) != ours[0]):
        raise InputError(f"--mean and --std have {len(mean)} values, but {path} takes images {ours}: one per channel")
    arranged: dict[str, list[nn.Module]] = {"nchw": [], "nhwc": [ChannelsLast()], "flat": [Reshaped(theirs)]}
    name = f"onnx:{Path(path).stem[:150]}"
    classes = max(classes, 2)  # one score z is read as the logits (0, z)
    spec = ModelSpec(name=name, classes=classes, shape=ours, mean=tuple(mean), std=tuple(std), output=output)
    model = Classifier(spec, nn.Sequential(*arranged[layout], network)).eval()
    return Checkpoint(model, remarks=file.remarks)


def _channels_first(theirs: tuple[int, ...], layout: str) -> tuple[int, ...]:
    return (theirs[-1], *theirs[:-1]) if layout == "nhwc" else theirs


def _theirs(ours: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Arrange the shape of an image as a file has it."""
    if layout == "nhwc" and len(ours) == 3:
        return (*ours[1:], ours[0])
    return (math.prod(ours),) if layout == "flat" else ours


def _fitting(ours: tuple[int, ...], theirs: tuple[int, ...]) -> list[str]:
    """List the layouts that turn images of shape ``ours`` into ``theirs``."""
    fits = {
        "nchw": ours == theirs,
        "nhwc": len(ours) == 3 and (*ours[1:], ours[0]) == theirs,
        "flat": math.prod(ours) == math.prod(theirs),
    }
    return [layout for layout in LAYOUTS if fits[layout]]
