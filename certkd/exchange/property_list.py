"""Certify again what was exported: find sample, label and radius of each property of a list."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from certkd.data.splits import Split
from certkd.exchange.expressions import text_of
from certkd.exchange.instance_list import Instance
from certkd.exchange.instance_table import bare
from certkd.exchange.instance_table import read_instances as read_table
from certkd.exchange.vnnlib import ball
from certkd.exchange.vnnlib_file import VNNLIB, property_of, read_query
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.properties.property import Property

_ABOUT = re.compile(r"^; image ([0-9]{1,15}) of \S+, linf ball of radius (\S+)$", re.MULTILINE)


def about(index: int, name: str, eps: Epsilon) -> str:
    """Write the comment from which a property's sample and radius are read again."""
    return f"image {index} of {'-'.join(name.split())}, linf ball of radius {eps}"


def is_table(path: Path) -> bool:
    """Return whether a list has rows of networks and properties instead of images."""
    with open(path, encoding="utf-8", errors="replace") as file:
        line = file.readline()
    cells = next(csv.reader([line]), [])
    return len(cells) > 1 and any(cell.strip().removesuffix(".gz").endswith(".vnnlib") for cell in cells[1:])


def read_properties(path: Path, net: str, split: Split, classes: int) -> list[Instance]:
    """Read a list as ``certkd export`` writes it, and compare every property with its sample.

    Args:
        path: the list, rows ``onnx,vnnlib,timeout``.
        net: name of the network, without suffix; if several are listed, only its rows are taken.
        split: the samples.
        classes: number of the network's logits.

    Raises:
        InputError: a file cannot be read, or a property is not about the ball around a sample of the split.
    """
    rows = read_table(path)
    nets = {bare(row.network) for row in rows}
    if len(nets) > 1:
        rows = [row for row in rows if bare(row.network) == net]
    if not rows:
        raise InputError(f"{path} lists no property of the network {net!r}: it has {', '.join(sorted(nets))}")
    return [_instance(row.property_path, i, split, classes) for i, row in enumerate(rows, start=1)]


def _instance(path: Path, line: int, split: Split, classes: int) -> Instance:
    found = _ABOUT.search(text_of(path, VNNLIB))
    if found is None:
        raise InputError(
            f"{path} does not say which image it is about, as those of certkd export do: certkd solve decides it"
        )
    place = (split.indices == int(found.group(1))).nonzero().flatten()
    if not len(place):
        raise InputError(f"{path} is about image {found.group(1)}, which the split does not have")
    images, labels = split.batch(place[:1], torch.device("cpu"))
    eps, label = Epsilon.parse(found.group(2)), int(labels[0])
    image = images[0].numpy()
    question = property_of(read_query(path), image.size, classes)
    low, high = (end.reshape(-1).tolist() for end in ball(image, eps))
    if not _is_ball(question, low, high, label):
        raise InputError(
            f"{path} is not about the ball of radius {eps} around image {found.group(1)} of these data and its label "
            f"{label}: is it of another data set? certkd solve decides it as it is"
        )
    return Instance(line, int(place[0]), label, eps)


def _is_ball(question: Property, low: Sequence[float], high: Sequence[float], label: int) -> bool:
    """Return whether a property says that the label stays the class on a box."""
    boxes = {id(case.box): case.box for case in question.cases}
    same = all(box.low == tuple(low) and box.high == tuple(high) for box in boxes.values())
    rivals = []
    for case in question.cases:
        terms = dict(case.inequalities[0].outputs) if len(case.inequalities) == 1 else {}
        rival = [j for j, value in terms.items() if value == -1]
        if terms.get(label) != 1 or len(terms) != 2 or len(rival) != 1 or case.inequalities[0].constant:
            return False
        rivals += rival
    return same and sorted(rivals) == [j for j in range(question.outputs) if j != label]
