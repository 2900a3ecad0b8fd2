"""Prepare the samples of a checkpoint for ``certkd certify`` and ``certkd run``."""

import json
import math
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from certkd.config.settings import DataConfig
from certkd.data.selection import EVERYTHING, Selection
from certkd.data.splits import DataSet, Split
from certkd.networks.builders import short
from certkd.networks.checkpoint import Checkpoint
from certkd.objectives import OBJECTIVES
from verifiers.certify.audit.meaning import indices_of
from verifiers.core.errors import InputError, did_you_mean
from verifiers.results.rows import Certificates
from verifiers.runtime.classes import FROM_ONE
from verifiers.runtime.samples import Data, Images, Others


def split_of(data: DataSet, name: str) -> Split:
    """Return the split of that name.

    Raises:
        InputError: the data set has no such split.
    """
    if name not in data.splits:
        raise InputError(f"unknown split {name!r}.{did_you_mean(name, list(data.splits))}")
    return data.splits[name]


def chosen_samples(checkpoint: Checkpoint, data: DataSet, split: str, selection: Selection = EVERYTHING) -> Split:
    """Return the chosen samples of a split, for a network that takes them.

    Raises:
        InputError: another input shape or too few classes, an unknown split, or samples that it does not have.
    """
    whole, spec = split_of(data, split), checkpoint.model.spec
    if spec.shape != data.shape or spec.classes < data.classes:
        counted = data.classes == spec.classes + 1 and int(whole.labels.min()) == 1
        raise InputError(
            f"the network takes images {spec.shape} of {spec.classes} classes, "
            f"{data.name} has {data.shape} of {data.classes}{FROM_ONE if counted else _fit(spec.shape, data.shape)}"
        )
    return whole.take(torch.tensor(selection.rows(len(whole), f"the {split} split of {data.name}")))


def _fit(wanted: tuple[int, ...], given: tuple[int, ...]) -> str:
    """Say what makes images of one shape those of another; "" if that is not clear."""
    if wanted != given and math.prod(wanted) == math.prod(given):
        return f": save its images as images.reshape(-1, {', '.join(map(str, wanted))}), if that is their order"
    if len(wanted) == len(given) == 3 and wanted[1:] == given[1:] and {wanted[0], given[0]} == {1, 3}:
        return ": save its images in colour" if wanted[0] == 3 else ": save its images as grey ones"
    return ""


def rows_of(certificates: Certificates, data: DataSet) -> Split:
    """Return the samples of a certificate file, in its order.

    Raises:
        InputError: the data set has no such split or samples, or the file does not list them all yet.
    """
    whole = split_of(data, str(certificates.attributes["split"]))
    position = {index: row for row, index in enumerate(whole.indices.tolist())}
    indices = indices_of(certificates).tolist()
    missing = [index for index in indices if index not in position]
    if missing:
        raise InputError(f"{certificates.path}: {data.name} has no sample {missing[0]}")
    return whole.take(torch.tensor([position[index] for index in indices]))


class ImagesByRow(Mapping[int, np.ndarray]):
    """The images of a certificate file by row, in [0, 1]; each is read when it is asked for."""

    def __init__(self, samples: Split) -> None:
        self._samples = samples

    def __getitem__(self, row: int) -> np.ndarray:
        found: np.ndarray = self._samples.images[torch.tensor([row])][0].float().clamp(0.0, 1.0).numpy()
        return found

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self)))

    def __len__(self) -> int:
        return len(self._samples.labels)

    def __contains__(self, row: object) -> bool:
        return row in range(len(self))


def samples_of(certificates: Certificates, data: DataSet) -> ImagesByRow:
    """Return the images of a certificate file by row.

    Raises:
        InputError: as ``rows_of``, or the classes are others.
    """
    samples = rows_of(certificates, data)
    if samples.labels.tolist() != next(iter(certificates))["label"].tolist():
        raise InputError(f"{certificates.path}: the classes of {data.name} are not those of the file")
    return ImagesByRow(samples)


def data_for(
    checkpoint: Checkpoint, data: DataSet, config: DataConfig, split: str = "test", selection: Selection = EVERYTHING
) -> Data:
    """Return the chosen samples of a split, with the facts about network and data that a certificate file stores.

    Raises:
        InputError: another input shape or too few classes, an unknown split, or samples that it does not have.
    """
    samples = chosen_samples(checkpoint, data, split, selection)
    about = {**about_of(checkpoint), "data": config.name, "data_seed": config.seed, "split": split}
    return Data(samples.images, samples.labels, samples.indices, about, others=_lookup(split_of(data, split)))


def _lookup(whole: Split) -> Others:
    """Look up samples of a split by their index."""

    def others(indices: Tensor) -> tuple[Images, Tensor] | None:
        position = {index: row for row, index in enumerate(whole.indices.tolist())}
        if any(index not in position for index in indices.tolist()):
            return None
        found = whole.take(torch.tensor([position[index] for index in indices.tolist()]))
        return found.images, found.labels

    return others


def about_of(checkpoint: Checkpoint) -> dict[str, str]:
    """State a network's architecture, its teacher and its objective with the paper, where the checkpoint says so."""
    spec, kind = checkpoint.model.spec, str((checkpoint.training.get("objective") or {}).get("kind", ""))
    papers = {str(objective.model_fields["kind"].default): objective.paper for objective in OBJECTIVES}
    return {
        "architecture": f"{short(spec.name)} {json.dumps(spec.options)}" if spec.options else short(spec.name),
        "teacher_sha256": checkpoint.teacher_sha256,
        "objective": kind,
        "objective_paper": papers.get(kind, ""),
    }


def numbering(data: DataSet, split: str, selection: Selection) -> str | None:
    """Explain how samples are numbered, if that could be misread."""
    whole = split_of(data, split)
    if selection.ranges is None or torch.equal(whole.indices, torch.arange(len(whole))):
        return None
    return f"samples are numbered in the {split} split; the file has their index in all of {data.name}"
