"""Read PIL images of any mode without cutting off their pixels."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.core.errors import InputError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Modes of PIL without colours.
GREY = ("1", "L", "LA", "La", "I;16", "I;16L", "I;16B", "I;16N")


def is_grey(image: "Image") -> bool:
    """Tell whether an image has one channel."""
    return image.mode in GREY


def readable(image: "Image", channels: int) -> "Image":
    """Convert an image to mode L or RGB, or to F (floats in [0, 1]) where it has 16 bits and is grey.

    Palettes, CMYK and other colour spaces become RGB as PIL does it; transparency is dropped. A grey image becomes
    colour, where three channels are wanted.

    Raises:
        InputError: the image has more bits than PIL reads, or is in colour and one channel is wanted.
    """
    from PIL import Image

    if _cut_off(image):
        raise InputError("it has more than 8 bits per colour, which PIL cuts off: save it with 8 bits")
    if channels == 1 and not is_grey(image):
        raise InputError("it is in colour, the first images are grey: give channels 3, or convert it")
    if image.mode.startswith("I;16"):
        return Image.fromarray(np.asarray(image).astype(np.float32) / np.float32(65535))
    return image.convert("L" if is_grey(image) and channels == 1 else "RGB")


def _cut_off(image: "Image") -> bool:
    """Tell whether an image has another depth in its file than in memory, or one of unknown range."""
    if image.mode in ("I", "F"):
        return True
    parts = [tile[3] if isinstance(tile[3], tuple) else (tile[3],) for tile in getattr(image, "tile", ())]
    deep = any((isinstance(part, str) and ";16" in part) for args in parts for part in args)
    ppm = any(len(args) > 1 and isinstance(args[1], int) and args[1] > 255 for args in parts if args[0] in ("L", "RGB"))
    return (deep and not image.mode.startswith("I;16")) or (ppm and image.format == "PPM")


def picture(image: "Image", channels: int) -> Float[Tensor, "channels height width"]:
    """Turn an image that ``readable`` returned into floats in [0, 1]."""
    array = np.asarray(image)
    planes = torch.from_numpy(np.array(array[None] if array.ndim == 2 else array.transpose(2, 0, 1), order="C"))
    if len(planes) < channels:
        planes = planes.expand(channels, -1, -1)
    return planes.float() / 255 if planes.dtype == torch.uint8 else planes.clamp(0, 1)
