"""Describe the tensors of a pickle: where their numbers lie, before any is read."""

import math
from dataclasses import dataclass
from typing import Any

import torch

DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "QInt8Storage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
#: The class of torchao's int8 tensors, and what it stores where values are rounded as well.
INT8 = "torchao.quantization.Int8Tensor"
_ROUNDS_VALUES = ("act_quant_kwargs", "act_quant_scale", "act_quant_zero_point", "act_pre_scale")


@dataclass(frozen=True)
class Storage:
    """The numbers of one or several tensors.

    Attributes:
        key: the storage's name in its file.
        dtype: None if its kind of number is not supported.
        entries: number of entries.
    """

    key: str
    dtype: torch.dtype | None
    entries: int

    @property
    def bytes(self) -> int:
        """The size of the numbers in the file."""
        return self.entries * (self.dtype.itemsize if self.dtype is not None else 1)


@dataclass(frozen=True)
class View:
    """A tensor: the part of a storage that it shows."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True)
class Odd:
    """A tensor of a kind that is not read, such as a sparse one; ``kind`` names it."""

    kind: str


@dataclass(frozen=True)
class Coded:
    """A matrix of weights in int8 with a scale for each row, and a zero point that is 0: torchao's weights alone."""

    codes: View
    scales: View
    zeros: View | None


@dataclass(frozen=True)
class Quantized:
    """Weights in int8 of torch.ao's modules: codes less a zero point, times a scale, for each channel or for all.

    ``axis`` is that of the channels; None if scale and zero point are one number each.
    """

    codes: View
    scales: View | float
    zeros: View | int
    axis: int | None


@dataclass(frozen=True)
class Name:
    """A class, function or constant that a pickle names."""

    text: str


def view(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> View | Odd:
    """Describe a tensor, whose entries must lie inside its storage, each at its own place.

    Raises:
        ValueError: they do not.
    """
    sizes = (*shape, *stride, offset)
    if not isinstance(storage, Storage) or len(shape) != len(stride) or len(shape) > 64:
        raise ValueError("a tensor without storage")
    if any(type(size) is not int or not 0 <= size < 1 << 62 for size in sizes):
        raise ValueError(f"a tensor of shape {str(shape)[:60]} and strides {str(stride)[:60]}")
    if storage.dtype is None:
        return Odd("quantised, complex or other special numbers")
    last = offset + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))
    if math.prod(shape) and (last >= storage.entries or math.prod(shape) > storage.entries):
        raise ValueError(f"a tensor of shape {tuple(shape)} in a storage of {storage.entries} numbers")
    return View(storage, offset, tuple(shape), tuple(stride))


def quantized(storage: Any, offset: Any, shape: Any, stride: Any, given: Any, *_: Any) -> "Quantized | Odd":
    """Describe a tensor of torch's own int8 weights."""
    codes = view(storage, offset, shape, stride)
    if not isinstance(codes, View) or codes.storage.dtype is not torch.int8:
        return Odd("quantised numbers of another type than qint8")
    kind = given[0].text if isinstance(given, tuple) and given and isinstance(given[0], Name) else ""
    if kind == "torch.per_tensor_affine" and [type(each) for each in given[1:]] == [float, int]:
        return Quantized(codes, given[1], given[2], None)
    if kind == "torch.per_channel_affine" and [type(each) for each in given[1:]] == [View, View, int]:
        _, scales, zeros, axis = given
        if not 0 <= axis < len(codes.shape) or not scales.shape == zeros.shape == (codes.shape[axis],):
            raise ValueError("quantised weights without a scale for each channel")
        return Quantized(codes, scales, zeros, axis)
    return Odd(f"a quantised tensor of the scheme {kind[:40]}")


def from_type(_: Any, kind: Any, __: Any, state: Any) -> "Coded | Odd":
    """Describe a tensor of torchao's: weights in int8, and no other kind."""
    if not isinstance(kind, Name) or not isinstance(state, dict):
        raise ValueError("a tensor of a class without its parts")
    if kind.text != INT8:
        return Odd(f"a tensor of the class {kind.text[:80]}")
    if any(state.get(name) is not None for name in _ROUNDS_VALUES):
        return Odd("a tensor of torchao that rounds values as well as weights (only Int8WeightOnlyConfig is read)")
    codes, scales = state.get("qdata"), state.get("scale")
    if not isinstance(codes, View) or not isinstance(scales, View) or codes.storage.dtype is not torch.int8:
        raise ValueError("an int8 tensor without codes or scales")
    zeros = state.get("zero_point")
    by_rows = len(codes.shape) == 2 and scales.shape == (codes.shape[0], 1)
    if not by_rows or state.get("block_size") != [1, codes.shape[1]] or not isinstance(zeros, View | None):
        return Odd("an int8 tensor of torchao without a scale for each row alone")
    return Coded(codes, scales, zeros)
