"""Linear layers with weights in int8 and values in float32, as torchao stores them."""

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn.functional import linear


class CodedLinear(nn.Module):
    """A linear layer whose weights are codes times a scale for each output, in torchao's order of operations.

    y = (x codes^T) * scales + bias, all in the dtype of x. It has no attribute ``weight``: code that looks at the
    numbers of a layer does not meet others than those of the deployed network.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.codes: Int8[Tensor, "outputs inputs"]
        self.scales: Float[Tensor, " outputs"]

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        y = linear(x, self.codes.to(x.dtype)) * self.scales.to(x.dtype)
        return y if self.bias is None else y + self.bias
