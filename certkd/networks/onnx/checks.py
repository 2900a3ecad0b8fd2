"""Check an ONNX file before anything in it is computed: its graph, its attributes and the sizes of its tensors."""

import math
import os
from pathlib import Path, PurePosixPath
from typing import Any

from verifiers.core.errors import InputError, quoted

#: Most nodes that the logits depend on, and most names in their inputs.
NODES, NAMES = 10_000, 100_000
#: Bytes of an entry and the field of a tensor, by the number of its type: floats, whole numbers, truths.
_TYPES: dict[int, tuple[int, str]] = {
    1: (4, "float_data"),
    2: (1, "int32_data"),
    3: (1, "int32_data"),
    4: (2, "int32_data"),
    5: (2, "int32_data"),
    6: (4, "int32_data"),
    7: (8, "int64_data"),
    9: (1, "int32_data"),
    10: (2, "int32_data"),
    11: (8, "double_data"),
    12: (4, "uint64_data"),
    13: (8, "uint64_data"),
    16: (2, "int32_data"),
}
_FIELDS = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
_CONTROL = ("If", "Loop", "Scan", "SequenceMap")
#: Numbers, texts and tensors, alone and in lists; not graphs, types and sparse tensors.
_ATTRIBUTES = (1, 2, 3, 4, 6, 7, 8)


def check_model(model: Any, path: Path) -> None:
    """Check a parsed file, load its external tensors, and keep only the nodes that its outputs depend on, in order.

    Raises:
        InputError: the graph has a cycle or a value twice, an attribute or a tensor is not plain or of another size
            than it states, or external data lies outside the file's folder.
    """
    graph = model.graph
    if len(graph.sparse_initializer):
        raise InputError(f"{path} has sparse weights: convert them to dense ones")
    for tensor in graph.initializer:
        check_tensor(tensor, path, f"weight {quoted(tensor.name)}")
    weights = [tensor.name for tensor in graph.initializer]
    if len(set(weights)) < len(weights):
        raise InputError(f"{path} is damaged: it has a weight twice")
    nodes = _used(graph, {*weights, *(value.name for value in graph.input)}, path)
    if not nodes:
        raise InputError(f"{path} is damaged: none of its nodes computes its output")
    for node in nodes:
        _check_attributes(node, path)
    kept = [type(node).FromString(node.SerializeToString()) for node in nodes]
    for field in ("node", "value_info", "quantization_annotation", "metadata_props"):
        graph.ClearField(field)
    graph.node.extend(kept)
    model.ClearField("training_info")


def _used(graph: Any, given: set[str], path: Path) -> list[Any]:
    """Return the nodes that the outputs depend on, each after those that it uses."""
    makers: dict[str, int] = {}
    for place, node in enumerate(graph.node):
        if not any(node.output):
            raise InputError(f"{path} is damaged: node {quoted(node.name)} ({quoted(node.op_type)}) has no output")
        if not node.output[0]:  # a recurrent layer may give its last state alone
            node.output[0] = f"unused output {place}"
        for name in filter(None, node.output):
            if makers.setdefault(name, place) != place or name in given:
                raise InputError(f"{path} is damaged: two nodes compute {quoted(name)}")
    order, state, names = [], {}, 0
    stack = [(makers[value.name], False) for value in graph.output if value.name in makers]
    while stack:
        place, done = stack.pop()
        if done:
            state[place] = True
            order.append(place)
            continue
        if place in state:  # another node used it too
            continue
        state[place] = False
        stack.append((place, True))
        names += len(graph.node[place].input)
        if len(state) > NODES or names > NAMES:
            raise InputError(f"{path} has more than {NODES} nodes or {NAMES} inputs of nodes: it is not read")
        stack.extend(_before(graph.node[place], makers, given, state, path))
    sides = [(makers[name], place) for place in order for name in graph.node[place].input if name in makers]
    if all(before < place for before, place in sides):
        order.sort()  # the file's own order
    return [graph.node[place] for place in order]


