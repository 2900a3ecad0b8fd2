"""Read images and labels from .npz and .npy files, under the names that are published.

An archive, or a folder of ``.npy`` files, names a split and a part in each key: ``x_test`` and ``y_test`` (Keras),
``test_images`` and ``test_labels`` (MedMNIST), ``testX`` and ``testY``, ``X`` and ``y`` for a test split alone. A
``.npy`` file of images has its labels beside it in ``labels.npy``; ``fog.npy:3`` is its third severity of five
(CIFAR-10-C). Images of two axes are grey pictures, or signals if one axis is short and the other long.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from certkd.data.arrays import names_in, read_array, read_arrays
from certkd.data.splits import SPLITS, TensorImages
from verifiers.core.errors import InputError
from verifiers.runtime.arrays import channels_last, class_numbers, pixels

#: Words in the names of arrays.
SPLIT_WORDS = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "validation"),
    **dict.fromkeys(("test", "testing", "te"), "test"),
}
IMAGE_WORDS = ("x", "image", "images", "img", "imgs", "data", "inputs", "features")
LABEL_WORDS = ("y", "label", "labels", "target", "targets")
_SPLIT = f"(?:({'|'.join(SPLIT_WORDS)})(?:set)?)?"
_NAME = re.compile(f"{_SPLIT}(?:({'|'.join(IMAGE_WORDS)})|({'|'.join(LABEL_WORDS)})){_SPLIT}")
#: Names of arrays that were saved without names.
_UNNAMED = ("arr_0", "arr_1")
#: Severities in a file of corrupted images, one after the other.
SEVERITIES = 5
#: Most channels of a signal, and how many times longer than wide it is at least; others of two axes are grey pictures.
MOST_SIGNAL_CHANNELS, LONG = 16, 4
#: Images per class from which a class without images is no chance (a few in a thousand).
ENOUGH = 5
_NAMES = "x_test and y_test, and x_train and y_train to train with"


@dataclass(frozen=True)
class Part:
    """One split as it was read.

    Attributes:
        indices: of the images in their source.
        classes: as many as the labels tell of.
        remarks: lines about how it was read.
    """

    images: TensorImages
    labels: Int[Tensor, " samples"]
    indices: Int[Tensor, " samples"]
    classes: int
    remarks: tuple[str, ...] = ()


def archive(path: Path) -> dict[str, Part]:
    """Read the splits of a .npz file.

    Raises:
        InputError: it is missing, damaged, or has no images with labels under names that are understood.
    """
    keys = names_in(path)
    chosen = _chosen(path, keys)
    return _splits(path, chosen, read_arrays(path, list(chosen.values())))


def array_folder(folder: Path) -> dict[str, Part]:
    """Read the splits of a folder of .npy files.

    Raises:
        InputError: as for ``archive``, or the folder holds images of several kinds, of which one must be named.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.npy"))}
    others = [name for name in files if _role(name) is None]
    if "labels" in files and others:
        example = folder / f"{others[0]}.npy"
        raise InputError(f"{folder} holds images in {len(others)} files: name one, like {example} or {example}:3")
    chosen = _chosen(folder, list(files))
    return _splits(folder, chosen, {key: read_array(files[key]) for key in chosen.values()})


def single(name: str) -> dict[str, Part]:
    """Read a .npy file of images, or one severity of it (``fog.npy:3``), with the labels in ``labels.npy`` beside it.

    Raises:
        InputError: a file is missing or damaged, or there is no such severity.
    """
    place, _, severity = name.partition(".npy")
    path = Path(f"{place}.npy")
    labels = path.with_name("labels.npy")
    if path.is_file() and not labels.is_file():
        raise InputError(f"{path} has images, and their labels are missing: save them in {labels}")
    images, numbers = read_array(path), read_array(labels)
    if not severity:
        return {"test": part_of(str(path), images, "images", numbers, "labels.npy")}
    known = severity[1:] in map(str, range(1, SEVERITIES + 1))
    if not known or len(images) % SEVERITIES or len(numbers) != len(images):
        raise InputError(
            f"{name}: a severity is 1 to {SEVERITIES}, like {path}:3, of a file of {SEVERITIES} times as many images; "
            f"it has {len(images)}, and {len(numbers)} labels"
        )
    size = len(images) // SEVERITIES
    rows = slice((int(severity[1:]) - 1) * size, int(severity[1:]) * size)
    part = part_of(str(path), images[rows], "images", numbers[rows], "labels.npy")
    remark = f"severity {severity[1:]} of {path.stem}: its images {rows.start} to {rows.stop - 1}"
    return {"test": replace(part, indices=part.indices + rows.start, remarks=(remark, *part.remarks))}


