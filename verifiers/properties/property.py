"""A property, exactly as it was written: rational boxes and linear inequalities.

A property is the unsafe set, in cases. It is satisfiable if an input of a case's box has outputs that satisfy all of
the case's inequalities. An input is a point of the box, and the network gets it rounded to float32.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from jaxtyping import Float

from verifiers.core.errors import InputError
from verifiers.graph.rounding import LARGEST

#: Coefficients by number of the input or output, in the order of memory.
Terms = tuple[tuple[int, Fraction], ...]


@dataclass(frozen=True)
class Inequality:
    """``outputs @ y + inputs @ x + constant <= 0``, or ``< 0`` if it is strict."""

    outputs: Terms
    inputs: Terms
    constant: Fraction
    strict: bool = False

    def holds(self, x: Sequence[Fraction], y: Sequence[Fraction]) -> bool:
        """Return whether exact values satisfy it."""
        total = self.constant + sum(c * y[i] for i, c in self.outputs) + sum(c * x[i] for i, c in self.inputs)
        return total < 0 or (total == 0 and not self.strict)


@dataclass(frozen=True)
class Box:
    """A closed box of inputs.

    Raises:
        InputError: an end is beyond float32.
    """

    low: tuple[Fraction, ...]
    high: tuple[Fraction, ...]

    def __post_init__(self) -> None:
        for i, ends in enumerate(zip(self.low, self.high, strict=True)):
            if max(map(abs, ends)) > LARGEST:
                raise InputError(f"input {i} is bounded by a number beyond float32")

    @property
    def empty(self) -> bool:
        """True if no point satisfies the bounds."""
        return any(low > high for low, high in zip(self.low, self.high, strict=True))

    @cached_property
    def hull(self) -> tuple[Float[np.ndarray, " inputs"], Float[np.ndarray, " inputs"]]:
        """The least float32 box around the box: it holds every rounding of every point."""
        low = np.array([rounded_down(value) for value in self.low], np.float32)
        return low, np.array([-rounded_down(-value) for value in self.high], np.float32)

    @cached_property
    def images(self) -> tuple[Float[np.ndarray, " inputs"], Float[np.ndarray, " inputs"]]:
        """The float32 inputs to try: those of the box, and where a side holds none, the rounding of its lower end."""
        low = [-rounded_down(-value) for value in self.low]
        high = [rounded_down(value) for value in self.high]
        for i, value in enumerate(self.low):
            if low[i] > high[i]:
                low[i] = high[i] = np.float32(float(value))
        return np.array(low, np.float32), np.array(high, np.float32)

    def point(self, image: Float[np.ndarray, " inputs"]) -> list[Fraction]:
        """Return the point of the box that rounds to a float32 input."""
        values = [Fraction(float(value)) for value in image]
        return [min(max(v, low), high) for v, low, high in zip(values, self.low, self.high, strict=True)]


@dataclass(frozen=True)
class Case:
    """A box, and inequalities that must all hold; without any, every input of the box satisfies the case."""

    box: Box
    inequalities: tuple[Inequality, ...]


@dataclass(frozen=True)
class Property:
    """The unsafe set of one network, as a union of cases.

    Attributes:
        inputs, outputs: numbers of entries.
        cases: cases with non-empty boxes.
    """

    inputs: int
    outputs: int
    cases: tuple[Case, ...]


def rounded_down(value: Fraction) -> np.float32:
    """Return the largest float32 number that is at most a number within float32's range."""
    found = np.float32(float(value))
    return np.nextafter(found, np.float32(-np.inf)) if Fraction(float(found)) > value else found
