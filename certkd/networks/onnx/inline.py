"""Put the bodies of a file's own functions in the place of their calls; PyTorch's exporter wrote such files."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from certkd.networks.onnx.live import bodies
from verifiers.core.errors import InputError, quoted

#: Most nodes after inlining, most functions around a node, and bytes beyond those of the file.
NODES, DEPTH, SPARE = 10_000, 30, 1 << 24


def inline_functions(model: Any, path: Any) -> None:
    """Replace the calls of functions, in place.

    Raises:
        InputError: there would be too many nodes, a function calls itself, is for another opset, or leaves out a value.
    """
    if not model.functions:
        return
    made = _Inliner(model, path)
    nodes = list(made.expanded(model.graph.node, {}, {}, ""))
    model.graph.ClearField("node")
    model.graph.node.extend(nodes)
    model.ClearField("functions")


class _Inliner:
    """The functions of a file, and the numbers of nodes and of bytes that may still be made."""

    def __init__(self, model: Any, path: Any) -> None:
        self.path, self.room, self.bytes, self.calls = path, NODES, model.ByteSize() + SPARE, 0
        self.functions = {(each.domain, each.name, getattr(each, "overload", "")): each for each in model.functions}
        if len(self.functions) < len(model.functions) or any(key[0] in ("", "ai.onnx") for key in self.functions):
            raise InputError(f"{path} is damaged: it has a function twice, or one in the place of an operator")
        self.prefix = unused(model.graph, "call", model.functions)
        self.opset = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}

    def expanded(
        self, nodes: Any, names: Mapping[str, str], given: Mapping[str, Any], inside: str, depth: int = 0
    ) -> Iterator[Any]:
        """Yield copies of nodes, with the bodies of functions for their calls, also in branches.

        Args:
            nodes: the nodes of the graph or of a function.
            names: for the inputs and outputs of the function, the names at its call; "" for those that are left out.
            given: the attributes at its call.
            inside: what the names of its other values begin with.
            depth: number of functions around the nodes.
        """
        for node in nodes:
            self.room -= 1
            self.bytes -= node.ByteSize()
            if min(self.room, self.bytes) < 0 or depth > DEPTH:
                raise InputError(f"{self.path} has more than {NODES} nodes, or functions that call themselves or grow")
            copy = type(node).FromString(node.SerializeToString())
            for field in (copy.input, copy.output):
                changed = [_renamed(name, names, inside) for name in field]
                del field[:]
                field.extend(changed)
            for body in bodies(copy):
                for value in (*body.input, *body.output, *body.initializer):
                    value.name = _renamed(value.name, names, inside)
                nodes_inside = list(self.expanded(body.node, names, given, inside, depth))
                body.ClearField("node")
                body.ClearField("value_info")
                body.node.extend(nodes_inside)
            _resolve(copy, given)
            function = self.functions.get((copy.domain, copy.op_type, getattr(copy, "overload", "")))
            if function is None:
                yield copy
            else:
                yield from self._body(copy, function, depth)

    def _body(self, call: Any, function: Any, depth: int) -> Iterator[Any]:
        if not {entry.version for entry in function.opset_import if entry.domain in ("", "ai.onnx")} <= self.opset:
            raise InputError(f"{self.path}: its function {quoted(function.name)} is for another opset than the file")
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise InputError(f"{self.path} is damaged: it calls {quoted(function.name)} with too many values")
        self.calls += 1
        inside = f"{self.prefix}{self.calls}:"
        names = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False))
        names |= {name: to for name, to in zip(function.output, call.output, strict=False) if to}
        given = {each.name: each for each in function.attribute_proto} | {each.name: each for each in call.attribute}
        yield from self.expanded(function.node, names, given, inside, depth + 1)


def _renamed(name: str, names: Mapping[str, str], inside: str) -> str:
    return names.get(name, inside + name) if name else ""


def unused(graph: Any, prefix: str, bodies: Sequence[Any] = ()) -> str:
    """Return a text that no name of a value of the graph or of functions begins with."""
    names = {name for body in (graph, *bodies) for node in body.node for name in (*node.input, *node.output)}
    names |= {value.name for value in (*graph.initializer, *graph.input)}
    while any(name.startswith(prefix) for name in names):
        prefix += "_"
    return prefix


def _resolve(node: Any, given: Mapping[str, Any]) -> None:
    """Replace the attributes that refer to those of the call; one that is not given is left out."""
    attributes = list(node.attribute)
    if not any(attribute.ref_attr_name for attribute in attributes):
        return
    kept = []
    for attribute in attributes:
        source = attribute
        if attribute.ref_attr_name:
            source = given.get(attribute.ref_attr_name)
            if source is None:
                continue
        copy = type(attribute).FromString(source.SerializeToString())
        copy.name = attribute.name
        kept.append(copy)
    node.ClearField("attribute")
    node.attribute.extend(kept)
