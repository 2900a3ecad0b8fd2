"""Images in folders that may come from anybody: one folder a class, each image opened as what it is and no larger."""

import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import Tensor

from verifiers.core.errors import InputError, loading, quoted
from verifiers.core.files import check_regular

#: How the names of images end, and what they may hold. PIL has formats that start other programs.
SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF")
#: The most pixels of an image, which is decoded as a whole, and the longest side of one, in shorter sides.
MOST_PIXELS, LONGEST = 2**26, 100


class ImageFolder:
    """The images below a folder with one folder per class, in the order of torchvision's ``ImageFolder``.

    Links to images and folders are followed, each folder once. Pipes and devices are refused.

    Attributes:
        classes: names of the class folders.
        samples: paths of the images with their classes.

    Raises:
        InputError: no class folders, a class without images, or an image that is no regular file.
    """

    def __init__(self, root: Path, transform: Callable[[object], Tensor]) -> None:
        self._transform = transform
        with loading(root, "a folder of images"):
            self.classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
            if not self.classes:
                raise InputError(f"cannot read images below {root}: it has no folders, one for each class")
            self.samples = [
                (path, number) for number, name in enumerate(self.classes) for path in _images(root / name, root)
            ]

    @property
    def targets(self) -> list[int]:
        """The class of each image."""
        return [number for _, number in self.samples]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, number: int) -> tuple[Tensor, int]:
        path, target = self.samples[number]
        return self._transform(_decoded(path)), target


def _images(folder: Path, root: Path) -> list[Path]:
    found = sorted(_below(folder, set()))
    if not found:
        raise InputError(f"cannot read images below {root}: the class {quoted(folder.name)} has none")
    for path in found:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise InputError(f"cannot read the image {path}: it is a device, a pipe or a folder")
    return found


def _below(folder: Path, seen: set[tuple[int, int]]) -> Iterator[Path]:
    about = folder.stat()
    if (about.st_dev, about.st_ino) in seen:  # a link to a folder above
        return
    seen.add((about.st_dev, about.st_ino))
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _below(Path(entry.path), seen)
        elif entry.name.lower().endswith(SUFFIXES):
            yield Path(entry.path)


def _decoded(path: Path) -> object:
    """Decode an image to RGB."""
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
            return image.convert("RGB")
