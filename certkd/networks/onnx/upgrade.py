"""Rewrite files of old opsets, and of precisions other than float32, as onnxruntime and certkd read them.

Only nodes and their constants change. Nothing is inferred by onnx's own converter, which reads a file whole.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from verifiers.core.errors import InputError, quoted

#: The oldest opset that is rewritten, and the first whose operators broadcast as today's.
OLDEST, BROADCASTING = 1, 7
#: Float types by number: float32 stays, the others are converted.
FLOAT32 = 1
OTHER_FLOATS = {10: "float16", 11: "float64", 16: "bfloat16"}
#: Names of types in the text that ``Cast`` had before opset 6.
_TYPES = {"FLOAT": 1, "INT32": 6, "INT64": 7, "BOOL": 9, "FLOAT16": 10, "DOUBLE": 11}
_BINARY = frozenset("Add And Div Equal Greater Less Mul Or Pow Sub Xor".split())

Rewrite = Callable[[Any, "_Names"], list[Any]]


def other_floats(model: Any) -> list[str]:
    """List the float types other than float32 of a file's inputs, outputs, constants and conversions."""
    numbers = {value.type.tensor_type.elem_type for value in _floats_of(model.graph)}
    numbers |= {tensor.data_type for tensor in _tensors(model.graph)}
    numbers |= {a.i for node in model.graph.node for a in node.attribute if a.name in ("to", "dtype")}
    return [name for number, name in OTHER_FLOATS.items() if number in numbers]


def to_float32(model: Any, path: Any) -> str | None:
    """Convert the weights and values of a file to float32; return a remark, or None if they were float32.

    Raises:
        InputError: a weight is too large for float32.
    """
    from onnx import numpy_helper

    rounded = next(_rounded(model.graph), None)
    found = {OTHER_FLOATS[value.type.tensor_type.elem_type] for value in _floats_of(model.graph)}
    for value in _floats_of(model.graph):
        value.type.tensor_type.elem_type = FLOAT32
    for tensor in _tensors(model.graph):
        if tensor.data_type not in OTHER_FLOATS:
            continue
        given = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            value = np.asarray(given, dtype=np.float32)
        if np.isinf(value).sum() > np.isinf(np.asarray(given, dtype=np.float64)).sum():
            raise InputError(f"{path}: weight {quoted(tensor.name)} is too large for float32")
        if value.size > 1:
            found.add(OTHER_FLOATS[tensor.data_type])
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name in ("to", "dtype") and attribute.i in OTHER_FLOATS:
                if OTHER_FLOATS[attribute.i] != "float64":  # nothing that a network does in float64 is lost
                    found.add(OTHER_FLOATS[attribute.i])
                attribute.i = FLOAT32
    if not found:
        return None if rounded is None else f"its float64 constant {rounded} is rounded to float32, and so certified"
    return f"it is a {' and '.join(sorted(found))} network: it is converted to float32, and so certified"


def _rounded(graph: Any) -> Iterator[str]:
    """Describe the single float64 numbers that float32 rounds, and that a node uses before they are cast to it."""
    from onnx import numpy_helper

    cast_only: dict[str, bool] = {}
    for node in graph.node:
        to = next((attribute.i for attribute in node.attribute if attribute.name == "to"), None)
        for name in filter(None, node.input):
            cast_only[name] = cast_only.get(name, True) and node.op_type == "Cast" and to == FLOAT32
    made = [(attribute.t, node) for node in graph.node for attribute in node.attribute if attribute.type == 4]
    tensors = [(tensor, tensor.name) for tensor in graph.initializer]
    tensors += [(tensor, node.output[0] if node.op_type == "Constant" else "") for tensor, node in made]
    for tensor, name in tensors:
        if OTHER_FLOATS.get(tensor.data_type) == "float64" and not cast_only.get(name, name != ""):
            value = numpy_helper.to_array(tensor).reshape(-1)
            with np.errstate(over="ignore"):
                if len(value) == 1 and not np.array_equal(value, value.astype(np.float32), equal_nan=True):
                    yield f"{value[0]:.17g}"


def _floats_of(graph: Any) -> Iterator[Any]:
    """Yield the inputs and outputs of other float types."""
    for value in (*graph.input, *graph.output):
        if value.type.tensor_type.elem_type in OTHER_FLOATS:
            yield value


def _tensors(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for node in graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.type == 4)


def to_broadcasting(model: Any, opset: int, path: Any) -> int:
    """Rewrite the nodes of an older opset for opset 7; return the opset of the result.

    Raises:
        InputError: the attributes of a node are not those of its opset.
    """
    if opset >= BROADCASTING:
        return opset
    graph = model.graph
    names = _Names(graph)
    nodes: list[Any] = []
    for given in graph.node:
        node = type(given).FromString(given.SerializeToString())
        where = f"{path}: node {quoted(node.name)} ({quoted(node.op_type)}, opset {opset})"
        _take(node, "consumed_inputs")
        if _take(node, "is_test"):
            del node.output[1:]
        try:
            nodes += _REWRITES.get(node.op_type, _same)(node, names)
        except (KeyError, ValueError, IndexError, TypeError) as error:
            raise InputError(f"{where}: has other attributes than its opset: {quoted(str(error))}") from None
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.initializer.extend(names.made)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = BROADCASTING
    return BROADCASTING


