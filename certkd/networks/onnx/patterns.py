"""Recombine operators that exporters split into several simpler ones.

Bound engines bound GELU as one function; as the product x * (1 + erf(x / sqrt 2)) / 2 it would be loose or rejected.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: How far the scale of a GELU written out may be from 1 / sqrt 2: exporters round it to float32, or its inverse, or one
#: and then the other. So the joined function differs from the file's by roundings of one product.
SCALE = 2.0**-22


@dataclass(frozen=True)
class Operation:
    """A node in plain values: operator, name, names of inputs and outputs, attributes, and the node itself."""

    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    node: Any = None


def simplified(operations: Sequence[Operation], constants: Mapping[str, np.ndarray], logits: str) -> list[Operation]:
    """Return the same function without unused operations; GELU, SiLU, hard-swish and normalisation are one operator."""
    graph = _Graph(operations, constants, logits)
    for operation in operations:
        if operation.kind == "Erf":
            graph.join_gelu(operation)
        elif operation.kind in ("Sigmoid", "HardSigmoid"):
            graph.join_gate(operation)
        elif operation.kind == "Sqrt":
            graph.join_normalisation(operation)
    return _used(graph.operations(), logits)


def _used(operations: Sequence[Operation], logits: str) -> list[Operation]:
    """Return the operations that the logits depend on, in order."""
    wanted, kept = {logits}, []
    for operation in reversed(operations):
        if not wanted.isdisjoint(operation.outputs):
            wanted.update(operation.inputs)
            kept.append(operation)
    return kept[::-1]


class _Graph:
    """The operations by output, with the number of uses of each."""

    def __init__(self, operations: Sequence[Operation], constants: Mapping[str, np.ndarray], logits: str) -> None:
        self._operations = {operation.outputs[0]: operation for operation in operations}
        self._constants = constants
        self._uses = Counter(name for operation in operations for name in operation.inputs)
        self._uses[logits] += 1

    def operations(self) -> list[Operation]:
        return list(self._operations.values())

    def join_gelu(self, erf: Operation) -> None:
        """Recombine x times half of (1 + erf(x / sqrt 2)), with the factors in any order."""
        inner, after = self._operations.get(erf.inputs[0]), self._only_user(erf)
        if inner is None or inner.kind == "Add" or after is None or after.kind != "Add" or self._scaled(inner) is None:
            return
        image, scale = self._scaled(inner) or ("", 0.0)
        if abs(scale * math.sqrt(2) - 1) > SCALE or self._scaled(after) != (erf.outputs[0], 1.0):
            return
        chain, half, seen = [after], 1.0, False
        while not (seen and half == 0.5):
            last, product = chain[-1], self._only_user(chain[-1])
            if product is None or product.kind not in ("Mul", "Div"):
                return
            other = _other(product, last.outputs[0])
            factor = self._factor(other, image)
            if factor is None or (product.kind == "Div" and (factor[1] or product.inputs[0] != last.outputs[0])):
                return
            if factor[1] and seen:
                return
            half *= 1 / factor[0] if product.kind == "Div" else factor[0]
            seen = seen or factor[1]
            chain.append(product)
        self._replace([erf, *chain], Operation("Gelu", erf.name, (image,), chain[-1].outputs))

    def join_gate(self, gate: Operation) -> None:
        """Recombine x sigmoid(x), and x times the hard sigmoid of slope 1/6."""
        product = self._only_user(gate)
        image = gate.inputs[0]
        if product is None or product.kind != "Mul" or _other(product, gate.outputs[0]) != image:
            return
        hard = gate.kind == "HardSigmoid"
        usual = abs(gate.attributes.get("alpha", 0.2) - 1 / 6) < 1e-7 and gate.attributes.get("beta", 0.5) == 0.5
        if not hard or usual:
            kind = "HardSwish" if hard else "Silu"
            self._replace([gate, product], Operation(kind, gate.name, (image,), product.outputs))

    def join_normalisation(self, root: Operation) -> None:
        """Recombine (x - mean) / sqrt(mean of squares + epsilon) over the last axes."""
        total, quotient = self._maker(root.inputs[0], "Add"), self._only_user(root)
        increased = None if total is None else self._scaled(total)
        if total is None or increased is None or quotient is None or quotient.kind != "Div":
            return
        variance, difference = self._maker(increased[0], "ReduceMean"), self._maker(quotient.inputs[0], "Sub")
        square = None if variance is None else self._maker(variance.inputs[0], "Pow", "Mul")
        mean = None if difference is None else self._maker(difference.inputs[1], "ReduceMean")
        if variance is None or difference is None or square is None or mean is None:
            return
        (image, _), name = difference.inputs, difference.outputs[0]
        squared = square.inputs == (name, name) if square.kind == "Mul" else self._number(square.inputs[1]) == 2
        axes = self._last_axes(mean)
        fits = squared and square.inputs[0] == name and mean.inputs[0] == image and axes == self._last_axes(variance)
        alone = all(self._uses[each.outputs[0]] == 1 for each in (mean, square, variance, total))
        if not fits or not alone or axes is None or self._uses[name] != 1 + square.inputs.count(name):
            return
        made = {"axes": axes, "epsilon": increased[1]}
        old = [mean, difference, square, variance, total, root, quotient]
        self._replace(old, Operation("Standardise", root.name, (image,), quotient.outputs, made))

    def _maker(self, name: str, *kinds: str) -> Operation | None:
        made = self._operations.get(name)
        return made if made is not None and made.kind in kinds else None

    def _last_axes(self, mean: Operation) -> int | None:
        """Return how many of the last axes are averaged and kept; None if it is others."""
        given = self._constants.get(mean.inputs[1]) if len(mean.inputs) > 1 else mean.attributes.get("axes")
        axes = sorted(int(axis) for axis in given) if given is not None else []
        kept = mean.attributes.get("keepdims", 1) == 1
        return len(axes) if axes and kept and axes == list(range(-len(axes), 0)) else None

    def _only_user(self, operation: Operation) -> Operation | None:
        name = operation.outputs[0]
        users = [other for other in self._operations.values() if name in other.inputs]
        return users[0] if self._uses[name] == 1 and len(users) == 1 else None

    def _number(self, name: str) -> float | None:
        value = self._constants.get(name)
        return float(value.reshape(())) if value is not None and value.size == 1 and value.dtype.kind == "f" else None

    def _scaled(self, operation: Operation) -> tuple[str, float] | None:
        """Return the value that is multiplied (or, for Add, increased) by a constant number, and the number."""
        if operation.kind not in ("Mul", "Div", "Add"):
            return None
        left, right = operation.inputs
        number = self._number(right)
        if number is None and operation.kind != "Div":
            left, number = right, self._number(left)
        if number is None:
            return None
        return left, 1 / number if operation.kind == "Div" else number

    def _factor(self, name: str, image: str) -> tuple[float, bool] | None:
        """Read a number, the image, or a number times the image; return the number, and whether the image is in it."""
        number = self._number(name)
        if number is not None:
            return number, False
        if name == image:
            return 1.0, True
        made = self._operations.get(name)
        scaled = None if made is None or made.kind == "Add" else self._scaled(made)
        return (scaled[1], True) if scaled is not None and scaled[0] == image else None

    def _replace(self, old: Sequence[Operation], new: Operation) -> None:
        """Put an operation in the place of the last of the old ones; inputs without other users stay unused."""
        last = old[-1].outputs[0]
        self._operations = {
            name: new if name == last else operation
            for name, operation in self._operations.items()
            if name == last or operation not in old
        }


def _other(operation: Operation, name: str) -> str:
    """Return the input of a product that is not ``name``."""
    return operation.inputs[1] if operation.inputs[0] == name else operation.inputs[0]
