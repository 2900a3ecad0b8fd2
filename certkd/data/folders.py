"""Read folders of images: a folder per class, or a list of labels beside the images.

``ROOT/train/CLASS/...`` and ``ROOT/val/CLASS/...`` (or test) as torchvision's ImageFolder has them; ``ROOT/CLASS/...``
for a test split alone; ``ROOT/val/...`` with a list of labels (Tiny-ImageNet's ``val_annotations.txt``, or
``labels.csv``).
"""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from certkd.data.images import SUFFIXES, images_below, images_in, opened
from verifiers.core.errors import InputError, quoted
from verifiers.core.files import read_text
from verifiers.runtime.pictures import is_grey, picture, readable

if TYPE_CHECKING:
    from PIL.Image import Image

#: What the folders of the splits are called.
PLACES = {
    "train": ("train", "training"),
    "test": ("test", "testing"),
    "validation": ("val", "valid", "validation"),
}
#: Files that list the labels of images without class folders: a name and a class in each line.
LISTS = ("val_annotations.txt", "labels.csv", "labels.txt", "annotations.csv")
#: Names of the column of classes in such a list, apart from its second one.
CLASS_COLUMNS = ("label", "labels", "class", "classid", "classname", "category", "target")
#: Images whose size and colours are looked at before any is used.
LOOKED_AT = 64
AS_IS = "as-is"
#: The largest list of labels, in bytes.
LARGEST_LIST = 2 * 10**8


@dataclass(frozen=True)
class Listing:
    """Images of one split, and their classes by name, or by number where a list gives numbers."""

    paths: list[Path]
    classes: list[str]
    numbered: bool = False


@dataclass(frozen=True)
class Folders:
    """The splits of a folder, the names of its classes in their order, and lines about how it was read."""

    splits: dict[str, Listing]
    names: list[str]
    remarks: tuple[str, ...]

    def labels(self, split: str) -> Tensor:
        """Return the class numbers of a split."""
        number = {name: i for i, name in enumerate(self.names)}
        return torch.tensor([number[name] for name in self.splits[split].classes])


def find(root: Path) -> Folders:
    """Find the splits and classes below a folder.

    Raises:
        InputError: there are no images with classes, or the splits have other classes.
    """
    places, remarks = _places(root), []
    found: dict[str, Listing] = {}
    for split, (place, listing) in places.items():
        if listing is not None:
            found[split] = listing
        elif split == "test" and "validation" in places:
            used = places["validation"][0].name
            remarks.append(f"{place.name} has no class folders and no list of labels: {used} is used")
        else:
            raise InputError(
                f"{place} has no class folders: put its images into one folder per class, "
                f"or list their labels in {place / 'labels.csv'}, a line like name.png,class for each"
            )
    remarks += [line for split, listing in found.items() for line in _nesting(places[split][0], listing)]
    if "test" not in found:
        found["test"] = found.pop("validation")
    first = found.get("train", found["test"])
    names = ordered(sorted(set(first.classes)))
    if first.numbered:
        names = [str(number) for number in range(int(names[-1]) + 1)]
    for split, listing in found.items():
        strange = sorted(set(listing.classes) - set(names))
        if strange:
            raise InputError(
                f"{root}: train and {split} have different class folders: {quoted(strange[0])} is not in train"
            )
    return Folders(found, names, (*remarks, *_numbering(names)))


def _places(root: Path) -> dict[str, tuple[Path, Listing | None]]:
    """The folder of each split and its images; the root itself, if it holds class folders, for a test split alone."""
    there = {path.name.lower(): path for path in sorted(root.iterdir()) if path.is_dir()}
    places = {
        split: next(there[name] for name in names if name in there)
        for split, names in PLACES.items()
        if set(names) & set(there)
    }
    if not places:
        listing = _listing(root)
        if listing is not None or images_in(root):
            return {"test": (root, listing)}
    if not {"test", "validation"} & set(places):
        raise InputError(
            f"{root} must hold folders train and val (or test) with one folder per class{_deeper(there.values())}"
        )
    return {split: (place, _listing(place)) for split, place in places.items()}


def _deeper(folders: Iterable[Path]) -> str:
    """Name the folder that was probably meant, one level below; "" for none."""
    for folder in folders:
        with suppress(InputError):
            if _listing(folder) is not None or PLACES.keys() & {path.name for path in folder.iterdir()}:
                return f": {folder} has class folders, was that meant?"
    return ""


