"""Find and open images that may come from anybody: each is opened as what it is, and no larger than it may be."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from verifiers.core.errors import InputError, loading
from verifiers.core.files import check_regular

if TYPE_CHECKING:
    from PIL.Image import Image

#: How the names of images end, and what they may hold. PIL has formats that start other programs.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
#: The most pixels of an image, which is decoded as a whole, and the longest side of one, in shorter sides.
MOST_PIXELS, LONGEST = 2**26, 100


def images_below(folder: Path) -> list[Path]:
    """Return the images in a folder and below it, in the order of torchvision's ``ImageFolder``.

    Links to images and folders are followed, each folder once.

    Raises:
        InputError: an image is a pipe or a device.
    """
    return [path for below in sorted(_folders(folder, set()), key=str) for path in images_in(below)]


def images_in(folder: Path) -> list[Path]:
    """Return the images in a folder, by name; hidden files are none.

    Raises:
        InputError: an image is a pipe or a device.
    """
    found = []
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if not entry.name.lower().endswith(SUFFIXES) or entry.name.startswith("."):
            continue
        with loading(entry.path, "an image"):
            if entry.is_dir():
                continue
            if not entry.is_file() and not stat.S_ISREG(os.stat(entry.path).st_mode):
                raise InputError(f"cannot read the image {entry.path}: it is a device, a pipe or a folder")
        found.append(Path(entry.path))
    return found


def _folders(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    about = folder.stat()
    if (about.st_dev, about.st_ino) in seen:  # a link to a folder above
        return
    seen.add((about.st_dev, about.st_ino))
    yield folder
    for entry in os.scandir(folder):
        if not entry.name.lower().endswith(SUFFIXES) and entry.is_dir():
            yield from _folders(Path(entry.path), seen)


@contextmanager
def opened(path: Path) -> "Iterator[Image]":
    """Open an image; it is decoded when its pixels are asked for.

    Raises:
        InputError: not an image, not a regular file, or too large.
    """
    from PIL import Image

    with loading(path, "an image"):
        check_regular(path)
        with open(path, "rb") as file, Image.open(file, formats=FORMATS) as image:
            short, long = sorted(image.size)
            if short * long > MOST_PIXELS or long > LONGEST * short:
                raise InputError(
                    f"cannot read the image {path}: it has {image.width} x {image.height} pixels, the most are "
                    f"{MOST_PIXELS}, one side {LONGEST} times the other"
                )
            yield image
