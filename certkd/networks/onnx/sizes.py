"""Bound the size of a constant before it is computed: an upper bound on the entries for each operator."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

Values = Sequence[Any]
Size = Callable[[Values, Mapping[str, Any]], int]


def _first(values: Values, attributes: Mapping[str, Any]) -> int:
    return int(np.size(values[0]))


def _broadcast(values: Values, attributes: Mapping[str, Any]) -> int:
    return math.prod(np.broadcast_shapes(*(np.shape(value) for value in values if value is not None)))


def _all(values: Values, attributes: Mapping[str, Any]) -> int:
    return sum(int(np.size(value)) for value in values if value is not None)


def _constant(values: Values, attributes: Mapping[str, Any]) -> int:
    return max((len(value) if isinstance(value, list | str) else 1 for value in attributes.values()), default=1)


def _filled(values: Values, attributes: Mapping[str, Any]) -> int:
    return _product(values[0])


def _expand(values: Values, attributes: Mapping[str, Any]) -> int:
    return math.prod(np.broadcast_shapes(np.shape(values[0]), tuple(int(side) for side in values[1])))


def _tile(values: Values, attributes: Mapping[str, Any]) -> int:
    return int(np.size(values[0])) * _product(values[1])


def _range(values: Values, attributes: Mapping[str, Any]) -> int:
    start, limit, delta = (float(np.asarray(value).reshape(-1)[0]) for value in values)
    if not delta or not math.isfinite(start + limit + delta):
        raise ValueError("a range without a step")
    return max(0, math.ceil((limit - start) / delta))


def _gather(values: Values, attributes: Mapping[str, Any]) -> int:
    x, rows = values[0], values[1]
    return int(np.size(x)) // max(1, np.shape(x)[attributes.get("axis", 0)]) * int(np.size(rows))


def _pad(values: Values, attributes: Mapping[str, Any]) -> int:
    amounts = attributes.get("pads") if len(values) < 2 or values[1] is None else np.asarray(values[1]).reshape(-1)
    most = max([0, *(int(amount) for amount in (amounts if amounts is not None else ()))])
    return math.prod(side + 2 * most for side in np.shape(values[0]))


def _product_of_matrices(values: Values, attributes: Mapping[str, Any]) -> int:
    left, right = (np.shape(value) for value in values[:2])
    shared = max(1, min(left, default=1))  # at most the length of the rows
    return (math.prod(left) // shared) * (math.prod(right) // shared)


def _product(sides: Any) -> int:
    numbers = [int(side) for side in np.asarray(sides).reshape(-1)]
    if len(numbers) > 64 or min(numbers, default=0) < -1:
        raise ValueError(f"a shape of {len(numbers)} sides, the least {min(numbers, default=0)}")
    return math.prod(abs(side) for side in numbers)


_SAME = (
    "Abs Cast CastLike Ceil Clip Cos CumSum DequantizeLinear Erf Exp Flatten Floor Identity Log Neg Not QuantizeLinear "
    "ReduceL2 ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum Reciprocal Relu Reshape Round Shape Sigmoid Sign "
    "Sin Size Slice Softmax Split Sqrt Squeeze Tanh Transpose Trilu Unsqueeze ArgMax ArgMin ScatterND Dropout"
).split()
_BROADCAST = (
    "Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Min Mod Mul Or Pow Sub Sum Where Xor"
).split()
#: The operators that compute constants and numbers of shapes.
SIZES: dict[str, Size] = {
    **dict.fromkeys(_SAME, _first),
    **dict.fromkeys(_BROADCAST, _broadcast),
    "Concat": _all,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "Expand": _expand,
    "Gather": _gather,
    "Gemm": _product_of_matrices,
    "MatMul": _product_of_matrices,
    "Pad": _pad,
    "Range": _range,
    "Tile": _tile,
}
