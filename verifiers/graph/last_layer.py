"""Leave out the last layer of a program where it keeps the order of the scores: softmax, sigmoid, a temperature.

Such a layer is a strictly increasing function of the scores, so the predicted class is the same without it, and so are
the adversarial images. Bounds that pass through it are looser, and attacks see no gradient where it saturates. So
proofs and attacks are about the scores before it. In float32 a softmax may give two classes the same probability where
their scores differ; a prediction is always that of the scores.

A classifier with one score z is read as the logits (0, z): its class is 1 where z > 0. A final sigmoid gives the
probability of class 1, and is left out too.
"""

import copy
import math
import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from verifiers.graph.exported import kind_of

aten = torch.ops.aten
#: Functions of one number that increase strictly on the whole line, and those among them that keep its sign.
_INCREASING = frozenset("sigmoid log_sigmoid tanh exp expm1 atan asinh sinh erf selu".split())
_SIGNED = frozenset("tanh atan asinh sinh erf expm1 selu".split())
#: Products and sums with a number.
_LINEAR = frozenset("mul div add sub".split())
#: Functions of all scores that keep their order, and functions whose values are positive.
_SOFTMAX = frozenset("softmax _softmax log_softmax _log_softmax".split())
_POSITIVE = frozenset("softmax _softmax sigmoid exp".split())
#: Operators that keep the order of the entries of a row.
_MOVES = frozenset(
    "view _unsafe_view reshape flatten unflatten squeeze unsqueeze clone contiguous to _to_copy permute transpose "
    "alias detach".split()
)


@dataclass(frozen=True)
class Scores:
    """A program for one image without its last layer.

    Attributes:
        program: maps one image to a row of at least two scores.
        whole: the program with its last layer; its output is a row.
        left_out: the layers that are left out, the last one first.
        one: True if the network gives one score.
    """

    program: fx.GraphModule
    whole: fx.GraphModule
    left_out: tuple[str, ...] = ()
    one: bool = False

    @property
    def changed(self) -> bool:
        """True if the program is another one than the network's."""
        return self.one or bool(self.left_out)

    @property
    def remark(self) -> str:
        """What was done, in a few words; empty if nothing was."""
        words = [f"{' and '.join(self.left_out)} left out"] if self.left_out else []
        return "; ".join([*words, *(["one score z is read as the logits (0, z)"] if self.one else [])])

    @property
    def said(self) -> str:
        """What was done, in a sentence for the user; empty if nothing was."""
        names = " and ".join(self.left_out)
        if self.one:
            first = f"a last {names} is left out, and its" if names else "its"
            return (
                f"the network gives one score per image: {first} score z is read as the logits (0, z): class 1 is z > 0"
            )
        if not names:
            return ""
        return (
            f"the network ends in {names}, which keeps the order of the classes and is left out: predictions, attacks "
            "and radii are those of the scores before it"
        )


def scores_of(program: fx.GraphModule, image: Tensor, *, paired: bool = False) -> Scores:
    """Leave out a program's last layer, and give it two scores if it has one.

    Args:
        program: maps one image to its output.
        image: one image.
        paired: keep factors and shifts, as the logits are compared with another network's.
    """
    if _shape(_last(program.graph)) is None:  # translated layer by layer
        _Shapes(program).run(image)
    shape = _shape(_last(program.graph))
    one = shape is not None and math.prod(shape) == 1
    whole = _edited(program, _as_row(copy.deepcopy(program.graph))) if one and shape != (1, 1) else program
    graph = copy.deepcopy(whole.graph)
    left_out = _without_last(graph, program, one=one, paired=paired)
    if not one and not left_out:
        return Scores(program, program)
    if one:
        _append(graph, aten.constant_pad_nd.default, ([1, 0],), (1, 2))
    return Scores(_edited(program, graph), whole, tuple(left_out), one)


class _Shapes(fx.Interpreter):
    """Note the shape of every value."""

    def run_node(self, n: fx.Node) -> Any:
        with torch.no_grad():
            result = super().run_node(n)
        if n.op != "output":
            n.meta["shape"] = tuple(result.shape) if isinstance(result, Tensor) else None
        return result


