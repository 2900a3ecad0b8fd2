"""Where to split inputs of nonlinear operators, what a split may win, and the free lines that a domain optimises."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.graph.graph import Graph
from verifiers.graph.operators import Elementwise, Enclosed, Interval, Operator
from verifiers.graph.relaxations.max_pool import MaxPool
from verifiers.graph.relaxations.piecewise import Clamp, HardSigmoid, HardSwish, LeakyRelu, Relu
from verifiers.graph.relaxations.products import Product
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.relaxations.sigmoidal import SShape
from verifiers.graph.relaxations.softmax import SoftmaxOfSum
from verifiers.graph.rows import Shape, shape_size

#: The lower and the upper free lines of one operator, as ``Alpha``, whatever its shape.
Sides = tuple[Tensor, Tensor]
#: The places of a curved function, as shares of the interval of its input.
SHARES = (0.5, 0.25, 0.75, 0.125, 0.375, 0.625, 0.875)


def is_relu(operator: Operator | None) -> bool:
    """Return whether an operator is linear on either side of zero: ReLU or leaky ReLU."""
    return isinstance(operator, Elementwise) and isinstance(operator.activation, Relu | LeakyRelu)


def has_free_lines(operator: Operator | None) -> bool:
    """Return whether an operator's relaxation has free lines or planes."""
    return isinstance(operator, Elementwise | ReluDifference | SoftmaxOfSum) or (
        isinstance(operator, Product) and operator.free
    )


def split_points(
    operator: Operator, mask: Bool[Tensor, "1 *shape"], box: Interval
) -> tuple[Int[Tensor, " places"], Float[Tensor, " places"]]:
    """Choose the places of an operator's input: entries of the mask, and values inside their intervals.

    Piecewise linear functions are split at their kinks, curved ones at shares of the interval too.
    """
    kinks, curved = _kinks(operator)
    chosen = mask[0].flatten().nonzero().flatten()
    low, high = (end[0].flatten()[chosen] for end in box)
    points = [torch.full_like(low, kink) for kink in kinks]
    points += [low + share * (high - low) for share in SHARES] if curved else []
    values = torch.stack(points, 1)
    inside = (low[:, None] < values) & (values < high[:, None]) & torch.isfinite(values)
    return chosen[:, None].expand_as(values)[inside], values[inside]


def _kinks(operator: Operator) -> tuple[tuple[float, ...], bool]:
    """Return where an operator bends sharply, and whether it is curved elsewhere."""
    activation = operator.activation if isinstance(operator, Elementwise) else None
    if isinstance(activation, Relu | LeakyRelu):
        return (0.0,), False
    if isinstance(activation, Clamp):
        return tuple(end for end in activation.ends if math.isfinite(end)), False
    if isinstance(activation, HardSigmoid | HardSwish):
        return (-3.0, 3.0), isinstance(activation, HardSwish)
    return ((0.0,) if isinstance(activation, SShape) else ()), True


def costs(
    operator: Operator,
    boxes: Sequence[Interval],
    row: Float[Tensor, "domains ..."],
    alpha: Sides | None,
) -> list[Float[Tensor, "domains ..."]]:
    """Estimate for every entry of each input how much its relaxation lowers a row, from the row's coefficients."""
    if is_relu(operator):
        (low, high), free = boxes[0], torch.zeros_like(boxes[0].low) if alpha is None else alpha[0]
        above = -low * high / (high - low).clamp_min(1e-12)
        below = torch.maximum((1 - free) * high, -free * low)
        return [torch.where(row < 0, -row * above, row * below) + 1e-9 * above]
    size, halves = row.abs(), [box.half_width for box in boxes]
    if isinstance(operator, Product):
        left, right = operator.aligned(*halves)
        return [part * half for part, half in zip(operator.transposed(size, left, right), halves, strict=True)]
    if isinstance(operator, MaxPool):
        low, high = (operator.windowed(end) for end in boxes[0])
        open_by = (high - low.amax(-1, keepdim=True)).clamp_min(0).where(operator.real, 0.0)
        each = size.reshape(*low.shape[:3], 1) * open_by
        flat = each.new_zeros((*low.shape[:2], operator.before[-2] * operator.before[-1]))
        index = operator.index.clamp_min(0).flatten()
        found = flat.scatter_add(2, index.expand(*flat.shape[:2], -1), each.flatten(2))
        return [found.reshape(boxes[0].low.shape)]
    relaxation = operator.relax(boxes, alpha)
    if isinstance(relaxation, Enclosed):
        lines, middle = relaxation.lines, boxes[0].center
        gap = (lines.upper_slope - lines.lower_slope) * middle + lines.upper_offset - lines.lower_offset
        return [size * gap, *(torch.zeros_like(half) for half in halves[1:])]
    mean = size.flatten(1).mean(1)
    return [half * mean.reshape(-1, *[1] * (half.ndim - 1)) for half in halves]


@dataclass(frozen=True)
class FreeLines:
    """The free lines of all operators for one row: those of ReLUs' open entries, and all others' lower and upper ones.

    Attributes:
        entries: by operator, the entries whose line is free; all if None.
        shapes: by operator, the shape of its lines.
    """

    entries: Mapping[int, Int[Tensor, " _"] | None]
    shapes: Mapping[int, Shape]

    @classmethod
    def of(cls, graph: Graph, intervals: Sequence[Interval]) -> "FreeLines":
        """Find the free lines on one ball."""
        entries: dict[int, Tensor | None] = {}
        shapes = {}
        for position, node in enumerate(graph.nodes):
            operator = node.operator
            if not has_free_lines(operator) or isinstance(operator, ReluDifference):
                continue
            shapes[position] = operator.terms if isinstance(operator, Product) else graph.nodes[node.inputs[0]].shape
            low, high = intervals[node.inputs[0]]
            entries[position] = ((low < 0) & (high > 0)).flatten().nonzero().flatten() if is_relu(operator) else None
        return cls(entries, shapes)

    @property
    def sizes(self) -> list[int]:
        """The number of values of each operator."""
        return [
            2 * shape_size(self.shapes[position]) if entries is None else len(entries)
            for position, entries in self.entries.items()
        ]

    def start(
        self, graph: Graph, intervals: Sequence[Interval], known: Mapping[int, Sides], rows: Int[Tensor, " rows"]
    ) -> Float[Tensor, "rows lines"]:
        """Return first values: CROWN's lines of ReLUs, and known or middle lines of others."""
        parts = [intervals[0].low.new_zeros((len(rows), 0))]
        for position, entries in self.entries.items():
            low, high = (end.flatten(1) for end in intervals[graph.nodes[position].inputs[0]])
            if entries is not None:
                steep = (high > -low).to(low.dtype)[:, entries]
                parts.append(steep.expand(len(rows), -1))
            elif position in known:
                parts.append(torch.cat([side[rows].flatten(1) for side in known[position]], 1))
            else:
                parts.append(low.new_full((len(rows), 2 * shape_size(self.shapes[position])), 0.5))
        return torch.cat(parts, 1)

    def spread(self, values: Float[Tensor, "domains lines"]) -> dict[int, Sides]:
        """Return the lines by operator."""
        found: dict[int, Sides] = {}
        for (position, entries), part in zip(self.entries.items(), values.split(self.sizes, 1), strict=True):
            shape = (len(values), *self.shapes[position])
            if entries is None:
                low, high = part.chunk(2, 1)
                found[position] = low.reshape(shape), high.reshape(shape)
            else:
                flat = values.new_zeros((len(values), shape_size(self.shapes[position])))
                whole = flat.index_copy(1, entries, part).reshape(shape)
                found[position] = whole, whole
        return found
