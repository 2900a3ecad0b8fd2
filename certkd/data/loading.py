"""Load the batches of an epoch: transformed for training, and ahead of it by processes of their own."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from certkd.data.keys import key
from certkd.data.splits import Split, original
from verifiers.core.errors import InputError

#: Transforms of single images, by the name of the augmentation.
OF_IMAGES = ("resized-crop", "rand-augment")


class Batches(Dataset[Any]):
    """The batches of an epoch by their number: rows, images in [0, 1], labels.

    What is drawn for an image depends on the seed, the epoch and the image alone, whoever loads it.
    """

    def __init__(
        self, split: Split, parts: Sequence[Int[Tensor, " _"]], augment: str = "none", seed: int = 0, epoch: int = 0
    ) -> None:
        self._split, self._parts, self._drawn = split, parts, (seed, epoch)
        self._transform = (
            transform(augment, split.images[torch.tensor([0])].shape[2:]) if augment in OF_IMAGES else None
        )

    def __len__(self) -> int:
        return len(self._parts)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor] | InputError:
        """Load a batch; an image that cannot be read is returned as the error, to be raised where the training runs."""
        rows, transform = self._parts[number], self._transform
        try:
            images = self._split.images[rows] if transform is None else self._transformed(transform, rows)
        except InputError as error:
            return error
        return rows, images, self._split.labels[rows]

    def _transformed(self, transform: Any, rows: Int[Tensor, " rows"]) -> Float[Tensor, "rows channels height width"]:
        made = []
        with torch.random.fork_rng(devices=[]):
            for row, index in zip(rows.tolist(), self._split.indices[rows].tolist(), strict=True):
                torch.manual_seed(key(*self._drawn, 7, index))
                made.append(transform(original(self._split.images, row)).clamp(0.0, 1.0))
        return torch.stack(made)


def check_augmentation(augment: str, shape: Sequence[int]) -> None:
    """Check that images of a shape can be augmented so.

    Raises:
        InputError: they are no pictures, or have another number of channels than RandAugment takes.
    """
    if augment != "none" and len(shape) != 3:
        raise InputError(f"augment {augment} is for pictures (channels, height, width), not {tuple(shape)}: use none")
    if augment == "rand-augment" and shape[0] not in (1, 3):
        raise InputError(f"augment rand-augment is for 1 or 3 channels, not {shape[0]}: use resized-crop")


def transform(augment: str, size: Sequence[int]) -> Any:
    """Return the transform of one image to a size, of torchvision: its inputs and outputs are floats in [0, 1].

    ``resized-crop`` is the usual one of ImageNet: a part of 8 to 100 % of the image, resized, and mirrored or not;
    ``rand-augment`` adds two operations of RandAugment (arXiv 1909.13719).
    """
    from torchvision.transforms import v2

    steps = [v2.RandomResizedCrop(list(size), antialias=True), v2.RandomHorizontalFlip()]
    return v2.Compose(steps + ([v2.RandAugment()] if augment == "rand-augment" else []))


def loaded(batches: Batches, loaders: int, place: torch.device) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Load batches in their order: rows, images and labels, the latter two on a device.

    Args:
        batches: those of an epoch.
        loaders: processes that load ahead of what is asked for; 0 to load when asked.
        place: the device.

    Raises:
        InputError: an image cannot be read.
    """
    ahead: Iterable[Any] = (batches[number] for number in range(len(batches)))
    if loaders:
        pinned, own = place.type == "cuda", torch.Generator()  # the training's random numbers are not its loader's
        ahead = DataLoader(batches, batch_size=None, num_workers=loaders, pin_memory=pinned, generator=own)
    for found in ahead:
        if isinstance(found, InputError):
            raise found
        rows, images, labels = found
        yield rows, images.to(place, non_blocking=True), labels.to(place, non_blocking=True)
