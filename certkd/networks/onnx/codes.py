"""Values of int8 networks: centred codes with their scales, which stay integers for as long as the file allows it.

A value that a file dequantises is not multiplied by its scale until an operator needs real numbers. A layer of two such
values and the rounding after it become one exact integer sum and one product with a scale, as onnxruntime runs them.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from verifiers.graph import integers


@dataclass(frozen=True)
class Target:
    """The codes that a value is rounded to.

    Attributes:
        scale: value of one step, a float32 number.
        zero: zero point.
        low, high: range of the codes less the zero point.
    """

    scale: np.float32
    zero: int
    low: float
    high: float


@dataclass(frozen=True)
class Codes:
    """Centred codes on an edge of the graph: integers that another node gives their scale.

    Attributes:
        values: codes less the zero point.
        zero: the zero point; None if it follows the image.
        low, high: range of the centred codes.
    """

    values: Tensor
    zero: int | None
    low: float
    high: float

    def around(self, zero: int) -> "Codes":
        """Return the same integers less another zero point."""
        if self.zero is None or self.zero == zero:
            return self
        moved = self.zero - zero
        return Codes(self.values + moved, zero, self.low + moved, self.high + moved)


class Lazy(ABC):
    """A real number that is held as integers.

    A base class and no protocol: to look whether a tensor has the methods would call its attribute ``real``, in some
    processes only, and be recorded.
    """

    @abstractmethod
    def real(self) -> Tensor:
        """Compute the real number."""

    @abstractmethod
    def quantized(self, target: Target) -> Tensor:
        """Compute its centred codes."""


def quantized(value: "Tensor | Lazy", target: Target) -> Tensor:
    """Round a value to centred codes."""
    if isinstance(value, Tensor):
        return integers.requantize(value, _constant(target.scale, value), True, target.low, target.high, 0.0)
    return value.quantized(target)


@dataclass(frozen=True)
class Reals(Lazy):
    """Integers times a scale.

    Attributes:
        values: centred codes, weights or sums of products of both.
        scale: one float32 number, or one for each entry of an axis.
        axis: that axis.
        source: the codes that were dequantised; None for sums.
        least, most: limits to which the real value is clamped.
        count: the number by which sums are divided: they are means.
        layer: the value and the weights that were multiplied, if a bias may follow.
    """

    values: Tensor
    scale: np.ndarray
    axis: int = 0
    source: Codes | None = None
    least: float = -np.inf
    most: float = np.inf
    count: int = 1
    layer: "tuple[Reals, Reals] | None" = None

    @property
    def plain(self) -> bool:
        """True for one scale and no clamp."""
        return self.scale.size == 1 and self.least == -np.inf and self.most == np.inf

    @property
    def single(self) -> np.float32:
        """The only scale."""
        return np.float32(self.scale.reshape(()))

    def real(self) -> Tensor:
        values = self.values if self.values.is_floating_point() else self.values.float()
        found = values * (self._along(self.scale) if self.scale.size > 1 else float(self.single))
        found = found if self.count == 1 else found / self.count
        unlimited = self.least == -np.inf and self.most == np.inf
        return found if unlimited else found.clamp(_end(self.least), _end(self.most))

    def quantized(self, target: Target) -> Tensor:
        low, high = self._limits(target)
        if self.source is not None:
            same = self.single == target.scale and self.source.zero == target.zero
            if same and self.source.low >= low and self.source.high <= high:
                return self.values
            if same:
                return self.values.clamp(low, high)
            scaled = replace(self, least=-np.inf, most=np.inf).real()
            return integers.requantize(scaled, _constant(target.scale, scaled), True, low, high, 0.0)
        factor = np.asarray(self.scale / np.float32(target.scale * np.float32(self.count)), np.float32)
        scale = self._along(factor) if factor.size > 1 else _constant(factor.reshape(()), self.values)
        return integers.requantize(self.values, scale, False, low, high, 0.0)

    def limited(self, least: float, most: float) -> "Reals":
        """Clamp the real value."""
        return replace(self, least=_clamped(self.least, least, most), most=_clamped(self.most, least, most), layer=None)

    def _limits(self, target: Target) -> tuple[float, float]:
        """Clamping and rounding are monotone: round the limits."""
        ends = (float(np.round(np.float32(end) / target.scale)) for end in (self.least, self.most))
        low, high = (min(max(end, target.low), target.high) for end in ends)
        return low, high

    def _along(self, numbers: np.ndarray) -> Tensor:
        sides = (-1, *(1,) * (self.values.dim() - 1 - self.axis % self.values.dim()))
        return _constant(numbers.reshape(sides), self.values)


@dataclass(frozen=True)
class Added(Lazy):
    """The sum of two dequantised values, clamped to limits."""

    left: Reals
    right: Reals
    least: float = -np.inf
    most: float = np.inf

    def real(self) -> Tensor:
        total = self.left.real() + self.right.real()
        unlimited = self.least == -np.inf and self.most == np.inf
        return total if unlimited else total.clamp(_end(self.least), _end(self.most))

    def quantized(self, target: Target) -> Tensor:
        parts = self.left, self.right
        ratios = np.array([part.single / target.scale for part in parts], np.float32)
        zeros = [part.source.zero or 0 for part in parts if part.source is not None]
        low, high = Reals(self.left.values, self.left.scale, least=self.least, most=self.most)._limits(target)
        like = self.left.values
        constants = _constant(ratios, like), _constant(np.array([*zeros, target.zero], np.float32), like)
        return integers.add(self.left.values, self.right.values, *constants, low, high)

    def limited(self, least: float, most: float) -> "Added":
        """Clamp the sum."""
        return replace(self, least=_clamped(self.least, least, most), most=_clamped(self.most, least, most))


@dataclass(frozen=True)
class Averaged(Lazy):
    """Means of dequantised values, to which runtimes add the zero point before they round."""

    values: Tensor

    def real(self) -> Tensor:
        return self.values

    def quantized(self, target: Target) -> Tensor:
        scale = _constant(target.scale, self.values)
        return integers.requantize(self.values, scale, True, target.low, target.high, float(target.zero))


@dataclass(frozen=True)
class Joined(Lazy):
    """Values along an axis, each with its own scale."""

    parts: tuple["Tensor | Lazy", ...]
    axis: int

    def real(self) -> Tensor:
        return torch.cat([part if isinstance(part, Tensor) else part.real() for part in self.parts], self.axis)

    def quantized(self, target: Target) -> Tensor:
        return torch.cat([quantized(part, target) for part in self.parts], self.axis)


def _clamped(value: float, least: float, most: float) -> float:
    """Clamp a number as Clip does: the upper limit wins."""
    return min(max(value, least), most)


def _end(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _constant(value: np.ndarray | np.float32, like: Tensor) -> Tensor:
    return torch.as_tensor(np.asarray(value, np.float32), device=like.device)
