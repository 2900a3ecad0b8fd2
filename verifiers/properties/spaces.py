"""Turn exact inequalities into float64 values that are never above the exact ones."""

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import torch

from verifiers.bound_propagation import HalfSpaces
from verifiers.core.errors import Unsupported
from verifiers.properties.property import Box, Case, Inequality, Terms, rounded_down

#: Largest whole number up to which every whole number is a float64.
EXACT = 2**53
#: Covers the rounding of the sums of constants and products of inputs in float64.
SLACK = Fraction(1, 2**40)
#: The rounding of a point to float32, through float64 or not: relative, and near 0.
ROUNDING, TINIEST = Fraction(1, 2**24) + SLACK, Fraction(1, 2**149)


def half_spaces(cases: Sequence[Case], inputs: int, outputs: int) -> HalfSpaces:
    """Build the values of cases that have one box.

    Coefficients are scaled to whole numbers, which float64 holds exactly. Constants are lowered, so that a bound of a
    value bounds the exact value too: by the rounding of the sums here and of points to what the network gets for them,
    and to the next float32 number, so that a proof holds for readers that round the constants of a property.

    Raises:
        Unsupported: a case has no inequality, so no bound refutes it, or coefficients have too many digits.
    """
    rows, other, constant, case = [], [], [], []
    for number, one in enumerate(cases):
        if not one.inequalities:
            raise Unsupported("a case has no condition on outputs, so bounds cannot refute it")
        for inequality in one.inequalities:
            scale = _scale(inequality)
            rows.append(_dense(inequality.outputs, scale, outputs))
            other.append(_dense(inequality.inputs, scale, inputs))
            constant.append(_lowered(inequality, scale, one.box))
            case.append(number)
    mixed = any(inequality.inputs for one in cases for inequality in one.inequalities)
    return HalfSpaces(
        torch.from_numpy(np.stack(rows)),
        torch.from_numpy(np.stack(other)) if mixed else None,
        torch.tensor(constant, dtype=torch.float64),
        torch.tensor(case),
    )


def _scale(inequality: Inequality) -> int:
    """Return a factor that makes all coefficients whole."""
    coefficients = [value for _, value in (*inequality.outputs, *inequality.inputs)]
    scale = math.lcm(*(value.denominator for value in coefficients))
    if max((abs(value * scale) for value in coefficients), default=0) > EXACT:
        raise Unsupported("the coefficients of an inequality have more digits than float64 holds")
    return scale


def _dense(terms: Terms, scale: int, size: int) -> np.ndarray:
    row = np.zeros(size)
    for position, value in terms:
        row[position] = float(value * scale)
    return row


def _moved(low: Fraction, high: Fraction) -> Fraction:
    """Bound how far a point of a side is from the float32 number that the network gets for it."""
    if low == high == Fraction(float(rounded_down(low))):
        return Fraction(0)
    return ROUNDING * max(abs(low), abs(high)) + TINIEST


def _lowered(inequality: Inequality, scale: int, box: Box) -> float:
    """Lower a constant by the rounding of everything that does not depend on the network."""
    constant = inequality.constant
    if constant and abs(constant) < 2**127:
        constant = Fraction(float(rounded_down(constant)))
    sizes = (abs(value) * max(abs(box.low[i]), abs(box.high[i])) for i, value in inequality.inputs)
    moved = sum(abs(value) * _moved(box.low[i], box.high[i]) for i, value in inequality.inputs)
    exact = (constant - moved - SLACK * (abs(constant) + sum(sizes))) * scale
    try:
        found = float(exact)
    except OverflowError:
        raise Unsupported("a constant of an inequality is beyond float64") from None
    return math.nextafter(found, -math.inf) if exact else found
