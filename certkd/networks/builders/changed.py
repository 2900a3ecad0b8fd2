"""Rebuild the layers of compressed copies from plain values: masked, with fewer channels, or as a product of layers."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from verifiers.core.errors import InputError, quoted
from verifiers.core.settings import Strict
from verifiers.graph.coded import CodedLinear

Size = Annotated[int, Field(ge=1, le=1 << 24)]
#: Forms of a layer as a product: of two matrices, Tucker's in the channels, CP, or a tensor train.
Form = Literal["svd", "tucker", "cp", "tt"]


class _Changed(Strict):
    """A change of one layer.

    Attributes:
        path: of the layer in the network, without normalisation.
    """

    path: Annotated[str, Field(min_length=1, max_length=500)]


class Masked(_Changed):
    """A layer whose weights that are 0 stay so in training."""

    kind: Literal["masked"] = "masked"


class Resized(_Changed):
    """A layer with other sizes than in the architecture.

    Attributes:
        shape: of its weight.
        groups: of a convolution.
    """

    kind: Literal["resized"] = "resized"
    shape: Annotated[tuple[Size, ...], Field(min_length=1, max_length=5)]
    groups: Size = 1


class Factored(_Changed):
    """A layer as a product of smaller ones, without an activation between them.

    Attributes:
        form: of the product.
        ranks: the channels between its layers.
    """

    kind: Literal["factored"] = "factored"
    form: Form
    ranks: Annotated[tuple[Size, ...], Field(min_length=1, max_length=3)]


class WeightsInInt8(_Changed):
    """A linear layer with weights in int8 and a scale for each output; values stay in float32."""

    kind: Literal["weights-in-int8"] = "weights-in-int8"


AnyLayer = Annotated[Masked | Resized | Factored | WeightsInInt8, Field(discriminator="kind")]
#: How many ranks each form has.
RANKS: dict[Form, int] = {"svd": 1, "tucker": 2, "cp": 1, "tt": 3}


def change_layers(network: nn.Module, changes: Sequence[AnyLayer]) -> None:
    """Replace layers of a network, one after the other; the new ones have random weights.

    Raises:
        InputError: there is no such layer, or it is of another type.
    """
    for change in changes:
        try:
            layer = network.get_submodule(change.path)
        except AttributeError:
            raise InputError(f"the network has no layer {quoted(change.path)}") from None
        if not isinstance(getattr(layer, "weight", None), Tensor):
            raise InputError(f"the network's layer {quoted(change.path)} has no weight to change")
        if isinstance(change, Resized):
            replace_layer(network, change.path, resized(layer, change))
        elif isinstance(change, Factored):
            replace_layer(network, change.path, factored(layer, change))
        elif isinstance(change, WeightsInInt8):
            replace_layer(network, change.path, coded(layer))


def replace_layer(network: nn.Module, path: str, layer: nn.Module) -> None:
    """Put another layer in the place of one."""
    parent, _, name = path.rpartition(".")
    setattr(network.get_submodule(parent), name, layer)


def resized(layer: nn.Module, change: Resized) -> nn.Module:
    """Build a layer of the same settings with other sizes.

    Raises:
        InputError: the shape does not fit the layer.
    """
    shape = change.shape
    if isinstance(layer, nn.Linear) and len(shape) == 2:
        return nn.Linear(shape[1], shape[0], layer.bias is not None)
    if isinstance(layer, _BatchNorm) and len(shape) == 1:
        settings = layer.eps, layer.momentum, layer.affine, layer.track_running_stats
        return type(layer)(shape[0], *settings)
    if type(layer) in (nn.Conv1d, nn.Conv2d) and isinstance(layer, _ConvNd) and shape[2:] == layer.kernel_size:
        return _convolution(layer, (shape[1] * change.groups, shape[0]), groups=change.groups)
    raise InputError(f"a layer {type(layer).__name__} cannot have weights of shape {shape}")


def _convolution(layer: _ConvNd, channels: tuple[int, int], **changes: Any) -> nn.Module:
    """Build a convolution like another one."""
    settings = {
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
        "padding": layer.padding,
        "dilation": layer.dilation,
        "groups": layer.groups,
        "bias": layer.bias is not None,
        "padding_mode": layer.padding_mode,
        **changes,
    }
    made: nn.Module = type(layer)(*channels, **settings)
    return made


def factored(layer: nn.Module, change: Factored) -> nn.Sequential:
    """Build the product of layers that stands for a linear layer or a convolution, with random weights.

    Raises:
        InputError: the form does not fit the layer.
    """
    ranks = change.ranks
    if len(ranks) != RANKS[change.form] or not can_factor(layer, change.form):
        raise InputError(f"a layer {type(layer).__name__} has no form {change.form} with ranks {list(ranks)}")
    if isinstance(layer, nn.Linear):
        first, last = nn.Linear(layer.in_features, ranks[0], False), nn.Linear(ranks[0], layer.out_features)
        if layer.bias is None:
            last.bias = None
        return nn.Sequential(first, last)
    assert isinstance(layer, nn.Conv2d)
    inner, outer, bias = layer.in_channels, layer.out_channels, layer.bias is not None
    if change.form == "svd":
        first_layer = _convolution(layer, (inner, ranks[0]), bias=False)
        return nn.Sequential(first_layer, nn.Conv2d(ranks[0], outer, 1, bias=bias))
    narrow = nn.Conv2d(inner, ranks[0], 1, bias=False)
    wide = nn.Conv2d(ranks[-1], outer, 1, bias=bias)
    if change.form == "tucker":
        return nn.Sequential(narrow, _convolution(layer, (ranks[0], ranks[1]), bias=False), wide)
    middle = ranks if change.form == "tt" else ranks * 3
    groups = 1 if change.form == "tt" else ranks[0]
    down, across = (
        _convolution(layer, sizes, bias=False, groups=groups, **_one_axis(layer, axis))
        for axis, sizes in enumerate(((middle[0], middle[1]), (middle[1], middle[2])))
    )
    return nn.Sequential(narrow, down, across, wide)


def _one_axis(layer: nn.Conv2d, axis: int) -> dict[str, Any]:
    """Return the geometry of a convolution along one of its axes."""
    padding = layer.padding
    assert not isinstance(padding, str)
    return {
        "kernel_size": tuple(side if i == axis else 1 for i, side in enumerate(layer.kernel_size)),
        "stride": tuple(step if i == axis else 1 for i, step in enumerate(layer.stride)),
        "padding": tuple(side if i == axis else 0 for i, side in enumerate(padding)),
        "dilation": tuple(gap if i == axis else 1 for i, gap in enumerate(layer.dilation)),
    }


def coded(layer: nn.Module) -> CodedLinear:
    """Build the layer with weights in int8 that stands for a linear layer.

    Raises:
        InputError: it is another layer.
    """
    if type(layer) is not nn.Linear:
        raise InputError(f"a layer {type(layer).__name__} cannot have weights in int8: only linear layers are read so")
    return CodedLinear(layer.in_features, layer.out_features, layer.bias is not None)


def can_factor(layer: nn.Module, form: Form) -> bool:
    """Tell whether a layer can be a product of a form: linear layers by svd, convolutions of one group by all."""
    if type(layer) is nn.Linear:
        return form == "svd"
    whole = type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == "zeros"
    return whole and not isinstance(layer.padding, str)
