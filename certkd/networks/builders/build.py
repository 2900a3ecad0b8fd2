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

from certkd.networks.builders import small
from certkd.networks.builders.options import check_options
from certkd.networks.cost import ONE_VALUE, OPERATIONS, Budget, check_cost
from verifiers.core.errors import InputError, did_you_mean, one_line, quoted
from verifiers.core.settings import Strict
from verifiers.graph.sequence import LAYERS

OWN: dict[str, Callable[..., nn.Module]] = {"mlp": small.mlp, "cnn": small.cnn, "resnet": small.resnet}


#: Most classes, longest side of an image, and most numbers of one.
MOST_CLASSES, LONGEST_SIDE, MOST_PIXELS = 1 << 20, 1 << 22, 1 << 22
Side = Annotated[int, Field(ge=1, le=LONGEST_SIDE)]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


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
    """

    name: Annotated[str, Field(max_length=200)]
    options: dict[str, Any] = {}
    classes: Annotated[int, Field(ge=1, le=MOST_CLASSES)]
    shape: Annotated[tuple[Side, ...], Field(min_length=1, max_length=5)]
    mean: tuple[FiniteFloat, ...] = ()
    std: tuple[Annotated[FiniteFloat, Field(gt=0)], ...] = ()
    resize: tuple[Side, Side] | None = None
    output: Annotated[str, Field(max_length=200)] | Annotated[int, Field(ge=0)] | None = None

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
    """Compute (x - mean) / std per channel, as a depthwise 1x1 convolution, which every bound engine supports."""

    weight: Tensor
    bias: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        scale = 1.0 / torch.tensor(std, dtype=torch.float64)
        shift = -torch.tensor(mean, dtype=torch.float64) * scale
        self.register_buffer("weight", scale.float().reshape(-1, 1, 1, 1))
        self.register_buffer("bias", shift.float())

    def forward(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch channels height width"]:
        return nn.functional.conv2d(x, self.weight, self.bias, groups=len(self.bias))


def _write_normalize(layer: nn.Module, graph: fx.Graph, x: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    assert isinstance(layer, Normalize)
    given = (x, weights["weight"], weights["bias"], [1, 1], [0, 0], [1, 1], len(layer.bias))
    return graph.call_function(torch.ops.aten.conv2d.default, given)


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
        self.normalize = Normalize(spec.mean, spec.std) if spec.std else nn.Identity()
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
    source, _, name = spec.name.partition(":")
    builders = {"certkd": _own, "torchvision": _torchvision, "timm": _timm}
    if not name or source not in builders or (source == "certkd" and name not in OWN):
        raise InputError(f"unknown network {quoted(spec.name)}.{_suggest(spec.name)}")
    if spec.resize is not None and len(spec.shape) != 3:
        raise InputError(f"resize needs images of shape (channels, height, width), got {spec.shape}: drop resize")
    if budget is not None and is_fetched(spec.name):
        raise InputError(f"the file names {quoted(spec.name)}, which would be fetched from a network: it is not read")
    check_options(spec.name, spec.options)
    try:
        with budget or nullcontext():
            model = builders[source](name, spec, pretrained)
    except InputError:
        raise
    except Exception as error:  # whatever a builder raises is about the options or the shape
        about = f" with {quoted(spec.options)}" if spec.options else ""
        raise InputError(f"{spec.name}{about} on images of shape {spec.shape}: {one_line(error)}") from error
    _try(model, limited=budget is not None)
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
    if not isinstance(logits, Tensor) or logits.shape != (1, spec.classes):
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise InputError(f"{spec.name} gives {given}, not one logit for each of {spec.classes} classes")


def _is_cheap(model: Classifier) -> bool:
    """Tell without following it, which takes torch's compiler, that a network of our own is within the limits of cost.

    Its maps are no larger than the image, each weight is used at most once per position, and at most four values follow
    from each output of a layer.
    """
    spec = model.spec
    if not spec.name.startswith("certkd:"):
        return False
    positions = math.prod(spec.inner[1:])
    weights = list(model.parameters())
    operations = 2 * positions * sum(weight.numel() for weight in weights)
    values = 4 * positions * sum(len(weight) for weight in weights if weight.ndim)
    return operations <= OPERATIONS and values <= ONE_VALUE


def known_models(source: str) -> list[str]:
    """List the names that a source offers, with its prefix."""
    if source == "torchvision":
        import torchvision

        return [f"torchvision:{name}" for name in torchvision.models.list_models(module=torchvision.models)]
    if source == "timm":
        import timm

        return [f"timm:{name}" for name in timm.list_models()]
    return [f"certkd:{name}" for name in OWN]


def _suggest(name: str) -> str:
    source, _, rest = name.partition(":")
    if rest and source in ("certkd", "torchvision", "timm"):
        known = known_models(source)
        if len(known) > 20:
            return did_you_mean(name, known).replace(f" Known: {', '.join(known)}.", f" {len(known)} are known.")
        return did_you_mean(name, known)
    hint = did_you_mean(name, [*known_models("certkd"), *OWN])
    return (
        f"{hint} Names look like certkd:mlp, torchvision:resnet18, timm:vit_tiny_patch16_224, or a checkpoint's path."
    )


def _own(name: str, spec: ModelSpec, pretrained: bool) -> Classifier:
    if pretrained:
        raise InputError(f"{spec.name} has no pre-trained weights: give a checkpoint's path instead")
    if name != "mlp" and len(spec.shape) != 3:
        raise InputError(f"{spec.name} needs images of shape (channels, height, width), got {spec.shape}")
    return Classifier(spec, OWN[name](spec.inner, spec.classes, **spec.options))


def _torchvision(name: str, spec: ModelSpec, pretrained: bool) -> Classifier:
    import torchvision

    if spec.name not in known_models("torchvision"):
        raise InputError(f"unknown network {quoted(spec.name)}.{_suggest(spec.name)}")
    if len(spec.shape) != 3 or spec.shape[0] != 3:
        raise InputError(f"{spec.name} needs three colour channels, the data has shape {spec.shape}: use timm:NAME")
    try:
        if not pretrained:
            network = torchvision.models.get_model(name, weights=None, num_classes=spec.classes, **spec.options)
            return Classifier(spec, network)
        network = torchvision.models.get_model(name, weights="DEFAULT", **spec.options)
    except (OSError, RuntimeError, ValueError) as error:
        what = "fetch the weights of" if pretrained else "build"
        raise InputError(f"cannot {what} {spec.name}: {one_line(error)}") from None
    _replace_head(network, spec)
    update: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    if getattr(network, "transform_input", False):  # inception and googlenet: the weights were trained with this option
        update["options"] = {**spec.options, "transform_input": True}
    return Classifier(spec.model_copy(update=update), network)


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

    if not timm.is_model(name) and not name.startswith("hf-hub:"):
        raise InputError(f"unknown network {quoted(spec.name)}.{_suggest(spec.name)}")
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
