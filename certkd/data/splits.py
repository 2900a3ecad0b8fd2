"""Data sets and their splits: images in [0, 1], labels, and each sample's index in its source."""

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import get_worker_info

from verifiers.runtime.samples import Images

SPLITS = ("train", "validation", "test")
#: Per-channel mean and standard deviation of the training pixels, for the network's normalisation layer.
STATISTICS: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mnist": ((0.1307,), (0.3081,)),
    "fashion-mnist": ((0.2860,), (0.3530,)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "modulations": ((0.5, 0.5), (0.0884, 0.0884)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


@dataclass(frozen=True)
class TensorImages:
    """Images in memory, as bytes or floats; ``images[rows]`` is a float tensor in [0, 1]."""

    tensor: Tensor

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch *shape"]:
        chosen = self.tensor[rows]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen.float()


@dataclass(frozen=True)
class FileImages:
    """Images on disk, decoded on use: by threads, and one by one in a process that loads for another.

    Attributes:
        paths: of the images.
        read: reads one at the size of the data set.
        whole: reads one at its own size.
    """

    paths: Sequence[Path]
    read: Callable[[Path], Tensor]
    whole: Callable[[Path], Tensor]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch channels height width"]:
        every = map if get_worker_info() is not None else _threads(os.getpid()).map
        return torch.stack(list(every(self.read, [self.paths[row] for row in rows.tolist()])))


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process, which its copies do not have."""
    return ThreadPoolExecutor(os.cpu_count())


@dataclass(frozen=True)
class Split:
    """One split: images, labels, and each sample's index in its source."""

    images: Images
    labels: Int[Tensor, " samples"]
    indices: Int[Tensor, " samples"]

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, rows: Int[Tensor, " batch"], device: torch.device) -> tuple[Tensor, Tensor]:
        """Return the images, in [0, 1], and the labels of some rows, on the device."""
        return self.images[rows].to(device), self.labels[rows].to(device)

    def take(self, rows: Int[Tensor, " rows"]) -> "Split":
        """Keep some rows of the split, in their order."""
        return Split(Subset(self.images, rows), self.labels[rows], self.indices[rows])


@dataclass(frozen=True)
class Subset:
    """Some rows of images, in their own order."""

    images: Images
    rows: Int[Tensor, " rows"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> Tensor:
        return self.images[self.rows[rows]]


def original(images: Images, row: int) -> Float[Tensor, "channels height width"]:
    """Return one image in [0, 1], from a file at its own size."""
    if isinstance(images, Subset):
        return original(images.images, int(images.rows[row]))
    if isinstance(images, FileImages):
        return images.whole(images.paths[row])
    return images[torch.tensor([row])][0]


@dataclass(frozen=True)
class DataSet:
    """A named data set with its splits.

    Attributes:
        names: the classes' names; () where they are numbers alone.
        remarks: lines about how it was read, where that could surprise.
    """

    name: str
    classes: int
    shape: tuple[int, ...]
    splits: Mapping[str, Split]
    remarks: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    @property
    def statistics(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation per channel; () and () if none are known for the data set."""
        return STATISTICS.get(self.name, ((), ()))

    def called(self, number: int) -> str:
        """Return the name of a class, or its number where it has none."""
        return self.names[number] if number < len(self.names) else str(number)
