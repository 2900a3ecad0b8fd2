"""Take data as people have them: tensors, arrays, lists, torch data sets and loaders."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    TensorDataset,
    default_collate,
    default_convert,
)

from verifiers.core.errors import InputError, one_line
from verifiers.runtime.arrays import as_array, as_tensor, channels_last, class_numbers, pixels
from verifiers.runtime.pictures import is_grey, picture, readable

#: Images of a data set are kept in memory up to this size, and read again for each use beyond it.
IN_MEMORY = 2**30
#: Items that are read twice, to find out whether a data set is random.
TRIED = 8
#: What data sets of dictionaries call images and labels.
IMAGE_KEYS = ("image", "img", "pixel_values", "images", "x", "input")
LABEL_KEYS = ("label", "labels", "target", "y", "class", "fine_label")


def labelled(data: Any, *, random: bool = False) -> tuple[Any, Int[Tensor, " samples"]]:
    """Take images and their classes from a pair, a torch data set or a loader.

    A pair holds tensors, arrays or lists; bytes become floats in [0, 1]. Items of a data set are pairs, or dictionaries
    with an image and a label; images are tensors, arrays (height, width, channels) of bytes, or PIL images. A loader's
    items are those of its data set, in the data set's order.

    Args:
        data: what a person gave.
        random: data sets that draw another image each time (augmentation) are accepted, and read again for each use.

    Returns:
        Images as a tensor, or as an object that reads rows on demand; and class numbers.

    Raises:
        InputError: nothing of this kind, or items that are not images with one class each.
    """
    if isinstance(data, TensorDataset):
        data = data.tensors[:2]
    if isinstance(data, tuple | list) and len(data) == 2:
        return _pair(*data)
    if isinstance(data, DataLoader):
        return _loader(data, random)
    if isinstance(data, IterableDataset):
        return _collected(data)
    if not _is_dataset(data):
        raise InputError(
            f"data must be a pair of images and labels, got {type(data).__name__}: give (images, labels), "
            "or a torch Dataset or DataLoader"
        )
    return _dataset(data, range(len(data)), random)


def _is_dataset(data: Any) -> bool:
    """Tell data sets with numbered items, lists of pairs among them, from other objects."""
    if isinstance(data, Tensor | np.ndarray | Mapping | str | bytes):
        return False
    few = isinstance(data, tuple | list) and len(data) < 2
    return hasattr(data, "__getitem__") and hasattr(data, "__len__") and not few


def _pair(images: Any, labels: Any) -> tuple[Tensor, Int[Tensor, " samples"]]:
    x = images.detach() if isinstance(images, Tensor) else _pixels(as_array(images, "images"))
    if x.is_floating_point() and isinstance(images, list | tuple):
        x = x.float()
    if x.dim() == 0:
        raise InputError("images must be one per row, got a number")
    if x.dtype in (torch.uint8, torch.bool):
        x = _pixels(x.cpu().numpy())
    y = as_array(labels, "labels")
    if y.ndim == 0 or len(y) != len(x) or not len(y):
        count = len(y) if y.ndim else 1
        raise InputError(f"need as many images as labels and at least one: got {len(x)} and {count}")
    if y.dtype.kind in "iu" and y.ndim == 1:
        return x, as_tensor(y).long()  # the network tells how many classes there are
    return x, class_numbers(y, len(x), "labels")[0]


def _pixels(array: np.ndarray) -> Tensor:
    """Read bytes, bools and 16-bit pixels as floats in [0, 1]; other arrays stay as they are, and are checked later."""
    exact = array.dtype in (np.uint8, np.bool_, np.uint16) and array.ndim > 0
    return _floats(pixels(array, "images")[0]) if exact else as_tensor(array)


def _floats(images: Tensor) -> Tensor:
    return images.float() / 255 if images.dtype == torch.uint8 else images


def _loader(loader: "DataLoader[Any]", random: bool) -> tuple[Any, Int[Tensor, " samples"]]:
    """Read a loader's data set, or its batches where only they are known; torch's random state is kept."""
    batches, batched = loader.batch_sampler, loader.batch_size is not None or loader.batch_sampler is not None
    with torch.random.fork_rng(devices=[]):
        if isinstance(loader.dataset, IterableDataset) or loader.collate_fn not in (default_collate, default_convert):
            return _collected(_unbatched(loader) if batched else loader)
        plain = batches is None or type(batches) is BatchSampler
        rows = list(loader.sampler) if plain else list(chain.from_iterable(batches or ()))
    return _dataset(loader.dataset, sorted({int(row) for row in rows}), random)


def _unbatched(loader: "DataLoader[Any]") -> Iterable[tuple[Any, Any]]:
    for batch in loader:
        images, labels = _entries(batch)
        yield from zip(images, labels, strict=True)


def _collected(items: Iterable[Any]) -> tuple[Tensor, Int[Tensor, " samples"]]:
    """Read everything into memory, from data that can be read once in order."""
    try:
        images, labels = zip(*((_image(x), y) for x, y in map(_entries, items)), strict=True)
    except ValueError as error:
        raise InputError(f"the data set gives no images with labels: {one_line(error)}") from None
    return _stacked(images), _labels(labels)


def _dataset(dataset: Any, rows: Sequence[int], random: bool) -> tuple[Any, Int[Tensor, " samples"]]:
    """Read a data set once for its labels, and keep its images where they are few and always the same."""
    if not len(rows):
        raise InputError("need as many images as labels and at least one: got 0 and 0")
    source = Items(dataset, torch.as_tensor(rows, dtype=torch.long))
    first = source[torch.arange(min(TRIED, len(rows)))]
    varies = not torch.equal(first, source[torch.arange(len(first))])
    if varies and not random:
        raise InputError(
            "the data set gives another image each time it is read (a random transform?): certify images as they are"
        )
    keep = not varies and first[0].numel() * first.element_size() * len(rows) <= IN_MEMORY
    images, labels = [], []
    for row in rows:
        image, label = source.item(row)
        labels.append(label)
        if keep:
            images.append(image)
    if not keep:
        return source, _labels(labels)
    whole = _stacked(images)
    if 0 < float(whole.max()) < 1.5 / 255:
        raise InputError("the brightest pixel of the data set is 1/255: give bytes from 0 to 255, or floats in [0, 1]")
    return whole, _labels(labels)


@dataclass(frozen=True)
class Items:
    """Images of a data set, read on demand."""

    dataset: Any
    rows: Int[Tensor, " samples"]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Int[Tensor, " batch"]) -> Float[Tensor, "batch *shape"]:
        return _stacked([self.item(row)[0] for row in self.rows[rows].tolist()])

    def item(self, row: int) -> tuple[Tensor, Any]:
        """Return one image in [0, 1] and its label, as the data set gives it.

        Raises:
            InputError: the data set fails, or the item is something else.
        """
        try:
            entry = self.dataset[row]
        except Exception as error:  # a data set is a person's own code
            raise InputError(f"item {row} of the data set cannot be read: {one_line(error)}") from error
        image, label = _entries(entry)
        return _image(image), label


def _entries(item: Any) -> tuple[Any, Any]:
    """The image and the label of an item."""
    if isinstance(item, Mapping):
        names = [next((key for key in keys if key in item), None) for keys in (IMAGE_KEYS, LABEL_KEYS)]
        if None in names:
            raise InputError(
                f"items of the data set have {', '.join(map(str, item))[:100]}: they need an image and a label"
            )
        return item[names[0]], item[names[1]]
    if not isinstance(item, tuple | list) or len(item) < 2:
        raise InputError(f"items of the data set must be (image, label), got {type(item).__name__}")
    return item[0], item[1]


def _image(image: Any) -> Tensor:
    """One image as floats; arrays of bytes have their channels last, as PIL and numpy have them."""
    if isinstance(image, Tensor):
        return _floats(image).float()
    if hasattr(image, "mode") and hasattr(image, "convert"):  # a PIL image
        channels = 1 if is_grey(image) else 3
        return picture(readable(image, channels), channels)
    array = as_array(image, "images of the data set")
    if array.ndim == 2:
        array = array[None]
    elif channels_last(array.shape):
        array = array.transpose(2, 0, 1)
    return _floats(as_tensor(array)).float()


def _stacked(images: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(image.shape) for image in images}
    if len(shapes) != 1:
        few = " and ".join(str(shape) for shape in sorted(shapes)[:2])
        raise InputError(f"images of the data set have several shapes, like {few}: resize them in its transform")
    return torch.stack(list(images))


def _labels(labels: Sequence[Any]) -> Int[Tensor, " samples"]:
    return class_numbers(as_array(list(labels), "labels"), len(labels), "labels")[0]
