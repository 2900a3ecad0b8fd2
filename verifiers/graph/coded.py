"""Linear layers with weights in int8 and values in float32: torchao's weight-only tensors as plain modules."""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor, nn
from torch.nn.functional import linear

from verifiers.core.errors import InputError


class CodedLinear(nn.Module):
    """A linear layer whose weights are codes times a scale for each output, in torchao's order of operations.

    y = (x codes^T) * scales + bias, all in the dtype of x.
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.register_buffer("codes", torch.zeros(outputs, inputs, dtype=torch.int8))
        self.register_buffer("scales", torch.ones(outputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None
        self.codes: Int8[Tensor, "outputs inputs"]
        self.scales: Float[Tensor, " outputs"]

    @property
    def weight(self) -> Float[Tensor, "outputs inputs"]:
        """The weights that the codes stand for."""
        return self.codes * self.scales[:, None]

    def forward(self, x: Float[Tensor, "*batch inputs"]) -> Float[Tensor, "*batch outputs"]:
        y = linear(x, self.codes.to(x.dtype)) * self.scales.to(x.dtype)
        return y if self.bias is None else y + self.bias


def in_plain_codes(network: nn.Module) -> nn.Module:
    """Replace linear layers with weight-only int8 tensors of torchao by plain modules, in a copy; others come back.

    Raises:
        InputError: a replaced network gives other logits than torchao's kernels.
    """
    found = {path: _codes(layer.weight) for path, layer in network.named_modules() if type(layer) is nn.Linear}
    coded = {path: parts for path, parts in found.items() if parts is not None}
    made = copy.deepcopy(network) if coded else network
    for path, (codes, scales) in coded.items():
        layer: Any = made.get_submodule(path)
        plain = CodedLinear(codes.shape[1], codes.shape[0], layer.bias is not None)
        plain.codes, plain.scales, plain.bias = codes.clone(), scales.clone(), layer.bias
        x = torch.rand(16, codes.shape[1], dtype=scales.dtype, device=codes.device) - 0.5
        with torch.no_grad():
            if not torch.allclose(plain(x), layer(x), rtol=1e-5, atol=1e-6):
                raise InputError(f"{path!r}: torchao's kernel gives other values than its codes times their scales")
        if path == "":
            return plain
        parent, _, name = path.rpartition(".")
        setattr(made.get_submodule(parent), name, plain)
    return made


def _codes(weight: Any) -> tuple[Tensor, Tensor] | None:
    """Return the codes and the scales of a weight-only int8 tensor with a scale for each row; None for others."""
    if f"{type(weight).__module__}.".partition(".")[0] != "torchao" or type(weight).__name__ != "Int8Tensor":
        return None
    codes, scales, zero = weight.qdata, weight.scale, weight.zero_point
    plain = all(getattr(weight, f"act_{name}", None) is None for name in ("quant_kwargs", "quant_scale", "pre_scale"))
    rows = codes.dtype is torch.int8 and codes.dim() == 2 and scales.numel() == len(codes)
    if not plain or not rows or (zero is not None and bool(zero.count_nonzero())):
        return None
    return codes, scales.flatten()
