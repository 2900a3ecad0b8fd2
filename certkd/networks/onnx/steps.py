"""The steps of a network that is read from an ONNX file: torch functions, and numbers that follow from shapes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor, nn

from certkd.networks.onnx import quantized
from certkd.networks.onnx.call import Call, Value, tensor
from certkd.networks.onnx.codes import Codes, Lazy
from certkd.networks.onnx.operators import OPERATORS
from certkd.networks.onnx.patterns import Operation
from certkd.networks.onnx.sizes import SIZES

#: Most numbers that follow from shapes and constants, beyond those of the weights.
LARGEST_NUMBERS = 1 << 22
#: Entries of a constant that may be a number, and not a weight, among others that follow from shapes.
FEW = 16
#: Operators whose float constants are numbers, however many.
NUMBERS = frozenset(("Resize", "Upsample", *quantized.OPERATORS))
#: Operators whose float constants are weights, however few.
WEIGHTED = frozenset(
    "Conv ConvTranspose Gemm GRU GroupNormalization LSTM MatMul BatchNormalization InstanceNormalization "
    "LayerNormalization PRelu RNN com.microsoft:FusedConv com.microsoft:FusedMatMul "
    "com.microsoft:SkipLayerNormalization".split()
)


def is_weight(value: Value, kind: str) -> bool:
    """Return whether a known value is used as a weight: an array of floats, where a single one may be a number."""
    several = isinstance(value, np.ndarray) and value.dtype.kind == "f" and kind not in NUMBERS
    return several and (value.size != 1 or kind in WEIGHTED)


class Step(nn.Module):
    """Apply one operator, under the name of its node."""

    def __init__(self, call: Call, operation: Operation) -> None:
        super().__init__()
        self.call, self.operation = call, operation
        self.graph_label = f"ONNX node {operation.name[:100]}"

    def forward(self, *inputs: Value) -> Any:
        kind = self.operation.kind
        if kind in quantized.OPERATORS:
            return OPERATORS[kind](self.call, *inputs, **self.operation.attributes)
        if any(isinstance(value, Codes | Lazy) for value in inputs):
            found = quantized.run(OPERATORS[kind], kind, self.call, inputs, self.operation.attributes)
            if found is not NotImplemented:
                return found
            inputs = tuple(value.real() if isinstance(value, Lazy) else value for value in inputs)
        like = next(value for value in inputs if isinstance(value, Tensor))
        given = [tensor(value, like) if is_weight(value, kind) else value for value in inputs]
        return OPERATORS[kind](self.call, *given, **self.operation.attributes)

    def _get_name(self) -> str:
        return self.operation.kind


class Weights(nn.Module):
    """Hold a file's weights, under their names."""


@dataclass(frozen=True)
class Known:
    """Compute an operator whose result follows from shapes and constants: numbers, not tensors."""

    operation: Operation
    evaluator: Any
    most: int

    def __call__(self, *inputs: Value) -> list[np.ndarray]:
        """Compute the values.

        Raises:
            ValueError: they would have more than ``most`` entries.
        """
        if self.operation.kind in ("Shape", "Size"):
            return self._of_shape(inputs[0])
        if SIZES[self.operation.kind](inputs, self.operation.attributes) > self.most:
            raise ValueError(f"it would compute more than {self.most} constant numbers")
        given = {name: value for name, value in zip(self.operation.inputs, inputs, strict=True) if name}
        return self.evaluator.run(None, given)

    def _of_shape(self, value: Tensor | np.ndarray) -> list[np.ndarray]:
        shape = np.array([int(side) for side in value.shape], dtype=np.int64)
        if self.operation.kind == "Size":
            return [np.asarray(np.prod(shape))]
        return [shape[self.operation.attributes.get("start", 0) : self.operation.attributes.get("end")]]

    def __deepcopy__(self, memo: Any) -> "Known":
        return self
