"""Valid files of networks, and mutations that know their structure."""

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper

from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, save
from tests.fuzz.mutate import BYTES, TOKENS, Mutation

#: Values that a reader of plain metadata may stumble over.
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 7, 2**31, 2**62, -(2**62), 10**9, 0.5, float("nan"), float("inf"), -1e300),
    *([], {}, [1], {"a": 1}, [[]], [64] * 50, [10**6, 10**6], "x" * 3000, *TOKENS[:15], "/etc/passwd", "os.system"),
    *("timm:hf-hub:a/b", "certkd:resnet", "certkd:cnn", "certkd:mlp", "digits", "../outside/canary.txt"),
)
#: Values that only a pickle holds.
TENSORS: tuple[Callable[[], Any], ...] = (
    lambda: b"x",
    lambda: torch.zeros(3),
    lambda: torch.zeros(0, 5),
    lambda: torch.zeros(1).expand(10**5, 10**5),
    lambda: torch.zeros(2, 3).to_sparse(),
    lambda: torch.zeros(2, 3, device="meta"),
    lambda: torch.zeros(2, 3, dtype=torch.complex64),
    lambda: torch.zeros(6, 16, dtype=torch.int64),
    lambda: {1, 2},
    lambda: (1, (2, 3)),
)


def checkpoints(suffix: str, folder: Any) -> list[bytes]:
    """Checkpoints of two networks, and bare weights."""
    contents = []
    for name, options in (("certkd:mlp", {"hidden": [6]}), ("certkd:cnn", {"width": 2, "hidden": 5})):
        torch.manual_seed(0)
        spec = ModelSpec(name=name, options=options, classes=4, shape=(1, 8, 8), mean=(0.5,), std=(0.5,))
        made = Checkpoint(build(spec).eval(), {"name": "digits", "seed": 1}, "ab" * 32, {"epochs": 2}, {"clean": 0.5})
        save(made, folder / f"valid{suffix}")
        contents.append((folder / f"valid{suffix}").read_bytes())
        (folder / f"valid{suffix}").unlink()
    if suffix == ".pt":
        state = torch.load(io.BytesIO(contents[0]), weights_only=True)["state_dict"]
        bare = {name.removeprefix("network."): value for name, value in state.items() if "normalize" not in name}
        contents.append(_saved({"state_dict": bare, "epoch": 3}))
    return contents


def older(content: bytes) -> bytes:
    """The same in the format before archives."""
    return _saved(torch.load(io.BytesIO(content), weights_only=True), new=False)


def _saved(value: Any, *, new: bool = True) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, _use_new_zipfile_serialization=new)
    return stream.getvalue()


