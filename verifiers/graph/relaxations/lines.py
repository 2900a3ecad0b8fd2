"""The form of every elementwise relaxation: two lines that enclose a function on an interval."""

from typing import NamedTuple, Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor


class Lines(NamedTuple):
    """For every x in [low, high]: lower_slope x + lower_offset <= f(x) <= upper_slope x + upper_offset."""

    lower_slope: Float[Tensor, "*shape"]
    lower_offset: Float[Tensor, "*shape"]
    upper_slope: Float[Tensor, "*shape"]
    upper_offset: Float[Tensor, "*shape"]


#: The choice, from 0 to 1, of the free lower and the free upper line among those that a relaxation allows.
Alpha = tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]


@runtime_checkable
class Activation(Protocol):
    """An elementwise function with its range and its relaxation; all methods take and return tensors of one shape.

    ``low`` and ``high`` are finite with low <= high; equal ends are allowed. Results carry gradients to ``low``,
    ``high`` and ``alpha``, which are never nan.
    """

    def __call__(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Apply the function."""

    def interval(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]
    ) -> tuple[Float[Tensor, "*shape"], Float[Tensor, "*shape"]]:
        """Compute the smallest interval that contains f([low, high])."""

    def lines(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], alpha: Alpha | None = None) -> Lines:
        """Relax f on [low, high]; ``alpha`` selects the free lines, and None a good default."""

    def is_nonlinear(self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
        """Return a mask of intervals on which f is not one line, so that tighter ends would tighten the relaxation."""

    def rounding(
        self, low: Float[Tensor, "*shape"], high: Float[Tensor, "*shape"], size: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "*shape"] | None:
        """Bound the error of float32 on [low, high], where |f| <= size; None if there is none."""
