"""Guard auto-LiRPA: allow only layers with sound bounds, and check each graph when it is built.

auto-LiRPA 0.3 silently gives wrong bounds on some ordinary layers (padded average pooling, square root, reciprocal,
average pooling that does not count its padding). Layers and operators are therefore allowed by a list of those that
withstood attacks for linf and l2 balls, with their attributes; all others are rejected by name. A list can be wrong
too, so every graph is checked against the network (same logits) and its bounds against points of the ball.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from torch import nn

from verifiers.core.errors import Unsupported

Check = Callable[[nn.Module], str | None]


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value, value)


def _always(module: nn.Module) -> str | None:
    return None


def _convolution(module: nn.Module) -> str | None:
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        return f"padding_mode={module.padding_mode!r}"
    if isinstance(module.padding, str):
        return f"padding={module.padding!r}" if module.padding != "valid" else None
    return f"dilation={module.dilation}" if _pair(module.dilation) != (1, 1) else None


def _leaky(module: nn.Module) -> str | None:
    assert isinstance(module, nn.LeakyReLU)
    return _slope(module.negative_slope)


def _slope(slope: float) -> str | None:
    """Check a leaky ReLU's slope: interval bounds need a monotone function, and the relaxation a convex one."""
    return None if 0 <= slope <= 1 else f"negative_slope={slope} outside [0, 1]"


def _pooling(module: nn.Module) -> str | None:
    assert isinstance(module, nn.AvgPool2d | nn.MaxPool2d)
    kernel, stride = _pair(module.kernel_size), _pair(module.stride or module.kernel_size)
    if kernel != stride:
        return f"overlapping windows (kernel {kernel}, stride {stride})"
    if kernel[0] != kernel[1]:
        return f"windows that are not square {kernel}"
    if _pair(module.padding) != (0, 0):
        return f"padding={module.padding}"
    if getattr(module, "divisor_override", None):
        return "divisor_override"
    if _pair(getattr(module, "dilation", 1)) != (1, 1):
        return f"dilation={module.dilation}"
    return "ceil_mode=True" if module.ceil_mode else None


def _adaptive(module: nn.Module) -> str | None:
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    return None if _pair(module.output_size) == (1, 1) else f"output_size={module.output_size}"  # type: ignore[arg-type]


def _batch_norm(module: nn.Module) -> str | None:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if not module.track_running_stats:
        return "batch statistics in eval mode"
    return None if module.affine else "affine=False"


#: Leaf modules with checks of their attributes; a check returns the reason for rejection, or None.
MODULES: dict[type[nn.Module], Check] = {
    nn.Linear: _always,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _always,
    nn.LeakyReLU: _leaky,
    nn.Sigmoid: _always,
    nn.Tanh: _always,
    nn.SiLU: _always,
    nn.AvgPool2d: _pooling,
    nn.MaxPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _always,
    nn.Identity: _always,
}

#: Graph operators that may depend on the input. Constant parts of a graph are evaluated, so any operator is allowed.
OPERATORS = frozenset(
    f"Bound{name}"
    for name in (
        "Input Conv Linear BatchNormalization Relu LeakyRelu Sigmoid Tanh Add Sub Mul Abs Exp Flatten Reshape "
        "Transpose Unsqueeze Squeeze Concat Identity AveragePool GlobalAveragePool MaxPool ReduceMean Shape"
    ).split()
)

#: The operators among them whose inputs CROWN must bound.
NONLINEAR = frozenset(f"Bound{name}" for name in "Relu LeakyRelu Sigmoid Tanh Abs Exp Mul MaxPool".split())
#: The most bytes of one pair of CROWN's float64 matrices, lower and upper.
MEMORY = 2 * 2**30


def check_modules(model: nn.Module) -> None:
    """Reject a network with a leaf module that is not on the list, naming its path.

    A module with both children and parameters of its own is checked only through the graph's operators.

    Raises:
        Unsupported: a module is not allowed; the message names its path, its type and the attribute.
    """
    for path, module in model.named_modules():
        if next(module.children(), None) is not None or isinstance(module, nn.modules.dropout._DropoutNd):
            continue  # dropout is no part of the program
        check = MODULES.get(type(module))
        known_type = type(module).__module__.startswith("torch.nn")
        if check is None and not known_type:
            continue  # the author's own module: its operators show in the graph
        reason = check(module) if check is not None else "not among the layers it bounds soundly"
        if reason is not None:
            where = path or "the network itself"
            raise Unsupported(f"auto-LiRPA: layer {where!r} ({type(module).__name__}): {reason}")


