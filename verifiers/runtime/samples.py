"""Check the samples of a certification, before any method runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.core.errors import InputError, one_line
from verifiers.core.reporter import Reporter
from verifiers.runtime.alone import check_alone, probes
from verifiers.runtime.arrays import PIXEL_TOLERANCE, channels_last
from verifiers.runtime.classes import disagreement, out_of_range
from verifiers.runtime.fingerprint import DataFingerprint
from verifiers.runtime.given import labelled
from verifiers.runtime.oom import in_parts, out_of_memory
from verifiers.runtime.outputs import as_logits, rows_of

CLEAN_BATCH = 256


@runtime_checkable
class Images(Protocol):
    """Images in [0, 1], in memory (a tensor) or read on demand."""

    def __len__(self) -> int: ...

    def __getitem__(self, indices: Int[Tensor, " batch"]) -> Tensor: ...


#: Returns images and labels by the index of each sample; None if there is no such sample.
Others = Callable[[Tensor], tuple[Images, Tensor] | None]


@dataclass(frozen=True)
class Data:
    """Images with their true classes.

    Attributes:
        images: tensor ``(samples, *shape)`` in [0, 1], or an object that returns such a tensor for a tensor of rows.
        labels: true classes.
        indices: index of each sample in its data set split; 0, 1, ... when None.
        about: facts that the rows depend on, stored as attributes of the file; a file that differs in one is rejected.
        others: returns images and labels of the split by their index, None if there is no such sample; a file about
            more samples than these is recognised by it.
    """

    images: Images | Tensor
    labels: Int[Tensor, " samples"]
    indices: Int[Tensor, " samples"] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    others: Others | None = None


def others_of(data: Any) -> Others | None:
    """Return what looks up other samples of the split, if the data have it."""
    return data.others if isinstance(data, Data) else None


@dataclass(frozen=True)
class Samples:
    """Checked samples with the network's predictions on them."""

    images: Images
    labels: Int[Tensor, " samples"]
    predicted: Int[Tensor, " samples"]
    finite: Tensor
    indices: Int[Tensor, " samples"]
    data_sha256: str
    classes: int
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def correct(self) -> Tensor:
        """True where the prediction is right; logits that are not finite predict nothing."""
        return (self.predicted == self.labels) & self.finite

    def batch(self, rows: np.ndarray, device: torch.device) -> Tensor:
        """Load the images of some rows, clamped to [0, 1], on the device."""
        return self.images[torch.as_tensor(rows)].to(device).float().clamp(0.0, 1.0)


def alone(network: nn.Module, first: Float[Tensor, "batch *shape"]) -> nn.Module:
    """Check that a network is one fixed function of each image; return it."""
    check_alone(network, probes(network, first))
    return network


def validate(
    network: nn.Module, data: Any, reporter: Reporter, hold: Callable[[Tensor], nn.Module] | None = None
) -> Samples:
    """Check ranges, shapes and classes, and that the network is one fixed function; predict every sample.

    Args:
        network: maps images in [0, 1] to logits, in eval mode.
        data: images and their true classes.
        reporter: receives the accuracy and warnings.
        hold: checks the network on the first images and returns the module that predicts; ``alone`` when None.

    Raises:
        InputError: a check fails; the message is one line about the first one.
    """
    given = as_data(data)
    images, labels, order, model = given.images, given.labels, _order(given), network
    check_dtype(network)
    labels = labels.cpu().long()
    fingerprint, predictions, finite, classes = DataFingerprint(), [], [], 0
    for start in range(0, len(labels), CLEAN_BATCH):
        rows = torch.arange(start, min(start + CLEAN_BATCH, len(labels)))
        batch = images[rows]
        check_pixels(batch)
        fingerprint.update(batch, labels[rows])
        if start == 0:
            _logits(network, batch)
            first = batch.to(device_of(network)).float().clamp(0.0, 1.0)
            model = alone(network, first) if hold is None else hold(first)
        logits = as_logits(_logits(model, batch))
        classes = logits.shape[1]
        predictions.append(logits.argmax(1).cpu())
        finite.append(torch.isfinite(logits).all(1).cpu())
    stray = out_of_range(int(labels.min()), int(labels.max()), classes, "the network")
    if stray is not None:
        raise InputError(stray)
    samples = Samples(
        images,
        labels,
        torch.cat(predictions),
        torch.cat(finite),
        order,
        fingerprint.hexdigest(),
        classes,
        given.about,
    )
    accuracy = float(samples.correct.double().mean())
    reporter.clean(accuracy, len(labels))
    chance = disagreement(samples.predicted, labels, classes, int(samples.correct.sum()))
    if chance is not None:
        reporter.warn(f"clean accuracy {chance}")
    return samples


def _order(given: Data) -> Int[Tensor, " samples"]:
    """Return the samples' indices; there must be one of each for every image."""
    labels, indices = given.labels, given.indices
    if len(given.images) != len(labels) or len(labels) == 0:
        raise InputError(f"need as many images as labels and at least one: got {len(given.images)} and {len(labels)}")
    order = torch.arange(len(labels)) if indices is None else indices.cpu().long()
    if len(order) != len(labels) or int(order.min()) < 0:
        raise InputError(f"need one index of 0 or more per label: got {len(order)} for {len(labels)} labels")
    return order


def as_data(data: Any) -> Data:
    """Images and labels as tensors, whatever a person gave; see ``labelled``.

    Raises:
        InputError: no images and labels can be read.
    """
    return data if isinstance(data, Data) else Data(*labelled(data))


def check_dtype(model: nn.Module, name: str = "the network", verb: str = "certify") -> None:
    """Reject a network whose weights are not float32."""
    found = {str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()} - {"float32"}
    if found:
        raise InputError(f"{name}'s weights must be float32, got {found.pop()}: {verb} model.float()")


def check_pixels(batch: Tensor) -> None:
    """Reject images that are not floating point in [0, 1]."""
    if not batch.is_floating_point():
        raise InputError(f"images must be floating point in [0, 1], got {batch.dtype}: divide bytes by 255")
    low, high = float(batch.min()), float(batch.max())
    if not (low >= -PIXEL_TOLERANCE and high <= 1 + PIXEL_TOLERANCE):
        bytes_ = low >= 0 and 16 <= high <= 255
        advice = "divide by 255" if bytes_ else "undo the normalisation and make it the network's first layer"
        raise InputError(f"images must be in [0, 1], got values from {low:.3g} to {high:.3g}: {advice}")


def _logits(model: nn.Module, batch: Tensor) -> Tensor:
    try:
        with torch.no_grad():
            images = batch.to(device_of(model)).float().clamp(0.0, 1.0)
            return in_parts(lambda part: rows_of(model(part), len(part)), images)
    except InputError:
        raise
    except (RuntimeError, ValueError, IndexError) as error:
        if out_of_memory(error):
            raise
        shape = tuple(batch.shape[1:])
        hint = ": they look like channels last, give images.permute(0, 3, 1, 2)" if channels_last(shape) else ""
        raise InputError(f"the network does not take images of shape {shape} ({one_line(error)}){hint}") from error


def first_images(samples: Samples, model: nn.Module, count: int = 2) -> Tensor:
    """Load the first samples on the network's device, repeated if there are fewer."""
    rows = np.arange(min(count, len(samples.labels)))
    first = samples.batch(rows, device_of(model))
    return first if len(first) == count else first.repeat(count, *[1] * (first.dim() - 1))


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the network's weights."""
    tensor = next(iter([*model.parameters(), *model.buffers()]), None)
    return tensor.device if tensor is not None else torch.device("cpu")
