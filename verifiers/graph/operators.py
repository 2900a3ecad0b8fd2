"""The operators of a graph: they run, bound their range, and push the coefficients of rows back to their inputs.

Values are batched as ``(batch, *shape)``, where ``shape`` is the node's shape for one sample, so samples cannot mix.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from verifiers.graph.relaxations.lines import Activation, Alpha, Lines
from verifiers.graph.relaxations.piecewise import Relu
from verifiers.graph.rounding import magnitude
from verifiers.graph.rows import Rows


class Interval(NamedTuple):
    """Entrywise bounds of a node."""

    low: Float[Tensor, "batch *shape"]
    high: Float[Tensor, "batch *shape"]

    @property
    def center(self) -> Float[Tensor, "batch *shape"]:
        return (self.low + self.high) / 2

    @property
    def half_width(self) -> Float[Tensor, "batch *shape"]:
        return (self.high - self.low) / 2

    def to(self, dtype: torch.dtype) -> "Interval":
        """Convert both ends."""
        return Interval(self.low.to(dtype), self.high.to(dtype))


class Pushed(NamedTuple):
    """Rows in terms of an operator's inputs (None means no coefficients), and the constant that is added to them."""

    inputs: Sequence[Rows | None]
    constant: Float[Tensor, " rows"] | None = None


@runtime_checkable
class Relaxation(Protocol):
    """Linear bounds of an operator on the box of its inputs."""

    def push(self, rows: Rows, samples: Int[Tensor, " rows"]) -> Pushed:
        """Return rows of the inputs that are below the given rows of the output at every point of the box."""


@runtime_checkable
class Operator(Protocol):
    """One operator of a graph, with the shapes and constants of its capture."""

    def forward(self, *values: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Apply the operator to a batch."""

    def interval(self, *boxes: Interval) -> Interval:
        """Bound the outputs over the box of the inputs."""

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> Relaxation:
        """Compute linear bounds over the box."""

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> Sequence[Bool[Tensor, "batch *shape"] | None]:
        """Select the entries of each input whose bounds, if tighter, would tighten the relaxation; None if none."""

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Float[Tensor, "batch *shape"] | None:
        """Bound the error of float32: how far what any machine of :mod:`verifiers.graph.rounding` computes is from the
        exact value, for float32 inputs in the boxes. None if there is no error, infinite where a result may overflow.

        Args:
            boxes: intervals of the inputs, which hold the values that a machine computes.
            after: the operator's exact interval on these boxes.
        """


class Paired:
    """Base of operators that relate two networks of one architecture: d = s - t for values t and s of one place.

    The first two inputs are t and s.
    """


class Elementwise:
    """Apply an activation to each entry."""

    def __init__(self, activation: Activation) -> None:
        self.activation = activation

    def forward(self, *values: Tensor) -> Tensor:
        return self.activation(values[0])

    def interval(self, *boxes: Interval) -> Interval:
        return Interval(*self.activation.interval(*boxes[0]))

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor]:
        return [self.activation.is_nonlinear(*boxes[0])]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> Tensor | None:
        return self.activation.rounding(*boxes[0], magnitude(after))

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "Enclosed":
        return Enclosed(self.activation.lines(*boxes[0], alpha))


class Enclosed:
    """Two lines per entry: a row uses the lower one where its coefficient is positive, else the upper one."""

    def __init__(self, lines: Lines) -> None:
        self.lines, self.turn = lines, lines.upper_slope - lines.lower_slope
        self.has_lower_offset = bool(lines.lower_offset.any())

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        values, negative = rows.values, rows.values.clamp_max(0)
        constant = rows.take(negative).dot(self.lines.upper_offset, samples)
        if self.has_lower_offset:
            constant = constant + rows.take(values - negative).dot(self.lines.lower_offset, samples)
        pushed = rows.between(self.lines.lower_slope, self.turn, negative, samples)
        return Pushed([pushed.outside(clean=True)], constant)


def is_plain_relu(operator: object) -> bool:
    """Return whether an operator is max(x, 0)."""
    return isinstance(operator, Elementwise) and isinstance(operator.activation, Relu)