def _nesting(place: Path, listing: Listing) -> tuple[str, ...]:
    """Say where class folders hold folders of images, as one level too high looks.

    Raises:
        InputError: so does the only class folder.
    """
    below: dict[str, set[str]] = {}
    for path, name in zip(listing.paths, listing.classes, strict=True):
        parts = path.relative_to(place).parts
        below.setdefault(name, set()).add(parts[1] if len(parts) > 2 else "")
    if listing.numbered or any(len(inner) < 2 or "" in inner for inner in below.values()):
        return ()
    name, inner = next(iter(below.items()))
    told = f"class folders of {place} hold folders, like {name}/{min(inner)}"
    if len(below) == 1:
        raise InputError(f"{told}, and {name} is the only class: give {place / name}, or one of its folders")
    return (
        f"{told}, and each of their images is of class {name!r}; if {min(inner)!r} is a class, name another folder",
    )


def _listing(place: Path) -> Listing | None:
    """The images of a split with their classes, from class folders or a list of labels; None if there is neither."""
    listed = next((place / name for name in LISTS if (place / name).is_file()), None)
    if listed is not None:
        return _from_list(listed)
    paths, classes = [], []
    folders = [path for path in place.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))]
    for folder in sorted(folders, key=lambda path: path.name):
        images = images_below(folder)
        paths += images
        classes += [folder.name] * len(images)
    if folders and not paths:
        raise InputError(f"cannot read images below {place}: its folders hold no {', '.join(SUFFIXES)}")
    only = len(set(classes)) == 1 and classes[0].lower() in ("images", "imgs")  # a folder, not a class
    return None if only or not paths else Listing(paths, classes)


def _from_list(path: Path) -> Listing:
    """Read a list of labels: in each line the name of an image and its class, after a header or not."""
    places = [folder for folder in (path.parent, path.parent / "images") if folder.is_dir()]
    files = {file.name: file for folder in places for file in images_in(folder)}
    stems = {Path(name).stem: name for name in files}
    text = read_text(path, "a list of labels", LARGEST_LIST, "utf-8-sig")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    listed, column = dict[str, str](), 1
    for number, line in enumerate(lines, start=1):
        separator = next((mark for mark in "\t,;" if mark in line), None)  # else blanks
        cells = [cell.strip() for cell in line.split(separator)]
        name = Path(cells[0]).name
        name = name if name in files else stems.get(name, name)
        if name not in files and number == 1:
            column = _class_column(cells, path)
            continue
        if name not in files or len(cells) <= column or name in listed:
            what = "is listed twice" if name in listed else "is not there" if name not in files else "has no class"
            raise InputError(f"{path} line {number}: the image {quoted(name)} {what}")
        listed[name] = cells[column]
    without = sorted(set(files) - set(listed))
    if without:
        raise InputError(f"{path} lists {len(listed)} of {len(files)} images: {quoted(without[0])} has no label")
    if not listed:
        raise InputError(f"{path} lists no image")
    numbered = all(name.isascii() and name.isdigit() and len(name) < 7 for name in listed.values())
    classes = [str(int(listed[name])) if numbered else listed[name] for name in sorted(listed)]
    return Listing([files[name] for name in sorted(listed)], classes, numbered)


def _class_column(header: Sequence[str], path: Path) -> int:
    """Find the column of classes by the header of a list.

    Raises:
        InputError: there are more than two columns, and not one of them is called so.
    """
    if len(header) <= 2:
        return 1
    found = [i for i, name in enumerate(header) if re.sub("[^a-z]", "", name.lower()) in CLASS_COLUMNS]
    if len(found) != 1:
        called = ", ".join(header)[:100]
        raise InputError(f"{path} line 1: which column is the class? Call one of them label; they are {called}")
    return found[0]


def ordered(names: Sequence[str]) -> list[str]:
    """Order class folders: by number if all are whole numbers, else by name, as ImageFolder does."""
    if all(name.isascii() and name.isdigit() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _numbering(names: Sequence[str]) -> tuple[str, ...]:
    """Say how classes are numbered, where that could be misread."""
    if all(name.isascii() and name.isdigit() for name in names):
        moved = next((i for i, name in enumerate(names) if int(name) != i), None)
        if moved is not None:
            return (
                f"class folders are numbered from 0 in the order of their numbers: {names[moved]!r} is class {moved}",
            )
        if names != sorted(names):
            return ("class folders are in the order of their numbers, not of their names as ImageFolder has them",)
        return ()

    def natural(name: str) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]

    moved = next((i for i, (a, b) in enumerate(zip(names, sorted(names, key=natural), strict=True)) if a != b), None)
    return (
        () if moved is None else (f"class folders are in the order of their names: {names[moved]!r} is class {moved}",)
    )


