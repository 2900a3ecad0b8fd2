"""Compute as an int8 copy does while a network is trained: fake quantisation, whose gradients pass through."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import linear

from verifiers.core.errors import InputError


@contextmanager
def computing_in_int8(*networks: nn.Module) -> Iterator[None]:
    """Round the weights and the inputs of nn.Linear, nn.Conv1d and nn.Conv2d to 8 bits, while the block runs.

    Other layers, and subclasses of these, compute as before. Gradients pass through the rounding, and stop where a
    value is clipped. The networks keep their own weights in float32, in the same places. Nothing is stored between
    batches, so that a resumed training goes on alike.
    Source: Jacob et al., arXiv 1712.05877, section 3.

    Raises:
        InputError: a network has no such layer.
    """
    found = [[layer for layer in network.modules() if type(layer) in _ROUNDED] for network in networks]
    if not all(found):
        raise InputError("quantize: the network has no linear layer or convolution that an int8 copy would round")
    layers = [(layer, type(layer)) for one in found for layer in one]
    try:
        for layer, kind in layers:
            layer.__class__ = _ROUNDED[kind]
        yield
    finally:
        for layer, kind in layers:
            layer.__class__ = kind


def rounded_weight(weight: Float[Tensor, "outputs *rest"]) -> Float[Tensor, "outputs *rest"]:
    """Round each output's weights to multiples of a scale, between -127 and 127 of them."""
    scales = (weight.detach().flatten(1).abs().amax(1) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    zeros = torch.zeros(len(scales), dtype=torch.int32, device=weight.device)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -127, 127)


def rounded_values(values: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """Round values to the 256 steps between the batch's least and largest one; 0 is one of the steps."""
    values = values.float()
    least, largest = torch.aminmax(values.detach())
    least, largest = least.clamp(max=0.0), largest.clamp(min=0.0)
    scale = ((largest - least) / 255).clamp(min=torch.finfo(torch.float32).tiny)
    zero = (-least / scale).round().to(torch.int32)
    return torch.fake_quantize_per_tensor_affine(values, scale, zero, 0, 255)


class _Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(rounded_values(x), rounded_weight(self.weight), self.bias)


class _Conv1d(nn.Conv1d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(rounded_values(x), rounded_weight(self.weight), self.bias)


class _Conv2d(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(rounded_values(x), rounded_weight(self.weight), self.bias)


_ROUNDED: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, nn.Conv1d: _Conv1d, nn.Conv2d: _Conv2d}
