"""Load data sets by name, with train, validation and test splits fixed by a seed.

``digits`` ships with scikit-learn, and ``modulations`` (radio signals) are generated; ``mnist``, ``fashion-mnist``,
``cifar10``, ``cifar100``, ``imagenet`` and ``folder`` (images in folders) are read from ``root`` or ``$CERTKD_DATA``. A
path names arrays (``.npz``, ``.npy``) or a folder.
"""

import gzip
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from certkd.config.settings import IN_ARRAYS, IN_FOLDERS, DataConfig
from certkd.data import folders, modulations
from certkd.data.named_arrays import Part, archive, array_folder, single
from certkd.data.splits import SPLITS, DataSet, FileImages, Split, TensorImages
from verifiers.core.errors import InputError, did_you_mean, loading, one_line, quoted
from verifiers.runtime.arrays import class_numbers
from verifiers.runtime.samples import Images

NAMES = (*IN_ARRAYS, *IN_FOLDERS)


def load(config: DataConfig) -> DataSet:
    """Load a data set and cut its splits.

    The official test images are the test split, or the validation images where there are no others (ImageNet). Else the
    official validation images are the validation split; where there are none it is cut from the training images by a
    permutation that depends on ``config.seed`` alone; for ``digits``, so is the test split. Of the remaining training
    images, the first ``config.limit`` are used, or all if it is None or larger. A test split alone can be certified.

    Raises:
        InputError: the name is unknown, files are missing, or arrays are not images and labels.
    """
    data = _load(config)
    if config.limit is None or "train" not in data.splits or config.limit >= len(data.splits["train"]):
        return data
    few = data.splits["train"].take(torch.arange(config.limit))
    return replace(data, splits={**data.splits, "train": few})


def _load(config: DataConfig) -> DataSet:
    loaders: dict[str, Callable[[DataConfig], DataSet]] = {
        "digits": _digits,
        "mnist": _torchvision,
        "fashion-mnist": _torchvision,
        "cifar10": _torchvision,
        "cifar100": _torchvision,
        "modulations": lambda config: modulations.load(config.seed),
        "imagenet": _folders,
        "folder": _folders,
    }
    if config.name in loaders:
        return loaders[config.name](config)
    path = config.place
    if ".npy" in config.name:
        return _arrays(config, single(str(path)))
    if config.name.endswith(".npz"):
        return _arrays(config, archive(path))
    if path.is_dir():
        return _arrays(config, array_folder(path)) if any(path.glob("*.npy")) else _folders(config, path)
    if ("/" in config.name or "\\" in config.name or config.name.startswith("~")) and not path.exists():
        raise InputError(f"no such folder or file of data: {quoted(config.name)}")
    there = " It is a file: images and labels are read from .npz and .npy files and from folders." * path.is_file()
    raise InputError(f"unknown data set {quoted(config.name)}.{there or did_you_mean(config.name, list(NAMES))}")


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
    root, known = _root(config), config.name
    try:
        parts = [kinds[known](root, train=train, download=config.download) for train in (True, False)]
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"{known} is not in {root} ({one_line(error)}): set --data-root or CERTKD_DATA, or pass --download"
        ) from None
    except Exception as error:
        raise InputError(f"{known} in {root} is damaged ({one_line(error)}): copy or download it again") from error
    splits, classes = {}, 0
    for name, part in zip(("train", "test"), parts, strict=True):
        images = _bytes(part.data)
        labels, shown = class_numbers(part.targets, len(images), f"the {name} labels of {known} in {root}")
        splits[name], classes = _whole(TensorImages(images), labels), max(classes, shown)
    called = () if known == "mnist" else tuple(parts[0].classes)  # those of MNIST are numbers
    return DataSet(known, classes, tuple(images.shape[1:]), _cut(config, splits), names=called)


def _bytes(data: Any) -> Tensor:
    """Convert (n, h, w) or (n, h, w, c) bytes to (n, c, h, w)."""
    images = torch.as_tensor(data)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2).contiguous()


def _folders(config: DataConfig, path: Path | None = None) -> DataSet:
    """Load images in folders; see ``certkd.data.folders``."""
    root = path or _root(config)
    if config.name == "imagenet" and (root / "imagenet").is_dir():
        root = root / "imagenet"
    with loading(root, "a folder of images"):
        found = folders.find(root)
        view, remarks = folders.view_of(found.splits, config.image_size, config.channels)
    splits = {
        name: _whole(FileImages(listing.paths, view, view.whole), found.labels(name))
        for name, listing in found.splits.items()
    }
    shape = (view.channels, *view.size)
    names = tuple(found.names)
    return DataSet(config.name, len(names), shape, _cut(config, splits), (*found.remarks, *remarks), names)


def _arrays(config: DataConfig, parts: Mapping[str, Part]) -> DataSet:
    """Make a data set of arrays; its classes are those that the labels tell of."""
    shapes = {name: tuple(part.images.tensor.shape[1:]) for name, part in parts.items()}
    other = next((name for name in shapes if shapes[name] != shapes["test"]), None)
    if other is not None:
        names = {"train": "training", "validation": "validation"}
        raise InputError(
            f"{config.name}: {names[other]} images have shape {shapes[other]}, test images {shapes['test']}"
        )
    splits = {name: Split(part.images, part.labels, part.indices) for name, part in parts.items()}
    classes = max(part.classes for part in parts.values())
    remarks = tuple(dict.fromkeys(remark for part in parts.values() for remark in part.remarks))
    return DataSet(config.name, classes, shapes["test"], _cut(config, splits), remarks)


def _whole(images: Images, labels: Tensor) -> Split:
    return Split(images, labels, torch.arange(len(labels)))


def _cut(config: DataConfig, splits: Mapping[str, Split]) -> dict[str, Split]:
    """Cut the validation split (a tenth, at most 5000) from the training images by the seed, where there is none."""
    if "train" not in splits or "validation" in splits:
        return dict(splits)
    train = splits["train"]
    if len(train) < 2:
        raise InputError(
            f"{config.name} has {len(train)} training and {len(splits['test'])} test images: two and one at least"
        )
    order = torch.from_numpy(np.random.default_rng(config.seed).permutation(len(train)))
    held_out = min(max(1, len(order) // 10), 5000)
    return {"train": train.take(order[held_out:]), "validation": train.take(order[:held_out]), "test": splits["test"]}


def _root(config: DataConfig) -> Path:
    given = config.root or os.environ.get("CERTKD_DATA")
    if not given:
        raise InputError(f"where is {config.name}? Give --data-root FOLDER, or set CERTKD_DATA")
    root = Path(given).expanduser()
    if not root.is_dir() and not config.download:
        raise InputError(f"no such data folder: {root}")
    return root
