"""Lower einsum, and gated halves."""

import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering.arithmetic import matmul, mul
from verifiers.graph.lowering.shapes import Value, chunk, general
from verifiers.graph.operators import Elementwise
from verifiers.graph.relaxations.sigmoidal import Sigmoid


def einsum(builder: Builder, equation: str, operands: Sequence[Value], *, path: Value = None) -> Ref:
    """Lower einsum of one value and constants, or of two values whose sum is a product of matrices."""
    values = [operand for operand in operands if isinstance(operand, Ref)]
    inputs, output = _letters(builder, equation, [len(operand.shape) for operand in operands])
    if len(values) == 1:
        parts = [part if isinstance(part, Ref) else part.to(builder.like) for part in operands]
        return _affine(builder, inputs, output, parts)
    if len(values) == 2 and len(operands) == 2:
        return _bilinear(builder, inputs, output, values)
    raise builder.refuse("einsum of more than two values that depend on the image")


def _letters(builder: Builder, equation: str, ranks: Sequence[int]) -> tuple[list[str], str]:
    """Split an equation into one name per axis; dots are replaced by names of their own."""
    plain = equation.replace(" ", "")
    left, arrow, right = plain.partition("->")
    inputs = left.split(",")
    free = [letter for letter in "ABCDEFGHIJ" if letter not in plain]
    widths = [rank - len(part.replace("...", "")) for part, rank in zip(inputs, ranks, strict=True) if "..." in part]
    dots = "".join(free[: max(widths, default=0)])
    for i, part in enumerate(inputs):
        if "..." in part:
            width = ranks[i] - len(part) + 3
            inputs[i] = part.replace("...", dots[len(dots) - width :])
    if not arrow:
        once = [letter for letter in sorted(set("".join(inputs)) - set(dots)) if "".join(inputs).count(letter) == 1]
        right = dots + "".join(once)
    output = right.replace("...", dots)
    if not all(re.fullmatch("[a-zA-Z]*", part) for part in (*inputs, output)):
        raise builder.refuse(f"the equation {equation!r}")
    return inputs, output


def _affine(builder: Builder, inputs: Sequence[str], output: str, operands: Sequence[Value]) -> Ref:
    sizes = {
        letter: size
        for letters, operand in zip(inputs, operands, strict=True)
        for letter, size in zip(letters, operand.shape, strict=True)
    }
    equation = f"{','.join(inputs)}->{output}"
    place = next(i for i, operand in enumerate(operands) if isinstance(operand, Ref))
    terms = math.prod(size for letter, size in sizes.items() if letter not in output)

    def function(value: Tensor, *, sign: bool = True) -> Tensor:
        parts = [value if i == place else part if sign else part.abs() for i, part in enumerate(operands)]
        return torch.einsum(equation, *parts)

    return general(
        builder, function, [operands[place]], lambda value: function(value, sign=False), steps=terms + len(operands)
    )


def _bilinear(builder: Builder, inputs: Sequence[str], output: str, values: Sequence[Ref]) -> Ref:
    """Sum the axes of one value alone, arrange both as batches of matrices, multiply, and arrange the result."""
    left, right = inputs
    if any(len(set(letters)) < len(letters) for letters in (left, right, output)):
        raise builder.refuse("a repeated axis")
    (left, a), (right, b) = (
        _reduced(builder, x, letters, other + output)
        for x, letters, other in ((values[0], left, right), (values[1], right, left))
    )
    sizes = {**dict(zip(left, a.shape, strict=True)), **dict(zip(right, b.shape, strict=True))}
    batch = [letter for letter in left if letter in right and letter in output]
    summed = [letter for letter in left if letter in right and letter not in output]
    rows, columns = ([letter for letter in own if letter not in other] for own, other in ((left, right), (right, left)))
    count = [math.prod(sizes[letter] for letter in group) for group in (batch, rows, summed, columns)]
    a = _arranged(builder, a, left, [*batch, *rows, *summed], (count[0], count[1], count[2]))
    b = _arranged(builder, b, right, [*batch, *summed, *columns], (count[0], count[2], count[3]))
    product = matmul(builder, a, b)
    order = [*batch, *rows, *columns]
    shape = [sizes[letter] for letter in order]
    places = [order.index(letter) for letter in output]
    return general(builder, lambda value: value.reshape(shape).permute(places), [product], steps=0)


def _reduced(builder: Builder, x: Ref, letters: str, kept: str) -> tuple[str, Ref]:
    alone = [axis for axis, letter in enumerate(letters) if letter not in kept]
    if not alone:
        return letters, x
    count = math.prod(x.shape[axis] for axis in alone)
    return "".join(letter for letter in letters if letter in kept), general(
        builder, lambda value: value.sum(alone), [x], steps=count
    )


def _arranged(builder: Builder, x: Ref, letters: str, order: Sequence[str], shape: tuple[int, ...]) -> Ref:
    places = [letters.index(letter) for letter in order]
    return general(builder, lambda value: value.permute(places).reshape(shape), [x], steps=0)


def glu(builder: Builder, x: Ref, dim: int = -1) -> Ref:
    """Lower a sigmoid(b) for the two halves of an axis."""
    halves: Any = chunk(builder, x, 2, dim)
    gate = builder.add(Elementwise(Sigmoid()), [halves[1]], halves[1].shape)
    return mul(builder, halves[0], gate)
