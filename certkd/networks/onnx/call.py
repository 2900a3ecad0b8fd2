"""Describe the node of an ONNX operator, and convert its inputs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verifiers.core.errors import InputError

Value = Any  # Tensor, np.ndarray or None


@dataclass(frozen=True)
class Call:
    """A node, as the functions of operators see it.

    Attributes:
        where: file, node, operator and opset, for error messages.
        opset: the file's opset.
        outputs: number of outputs.
        varying: for each input, True if it depends on the images.
        count: the number of images that the file takes at a time; None for any number.
        literal: the images are exactly as many, so that constants that hold their number are right as they are.
    """

    where: str
    opset: int
    outputs: int
    varying: tuple[bool, ...]
    count: int | None = None
    literal: bool = False

    def refuse(self, why: str) -> InputError:
        """Build the error that rejects this node."""
        return InputError(f"{self.where}: {why}")


def tensor(value: Value, like: Tensor) -> Tensor:
    """Convert an array to a tensor of the network's dtype."""
    return value if isinstance(value, Tensor) else torch.tensor(value, dtype=like.dtype, device=like.device)


def integers(value: Value) -> list[int]:
    """Convert an attribute or a known array to integers."""
    return [int(entry) for entry in np.asarray(value).reshape(-1)]


def number(call: Call, value: Value) -> float:
    """Convert a single known number to a float."""
    if isinstance(value, Tensor) or np.size(value) != 1:
        raise call.refuse("needs a single constant number there")
    return float(np.asarray(value).reshape(()))


def axis_of(axis: int, rank: int) -> int:
    """Count an axis from the front.

    Raises:
        IndexError: there is no such axis.
    """
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} of a tensor of {rank} axes")
    return axis % rank


def axes_of(call: Call, given: Value, attribute: Sequence[int] | None, rank: int) -> list[int] | None:
    """Read axes from an input or an attribute, counted from the front."""
    axes = attribute if given is None else given
    return None if axes is None else [axis_of(axis, rank) for axis in integers(axes)]


def sides_of(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """Arrange padding before and after each axis in torch's order, which starts at the last axis."""
    return [side for pair in reversed(list(zip(before, after, strict=True))) for side in pair]
