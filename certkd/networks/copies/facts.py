"""State what a compressed copy is a copy of, and how large both are."""

from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from certkd.networks.builders import Classifier
from verifiers.core.settings import CountOrZero, Strict
from verifiers.graph.coded import CodedLinear
from verifiers.runtime.modes import eval_mode


class Facts(Strict):
    """The size of a network.

    Attributes:
        weights: all its weights.
        nonzero: those that are not 0.
        bytes: of the weights, as numbers one by one.
        multiply_adds: products of weights other than 0 with values, for one image, in convolutions and linear layers.
    """

    weights: CountOrZero
    nonzero: CountOrZero
    bytes: CountOrZero
    multiply_adds: CountOrZero

    @property
    def sparsity(self) -> float:
        """The share of weights that are 0."""
        return 1 - self.nonzero / max(1, self.weights)


class Copied(Strict):
    """What a compressed copy is a copy of.

    Attributes:
        of: SHA-256 of the original's weights.
        how: the settings by which it was made.
        facts: its size.
        original: the size of the original.
    """

    of: Annotated[str, Field(max_length=64, pattern="^[0-9a-f]*$")]
    how: dict[str, Any]
    facts: Facts
    original: Facts


def facts_of(model: Classifier) -> Facts:
    """Measure a network's size; its multiply-adds on a blank image."""
    coded = [layer.codes for layer in model.modules() if isinstance(layer, CodedLinear)]
    weights = [*coded, *(parameter.detach() for parameter in model.parameters())]
    return Facts(
        weights=sum(weight.numel() for weight in weights),
        nonzero=sum(int(weight.count_nonzero()) for weight in weights),
        bytes=sum(weight.numel() * weight.element_size() for weight in weights),
        multiply_adds=_multiply_adds(model),
    )


def _multiply_adds(model: Classifier) -> int:
    found: list[int] = []

    def count(layer: nn.Module, given: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
        found.append(_products(layer, given[0] if given else options["query"], output))

    kinds = nn.Linear | _ConvNd | nn.MultiheadAttention | CodedLinear
    hooks = [m.register_forward_hook(count, with_kwargs=True) for m in model.modules() if isinstance(m, kinds)]
    try:
        with torch.no_grad(), eval_mode(model):
            model(torch.zeros(1, *model.spec.shape))
    finally:
        for hook in hooks:
            hook.remove()
    return sum(found)


def _products(layer: nn.Module, given: Tensor, output: Any) -> int:
    """Count the products of a layer's weights other than 0 with values: each weight's, times the places that use it."""
    if isinstance(layer, nn.MultiheadAttention):  # its projections are not called as layers
        weights = [p for name, p in layer.named_parameters() if name.endswith("weight")]
        return sum(int(weight.count_nonzero()) for weight in weights) * (given.numel() // given.shape[-1])
    weight = layer.codes if isinstance(layer, CodedLinear) else layer.weight
    assert isinstance(weight, Tensor)
    values = given if isinstance(layer, _ConvTransposeNd) else output  # it spreads each input
    channels = values.shape[-1] if isinstance(layer, nn.Linear | CodedLinear) else values.shape[1]
    return int(weight.count_nonzero()) * (values.numel() // channels)
