"""Load data sets by name, with train, validation and test splits fixed by a seed.

``digits`` ships with scikit-learn; ``mnist``, ``fashion-mnist``, ``cifar10``, ``cifar100``, ``imagenet`` and ``folder``
(torchvision's ImageFolder) are read from ``root`` or ``$CERTKD_DATA``; a path that ends in ``.npz`` holds arrays.
"""

import gzip
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certkd.config.settings import DataConfig
from certkd.data.arrays import read_arrays
from certkd.data.folders import ImageFolder
from certkd.data.splits import SPLITS, DataSet, FileImages, Split, TensorImages
from verifiers.core.errors import InputError, did_you_mean, one_line
from verifiers.runtime.samples import Images

#: More classes than any data set has.
MOST_CLASSES = 100_000
NAMES = ("digits", "mnist", "fashion-mnist", "cifar10", "cifar100", "imagenet", "folder")


def load(config: DataConfig) -> DataSet:
    """Load a data set and cut its splits.

    The official test (for ImageNet, validation) images are the test split. The validation split is cut from the
    training images by a permutation that depends on ``config.seed`` alone; for ``digits``, so is the test split. Of the
    remaining training images, the first ``config.limit`` are used, or all if it is None or larger.

    Raises:
        InputError: the name is unknown, files are missing, or arrays are not images and labels.
    """
    data = _load(config)
    if config.limit is None or config.limit >= len(data.splits["train"]):
        return data
    few = data.splits["train"].take(torch.arange(config.limit))
    return replace(data, splits={**data.splits, "train": few})


def _load(config: DataConfig) -> DataSet:
    if config.name.endswith(".npz"):
        return _npz(config)
    loaders: dict[str, Callable[[DataConfig], DataSet]] = {
        "digits": _digits,
        "mnist": _torchvision,
        "fashion-mnist": _torchvision,
        "cifar10": _torchvision,
        "cifar100": _torchvision,
        "imagenet": _folders,
        "folder": _folders,
    }
    if config.name not in loaders:
        raise InputError(f"unknown data set {config.name!r}.{did_you_mean(config.name, list(NAMES))}")
    return loaders[config.name](config)