def _places(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of nested dictionaries and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [one for key, inner in entries for one in [(*place, key), *_places(inner, (*place, key))]]


def _replace(tree: Any, chance: random.Random, odd: Any) -> None:
    """Replace, remove, rename or add an entry somewhere."""
    places = _places(tree)
    if not places:
        return
    *path, last = chance.choice(places)
    for key in path:
        tree = tree[key]
    action = chance.random()
    if action < 0.7 or not isinstance(tree, dict):
        tree[last] = odd
    elif action < 0.8:
        del tree[last]
    elif action < 0.9:
        tree[chance.choice(TOKENS[:15]) or "k"] = odd
    else:
        tree[f"{last}x"] = tree.pop(last)


def replace_value(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change a value of a checkpoint's content."""
    new = content.startswith(b"PK")
    try:
        tree = torch.load(io.BytesIO(content), weights_only=True)
        _replace(tree, chance, chance.choice(TENSORS)() if chance.random() < 0.4 else chance.choice(ODD))
        return _saved(tree, new=new)
    except Exception:  # noqa: BLE001 - it is damaged already, or cannot be written
        return content


def repack(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Damage one entry of an archive, whose checksums stay right."""
    stream = io.BytesIO()
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as before, zipfile.ZipFile(stream, "w") as after:
            chosen = chance.choice([name for name in before.namelist() if "data" in name])
            for name in before.namelist():
                data = before.read(name)
                data = chance.choice(BYTES)(data, data[::-1], chance) if name == chosen else data
                after.writestr(name, data, chance.choice((0, 0, 0, 0, 0, 0, 0, zipfile.ZIP_DEFLATED)))
    except Exception:  # noqa: BLE001 - as above
        return content
    return stream.getvalue()


def pickle_word(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Exchange a name in a pickle for another of the same length, as in an attack."""
    names = (
        b"torch._utils",
        b"_rebuild_tensor_v2",
        b"FloatStorage",
        b"collections",
        b"OrderedDict",
        b"storage",
        b"cpu",
    )
    old = chance.choice(names)
    new = chance.choice((b"os", b"system", b"builtins", b"eval", b"torch", b"load", b"QInt8Storage")).ljust(
        len(old), b"_"
    )
    place = content.find(old)
    if place < 0:
        return content
    return content[:place] + new[: len(old)] + content[place + len(old) :]


def header(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change a value of a safetensors header, whose length stays right."""
    try:
        (length,) = struct.unpack_from("<Q", content)
        tree = json.loads(content[8 : 8 + length])
        inner = json.loads(tree.get("__metadata__", {}).get("certkd", "{}"))
        if chance.random() < 0.6:
            _replace(inner, chance, chance.choice(ODD))
            tree["__metadata__"] = {"certkd": json.dumps(inner)}
        else:
            _replace(tree, chance, chance.choice(ODD))
        changed = json.dumps(tree).encode("utf-8", "surrogatepass")
    except Exception:  # noqa: BLE001 - as above
        return content
    return struct.pack("<Q", len(changed)) + changed + content[8 + length :]


CHECKPOINT: tuple[Mutation, ...] = (replace_value, replace_value, repack, pickle_word)
SAFETENSORS: tuple[Mutation, ...] = (header, header)


def onnx_files() -> list[bytes]:
    """A convolutional network, a perceptron, and one with arithmetic of shapes."""
    rng = np.random.default_rng(0)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    node = helper.make_node
    flat = [node("Flatten", ["h"], ["f"]), node("Gemm", ["f", "W", "b"], ["y"], transB=1)]
    shaped = [
        node("Shape", ["x"], ["s"]),
        node("Gather", ["s", "zero"], ["n"], axis=0),
        node("Concat", ["n", "rest"], ["t"], axis=0),
        node("ConstantOfShape", ["t"], ["z"]),
        node("Add", ["x", "z"], ["h"]),
    ]
    networks = (
        ([node("Conv", ["x", "w"], ["c"], pads=[1] * 4), node("Relu", ["c"], ["r"]), node("MaxPool", ["r"], ["h"],
          kernel_shape=[2, 2], strides=[2, 2])], {"w": array(2, 1, 3, 3), "W": array(4, 32), "b": array(4)}),
        ([node("Sigmoid", ["x"], ["h"])], {"W": array(4, 64), "b": array(4)}),
        (shaped, {"zero": np.array([0]), "rest": np.array([1, 8, 8]), "W": array(4, 64), "b": array(4)}),
    )  # fmt: skip
    files = []
    for nodes, weights in networks:
        graph = helper.make_graph(
            [*nodes, *flat],
            "valid",
            [helper.make_tensor_value_info("x", 1, ["N", 1, 8, 8])],
            [helper.make_tensor_value_info("y", 1, ["N", 4])],
            [numpy_helper.from_array(value, name) for name, value in weights.items()],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
        model.ir_version = 8
        files.append(model.SerializeToString())
    return files


_NUMBERS = (0, 1, -1, 2, 3, 7, 8, 11, 16, 99, 127, 2**15, 2**20, 2**31 - 1, 2**40, 2**62, -(2**63))
_NAMES = (
    "",
    "x",
    "y",
    "h",
    "W",
    "f",
    "Loop",
    "If",
    "Add",
    "ConstantOfShape",
    "RandomNormal",
    "Tile",
    "Resize",
    "MatMul",
)


def field(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Change, remove, repeat or exchange a field of a parsed ONNX file."""
    try:
        model = onnx.ModelProto.FromString(content)
        message = chance.choice([*_messages(model)])
        fields = message.DESCRIPTOR.fields
        chosen = chance.choice([*(entry for entry, _ in message.ListFields()), chance.choice(fields)])
        _change(message, chosen, chance)
        return model.SerializeToString()
    except Exception:  # noqa: BLE001 - it is damaged already, or the value does not fit the field
        return content


def _messages(message: Any) -> list[Any]:
    found = [message]
    for entry, value in message.ListFields():
        if entry.message_type is not None:
            for inner in value if entry.is_repeated else (value,):
                found += _messages(inner)
    return found


def _change(message: Any, entry: Any, chance: random.Random) -> None:
    value, action = getattr(message, entry.name), chance.random()
    if action < 0.15:
        message.ClearField(entry.name)
    elif entry.message_type is not None:
        if entry.is_repeated and len(value) and action < 0.6:
            value.append(chance.choice(list(value)))
        elif entry.is_repeated and len(value):
            del value[chance.randrange(len(value))]
        else:
            (value.add if entry.is_repeated else value.SetInParent)()
    else:
        new: Any = chance.choice(_NUMBERS)
        if entry.cpp_type == entry.CPPTYPE_STRING:
            new = chance.choice((*_NAMES, *TOKENS[:15], "/etc/passwd", "../outside/canary.txt"))
            new = new.encode("utf-8", "replace") if entry.type == entry.TYPE_BYTES else new
        if not entry.is_repeated:
            setattr(message, entry.name, new)
        elif len(value) and action < 0.7:
            value[chance.randrange(len(value))] = new
        else:
            value.append(new)


ONNX: tuple[Mutation, ...] = (field, field, field, field)