class _Names:
    """Names for new constants and values, and the constants that were made."""

    def __init__(self, graph: Any) -> None:
        self.made: list[Any] = []
        self.ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
        self.sides = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
        self._taken = {name for node in graph.node for name in (*node.input, *node.output)}
        self._taken |= self.ranks.keys() | {value.name for value in graph.input}

    def fresh(self, stem: str) -> str:
        """Return an unused name."""
        name = stem
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name

    def constant(self, stem: str, *values: int) -> str:
        """Make a constant of whole numbers; return its name."""
        from onnx import numpy_helper

        name = self.fresh(stem)
        self.made.append(numpy_helper.from_array(np.array(values, dtype=np.int64), name))
        return name


def _same(node: Any, names: _Names) -> list[Any]:
    return [node]


def _take(node: Any, name: str) -> Any:
    """Remove an attribute and return its value; None if it is absent."""
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            value = helper.get_attribute_value(attribute)
            node.attribute.remove(attribute)
            return value
    return None


def _binary(node: Any, names: _Names) -> list[Any]:
    """Write ``axis``, the place of the right input's first axis in the left one, as a reshape of the right input."""
    axis, broadcast = _take(node, "axis"), _take(node, "broadcast")
    if not broadcast or axis is None:
        return [node]
    return [*_aligned(node, int(axis), names), node]


def _slope(node: Any, names: _Names) -> list[Any]:
    """Align PReLU's slopes, one per channel, with the second axis."""
    single = names.ranks.get(node.input[1]) == 1 and names.sides[node.input[1]] != [1]
    return [*_aligned(node, 1, names), node] if single else [node]


def _aligned(node: Any, axis: int, names: _Names) -> list[Any]:
    """Append axes of length 1 to the right input, so that it begins at an axis of the left one, whose rank is unknown.

    Raises:
        ValueError: the right input is not a weight, or the axis is counted from the end.
    """
    from onnx import helper

    left, right = node.input[0], node.input[1]
    if right not in names.sides or axis < 0:
        raise ValueError(f"axis={axis} places a value that is no weight")
    sides = names.sides[right]
    shape, after, ones, whole, moved = (names.fresh(f"{node.output[0]}_{part}") for part in ("s", "a", "o", "w", "r"))
    own = names.constant(f"{right}_sides", *sides)
    node.input[1] = moved
    return [
        helper.make_node("Shape", [left], [shape]),
        helper.make_node("Slice", [shape], [after], axes=[0], starts=[axis + len(sides)], ends=[2**31 - 1]),
        helper.make_node("Div", [after, after], [ones]),
        helper.make_node("Concat", [own, ones], [whole], axis=0),
        helper.make_node("Reshape", [right, whole], [moved]),
    ]


def _reshape(node: Any, names: _Names) -> list[Any]:
    shape = _take(node, "shape")
    if shape is not None:
        node.input.append(names.constant(f"{node.output[0]}_shape", *shape))
    return [node]


def _cast(node: Any, names: _Names) -> list[Any]:
    from onnx import helper

    kind = _take(node, "to")
    kind = _TYPES[kind.decode()] if isinstance(kind, bytes) else kind
    node.attribute.append(helper.make_attribute("to", int(kind)))
    return [node]


def _concat(node: Any, names: _Names) -> list[Any]:
    from onnx import helper

    if not any(attribute.name == "axis" for attribute in node.attribute):
        node.attribute.append(helper.make_attribute("axis", 1))
    return [node]


def _gemm(node: Any, names: _Names) -> list[Any]:
    _take(node, "broadcast")
    return [node]


def _pad(node: Any, names: _Names) -> list[Any]:
    for attribute in node.attribute:
        if attribute.name == "paddings":  # its name in opset 1
            attribute.name = "pads"
    return [node]


def _upsample(node: Any, names: _Names) -> list[Any]:
    from onnx import helper

    scales = [_take(node, "height_scale"), _take(node, "width_scale")]  # opset 1 has one attribute for each
    if None not in scales:
        node.attribute.append(helper.make_attribute("scales", [1.0, 1.0, *scales]))
    return [node]


def _selu(node: Any, names: _Names) -> list[Any]:
    from onnx import helper

    for name, value in (("alpha", 1.6732), ("gamma", 1.0507)):  # the defaults have more digits from opset 6
        given = _take(node, name)
        node.attribute.append(helper.make_attribute(name, value if given is None else given))
    return [node]


_REWRITES: dict[str, Rewrite] = {
    **dict.fromkeys(_BINARY, _binary),
    "Cast": _cast,
    "Concat": _concat,
    "Gemm": _gemm,
    "PRelu": _slope,
    "Pad": _pad,
    "Reshape": _reshape,
    "Selu": _selu,
    "Upsample": _upsample,
}
