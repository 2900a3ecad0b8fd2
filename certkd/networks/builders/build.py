"""Build networks by name; they take images in [0, 1] and normalise them in their first layer."""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from functools import partial
from typing import Annotated, Any

import torch
from jaxtyping import Float
from pydantic import Field, FiniteFloat, model_validator
from torch import Tensor, fx, nn

from certkd.networks.builders import cifar, one_lipschitz, small
from certkd.networks.builders.changed import AnyLayer, change_layers
from certkd.networks.builders.known import check_known
from certkd.networks.builders.options import check_options
from certkd.networks.builders.own import is_own, own_network
from certkd.networks.cost import ONE_VALUE, OPERATIONS, Budget, check_cost
from certkd.networks.output import Output
from verifiers.core.errors import InputError, one_line, quoted
from verifiers.core.settings import Strict
from verifiers.graph.sequence import LAYERS
from verifiers.runtime.outputs import rows_of

OWN: dict[str, Callable[..., nn.Module]] = {
    "mlp": small.mlp,
    "aol": one_lipschitz.aol,
    "cnn": small.cnn,
    "resnet": small.resnet,
    "resnet18": cifar.resnet18,
    "preact-resnet18": cifar.preact_resnet18,
    "wide-resnet": cifar.wide_resnet,
    "mobilenet-v2": cifar.mobilenet_v2,
    "resnet-2b": cifar.resnet_2b,
    "resnet-4b": cifar.resnet_4b,
    "cnn7": cifar.cnn7,
}


#: Most classes, longest side of an image, and most numbers of one.
MOST_CLASSES, LONGEST_SIDE, MOST_PIXELS = 1 << 20, 1 << 22, 1 << 22
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: The largest mean or deviation of pixels in [0, 1] that is taken for one.
LARGEST = 1.5


class ModelSpec(Strict):
    """The plain values that describe how to rebuild a network; stored in every checkpoint.

    Attributes:
        name: ``source:name``.
        options: keyword arguments of the network's builder.
        classes: number of logits.
        shape: shape of one image, (channels, height, width).
        mean: mean to subtract, per channel; () for none.
        std: standard deviation to divide by, per channel; () for none.
        resize: (height, width) to resize images to; None for no resizing.
        output: name or place of the logits among several outputs of the network; None if there is one.
        layers: those of a compressed copy that differ from the architecture's, in the order of the changes.
    """

    name: Annotated[str, Field(max_length=1000)]
    options: dict[str, Any] = {}
    classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    shape: Annotated[tuple[Side, ...], Field(min_length=1, max_length=5)]
    mean: tuple[FiniteFloat, ...] = ()
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = ()
    resize: tuple[Side, Side] | None = None
    output: Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=0)] | None = None
    layers: tuple[AnyLayer, ...] = ()

    @model_validator(mode="after")
    def _images_are_of_a_usual_size(self) -> "ModelSpec":
        if max(math.prod(self.shape), math.prod(self.inner)) > MOST_PIXELS:
            raise ValueError(f"images of at most {MOST_PIXELS} numbers are supported, got {self.shape}")
        if len(self.mean) != len(self.std):
            raise ValueError(f"mean and std belong together, got {len(self.mean)} and {len(self.std)} values")
        return self

    @property
    def inner(self) -> tuple[int, ...]:
        """The shape of the images after resizing."""
        return self.shape if self.resize is None else (self.shape[0], *self.resize)