def _role(key: str) -> tuple[str, str] | None:
    """The split ("" if none is named) and the part, "images" or "labels", that a name tells of; None for others."""
    found = _NAME.fullmatch(re.sub(r"[^a-z0-9]", "", key.lower()))
    if found is None or (found[1] and found[4]):
        return None
    split = found[1] or found[4]
    return (SPLIT_WORDS[split] if split else ""), ("images" if found[2] else "labels")


def _chosen(path: Path, keys: Sequence[str]) -> dict[tuple[str, str], str]:
    """The names of the arrays of each split: of its images and of its labels.

    Raises:
        InputError: the names tell of no images with labels, or could mean several things.
    """
    named: dict[tuple[str, str], str] = {}
    if set(keys) == set(_UNNAMED):
        named = {("test", "images"): _UNNAMED[0], ("test", "labels"): _UNNAMED[1]}
    for key in keys:
        role = _role(key)
        if role is not None and role in named:
            raise InputError(f"{path}: {named[role]} and {key} could both be the {' '.join(role)}: keep one of them")
        if role is not None:
            named[role] = key
    if {split for split, _ in named} == {""}:  # x and y alone
        named = {("test", part): key for (_, part), key in named.items()}
    splits = {split for split, _ in named} - {""}
    halves = [split for split in splits if (split, "images") not in named or (split, "labels") not in named]
    if not {"test", "validation"} & splits or halves:
        raise InputError(f"{path} must hold {_NAMES}; it has {', '.join(keys[:20])[:200] or 'nothing'}")
    if "test" not in splits:
        named |= {("test", part): named.pop(("validation", part)) for part in ("images", "labels")}
    return {role: key for role, key in named.items() if role[0]}


def _splits(path: Path, chosen: Mapping[tuple[str, str], str], arrays: Mapping[str, np.ndarray]) -> dict[str, Part]:
    found = {}
    for split in SPLITS:
        if (split, "images") in chosen:
            images, labels = chosen[split, "images"], chosen[split, "labels"]
            found[split] = part_of(str(path), arrays[images], images, arrays[labels], labels)
    return found


def part_of(path: str, images: np.ndarray, images_name: str, labels: np.ndarray, labels_name: str) -> Part:
    """Turn arrays into a split: pixels in [0, 1] or bytes, channels first, a class number per image.

    Raises:
        InputError: they are something else; the message names the file and the array.
    """
    where = f"{path}: {images_name}"
    if images.ndim < 2 or not images.size:
        raise InputError(f"{where} must hold images, one per row; got shape {images.shape}")
    if images.dtype.kind not in "biuf":
        raise InputError(f"{where} must be bytes, or floats in [0, 1]; got {images.dtype}")
    if len(labels.shape) and images.shape[0] != len(labels) == images.shape[-1]:
        raise InputError(f"{where} has its {len(labels)} images along the last axis: save np.moveaxis(array, -1, 0)")
    if images.ndim < 4 and labels.size == 1 != len(images):
        raise InputError(f"{where} of shape {images.shape} looks like one image: save array[None], and its label too")
    numbers, classes = class_numbers(labels, len(images), f"{path}: {labels_name}")
    read, told = pixels(images, where)
    remarks = tuple(line.replace(where, images_name) for line in told)
    if int(numbers.min()) == 1 and len(numbers) >= ENOUGH * classes:
        remarks = (*remarks, f"{labels_name}: no image is of class 0; if the labels count from 1, subtract 1")
    if channels_last(tuple(read.shape[1:])):
        remarks = (*remarks, f"{images_name} of shape {tuple(read.shape[1:])} is read as (height, width, channels)")
        read = read.permute(0, 3, 1, 2).contiguous()
    elif read.dim() == 4 and read.shape[3] in (2, 4) and min(read.shape[1:3]) > 4:
        raise InputError(
            f"{where} of shape {tuple(read.shape[1:])} looks like (height, width, {read.shape[3]}): save the colours "
            "alone (array[..., :3]), or np.moveaxis(array, -1, 1) if all are channels"
        )
    if read.dim() == 3 and _is_signal(read.shape[1], read.shape[2]):
        line = f"{images_name} of shape {tuple(read.shape[1:])} is read as signals (channels, length)"
        remarks = (*remarks, f"{line}; pictures of these sides are saved as (1, {read.shape[1]}, {read.shape[2]})")
    elif read.dim() == 3 and _is_signal(read.shape[2], read.shape[1]):
        remarks = (*remarks, f"{images_name} of shape {tuple(read.shape[1:])} is read as signals (length, channels)")
        read = read.transpose(1, 2).contiguous()
    elif read.dim() == 3:
        read = read[:, None]
    return Part(TensorImages(read), numbers, torch.arange(len(numbers)), classes, remarks)


def _is_signal(channels: int, length: int) -> bool:
    """Tell whether two sides are those of a signal, and not of a grey picture."""
    return channels <= MOST_SIGNAL_CHANNELS and length >= LONG * channels