def _before(node: Any, makers: dict[str, int], given: set[str], state: dict[int, bool], path: Path) -> Any:
    """Return the nodes that a node uses and that are not yet in order."""
    needed = []
    for name in dict.fromkeys(filter(None, node.input)):
        if name in given:
            continue
        if name not in makers:
            raise InputError(f"{path} is damaged: node {quoted(node.name)} uses {quoted(name)}, which nothing computes")
        if state.get(makers[name]) is False:
            raise InputError(f"{path} is damaged: node {quoted(node.name)} depends on itself")
        if makers[name] not in state:
            needed.append((makers[name], False))
    return needed


def _check_attributes(node: Any, path: Path) -> None:
    where = f"{path}: node {quoted(node.name)} ({quoted(node.op_type)})"
    if node.op_type in _CONTROL:
        what = "branches on a computed value" if node.op_type == "If" else "has a loop"
        raise InputError(f"{where}: the network {what}, export it for one fixed path")
    names = [attribute.name for attribute in node.attribute]
    if len(set(names)) < len(names):
        raise InputError(f"{where}: has an attribute twice")
    for attribute in node.attribute:
        if attribute.type not in _ATTRIBUTES or attribute.ref_attr_name:
            raise InputError(f"{where}: attribute {quoted(attribute.name)} is not a number, a text or a tensor")
        if attribute.type == 4:
            check_tensor(attribute.t, path, where)


def check_tensor(tensor: Any, path: Path, where: str) -> None:
    """Check that a tensor has the size that it states, and load external data into it."""
    if tensor.data_type not in _TYPES:
        raise InputError(f"{path}: {where} has type {tensor.data_type}, which is not a float or a whole number")
    size, field = _TYPES[tensor.data_type]
    if len(tensor.dims) > 64 or any(side < 0 for side in tensor.dims):
        raise InputError(f"{path} is damaged: {where} has shape {quoted(list(tensor.dims))}")
    entries = math.prod(tensor.dims)
    if tensor.data_location == 1:
        _load(tensor, entries * size, path, where)
    others = [name for name in _FIELDS if name != field and len(getattr(tensor, name))]
    typed = len(getattr(tensor, field))
    right = len(tensor.raw_data) == entries * size and not typed if tensor.raw_data else typed == entries
    if not right or others or tensor.HasField("segment"):
        raise InputError(
            f"{path} is damaged: {where} of shape {quoted(list(tensor.dims))} has another number of entries"
        )


def _load(tensor: Any, size: int, path: Path, where: str) -> None:
    """Read a tensor from another file of the same folder.

    Raises:
        InputError: the file lies elsewhere, is missing or too small.
    """
    about = {entry.key: entry.value for entry in tensor.external_data}
    name, offset = about.get("location", ""), _count(about.get("offset", "0"))
    length = _count(about.get("length", str(size)))
    inside = PurePosixPath(name)
    if not name or inside.is_absolute() or ".." in inside.parts or not name.isprintable() or "\\" in name:
        raise InputError(f"{path}: {where} is kept in {quoted(name)}, outside of the file's folder: it is not opened")
    file, folder = path.parent / name, path.parent.resolve()
    if not file.is_file():
        raise InputError(f"{path} keeps {where} in {quoted(name)}, which must be in the same folder")
    if not file.resolve().is_relative_to(folder) or file.stat().st_nlink > 1:
        raise InputError(
            f"{path}: {where} is kept in {quoted(name)}, a link out of the file's folder: it is not opened"
        )
    if length != size or offset is None or offset + size > os.path.getsize(file):
        raise InputError(f"{path} is damaged: {where} has other than {size} bytes in {quoted(name)}")
    with open(file, "rb") as opened:
        opened.seek(offset)
        tensor.raw_data = opened.read(size)
    tensor.ClearField("external_data")
    tensor.data_location = 0


def _count(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else None