class Normalize(nn.Module):
    """Compute (x - mean) / std per channel, as a depthwise 1x1 convolution, which every bound engine supports.

    Args:
        mean: a number per channel, for pixels in [0, 1].
        std: a positive number per channel.
        axes: the axes after the channels: 2 for images, 1 for signals, 0 for vectors.

    Raises:
        InputError: the numbers do not belong together, or are for pixels of 0 to 255.

    Example:
        >>> network = nn.Sequential(certkd.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), body)
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Sequence[float] | float, std: Sequence[float] | float, axes: int = 2) -> None:
        super().__init__()
        means, deviations = ([each] if isinstance(each, int | float) else [*each] for each in (mean, std))
        check_normalization(means, deviations)
        if axes not in (0, 1, 2):
            raise InputError(f"axes is 2 for images, 1 for signals and 0 for vectors, got {axes!r}")
        scale = 1.0 / torch.tensor(deviations, dtype=torch.float64)
        shift = -torch.tensor(means, dtype=torch.float64) * scale
        self.axes = axes
        self.register_buffer("weight", scale.float().reshape(-1, *([1] * (axes + 1 if axes else 0))))
        self.register_buffer("bias", shift.float())

    def forward(self, x: Float[Tensor, "batch channels *shape"]) -> Float[Tensor, "batch channels *shape"]:
        if self.axes == 0:
            return x * self.weight + self.bias
        convolve = nn.functional.conv2d if self.axes == 2 else nn.functional.conv1d
        return convolve(x, self.weight, self.bias, groups=len(self.bias))

    def extra_repr(self) -> str:
        return "" if self.axes == 2 else f"axes={self.axes}"


def check_normalization(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check the numbers of a normalisation for pixels in [0, 1].

    Raises:
        InputError: their counts differ, a deviation is not positive, or they are for pixels of 0 to 255.
    """
    if len(mean) != len(std) or not std or min(std) <= 0:
        raise InputError(f"mean and std need a number per channel each, std positive: got {mean} and {std}")
    if max([*map(abs, mean), *std]) > LARGEST:
        raise InputError(
            f"mean {mean} and std {std} are for pixels of 0 to 255, here they are in [0, 1]: divide by 255"
        )


