"""Bound margins over boxes differentiably, for certified training, by a graph over the network's own weights."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.checks import check_forward
from verifiers.bound_propagation.native.backward import BackwardPass, BackwardRows
from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.settings import BoundMethod
from verifiers.geometry.balls import Balls
from verifiers.graph.affine import Affine, Reshape, Sum
from verifiers.graph.batch_norm import folded
from verifiers.graph.capture import Exported, export, lower
from verifiers.graph.graph import Builder, Graph
from verifiers.graph.operators import Interval, Operator

Box = tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]


def ball(x: Float[Tensor, "batch *shape"], eps: float) -> Box:
    """Intersect the linf ball of eps around images with the image box."""
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


def lower_margins(
    model: nn.Module,
    box: Box,
    y: Int[Tensor, " batch"],
    method: BoundMethod,
    *,
    sign: int = 1,
    minus: nn.Module | None = None,
) -> Float[Tensor, "batch classes"]:
    """Bound sign (f_y - f_j) from below over a box for every class j (0 at y), differentiable in the parameters.

    With ``minus``, f is the difference of both networks, bounded as one graph: equal parts cancel where bounds are
    linear. ``minus`` is a constant. Batch normalisation uses its running statistics, and dropout is left out. These
    bounds are for training and certify nothing: they are in the network's own precision, and leave out rounding.

    Raises:
        InputError: the network cannot be captured, or an operator has no bounds.
    """
    with refused(method):
        bounds, rows = intervals_of(model, minus, box, y)
        return least(bounds, sign * rows, method)


def blended_margins(
    model: nn.Module, box: Box, y: Int[Tensor, " batch"], linear: float
) -> Float[Tensor, "batch classes"]:
    """Bound margins by a share ``linear`` of CROWN-IBP's bounds and the rest of IBP's, over the same intervals.

    Raises:
        InputError: as ``lower_margins``.
    """
    if linear == 0:
        return lower_margins(model, box, y, "ibp")
    with refused("crown-ibp"):
        bounds, rows = intervals_of(model, None, box, y)
        return linear * least(bounds, rows, "crown-ibp") + (1 - linear) * least(bounds, rows, "ibp")


@contextmanager
def refused(method: BoundMethod) -> Iterator[None]:
    """Name what cannot be bounded while it trains."""
    try:
        yield
    except (Unsupported, Contradiction) as error:
        raise InputError(
            f"this network cannot be bounded while it trains ({method}): {str(error).removeprefix('native: ')}; "
            "change the network or take an objective without bounds"
        ) from None


def robust_cross_entropy(margins: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Compute the cross-entropy of the worst logits that lower bounds of the margins allow.

    It is an upper bound of the cross-entropy over the box.
    """
    return torch.logsumexp(-margins, dim=1).mean()


def deficits(
    student: nn.Module, teacher: nn.Module, box: Box, y: Int[Tensor, " batch"], method: BoundMethod
) -> Float[Tensor, "batch classes"]:
    """Bound (t_y - t_j) - (s_y - s_j) from above over a box for every class j, differentiable in the student.

    CROWN-IBP bounds both networks in one graph, where linear parts of the two cancel; intervals have no linear parts,
    so IBP bounds each network alone, its last layer merged with the difference of the two classes.
    """
    if method == "crown-ibp":
        return -lower_margins(student, box, y, method, minus=teacher)
    with torch.no_grad():
        theirs = lower_margins(teacher, box, y, method, sign=-1)
    return -(theirs + lower_margins(student, box, y, method))


def intervals_of(
    model: nn.Module, minus: nn.Module | None, box: Box, y: Int[Tensor, " batch"]
) -> tuple[BackwardPass, Float[Tensor, "batch rows classes"]]:
    """Bound all values of a network, less another one, by intervals; return the rows f_y - f_j too."""
    low, high = (side.detach() for side in box)
    with torch.autocast(low.device.type, enabled=False):
        graph = _graph(getattr(model, "_orig_mod", model), minus, low)  # a compiled network is unwrapped
        bounds = BackwardPass(graph, Balls(low, low.new_zeros(len(low)), Norm.LINF))  # only intervals are used
        shape = (len(low), *graph.nodes[0].shape)
        bounds.intervals = [Interval(low.reshape(shape), high.reshape(shape))]
        for node in graph.nodes[1:]:
            assert node.operator is not None
            bounds.intervals.append(_interval(node.operator, [bounds.intervals[i] for i in node.inputs]))
    eye = torch.eye(graph.classes, dtype=low.dtype, device=low.device)
    return bounds, eye[y].unsqueeze(1) - eye[None]