@dataclass(frozen=True)
class View:
    """Turn an image into pixels.

    Attributes:
        size: height and width; an image of exactly this size keeps its pixels.
        channels: 1 or 3.
        resample: whether images of other sizes are resized and cropped, or refused.
    """

    size: tuple[int, int]
    channels: int
    resample: bool

    def __call__(self, path: Path) -> Float[Tensor, "channels height width"]:
        """Read an image at the size of the data set.

        Raises:
            InputError: it is damaged, or does not have the size or the colours of the others.
        """
        return picture(self._fitted(path, self._read(path)), self.channels)

    def whole(self, path: Path) -> Float[Tensor, "channels its_height its_width"]:
        """Read an image at its own size.

        Raises:
            InputError: it is damaged, or does not have the colours of the others.
        """
        return picture(self._read(path), self.channels)

    def _read(self, path: Path) -> "Image":
        with opened(path) as image:
            try:
                return readable(image, self.channels)
            except InputError as error:
                raise InputError(f"{path}: {error}") from None

    def _fitted(self, path: Path, image: "Image") -> "Image":
        height, width = self.size
        if image.size == (width, height):
            return image
        if not self.resample:
            found = f"{image.size[1]}x{image.size[0]}"
            raise InputError(f"{path} has {found} pixels, the first image {height}x{width}: give an image size H,W")
        return _resampled(image, self.size)


def _resampled(image: Any, size: tuple[int, int]) -> Any:
    """Resize an image to cover 256/224 of the size, and crop the centre: the usual ImageNet evaluation."""
    from torchvision.transforms import functional

    height, width = (round(side * 256 / 224) for side in size)
    if height == width:  # the shorter side, rounded as torchvision does
        return functional.center_crop(functional.resize(image, [height]), list(size))
    scale = max(height / image.size[1], width / image.size[0])
    whole = [max(side, round(scale * own)) for side, own in zip(size, image.size[::-1], strict=True)]
    return functional.center_crop(functional.resize(image, whole), list(size))


def view_of(listings: dict[str, Listing], size: str | int, channels: int | None) -> tuple[View, tuple[str, ...]]:
    """Decide how the images of a data set are read, from the first of them and some more.

    Args:
        listings: its splits.
        size: "as-is", a side, or "H,W".
        channels: 1 or 3; None for those of the images.

    Raises:
        InputError: no image can be read, or they have several sizes and are to be taken as they are.
    """
    seen = _looked_at(listings)
    coloured = next((path for _, grey, _, path in seen if not grey), None) if channels == 1 else None
    if coloured is not None:
        raise InputError(f"{coloured} is in colour, and grey images (1 channel) are wanted: convert the images")
    channels = channels or (1 if all(grey for _, grey, _, _ in seen) else 3)
    sizes = list(dict.fromkeys(own for own, _, _, _ in seen))
    modes = {mode for _, _, mode, _ in seen}
    remarks = ["images with transparency are read without it"] if modes & {"RGBA", "LA", "PA"} else []
    if any(mode.startswith("I;16") for mode in modes):
        remarks.append("images of 16 bits: divided by 65535")
    if size == AS_IS:
        if len(sizes) > 1:
            other = next(path for own, _, _, path in seen if own != sizes[0])
            raise InputError(
                f"images have several sizes ({_text(sizes[0])}, {_text(sizes[1])} in {other}): give an image size H,W"
            )
        return View(sizes[0], channels, resample=False), tuple(remarks)
    height, _, width = str(size).partition(",")
    wanted = (int(height), int(width or height))
    others = [own for own in sizes if own != wanted]
    if others:
        covering = tuple(round(side * 256 / 224) for side in wanted)
        remarks.append(
            f"images of other sizes than {_text(wanted)}, like {_text(others[0])}, are resized to cover "
            f"{_text(covering)} and cropped"
        )
    return View(wanted, channels, resample=True), tuple(remarks)


def _looked_at(listings: dict[str, Listing]) -> list[tuple[tuple[int, int], bool, str, Path]]:
    """Size, greyness and mode of some images of each split; one that cannot be read matters when it is used."""
    seen, refused = [], None
    for listing in listings.values():
        step = max(1, len(listing.paths) // LOOKED_AT)
        for path in listing.paths[::step][:LOOKED_AT]:
            try:
                with opened(path) as image:
                    seen.append(((image.height, image.width), is_grey(image), image.mode, path))
            except InputError as error:
                refused = error
    if not seen and refused is not None:
        raise refused
    return seen


def _text(size: tuple[int, ...]) -> str:
    return f"{size[0]}x{size[1]}"
