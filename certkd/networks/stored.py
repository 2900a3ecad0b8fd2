"""Read the weights and the metadata of a file: what ``torch.save`` writes, or safetensors.

Shapes and types are known before any number is read, so that a network can be compared with them before it is built.
"""

import json
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certkd import files
from certkd.networks.described import Coded, Odd, Quantized, View
from certkd.networks.holding import is_packed, plain_weights, weights_in
from certkd.networks.torch_file import TorchFile
from verifiers.core.errors import InputError, loading, quoted

FORMAT = "certkd-checkpoint"
#: Most bytes of a safetensors header, and most entries and levels of a checkpoint's metadata.
HEADER, ENTRIES, LEVELS = 1 << 24, 100_000, 32
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Stored:
    """A tensor in a file; ``read`` reads its numbers, ``codes`` those of a matrix in int8 and its scales.

    Of weights in int8 of torch.ao's modules the dtype is qint8. What such a module packs are two: NAME.0 and NAME.1.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    codes: Callable[[], tuple[Tensor, Tensor]] | None = None


@dataclass(frozen=True)
class Contents:
    """Hold the contents of a file.

    Attributes:
        state: the weights.
        metadata: what the file says of its network; {} for bare weights.
        remarks: which weights were taken, where there is a choice.
    """

    state: dict[str, Stored]
    metadata: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def read(path: Path, key: str | None = None) -> Contents:
    """Read the descriptions of a file's weights, and its metadata.

    Args:
        path: of the file.
        key: the name of the weights in a file with several.

    Raises:
        InputError: the file is missing, empty or damaged, a web page, a pickle with code, or has no weights.
    """
    with loading(path, "a complete checkpoint", ": copy or download it again"):
        return _torch(path, key) if _is_torch(path) else _safetensors(path, key)


def _is_torch(path: Path) -> bool:
    """Tell a file of ``torch.save`` from safetensors by its first bytes, whatever its name.

    Raises:
        InputError: it is missing, damaged, or plainly neither.
    """
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a checkpoint in it, such as {path / 'best.pt'}")
    head = files.sniff(path, "checkpoint")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is truncated: its archive has no end; copy or download it again")
    if head.startswith(b"PK"):
        return True
    with open(path, "rb") as file:
        safetensors = file.read(9)[8:] == b"{"
    if not safetensors and head.startswith(b"\x80"):
        return True
    if path.suffix != ".safetensors" and not safetensors:
        raise InputError(f"{path} is not a checkpoint: its content is not what torch.save writes, nor safetensors")
    return False


def _torch(path: Path, key: str | None) -> Contents:
    file = TorchFile(path)
    content = file.content
    if isinstance(content, dict) and content.get("format") == FORMAT:
        metadata = {name: value for name, value in content.items() if name != "state_dict"}
        check_plain(metadata, path)
        _check_no_key(path, key)
        return Contents(_state(file, plain_weights(content.get("state_dict", {}), path, strict=True)), metadata)
    content, remarks = weights_in(content, path, key)
    return Contents(_state(file, content), {}, remarks)


def _check_no_key(path: Path, key: str | None) -> None:
    """Refuse a choice where there is none.

    Raises:
        InputError: a key was given.
    """
    if key is not None:
        raise InputError(f"{path} holds one network's weights: drop the weights key {quoted(key)}")


def _state(file: TorchFile, content: dict[str, Any]) -> dict[str, Stored]:
    """Return the weights by name; plain numbers beside them are left out.

    Raises:
        InputError: these are no weights.
    """
    for name, value in content.items():
        if isinstance(value, Odd):
            raise InputError(f"{file.path}: {quoted(name)} holds {value.kind}: save dense float weights")
    packed = {name: value for name, value in content.items() if is_packed(value)}
    content = content | {f"{name}.{i}": part for name, value in packed.items() for i, part in enumerate(value)}
    coded = {name: _coded(file, name, value) for name, value in content.items() if isinstance(value, Coded)}
    coded |= {name: _quantized(file, name, value) for name, value in content.items() if isinstance(value, Quantized)}
    return coded | {
        name: Stored(view.shape, view.storage.dtype or torch.float32, partial(file.tensor, view))
        for name, view in content.items()
        if isinstance(view, View)
    }


def _coded(file: TorchFile, name: str, matrix: Coded) -> Stored:
    """Describe weights in int8; as numbers they are codes times scales."""

    def codes() -> tuple[Tensor, Tensor]:
        if matrix.zeros is not None and bool(file.tensor(matrix.zeros).count_nonzero()):
            raise InputError(f"{file.path}: {quoted(name)} has a zero point other than 0: quantise symmetrically")
        return file.tensor(matrix.codes).contiguous(), file.tensor(matrix.scales).flatten().contiguous()

    def read() -> Tensor:
        values, scales = codes()
        return values * scales[:, None]

    return Stored(matrix.codes.shape, matrix.scales.storage.dtype or torch.float32, read, codes)


def _quantized(file: TorchFile, name: str, weight: Quantized) -> Stored:
    """Describe weights in int8 of torch.ao's modules, which are read as torch's quantised tensors."""

    def read() -> Tensor:
        scales, zeros = (
            file.tensor(given).contiguous() if isinstance(given, View) else torch.tensor(given)
            for given in (weight.scales, weight.zeros)
        )
        good = bool((scales > 0).all()) and bool(scales.isfinite().all()) and bool((zeros.abs() <= 128).all())
        if not good or zeros.is_floating_point():
            raise InputError(f"{file.path}: {quoted(name)} has scales or zero points that no int8 weights have")
        codes = file.tensor(weight.codes).contiguous()
        if weight.axis is None:
            return torch._make_per_tensor_quantized_tensor(codes, float(scales), int(zeros))
        return torch._make_per_channel_quantized_tensor(codes, scales.double(), zeros.long(), weight.axis)

    return Stored(weight.codes.shape, torch.qint8, read)


def _safetensors(path: Path, key: str | None) -> Contents:
    from safetensors import safe_open

    _check_no_key(path, key)
    with open(path, "rb") as head:
        (length,) = struct.unpack("<Q", head.read(8))
    if length > HEADER:
        raise InputError(f"{path} is damaged: its header has {length} bytes, at most {HEADER} are read")
    file: Any = safe_open(path, framework="pt")
    metadata = json.loads((file.metadata() or {}).get("certkd", "{}"))
    if not isinstance(metadata, dict):
        raise InputError(f"{path} is damaged: its metadata is {type(metadata).__name__}, not a dictionary")
    check_plain(metadata, path)
    state = {}
    for name in file.keys():  # noqa: SIM118 - it has no other iterator
        part = file.get_slice(name)
        kind = str(part.get_dtype())
        if kind not in _DTYPES:
            raise InputError(f"{path}: {quoted(name)} holds numbers of type {quoted(kind)}: save float32 weights")
        state[name] = Stored(tuple(part.get_shape()), _DTYPES[kind], partial(file.get_tensor, name))
    return Contents(state, metadata)


def check_plain(metadata: Mapping[str, Any], path: Path) -> None:
    """Check that metadata is small, flat and of plain values, so that everything after it may trust that.

    Raises:
        InputError: it is not.
    """
    level: list[Any] = [metadata]
    seen = 0
    for _ in range(LEVELS):
        seen += len(level)
        inner: list[Any] = []
        for value in level:
            if isinstance(value, Mapping):
                if not all(isinstance(key, str) for key in value):
                    raise InputError(f"{path} is damaged: its metadata has a key that is not text")
                inner.extend(value.values())
            elif isinstance(value, list | tuple):
                inner.extend(value)
            elif not isinstance(value, str | int | float | None):
                raise InputError(f"{path} is damaged: its metadata holds {type(value).__name__}, not a plain value")
            if seen + len(inner) > ENTRIES:
                raise InputError(f"{path} is damaged: its metadata has more than {ENTRIES} entries")
        if not inner:
            return
        level = inner
    raise InputError(f"{path} is damaged: its metadata has more than {LEVELS} levels")