def _write_normalize(layer: nn.Module, graph: fx.Graph, x: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    assert isinstance(layer, Normalize)
    aten, n = torch.ops.aten, layer.axes
    if n == 0:
        scaled = graph.call_function(aten.mul.Tensor, (x, weights["weight"]))
        return graph.call_function(aten.add.Tensor, (scaled, weights["bias"]))
    given = (x, weights["weight"], weights["bias"], [1] * n, [0] * n, [1] * n, len(layer.bias))
    return graph.call_function(aten.conv2d.default if n == 2 else aten.conv1d.default, given)


LAYERS[Normalize] = _write_normalize


class Resize(nn.Module):
    """Resize images by bilinear interpolation without antialiasing, which is linear in the pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels rows columns"]:
        return nn.functional.interpolate(x, size=self.size, mode="bilinear", align_corners=False, antialias=False)


class Classifier(nn.Sequential):
    """A network for images in [0, 1]; ``spec`` describes how to rebuild it.

    Resizing and normalisation are its first layers, so pixels, radii and input gradients are those of the data.
    """

    normalize: nn.Module
    network: nn.Module

    def __init__(self, spec: ModelSpec, network: nn.Module) -> None:
        super().__init__()
        self.spec = spec
        if spec.resize is not None:
            self.resize = Resize(spec.resize)
        axes = min(2, len(spec.shape) - 1)
        if spec.mean and len(spec.shape) == 3 and len(spec.mean) != spec.shape[0]:
            raise InputError(f"{spec.name}: mean {spec.mean} needs one number per channel, images are {spec.shape}")
        self.normalize = Normalize(spec.mean, spec.std, axes) if spec.std else nn.Identity()
        self.network = network


def build(spec: ModelSpec, *, pretrained: bool = False, budget: Budget | None = None) -> Classifier:
    """Build the network that ``spec`` names, randomly initialised or with its source's pre-trained weights.

    Args:
        pretrained: fetch the source's weights.
        budget: the limit of a network that a file describes; such a network comes from no other source.

    Raises:
        InputError: the source or name is unknown (the message suggests the nearest known one), an option or the input
            shape does not fit, the weights cannot be fetched, or the network is larger than the budget.
    """
    if is_own(spec.name):
        return _users(spec, described=budget is not None)
    source, _, name = spec.name.partition(":")
    builders = {"certkd": _own, "torchvision": _torchvision, "timm": _timm}
    if budget is not None and is_fetched(spec.name):
        raise InputError(f"the file names {quoted(spec.name)}, which would be fetched from a network: it is not read")
    if source in builders and source != "certkd":  # before a source is imported, which takes seconds
        check_options(spec.name, spec.options)
    check_known(spec.name)
    if spec.resize is not None and len(spec.shape) != 3:
        raise InputError(f"resize needs images of shape (channels, height, width), got {spec.shape}: drop resize")
    check_options(spec.name, spec.options)
    if spec.output is not None:
        raise InputError(f"{spec.name} has one output: drop output {quoted(spec.output)}")
    try:
        with budget or nullcontext():
            model = builders[source](name, spec, pretrained)
            change_layers(model.network, spec.layers)
    except InputError:
        raise
    except Exception as error:  # whatever a builder raises is about the options or the shape
        about = f" with {quoted(spec.options)}" if spec.options else ""
        raise InputError(f"{spec.name}{about} on images of shape {spec.shape}: {one_line(error)}") from error
    _try(model, limited=budget is not None)
    return model


def _users(spec: ModelSpec, *, described: bool) -> Classifier:
    """Build a network of a user's own file.

    Raises:
        InputError: it cannot be built, or a file names it: that runs nothing.
    """
    if described:
        raise InputError(f"the file names the class {quoted(spec.name)}, code that only its user may name: give it")
    network = own_network(spec.name, spec.options, spec.classes)
    model = Classifier(spec, network if spec.output is None else Output(network, spec.output))
    change_layers(model.network, spec.layers)
    _try(model, limited=False)
    return model


def is_fetched(name: str) -> bool:
    """Tell whether a network is described by a page of a hub, and not by an installed package."""
    return name.startswith(("timm:hf-hub:", "timm:hf_hub:", "timm:local-dir:"))


def _try(model: Classifier, *, limited: bool) -> None:
    """Pass a blank image through the network, so that a wrong input shape is rejected at once."""
    spec, training = model.spec, model.training
    try:
        with torch.no_grad():
            if limited and not _is_cheap(model):
                check_cost(model.eval(), spec.shape, spec.name)
            logits = model.eval()(torch.zeros(1, *spec.shape))
    except InputError:
        raise
    except Exception as error:  # whatever a layer raises is about the shape
        raise InputError(f"{spec.name} does not take images of shape {spec.shape}: {one_line(error, 120)}") from error
    finally:
        model.train(training)
    scores = rows_of(logits, 1) if is_own(spec.name) else logits
    one = is_own(spec.name) and spec.classes == 2 and scores.shape == (1, 1)
    if not isinstance(scores, Tensor) or not (one or scores.shape == (1, spec.classes)):
        given = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise InputError(f"{spec.name} gives {given}, not one logit for each of {spec.classes} classes")


def _is_cheap(model: Classifier) -> bool:
    """Tell without following it, which takes torch's compiler, that a network of our own is within the limits of cost.

    Its maps are no larger than the image, each weight is used at most once per position, and at most four values follow
    from each output of a layer.
    """
    spec = model.spec
    if not spec.name.startswith("certkd:") or spec.name == "certkd:aol":  # which multiplies weights by weights
        return False
    positions = math.prod(spec.inner[1:])
    weights = list(model.parameters())
    operations = 2 * positions * sum(weight.numel() for weight in weights)
    values = 4 * positions * sum(len(weight) for weight in weights if weight.ndim)
    return operations <= OPERATIONS and values <= ONE_VALUE


def _own(name: str, spec: ModelSpec, pretrained: bool) -> Classifier:
    if pretrained:
        raise InputError(f"{spec.name} has no pre-trained weights: give a checkpoint's path instead")
    if name not in ("mlp", "aol") and len(spec.shape) != 3 and (name != "resnet" or len(spec.shape) != 2):
        raise InputError(f"{spec.name} needs images of shape (channels, height, width), got {spec.shape}")
    return Classifier(spec, OWN[name](spec.inner, spec.classes, **spec.options))


def _torchvision(name: str, spec: ModelSpec, pretrained: bool) -> Classifier:
    import torchvision

    if len(spec.shape) != 3 or spec.shape[0] != 3:
        raise InputError(f"{spec.name} needs three colour channels, the data has shape {spec.shape}: use timm:NAME")
    try:
        if not pretrained:
            network = torchvision.models.get_model(name, weights=None, num_classes=spec.classes, **spec.options)
            return Classifier(spec, _of_one_output(network))
        network = torchvision.models.get_model(name, weights="DEFAULT", **spec.options)
    except (OSError, RuntimeError, ValueError) as error:
        what = "fetch the weights of" if pretrained else "build"
        raise InputError(f"cannot {what} {spec.name}: {one_line(error)}") from None
    _replace_head(network, spec)
    update: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if getattr(network, "transform_input", False):  # inception and googlenet: the weights were trained with this option
        update["options"] = {**spec.options, "transform_input": True}
    return Classifier(spec.model_copy(update=update), _of_one_output(network))


def _of_one_output(network: nn.Module) -> nn.Module:
    """Let GoogLeNet and Inception give their logits alone in training too; their other heads keep their weights."""
    if hasattr(network, "aux_logits"):
        network.aux_logits = False  # type: ignore[assignment]
    return network


def _replace_head(network: nn.Module, spec: ModelSpec) -> None:
    """Replace the last linear layer when the pre-trained one has another number of classes."""
    path = last_linear(network)
    if path is None:
        raise InputError(f"{spec.name} has no linear last layer to replace: use another network for fine-tuning")
    last = network.get_submodule(path)
    assert isinstance(last, nn.Linear)
    if last.out_features != spec.classes:
        parent, _, name = path.rpartition(".")
        setattr(network.get_submodule(parent), name, nn.Linear(last.in_features, spec.classes))


def last_linear(network: nn.Module) -> str | None:
    """Return the path of the last linear layer, which gives the logits; None if there is none."""
    return next((path for path, module in [*network.named_modules()][::-1] if isinstance(module, nn.Linear)), None)


def usual_statistics(name: str, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return the mean and standard deviation that a source's weights expect; None for certkd's own networks."""
    source, _, rest = name.partition(":")
    if source not in ("timm", "torchvision"):
        return None
    import timm

    known: Any = None
    if source == "timm":
        with suppress(RuntimeError):  # an unknown tag, which ``build`` rejects
            known = timm.get_pretrained_cfg(rest)
    mean, std = (known.mean, known.std) if known is not None else (IMAGENET_MEAN, IMAGENET_STD)
    return _per_channel(mean, channels), _per_channel(std, channels)


def _timm(name: str, spec: ModelSpec, pretrained: bool) -> Classifier:
    import timm

    if len(spec.shape) != 3:
        raise InputError(f"{spec.name} needs images of shape (channels, height, width), got {spec.shape}")
    sized = {"img_size": spec.inner[1], **spec.options} if _takes_image_size(name) else spec.options
    create = partial(timm.create_model, name, pretrained=pretrained, num_classes=spec.classes, in_chans=spec.shape[0])
    try:
        try:
            network = create(**sized)
        except TypeError as error:
            if "img_size" in spec.options or "'img_size'" not in str(error):
                raise
            network = create(**spec.options)  # the name only looks like a vision transformer's
    except (OSError, RuntimeError) as error:
        what = "fetch the weights of" if pretrained else "build"
        raise InputError(f"cannot {what} {spec.name}: {one_line(error)}") from None
    if pretrained:
        known: Any = network.pretrained_cfg
        statistics = {key: _per_channel(known[key], spec.shape[0]) for key in ("mean", "std")}
        spec = spec.model_copy(update=statistics)
    return Classifier(spec, network)


def _per_channel(values: Sequence[float], channels: int) -> tuple[float, ...]:
    """Convert statistics of colour images to another number of channels: their mean, as timm sums the weights."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _takes_image_size(name: str) -> bool:
    import timm

    return name.split(".")[0] in timm.list_models() and any(
        word in name for word in ("vit_", "deit", "swin", "mixer", "beit", "cait", "xcit")
    )