def _digits(config: DataConfig) -> DataSet:
    """Load scikit-learn's 1797 8x8 digits of 16 grey levels: 1257 to train, 180 to select, 360 to test."""
    package = find_spec("sklearn")  # the import would take longer than everything else here
    if package is None or package.origin is None:
        raise InputError("digits is part of scikit-learn, which is not installed: pip install scikit-learn")
    with gzip.open(Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz") as file:
        table = np.loadtxt(file, delimiter=",")  # 64 pixels and the label
    images = torch.from_numpy(table[:, :64].reshape(-1, 1, 8, 8) / 16).float()
    labels = torch.from_numpy(table[:, 64]).long()
    order = torch.from_numpy(np.random.default_rng(config.seed).permutation(len(labels)))
    parts = dict(zip(SPLITS, order.split([1257, 180, 360]), strict=True))
    splits = {name: Split(TensorImages(images[rows]), labels[rows], rows) for name, rows in parts.items()}
    return DataSet("digits", 10, (1, 8, 8), splits)


def _torchvision(config: DataConfig) -> DataSet:
    from torchvision import datasets

    kinds = {
        "mnist": datasets.MNIST,
        "fashion-mnist": datasets.FashionMNIST,
        "cifar10": datasets.CIFAR10,
        "cifar100": datasets.CIFAR100,
    }
    root = _root(config)
    known = config.name
    try:
        parts = [kinds[known](root, train=train, download=config.download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{known} is not in {root} ({one_line(error)}): set --data-root or CERTKD_DATA, or pass --download"
        ) from None
    except Exception as error:
        raise InputError(f"{known} in {root} is damaged ({one_line(error)}): copy or download it again") from error
    (train, train_labels), (test, test_labels) = ((_bytes(part.data), _labels(part.targets)) for part in parts)
    return _assemble(config, TensorImages(train), train_labels, TensorImages(test), test_labels)


def _bytes(data: Any) -> Tensor:
    """Convert (n, h, w) or (n, h, w, c) bytes to (n, c, h, w)."""
    images = torch.as_tensor(data)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _labels(targets: Any) -> Tensor:
    return torch.as_tensor(targets).long()


def _folders(config: DataConfig) -> DataSet:
    """Load ROOT/train and ROOT/val (or validation, test) with a folder per class, as in ImageNet and ImageFolder."""
    root = _root(config)
    if config.name == "imagenet" and (root / "imagenet").is_dir():
        root = root / "imagenet"
    test = next((name for name in ("test", "val", "validation") if (root / name).is_dir()), None)
    if test is None or not (root / "train").is_dir():
        raise InputError(f"{root} must hold folders train and val (or test) with one folder per class")
    parts = [ImageFolder(root / name, _image_transform(config.image_size)) for name in ("train", test)]
    if parts[0].classes != parts[1].classes:
        raise InputError(f"{root}: train and {test} have different class folders")
    pool = ThreadPoolExecutor(os.cpu_count())
    images = [FileImages(part, torch.arange(len(part)), pool) for part in parts]
    return _assemble(config, images[0], _labels(parts[0].targets), images[1], _labels(parts[1].targets))


def _image_transform(size: int) -> Callable[[Any], Tensor]:
    """Build the usual ImageNet evaluation pipeline: shorter side to 256/224 of ``size``, centre crop, [0, 1]."""
    from torchvision import transforms

    return transforms.Compose(
        [transforms.Resize(round(size * 256 / 224)), transforms.CenterCrop(size), transforms.ToTensor()]
    )


def _npz(config: DataConfig) -> DataSet:
    path = Path(config.name)
    if not path.is_file() and config.root is not None:
        path = Path(config.root) / config.name
    arrays = read_arrays(path, ("x_train", "y_train", "x_test", "y_test"))
    parts = [_array_images(path, name, arrays[f"x_{name}"]) for name in ("train", "test")]
    labels = [_array_labels(path, name, arrays[f"y_{name}"], len(parts[i])) for i, name in enumerate(("train", "test"))]
    return _assemble(config, parts[0], labels[0], parts[1], labels[1])


def _array_images(path: Path, name: str, array: np.ndarray) -> TensorImages:
    if array.ndim < 2 or not array.size:
        raise InputError(f"{path}: x_{name} must hold images, one per row; got shape {array.shape}")
    if array.dtype != np.uint8:
        if not np.issubdtype(array.dtype, np.floating):
            raise InputError(f"{path}: x_{name} must be bytes, or floats in [0, 1]; got {array.dtype}")
        if not (array.min() >= 0 and array.max() <= 1):
            found = f"{array.min():g} to {array.max():g}"
            raise InputError(f"{path}: x_{name} must be bytes, or floats in [0, 1]; got values from {found}")
        array = array.astype(np.float32)
    images = torch.from_numpy(array)
    return TensorImages(images[:, None] if images.dim() == 3 else images)


def _array_labels(path: Path, name: str, array: np.ndarray, count: int) -> Tensor:
    if array.shape != (count,) or not np.issubdtype(array.dtype, np.integer) or (count and array.min() < 0):
        raise InputError(f"{path}: y_{name} must be {count} class numbers, one per image")
    return torch.from_numpy(array.astype(np.int64))


def _assemble(config: DataConfig, train: Images, train_labels: Tensor, test: Images, test_labels: Tensor) -> DataSet:
    """Cut the validation split (a tenth, at most 5000) from the training images by the seed."""
    if len(train_labels) < 2 or not len(test_labels):
        raise InputError(
            f"{config.name} has {len(train_labels)} training and {len(test_labels)} test images: two and one at least"
        )
    for images, labels in ((train, train_labels), (test, test_labels)):
        _check_labels(config.name, len(images), labels)
    order = torch.from_numpy(np.random.default_rng(config.seed).permutation(len(train_labels)))
    held_out = min(max(1, len(order) // 10), 5000)
    whole = Split(train, train_labels, torch.arange(len(train_labels)))
    splits = {
        "train": whole.take(order[held_out:]),
        "validation": whole.take(order[:held_out]),
        "test": Split(test, test_labels, torch.arange(len(test_labels))),
    }
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    shapes = [tuple(images[torch.zeros(1, dtype=torch.long)].shape[1:]) for images in (train, test)]
    if shapes[0] != shapes[1]:
        raise InputError(f"{config.name}: training images have shape {shapes[0]}, test images {shapes[1]}")
    return DataSet(config.name, classes, shapes[1], splits)


def _check_labels(name: str, images: int, labels: Tensor) -> None:
    if labels.shape != (images,):
        raise InputError(f"{name} has {images} images and labels of shape {tuple(labels.shape)}: one class per image")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= MOST_CLASSES:
        raise InputError(f"{name} has classes from {low} to {high}: they are numbered from 0, up to {MOST_CLASSES}")


def _root(config: DataConfig) -> Path:
    given = config.root or os.environ.get("CERTKD_DATA")
    if not given:
        raise InputError(f"where is {config.name}? Give --data-root FOLDER, or set CERTKD_DATA")
    root = Path(given).expanduser()
    if not root.is_dir() and not config.download:
        raise InputError(f"no such data folder: {root}")
    return root
