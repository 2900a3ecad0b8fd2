"""Combine an int8 copy and its original in one graph: a quantised neuron is its original plus a bounded error.

The copy's codes are multiplied by a scale at each layer, so that they are of the size of the original's values: any
positive number is right, and the one that brings the layer's weights nearest to the original's is taken. The copy is
then the original's layers with other weights and, behind each, rounding to a grid. Rounding adds at most half a step to
the difference of a neuron, and what the clamp at the ends of the codes takes off.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from verifiers.graph.affine import Convolution, Dense, Reshape, Scale
from verifiers.graph.affine_difference import AffineDifference, Difference
from verifiers.graph.difference import Values, joined, next_values
from verifiers.graph.graph import Builder, Graph, Node, Ref
from verifiers.graph.lowering.integers import IntegerConvolution, IntegerDense, Rescale, Rounded
from verifiers.graph.operators import Elementwise, Interval, Operator, is_plain_relu
from verifiers.graph.relaxations.lines import Alpha, Lines
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.relaxations.staircase import EDGE, Staircase


@dataclass(frozen=True)
class Grid:
    """Round to multiples of a step, and clamp: the step times a staircase of x over the step."""

    step: float
    steps: Staircase

    def __call__(self, x: Tensor) -> Tensor:
        return self.step * self.steps(x / self.step)

    def interval(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        first, last = self.steps.interval(low / self.step, high / self.step)
        return self.step * first, self.step * last

    def lines(self, low: Tensor, high: Tensor, alpha: Alpha | None = None) -> Lines:
        found = self.steps.lines(low / self.step, high / self.step, alpha)
        lower, upper = self.step * found.lower_offset, self.step * found.upper_offset
        return found._replace(lower_offset=lower, upper_offset=upper)

    def is_nonlinear(self, low: Tensor, high: Tensor) -> Tensor:
        return self.steps.is_nonlinear(low / self.step, high / self.step)

    def rounding(self, low: Tensor, high: Tensor, size: Tensor) -> None:
        """Exact: a code has no error of its own, and its step is a unit, which no machine multiplies by."""
        return None

    def error(self, box: Interval) -> Interval:
        """Bound the rounded value less the value: half a step, and what the ends of the codes take off."""
        low, high = box.low / self.step, box.high / self.step
        first, last = self.steps.interval(low, high)
        least = torch.maximum(first - high, (self.steps.high - high).clamp_max(-0.5))
        most = torch.minimum(last - low, (self.steps.low - low).clamp_min(0.5))
        slack = EDGE * (1 + low.abs().maximum(high.abs()))
        return Interval(self.step * (least - slack), self.step * (most + slack))


class _InUnits:
    """Mixed into layers of codes whose inputs and outputs are multiplied by units: the error is multiplied, too.

    Attributes:
        layer: the layer of codes.
        units: of its input and its output.
    """

    layer: IntegerDense | IntegerConvolution | Rescale | Scale
    units: tuple[float, float]

    def error(self, sizes: Sequence[Tensor], after: Tensor) -> Tensor | None:
        before, behind = self.units
        found = self.layer.error([sizes[0] / before], after / behind)
        return None if found is None else behind * found


class DenseInUnits(_InUnits, Dense):  # type: ignore[misc] # the error of both has one signature
    """A linear layer of codes."""

    def __init__(self, layer: IntegerDense, units: tuple[float, float]) -> None:
        self.layer, self.units = layer, units
        bias = None if layer.bias is None else units[1] * layer.bias
        super().__init__(layer.weight * (units[1] / units[0]), bias, layer.after)


class ConvolutionInUnits(_InUnits, Convolution):  # type: ignore[misc]
    """A convolution of codes."""

    def __init__(self, layer: IntegerConvolution, units: tuple[float, float]) -> None:
        self.layer, self.units = layer, units
        bias = None if layer.bias is None else units[1] * layer.bias
        geometry = layer.stride, layer.padding, layer.dilation, layer.groups
        weight = layer.weight * (units[1] / units[0])
        super().__init__(weight, bias, *geometry, before=layer.before, after=layer.after)


class ScaleInUnits(_InUnits, Scale):
    """A change of scale that units undo: the value stays, with the error of the change."""

    def __init__(self, layer: Rescale | Scale, units: tuple[float, float]) -> None:
        self.layer, self.units = layer, units
        super().__init__(torch.ones_like(layer.scale.reshape(-1)[:1]), None, layer.shape)


class StepDifference(Difference):
    """d = s' - t behind a step that the copy alone has: its own rounding. The inputs are t, s', s, and s - t if any."""

    def __init__(self, step: Operator, *, first: bool) -> None:
        self.step, self.first = step, first

    @property
    def inputs(self) -> int:
        return 3 if self.first else 4

    def interval(self, *boxes: Interval) -> Interval:
        before = boxes[2]
        low = high = torch.zeros_like(before.low)
        if not self.first:
            low, high = boxes[3]
        if isinstance(self.step, Elementwise) and isinstance(self.step.activation, Grid):
            error = self.step.activation.error(before)
            return Interval(low + error.low, high + error.high)
        size = AffineDifference._error(self.step, [before])
        return Interval(low - size, high + size)


def coupled_codes(student: Graph, teacher: Graph) -> Graph | None:
    """Build the graph of both logits and their difference, as ``coupled`` does for an int8 copy and its original.

    None if the networks are not both chains of the same layers, the copy's last codes are not multiplied by a scale, or
    its constants have errors of their own.
    """
    theirs = list(teacher.nodes)
    chains = all(node.inputs == (i,) for graph in (student, teacher) for i, node in enumerate(graph.nodes[1:]))
    moved = any(getattr(node.operator, "perturbation", None) is not None for node in student.nodes)
    if not chains or moved or not isinstance(student.nodes[-1].operator, Scale):
        return None
    builder = Builder(teacher.like)
    image = Ref(0, theirs[0].shape)
    place, unit, at = Values(image, image, None), 1.0, 1
    for position, node in enumerate(student.nodes[1:], 1):
        builder.path, builder.kind = node.path, node.kind
        if isinstance(node.operator, Rounded) and at < len(theirs) and is_plain_relu(theirs[at].operator):
            steps = node.operator.activation
            if not isinstance(steps, Staircase) or steps.low != 0:
                return None
            relu = replace(node, operator=Elementwise(Relu()))
            place, at = next_values(builder, relu, theirs[at], [place], rounded=True), at + 1
        found = _alone(node, unit, student.nodes[position + 1 :])
        if found is not None:
            place, unit = _own_step(builder, found[0], place), found[1]
            continue
        made = None if at == len(theirs) else _shared(node, unit, theirs[at], student.nodes[position + 1 :])
        if made is None:
            return None
        place, at = next_values(builder, replace(node, operator=made[0]), theirs[at], [place], rounded=True), at + 1
        unit = made[1]
    if at < len(theirs) or unit != 1.0:
        return None
    builder.path, builder.kind = "", "pair"
    return Graph(joined(builder, place), teacher.like)


def _alone(node: Node, unit: float, later: Sequence[Node]) -> tuple[Operator, float] | None:
    """Return a step that the copy alone has, in units, and the unit behind it; None for a layer of both."""
    layer = node.operator
    if isinstance(layer, Rounded) and isinstance(layer.activation, Staircase):
        return Elementwise(Grid(unit, layer.activation)), unit
    if isinstance(layer, Rescale | Scale) and layer.scale.numel() == 1 and layer.shift is None and layer.scale > 0:
        behind = unit / float(layer.scale)
        last = not isinstance(layer, Rescale) and not later
        return (ScaleInUnits(layer, (unit, behind)), 1.0 if last and abs(behind - 1) < 1e-12 else behind)
    return None


def _shared(node: Node, unit: float, theirs: Node, later: Sequence[Node]) -> tuple[Operator, float] | None:
    """Return a layer of both networks as the copy computes it, and the unit behind it; None if they differ."""
    ours, other = node.operator, theirs.operator
    if node.shape != theirs.shape:
        return None
    if isinstance(ours, Reshape) and isinstance(other, Reshape):
        return ours, unit
    dense = isinstance(ours, IntegerDense) and type(other) is Dense
    if not dense and not (isinstance(ours, IntegerConvolution) and type(other) is Convolution and _alike(ours, other)):
        return None
    assert isinstance(ours, IntegerDense | IntegerConvolution) and isinstance(other, Dense | Convolution)
    if ours.weight.shape != other.weight.shape:
        return None
    behind = _last_scale(later)
    if behind is None:
        behind = unit * float((ours.weight * other.weight).sum() / (ours.weight**2).sum())
    if not 0 < behind < float("inf"):
        return None
    units = unit, behind
    return DenseInUnits(ours, units) if isinstance(ours, IntegerDense) else ConvolutionInUnits(ours, units), behind


def _alike(ours: Convolution, theirs: Convolution) -> bool:
    names = ("stride", "padding", "dilation", "groups")
    return all(getattr(ours, name) == getattr(theirs, name) for name in names)


def _last_scale(later: Sequence[Node]) -> float | None:
    """Return the number by which the last codes are multiplied, if nothing but rounding is before it."""
    kinds = [node.operator for node in later if not isinstance(node.operator, Rounded)]
    if len(kinds) != 1 or not isinstance(kinds[0], Scale) or kinds[0].scale.numel() != 1:
        return None
    return float(kinds[0].scale)


def _own_step(builder: Builder, step: Operator, place: Values) -> Values:
    """Append a step of the copy alone; the original's value is repeated, so that each is in one relation."""
    shape = place.t.shape
    t = builder.add(Reshape(shape, shape), [place.t], shape)
    s = builder.add(step, [place.s], shape)
    given = [t, s, place.s] if place.d is None else [t, s, place.s, place.d]
    return Values(t, s, builder.add(StepDifference(step, first=place.d is None), given, shape))
