"""Robustness questions about a network for other verifiers: VNN-LIB files and VNN-COMP's list of them."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch

from certkd.data.splits import Split
from certkd.exchange.vnnlib import ball, write_property
from certkd.files import write_whole
from certkd.networks.builders import Classifier
from verifiers.core.quantities import Epsilon

BATCH = 256


@dataclass(frozen=True)
class Instances:
    """What was written.

    Attributes:
        properties: paths of the VNN-LIB files, relative to the folder.
        misclassified: indices of the samples that were left out, because the image itself is unsafe.
    """

    properties: list[str]
    misclassified: list[int]


def write_instances(
    model: Classifier, samples: Split, folder: Path, *, network: str, name: str, eps: Epsilon, timeout: int
) -> Instances:
    """One property for each sample that is classified right, ``vnnlib/NAME_INDEX_EPS.vnnlib``, and ``instances.csv``.

    Args:
        model: in eval mode, on the CPU.
        samples: what to ask about; the label's class is to stay.
        folder: where everything goes.
        network: of the ONNX file, relative to the folder.
        name: of the data set and split, for the files' names.
        eps: radius of the linf ball, pixel units.
        timeout: seconds for each instance.

    Raises:
        InputError: the folder cannot be written.
    """
    rows, misclassified = [], []
    for start in range(0, len(samples), BATCH):
        images, labels = samples.batch(torch.arange(start, min(start + BATCH, len(samples))), torch.device("cpu"))
        with torch.no_grad():
            predicted = model(images).argmax(1)
        indices = samples.indices[start : start + BATCH].tolist()
        for image, label, index, answer in zip(images, labels.tolist(), indices, predicted.tolist(), strict=True):
            if answer != label:
                misclassified.append(index)
                continue
            rows.append(f"vnnlib/{name}_{index}_{eps.text.replace('/', '_')}.vnnlib")
            write_property(folder / rows[-1], *ball(image.numpy(), eps), label, model.spec.classes)
    write_whole(folder / "instances.csv", lambda temporary: _list(temporary, network, rows, timeout))
    return Instances(rows, misclassified)


def _list(path: Path, network: str, properties: list[str], timeout: int) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows((network, row, timeout) for row in properties)
