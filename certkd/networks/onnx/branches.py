"""Put the branch that a condition chooses in the place of an ``If``, as exporters leave it behind.

Conditions are constants, or follow from the shapes of values (is this axis of length 1?), and so are the same for every
image.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from certkd.networks.onnx.inline import DEPTH, NODES, unused
from certkd.networks.onnx.live import GRAPH
from verifiers.core.errors import InputError

#: TensorProto.BOOL
BOOL = 9
#: Tells what a value is, by the nodes and weights before it; None if it depends on the image.
Decide = Callable[[Sequence[Any], Sequence[Any], str], bool | None]


def fold_branches(model: Any, path: Any, decide: Decide) -> list[str]:
    """Replace the branches whose condition is known, in place; the others are left as they are.

    Args:
        model: the parsed file.
        path: its path.
        decide: tells a condition that is not a constant of the file.

    Returns:
        The names of the conditions.

    Raises:
        InputError: there would be too many nodes, or a branch gives another number of values than its node.
    """
    if not any(node.op_type == "If" for node in model.graph.node):
        return []
    folder = _Folder(model.graph, path, decide)
    folder.fold(model.graph.node, {}, 0)
    model.graph.ClearField("node")
    model.graph.node.extend(folder.nodes)
    model.graph.initializer.extend(folder.weights)
    return folder.conditions


class _Folder:
    def __init__(self, graph: Any, path: Any, decide: Decide) -> None:
        self.path, self.room, self.count, self.decide = path, NODES, 0, decide
        self.nodes: list[Any] = []
        self.weights: list[Any] = []
        self.conditions: list[str] = []
        self.given = list(graph.initializer)
        self.prefix = unused(graph, "branch")
        self.truths = {tensor.name: _truth(tensor) for tensor in graph.initializer}

    def fold(self, nodes: Any, names: Mapping[str, str], depth: int) -> None:
        """Append copies of nodes under their new names, with the chosen branches' nodes for those that branch."""
        for node in nodes:
            self.room -= 1
            if self.room < 0 or depth > DEPTH:
                raise InputError(f"{self.path} has more than {NODES} nodes, or {DEPTH} branches in each other")
            copy = type(node).FromString(node.SerializeToString())
            for field in (copy.input, copy.output):
                changed = [names.get(name, name) for name in field]
                del field[:]
                field.extend(changed)
            if copy.op_type == "Constant" and len(copy.attribute) == 1 and copy.output:
                self.truths[copy.output[0]] = _truth(copy.attribute[0].t)
            truth = self._condition(copy.input[0]) if copy.op_type == "If" and len(copy.input) == 1 else None
            branches = {each.name: each.g for each in copy.attribute if each.type == GRAPH}
            body = branches.get("then_branch" if truth else "else_branch")
            if truth is None or body is None:
                self.nodes.append(copy)
            else:
                self._body(copy, body, names, depth)

    def _condition(self, name: str) -> bool | None:
        """Return the truth of a condition; None if it depends on the image."""
        if self.truths.get(name) is None:
            self.truths[name] = self.decide(self.nodes, [*self.given, *self.weights], name)
        self.conditions.append(name)
        return self.truths[name]

    def _body(self, call: Any, body: Any, names: Mapping[str, str], depth: int) -> None:
        """Append a branch's nodes; its own values get new names, and its results those of the call."""
        from onnx import helper

        if len(body.sparse_initializer):
            raise InputError(f"{self.path}: a branch has sparse weights, which are not read: save them dense")
        if len(body.output) != len(call.output) or len(body.input):
            raise InputError(
                f"{self.path} is damaged: a branch gives {len(body.output)} values, not {len(call.output)}"
            )
        self.count += 1
        made = [tensor.name for tensor in body.initializer]
        made += [name for node in body.node for name in node.output if name]
        inside = {**names, **{name: f"{self.prefix}{self.count}:{name}" for name in made}}
        for tensor in body.initializer:
            copy = type(tensor).FromString(tensor.SerializeToString())
            copy.name = inside[tensor.name]
            self.weights.append(copy)
            self.truths[copy.name] = _truth(copy)
        self.fold(body.node, inside, depth + 1)
        for result, name in zip(body.output, call.output, strict=True):
            self.nodes.append(helper.make_node("Identity", [inside.get(result.name, result.name)], [name]))


def _truth(tensor: Any) -> bool | None:
    """Read a single truth value; None for anything else."""
    if tensor.data_type != BOOL or any(side != 1 for side in tensor.dims) or tensor.data_location:
        return None
    values = list(tensor.raw_data) or list(tensor.int32_data)
    return bool(values[0]) if len(values) == 1 else None
