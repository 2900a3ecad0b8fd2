"""Robustness properties of a network for other verifiers: VNN-LIB files and VNN-COMP's list of them."""

import csv
from dataclasses import dataclass
from pathlib import Path

import torch

from certkd.data.splits import Split
from certkd.exchange.instance_table import LIST
from certkd.exchange.property_list import about
from certkd.exchange.vnnlib import VERSIONS, Style, ball, write_property
from certkd.files import write_whole
from certkd.networks.builders import Classifier
from verifiers.core.quantities import Epsilon

BATCH = 256


@dataclass(frozen=True)
class Properties:
    """The properties to write, and the names in their files.

    Attributes:
        network: the ONNX file, relative to the folder.
        name: of the data set and split.
        eps: radius of the linf ball, pixel units.
        timeout: seconds for each instance.
        version: of VNN-LIB.
    """

    network: str
    name: str
    eps: Epsilon
    timeout: int
    version: str = VERSIONS[0]


@dataclass(frozen=True)
class Instances:
    """The files that were written.

    Attributes:
        properties: paths of the VNN-LIB files, relative to the folder.
        misclassified: indices of the samples that were left out.
    """

    properties: list[str]
    misclassified: list[int]


def write_instances(model: Classifier, samples: Split, folder: Path, wanted: Properties) -> Instances:
    """Write ``vnnlib/NAME_INDEX_EPS.vnnlib`` for each sample that is classified correctly, and ``instances.csv``.

    Args:
        model: in eval mode, on the CPU.
        samples: a property each: the prediction stays the label.
        folder: its ``vnnlib`` folder is made.
        wanted: radius, time limit and names.

    Raises:
        InputError: the folder cannot be written.
    """
    rows, misclassified, eps = [], [], wanted.eps
    for start in range(0, len(samples), BATCH):
        images, labels = samples.batch(torch.arange(start, min(start + BATCH, len(samples))), torch.device("cpu"))
        with torch.no_grad():
            predicted = model(images).argmax(1)
        indices = samples.indices[start : start + BATCH].tolist()
        for image, label, index, answer in zip(images, labels.tolist(), indices, predicted.tolist(), strict=True):
            if answer != label:
                misclassified.append(index)
                continue
            rows.append(f"vnnlib/{wanted.name}_{index}_{eps.text.replace('/', '_')}.vnnlib")
            style = Style(wanted.version, about(index, wanted.name, eps))
            write_property(folder / rows[-1], *ball(image.numpy(), eps), label, model.spec.classes, style)
    write_whole(folder / LIST, lambda temporary: _list(temporary, wanted.network, rows, wanted.timeout))
    return Instances(rows, misclassified)


def _list(path: Path, network: str, properties: list[str], timeout: int) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows((network, row, timeout) for row in properties)
