"""Read arrays of pixels and labels as people publish them; refuse what could be read in two ways."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from verifiers.core.errors import InputError, one_line

#: Numbers of channels of grey and of colour images.
CHANNELS = (1, 3)
#: Pixels up to this far outside [0, 1] are rounding of an image pipeline, and are clamped.
PIXEL_TOLERANCE = 1e-5
#: More classes than any data set has.
MOST_CLASSES = 100_000


def as_array(given: Any, name: str) -> np.ndarray:
    """Turn a tensor, an array, an image, or a list of them into one array of numbers.

    Raises:
        InputError: it holds other things than numbers, or parts of several shapes.
    """
    try:
        if isinstance(given, list | tuple):
            given = [_plain(part) for part in given]
        array = np.asarray(_plain(given))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name} must be tensors or arrays of numbers, all of one shape: {one_line(error)}") from None
    if array.dtype.kind not in "biuf":
        raise InputError(f"{name} must be tensors or arrays of numbers, got {array.dtype}")
    return array


def _plain(given: Any) -> Any:
    return given.detach().cpu().numpy() if isinstance(given, Tensor) else given


def as_tensor(array: np.ndarray) -> Tensor:
    """Make a tensor of an array of any layout; it is copied only where torch could not share it."""
    if array.dtype.kind == "u" and array.dtype != np.uint8:
        array = array.astype(np.int64)
    return torch.from_numpy(np.require(array, requirements=["C", "W"]))


def class_numbers(given: Any, count: int, name: str) -> tuple[Int[Tensor, " samples"], int]:
    """Read one class number per image, and how many classes the labels tell of.

    The numbers may be of any numeric type, in a row or a column, or one-hot.

    Args:
        given: the labels of ``count`` images.
        name: of the labels, for messages.

    Raises:
        InputError: they are names, shares, several classes per image, negative, or not as many as the images.
    """
    array = np.asarray(_plain(given))
    wanted = f"{name} must be {count} class numbers, one per image"
    if array.dtype.kind not in "biuf":
        held = "names" if array.dtype.kind in "US" else str(array.dtype)
        raise InputError(f"{wanted}, got {held}: number the classes 0, 1, 2, ...")
    if array.ndim == 2 and array.shape[1] > 1 and len(array) == count:
        return _from_one_hot(array, wanted)
    if array.ndim == 0 or array.size != count:
        raise InputError(f"{wanted}, or one-hot; got shape {array.shape}")
    numbers = array.reshape(-1)
    odd = numbers[~(np.isfinite(numbers) & (numbers == np.floor(numbers)))] if numbers.dtype.kind == "f" else []
    if len(odd):
        raise InputError(f"{wanted}; got {odd[0]:g}, which is no class")
    low, high = (numbers.min(), numbers.max()) if count else (0, -1)
    if low < 0:
        raise InputError(f"{wanted}; got {low:g}: classes count from 0, and images without a class must be left out")
    if high >= MOST_CLASSES:
        raise InputError(f"{wanted}; got {high:g}, which is no class")
    return torch.from_numpy(numbers.astype(np.int64)), int(high) + 1


def _from_one_hot(array: np.ndarray, wanted: str) -> tuple[Int[Tensor, " samples"], int]:
    ones = array == 1
    if not ((ones | (array == 0)).all() and (ones.sum(1) == 1).all()):
        several = bool((ones | (array == 0)).all())
        held = "several classes, or none, for an image" if several else "rows that are not one-hot"
        raise InputError(f"{wanted}; got shape {array.shape} with {held}")
    return torch.from_numpy(ones.argmax(1).astype(np.int64)), array.shape[1]


def pixels(array: np.ndarray, name: str) -> tuple[Tensor, tuple[str, ...]]:
    """Read images as bytes, or as floats in [0, 1], and say in a line each how an odd array was read.

    Raises:
        InputError: the values are not pixels, or of a range that could mean several things.
    """
    kind = array.dtype.kind
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if array.dtype == np.uint8:
        if high == 1:
            raise InputError(f"{name} holds bytes that are 0 or 1 alone: save it as bool, or as floats in [0, 1]")
        return as_tensor(array), ()
    if kind == "b":
        return torch.from_numpy(array.astype(np.float32)), ()
    if array.dtype == np.uint16 and high > 2**15:
        scaled = array.astype(np.float32) / np.float32(65535)
        return torch.from_numpy(scaled), (f"{name} has 16-bit pixels: divided by 65535",)
    if kind == "f" and not np.isfinite(array).all():
        raise InputError(
            f"{name} must be bytes, or floats in [0, 1]; it holds NaN or infinite numbers: leave those out"
        )
    if kind != "f" or not (low >= -PIXEL_TOLERANCE and high <= 1 + PIXEL_TOLERANCE):
        raise InputError(
            f"{name} must be bytes, or floats in [0, 1]; got {array.dtype} from {low:g} to {high:g}"
            f"{_meaning(array, low, high)}"
        )
    remarks = (f"the brightest pixel of {name} is {high:.2g}: was it divided by 255 twice?",) if high < 1 / 100 else ()
    floats = array.astype(np.float32)
    return torch.from_numpy(floats if low >= 0 and high <= 1 else floats.clip(0, 1)), remarks


def _meaning(array: np.ndarray, low: float, high: float) -> str:
    """Say what values outside [0, 1] probably are, and what to do; "" if that is not clear."""
    if low >= 0 and 1 < high <= 255:
        return ": divide by 255, or save them as uint8 (array.astype('uint8')) if they are whole"
    if low >= 0 and 255 < high <= 65535:
        largest = next(value for value in (1023, 4095, 16383, 65535) if high <= value)
        return f": divide by the largest possible value, like {largest}, and save them as floats"
    if array.dtype == np.int8:
        return ": add 128 and save as uint8, if these are pixels less 128"
    if array.dtype.kind == "f" and low < 0:
        hint = "map them back with (x + 1) / 2" if low >= -1 and high <= 1 else "undo the normalisation"
        return f": {hint}, and give the network its own normalisation"
    return ""


def channels_last(shape: tuple[int, ...]) -> bool:
    """Tell whether images of a shape are (height, width, channels) rather than (channels, height, width).

    >>> channels_last((32, 32, 3)), channels_last((3, 32, 32)), channels_last((3, 32, 3))
    (True, False, False)
    """
    if len(shape) != 3:
        return False
    rgba = shape[2] == 4 and shape[0] == shape[1] > 4
    return rgba or (shape[2] in CHANNELS and shape[0] not in CHANNELS)
