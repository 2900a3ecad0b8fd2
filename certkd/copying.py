"""Make the compressed copies of an experiment: compress a network, train the copy further, quantise it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certkd.certification import chosen_samples
from certkd.config.copies import Compression, Int8
from certkd.config.experiment import CopyConfig
from certkd.data.selection import Selection
from certkd.data.splits import DataSet
from certkd.networks import checkpoint
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.copies.compress import check_compressible, compressed
from certkd.networks.copies.facts import Facts, facts_of
from certkd.networks.copies.int8 import made_by, quantise
from verifiers.core.errors import InputError


@dataclass(frozen=True)
class Deployed:
    """A network as it is deployed.

    Attributes:
        network: the network of the file.
        file: a checkpoint, or an ONNX file of an int8 copy.
        facts: its size; the weights of an int8 copy are counted before they are rounded.
    """

    network: Checkpoint
    file: Path
    facts: Facts

    @classmethod
    def of(cls, network: Checkpoint, file: Path) -> "Deployed":
        """Describe the network of a checkpoint."""
        return cls(network, file, facts_of(network.model))


def calibration_images(original: Checkpoint, data: DataSet, how: Int8) -> Tensor:
    """Return the training images whose values set the ranges of an int8 copy.

    Raises:
        InputError: they are of another shape than the network takes.
    """
    samples = chosen_samples(original, data, "train", Selection(limit=how.images))
    return samples.batch(torch.arange(len(samples)), torch.device("cpu"))[0]


def make(
    copy: CopyConfig,
    original: Deployed,
    data: DataSet,
    place: Path,
    *,
    tune: Callable[[Path], Path],
    load: Callable[[Path], Checkpoint],
) -> Deployed:
    """Make a copy and train it further, or find it where an earlier call made it.

    Args:
        copy: how.
        original: the network.
        data: its data set; an int8 copy takes its ranges from the training images.
        place: path of the copy, without its suffix.
        tune: trains the checkpoint at a path further, and returns the path of the result.
        load: reads a network.

    Raises:
        InputError: the network cannot be compressed so, or a copy of another network or with other settings is there.
    """

    def described(file: Path) -> Deployed:
        return Deployed.of(load(file), file)

    check_compressible(original.network.model)
    if isinstance(copy.how, Int8):
        before = original if copy.tune is None else described(tune(original.file))
        file = place.with_name(f"{place.name}.onnx")
        if not _is_made(file, before.network, copy.how, made_by):
            quantise(before.network, copy.how, calibration_images(before.network, data, copy.how), file)
        return Deployed(load(file), file, before.facts)
    file = place.with_name(f"{place.name}.pt")
    if not _is_made(file, original.network, copy.how, checkpoint.copied_in):
        checkpoint.save(compressed(original.network, copy.how), file)
    return described(file if copy.tune is None else tune(file))


def _is_made(file: Path, original: Checkpoint, how: Compression, told: Callable[[Path], Mapping[str, Any]]) -> bool:
    """Tell whether a copy is there.

    Raises:
        InputError: it is a copy of another network, or made with other settings.
    """
    if not file.exists():
        return False
    found = told(file)
    if (found.get("of"), found.get("how")) != (original.sha256, how.model_dump(mode="json")):
        raise InputError(f"{file} is a copy of another network or made with other settings: add --overwrite")
    return True