def _edited(program: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """Make another program with the same weights."""
    graph.eliminate_dead_code()
    return fx.GraphModule(program, graph).eval()


def _output(graph: fx.Graph) -> fx.Node:
    return next(iter(reversed(graph.nodes)))


def _last(graph: fx.Graph) -> fx.Node:
    """Return the node whose value is the output."""
    found: Any = _output(graph).args[0]
    return found[0] if isinstance(found, tuple | list) else found


def _shape(node: fx.Node) -> tuple[int, ...] | None:
    return node.meta.get("shape")


def _as_row(graph: fx.Graph) -> fx.Graph:
    """Give the output the shape of a row."""
    _append(graph, aten.reshape.default, ([1, 1],), (1, 1))
    return graph


def _append(graph: fx.Graph, target: Any, args: tuple[Any, ...], shape: tuple[int, ...]) -> None:
    """Apply one more operator to the output."""
    output, last = _output(graph), _last(graph)
    with graph.inserting_before(output):
        made = graph.call_function(target, (last, *args))
    made.meta = {"nn_module_stack": None, "shape": shape, "image": True}
    output.args = (made,)


def _without_last(graph: fx.Graph, program: fx.GraphModule, *, one: bool, paired: bool) -> list[str]:
    """Take layers off the end of a graph; operators that only move entries stay. Return the names of the layers."""
    names: list[str] = []
    user, node = _output(graph), _last(graph)
    while (found := _before(node, program, one=one, first=not names)) is not None:
        before, name = found
        if paired and name and kind_of(node.target) in _LINEAR:
            break
        if name:
            user.replace_input_with(node, before)
            names.append(name)
        else:
            user = node
        node = before
    return names


def _before(node: fx.Node, program: fx.GraphModule, *, one: bool, first: bool) -> tuple[fx.Node, str] | None:
    """Return the input of an operator that keeps the order of the scores, and its name, empty if it moves entries.

    Args:
        node: the operator.
        program: holds the constants.
        one: the network has one score, whose sign must be kept; a sigmoid turns it into a probability.
        first: no layer was taken off yet.
    """
    images = [given for given in node.all_input_nodes if given.meta.get("image")]
    if node.op != "call_function" or len(images) != 1 or images[0] is not _operand(node, images[0]):
        return None
    before, kind = images[0], kind_of(node.target)
    sizes = [math.prod(shape) if shape is not None else 0 for shape in (_shape(node), _shape(before))]
    if sizes[0] != sizes[1] or not sizes[0]:
        return None
    if kind in _MOVES:
        return (before, "") if _single_axis(before) is not None and _stays_float(node) else None
    if kind in _SOFTMAX:
        axis, rank = node.args[1], len(_shape(node) or ())
        right = not one and isinstance(axis, int) and axis % rank == _single_axis(node)
        return (before, kind.removeprefix("_")) if right else None
    if kind in _LINEAR:
        return _linear(node, before, program, one=one)
    kept = kind in (_SIGNED | ({"sigmoid"} if first else set()) if one else _INCREASING)
    if kept or (kind == "log" and not one and _positive(before)):
        return before, kind
    return None


def _operand(node: fx.Node, image: fx.Node) -> fx.Node | None:
    """Return the image-dependent argument of an operator; None if it occurs twice, or inside a list."""
    several = [given for given in tree_leaves((node.args, node.kwargs)) if given is image]
    return image if len(several) == 1 and any(given is image for given in node.args[:2]) else None


def _single_axis(node: fx.Node) -> int | None:
    """Return the one axis that has all entries; None if several axes have more than one."""
    shape = _shape(node) or ()
    long = [axis for axis, size in enumerate(shape) if size > 1]
    return (long[0] if long else 0) if len(long) < 2 else None


def _stays_float(node: fx.Node) -> bool:
    given = tree_leaves((node.args, node.kwargs))
    return all(leaf.is_floating_point for leaf in given if isinstance(leaf, torch.dtype))


def _linear(node: fx.Node, before: fx.Node, program: fx.GraphModule, *, one: bool) -> tuple[fx.Node, str] | None:
    """Take off a product with a positive number, or a sum with any."""
    kind, plain = kind_of(node.target), not node.kwargs
    first, second = node.args[0], node.args[1]
    other, in_front = (second, True) if first is before else (first, False)
    number = _number(other, program)
    if not plain or number is None or not math.isfinite(number) or not (in_front or kind in ("mul", "add")):
        return None
    if kind in ("mul", "div") and number == 1:
        return before, ""
    if kind in ("mul", "div"):
        return (before, f"a factor {number if kind == 'mul' else 1 / number:.4g}") if number > 0 else None
    return None if one else (before, "a shift")


def _number(value: Any, program: fx.GraphModule) -> float | None:
    """Return a constant of one entry; None for anything else."""
    if isinstance(value, fx.Node):
        with torch.no_grad():
            value = _constant(value, program)
    if isinstance(value, Tensor):
        return float(value) if value.numel() == 1 and value.dim() <= 2 else None
    return float(value) if isinstance(value, int | float) else None


def _constant(node: fx.Node, program: fx.GraphModule) -> Any:
    """Compute a value that does not depend on the image."""
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(program)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda given: _constant(given, program))
    target: Any = node.target
    return target(*args, **kwargs)


def _positive(node: fx.Node) -> bool:
    """Return whether a value is positive: a probability, or that and a number of 0 or more."""
    kind = kind_of(node.target)
    plain = kind == "add" and len(node.args) == 2 and not node.kwargs
    if plain and isinstance(node.args[1], int | float) and node.args[1] >= 0:
        return isinstance(node.args[0], fx.Node) and _positive(node.args[0])
    return kind in _POSITIVE