def check_operators(nodes: Iterator[tuple[str, Any]]) -> None:
    """Reject a graph with an operator that is not on the list and depends on the input.

    Functional calls (``F.avg_pool2d`` instead of a module) are seen only here, so attributes are checked again.

    Raises:
        Unsupported: an operator is not allowed; the message names it, and its layer or the last layer before it.
    """
    for name, node in nodes:
        if not getattr(node, "perturbed", False):
            continue
        kind = type(node).__name__
        reason = None if kind in OPERATORS else "not among the operators it bounds soundly"
        if kind in ("BoundAveragePool", "BoundMaxPool"):
            reason = _pooling_operator(node)
        elif kind == "BoundDiv":
            reason = "a divisor that depends on the input" if node.inputs[1].perturbed else None
        elif kind == "BoundLeakyRelu":
            reason = _slope(node.alpha)
        elif kind == "BoundConv" and tuple(node.dilation) != (1, 1):
            reason = f"dilation={tuple(node.dilation)}"
        if reason is not None:
            raise Unsupported(f"auto-LiRPA: operator {kind.removeprefix('Bound')} at {place(name, node)}: {reason}")


def check_size(nodes: Iterable[Any]) -> None:
    """Reject a graph for which CROWN needs too much memory: all neurons of a layer as functions of another layer.

    The native engine keeps windows of convolutions, and only rows of open neurons. A process that exceeds the memory is
    killed without a message.

    Raises:
        Unsupported: CROWN needs too much memory; the message has the sizes.
    """
    varying = [node for node in nodes if getattr(node, "perturbed", False)]
    nonlinear = [node.inputs[0] for node in varying if type(node).__name__ in NONLINEAR]
    rows, columns = (max(map(_entries, some), default=0) for some in (nonlinear, varying))
    memory = 2 * 8 * rows * columns
    if memory > MEMORY:
        raise Unsupported(
            f"auto-LiRPA: CROWN would take {memory / 2**30:.1f} GiB a sample and more, for {rows} neurons of one layer "
            f"as functions of {columns} of another ({MEMORY / 2**30:.0f} GiB are the limit)"
        )


def _entries(node: Any) -> int:
    return math.prod((node.output_shape or (0,))[1:])


def place(name: str, node: Any) -> str:
    """Name a node: its name in the graph, and the path of its layer, or of the last layer with parameters before it."""
    if paths := _paths(node):
        return f"{name!r} (layer {paths[0]!r})"
    reached, generation = {id(node)}, [node]
    while generation:
        generation = [parent for child in generation for parent in child.inputs if id(parent) not in reached]
        reached |= {id(parent) for parent in generation}
        if paths := [path for parent in generation for path in _paths(parent)]:
            return f"{name!r} (after layer {paths[0]!r})"
    return repr(name)


def _paths(node: Any) -> list[str]:
    """Find the path of the module whose parameters a graph node uses; the graph has no other trace of the modules."""
    names = [getattr(parent, "ori_name", None) for parent in node.inputs if type(parent).__name__ == "BoundParams"]
    return [name.rpartition(".")[0] for name in names if name and "." in name]


def name_unoptimizable(nodes: Iterator[tuple[str, Any]]) -> str:
    """Name operators at which alpha-CROWN fails in 0.3: S-shaped functions of images, bounded for another such one."""
    found = [
        f"{type(node).__name__.removeprefix('Bound')} at {place(name, node)}"
        for name, node in nodes
        if type(node).__name__ in ("BoundTanh", "BoundSigmoid")
        and getattr(node, "perturbed", False)
        and len(node.output_shape or ()) > 2
    ]
    return f" (operator {', '.join(found)})" if found else ""


def _pooling_operator(node: Any) -> str | None:
    kernel, stride, padding = (tuple(getattr(node, name)) for name in ("kernel_size", "stride", "padding"))
    if kernel != stride or any(padding) or kernel[0] != kernel[1]:
        return f"kernel {kernel}, stride {stride}, padding {padding}: only square, disjoint, unpadded windows are sound"
    height, width = node.input_shape[-2:]
    if height % kernel[0] or width % kernel[1]:
        return f"windows {kernel} do not divide the {height}x{width} input"
    return None