def least(
    bounds: BackwardPass, rows: Float[Tensor, "batch rows classes"], method: BoundMethod
) -> Float[Tensor, "batch rows"]:
    """Bound rows of the logits from below."""
    start, samples = bounds.merged(rows)
    start, output = replace(start, each=rows.shape[1]), bounds.graph.output
    with torch.autocast(rows.device.type, enabled=False):
        if method == "crown-ibp":
            return bounds.push(output, start, samples).bound.reshape(rows.shape[:2])
        back = BackwardRows.begin(output, start, samples)
        if bounds.graph.affine_operator(output):
            bounds.step(back, output)
        return bounds.over_boxes(back).reshape(rows.shape[:2])


class _Middle(Interval):
    """An interval that knows its centre and half-width, from which the next affine operator is bounded."""

    def __new__(cls, center: Tensor, half_width: Tensor) -> "_Middle":
        made = super().__new__(cls, center - half_width, center + half_width)
        made.known = center, half_width
        return made

    known: tuple[Tensor, Tensor]

    @property
    def center(self) -> Tensor:
        return self.known[0]

    @property
    def half_width(self) -> Tensor:
        return self.known[1]


def _interval(operator: Operator, boxes: Sequence[Interval]) -> Interval:
    """Bound an operator; successive affine operators pass on centres and half-widths."""
    if not isinstance(operator, Affine):
        return operator.interval(*boxes)
    if any(isinstance(box, _Middle) for box in boxes):
        return _Middle(*Affine.middle(operator, *boxes))
    if isinstance(operator, Reshape):
        return Interval(*(operator.forward(end) for end in boxes[0]))
    return _Middle(*operator.middle(*boxes))


#: The exported network with its dtype, device and image shape, kept while the network is alive.
_EXPORTED: WeakKeyDictionary[nn.Module, tuple[Any, Exported]] = WeakKeyDictionary()


def _graph(model: nn.Module, minus: nn.Module | None, x: Float[Tensor, "batch *shape"]) -> Graph:
    """Build the graph of a network, less another one, with the current weights and statistics of both."""
    networks = [model] if minus is None else [model, minus]
    exported = [_exported(network, x) for network in networks]
    builder = Builder(x[:1], checked=False)
    first = lower(exported[0], _weights(model), builder)
    if minus is not None:
        frozen = {name: value.detach() for name, value in _weights(minus).items()}
        second = lower(exported[1], frozen, builder)
        if first.shape != second.shape:
            raise Unsupported(f"logits of shapes {first.shape} and {second.shape}")
        first = builder.add(Sum([1, -1]), [first, second], first.shape)
    return Graph(folded(builder.nodes[: first.node + 1]), builder.like)


def _exported(model: nn.Module, x: Float[Tensor, "batch *shape"]) -> Exported:
    """Export a copy of a network once, and check its graph against the network."""
    key, known = (x.dtype, x.device, x.shape[1:]), _EXPORTED.get(model)
    if known is None or known[0] != key:
        network = copy.deepcopy(model)
        found = export(network, x[:1])
        builder = Builder(x[:1])
        output = lower(found, found.state, builder)
        check_forward(network, Graph(builder.nodes[: output.node + 1], x[:1]), x[:2], "the native engine")
        _EXPORTED[model] = known = key, found
    return known[1]


def _weights(model: nn.Module) -> Mapping[str, Tensor]:
    """Return the parameters, and copies of the buffers, as a forward pass in train mode writes to buffers."""
    buffers = {name: buffer.detach().clone() for name, buffer in model.named_buffers(remove_duplicate=False)}
    return {**dict(model.named_parameters(remove_duplicate=False)), **buffers}
