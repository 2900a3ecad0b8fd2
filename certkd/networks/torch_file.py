"""Open the files of ``torch.save``, the archive and the older format, as plain values and descriptions of tensors.

Nothing is run or decompressed, and no tensor is larger than the file. ``torch.load`` is not used, even with
``weights_only=True``: it believes the sizes that a file states, and allocates memory before it looks at the weights.
"""

import io
import struct
import zipfile
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from certkd.networks.described import Coded, Odd, Quantized, Storage, View
from certkd.networks.pickled import BYTES, Code, Unpickler
from verifiers.core.errors import InputError

_MAGIC = 0x1950A86A20F9469CFC6C
#: Most bytes of an archive's table of contents: 300,000 entries.
_DIRECTORY = 1 << 24


class TorchFile:
    """A file that ``torch.save`` wrote.

    Attributes:
        path: path of the file.
        content: the saved value, with a ``View`` for each tensor.
    """

    def __init__(self, path: Path) -> None:
        """Read the description of the content.

        Raises:
            InputError: the file holds code, is compressed, or is not from ``torch.save``.
            Exception: it is damaged, in any other way.
        """
        self.path = path
        self._places: dict[str, tuple[str | int, Storage]] = {}
        self._loaded: dict[str, Tensor] = {}
        try:
            with open(path, "rb") as file:
                zipped = file.read(2) == b"PK"
                file.seek(0)
                self.content = self._archive(file) if zipped else self._stream(file)
        except Code as code:
            if str(code).startswith("torchao."):
                raise InputError(
                    f"{path} holds tensors of torchao ({str(code)[:100]}): those of Int8WeightOnlyConfig are read, and "
                    "no others; int8 values are read from ONNX files that onnxruntime.quantization made"
                ) from None
            raise InputError(
                f"{path} is a pickle that holds code ({str(code)[:100]}) and is not run: save plain weights with "
                "torch.save(model.state_dict(), ...)"
            ) from None

    def tensor(self, view: View) -> Tensor:
        """Read the numbers of a tensor; tensors of one storage share memory.

        Raises:
            Exception: the file is damaged.
        """
        key = view.storage.key
        if key not in self._loaded:
            place, storage = self._places[key]
            self._loaded[key] = self._numbers(place, storage)
        return self._loaded[key].as_strided(view.shape, view.stride, view.offset)

    def whole(self) -> Any:
        """Read everything: the content with a tensor in the place of each description.

        Raises:
            Exception: the file is damaged, or holds tensors of a kind that is not read.
        """
        return self._filled(self.content)

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {key: self._filled(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self._filled(inner) for inner in value)
        if isinstance(value, Odd | Coded | Quantized):
            raise ValueError(f"it holds {value.kind if isinstance(value, Odd) else 'weights in int8'}")
        return self.tensor(value) if isinstance(value, View) else value

    @cached_property
    def _zip(self) -> zipfile.ZipFile:
        """The archive; its table of contents is read once for all tensors."""
        return zipfile.ZipFile(self.path)

    def _numbers(self, place: str | int, storage: Storage) -> Tensor:
        assert storage.dtype is not None
        numbers = torch.empty(storage.bytes, dtype=torch.uint8)
        buffer: Any = numbers.numpy()
        if isinstance(place, str):
            with self._zip.open(place) as entry:
                read = int(entry.readinto(buffer))  # type: ignore[attr-defined] # every binary stream has it
                read += len(entry.read())  # the end, where its checksum is compared
        else:
            with open(self.path, "rb") as file:
                file.seek(place)
                read = file.readinto(buffer)
        if read != storage.bytes:
            raise ValueError(f"a tensor of {storage.bytes} bytes has {read}")
        return numbers.view(storage.dtype)

    def _archive(self, file: io.BufferedReader) -> Any:
        size = file.seek(0, io.SEEK_END)
        if _directory(file, size) > _DIRECTORY:
            raise ValueError("its archive has too many entries")
        with zipfile.ZipFile(file) as archive:
            entries = {entry.filename: entry for entry in archive.infolist()}
            self._check_kind(list(entries))
            if len(entries) < len(archive.infolist()) or sum(entry.file_size for entry in entries.values()) > size:
                raise ValueError("its archive has an entry twice")
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.values()):
                raise InputError(f"{self.path} is a compressed archive that torch.save did not write: unpack it")
            roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
            if len(roots) != 1:
                raise InputError(f"{self.path} is a zip archive that torch.save did not write: it has no data.pkl")
            root = roots[0]
            if f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little":
                raise InputError(f"{self.path} was written by a big-endian machine: save it on a little-endian one")
            if entries[f"{root}data.pkl"].file_size > BYTES:
                raise ValueError(f"its pickle has more than {BYTES} bytes")
            unpickler = Unpickler()
            content = unpickler.load(io.BytesIO(archive.read(f"{root}data.pkl")))
        for key, storage in unpickler.storages.items():
            entry = entries.get(f"{root}data/{key}")
            if storage.dtype is not None and (entry is None or entry.file_size != storage.bytes):
                raise ValueError(f"a tensor of {storage.bytes} bytes has {0 if entry is None else entry.file_size}")
            self._places[key] = (f"{root}data/{key}", storage)
        return content

    def _check_kind(self, names: list[str]) -> None:
        """Refuse archives of other things than ``torch.save``'s, by their kind.

        Raises:
            Code: it is a TorchScript program.
            InputError: it is a program of torch.export, or holds arrays.
        """
        parts = {part for name in names for part in name.split("/")[1:2]}
        if {"constants.pkl", "code"} & parts:
            raise Code("a TorchScript program")
        if "archive_format" in parts:
            raise InputError(
                f"{self.path} is a program of torch.export: save its weights with torch.save(program.state_dict, ...)"
            )
        if names and all(name.endswith(".npy") for name in names):
            raise InputError(f"{self.path} holds numpy arrays: save them as tensors with torch.save")

    def _stream(self, file: io.BufferedReader) -> Any:
        stream = io.BytesIO(file.read(BYTES))
        unpickler = Unpickler()
        if unpickler.load(stream) != _MAGIC:
            raise InputError(
                f"{self.path} is a pickle that torch.save did not write and is not run: save plain weights with "
                "torch.save(model.state_dict(), ...)"
            )
        unpickler.load(stream)  # the version and the machine
        unpickler.load(stream)
        content, storages = unpickler.load(stream), dict(unpickler.storages)
        keys, place, size = unpickler.load(stream), stream.tell(), file.seek(0, io.SEEK_END)
        for key in keys:
            storage = storages[key]
            if storage.dtype is None:
                raise InputError(f"{self.path} holds complex or quantised tensors: save plain float weights")
            file.seek(place)
            (entries,) = struct.unpack("<q", file.read(8))
            if entries != storage.entries or place + 8 + storage.bytes > size:
                raise ValueError(f"a tensor of {storage.bytes} bytes has {max(0, size - place - 8)}")
            self._places[key] = (place + 8, storage)
            place += 8 + storage.bytes
        return content


def _directory(file: io.BufferedReader, size: int) -> int:
    """Return the bytes of a zip archive's table of contents, at its end."""
    start = max(0, size - (1 << 16) - 22)
    file.seek(start)
    tail = file.read()
    end = tail.rfind(b"PK\5\6")
    if end < 0:
        raise ValueError("its archive has no end")
    length, offset = struct.unpack_from("<LL", tail, end + 12)
    wide = tail.rfind(b"PK\6\6", 0, end)
    if wide >= 0 and 0xFFFFFFFF in (length, offset):
        return int(struct.unpack_from("<Q", tail, wide + 40)[0])
    return int(length)
