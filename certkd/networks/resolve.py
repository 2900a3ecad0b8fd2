"""Resolve a network's name: the path of a checkpoint or an ONNX file, bare weights, or ``source:name``."""

import os
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import torch

from certkd.config.reading import value_of
from certkd.config.settings import DataConfig, ModelConfig
from certkd.data.sources import NAMES
from certkd.data.splits import DataSet
from certkd.files import NETWORKS
from certkd.networks import checkpoint
from certkd.networks.builders import (
    LARGEST,
    Classifier,
    ModelSpec,
    build,
    check_known,
    is_fetched,
    is_own,
    known_models,
    last_linear,
    usual_statistics,
)
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.initial import draw_for_intervals
from certkd.networks.onnx.classifier import classifier
from verifiers.core.errors import InputError, did_you_mean, quoted


def is_path(name: str) -> bool:
    """Tell whether a network's name is the path of a file."""
    return name.endswith(NETWORKS) or Path(name).is_file()


def for_training(
    config: ModelConfig, data: DataSet, seed: int, warn: Callable[[str], None] = lambda text: None
) -> Classifier:
    """Build the network to train, with random weights keyed by the seed, pre-trained weights or a checkpoint's.

    A checkpoint for images of another size gets the data's images resized. ``warn`` receives a line per adaptation.

    Raises:
        InputError: the name is an ONNX file, the checkpoint has other classes or channels, or settings contradict
            each other.
    """
    if config.name.endswith(".onnx"):
        raise InputError(f"{config.name} can teach and be certified, but not be trained: give a network's name")
    if is_path(config.name):
        return _continued(config, data, warn)
    if is_fetched(config.name):
        raise InputError(f"{config.name} is described by a network's page: name a network of timm that is installed")
    mean, std = data.statistics
    usual = None
    if config.weights is not None and config.normalize:
        usual = usual_statistics(config.name, data.shape[0])
        mean, std = usual or (mean, std)
    spec = ModelSpec(
        name=config.name,
        options=config.options,
        classes=data.classes,
        shape=data.shape,
        mean=mean if config.normalize else (),
        std=std if config.normalize else (),
        resize=None if config.resize is None else (config.resize, config.resize),
        output=config.output,
    )
    if config.output is not None and not is_own(config.name):
        raise InputError(f"output {config.output} is for a class of your own: {config.name} has one output")
    if config.pretrained and config.weights is not None:
        raise InputError(f"pretrained and weights {config.weights} both give the first weights: drop one of them")
    if config.initial != "torch" and (config.pretrained or config.weights is not None):
        raise InputError(f"initial {config.initial} draws the first weights, and others are given: drop one of them")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = build(spec, pretrained=config.pretrained)
        if config.initial == "ibp":
            draw_for_intervals(model)
    if usual is not None:
        told = " and ".join("(" + ", ".join(f"{value:g}" for value in values) + ")" for values in usual)
        warn(f"images are normalised by {told}, as is usual for {config.name}; normalize: false turns this off")
    if config.weights is not None:
        head = last_linear(model.network)
        other, remarks = checkpoint.begin_with(model, config.weights, head, config.weights_key)
        for line in remarks:
            warn(f"{config.weights}: {line}")
        if other:
            warn(
                f"{config.weights} is of other classes than {data.name}: "
                "the last linear layer begins with random weights"
            )
    return model


def _continued(config: ModelConfig, data: DataSet, warn: Callable[[str], None]) -> Classifier:
    """Load a checkpoint's network for the data's images.

    Raises:
        InputError: it has other classes or channels, or the configuration describes another network.
    """
    drawn = config.initial != "torch"
    if drawn or config.options or config.pretrained or config.weights or config.resize or not config.normalize:
        raise InputError(f"{config.name} is a checkpoint and describes its own network: drop the model's other keys")
    model = checkpoint.load(config.name).model
    spec = model.spec
    apart = spec.classes != data.classes or len(spec.shape) != len(data.shape) or spec.shape[0] != data.shape[0]
    if apart or (len(spec.shape) != 3 and spec.shape != data.shape):
        raise InputError(
            f"{config.name} takes images {spec.shape} of {spec.classes} classes, "
            f"{data.name} has {data.shape} of {data.classes}"
        )
    if spec.shape == data.shape:
        return model
    warn(f"{config.name} sees images resized from {data.shape[1]}x{data.shape[2]} to {spec.inner[1]}x{spec.inner[2]}")
    return adapted(model, data.shape)


def adapted(network: Classifier, shape: tuple[int, ...]) -> Classifier:
    """Adapt a network to images of another size by resizing them to its own; the weights are shared.

    Raises:
        InputError: the number of channels differs, or the inputs are not images.
    """
    spec = network.spec
    if len(spec.shape) != 3 or len(shape) != 3 or spec.shape[0] != shape[0]:
        raise InputError(
            f"a network for images {spec.shape} cannot take images {shape}: only height and width may differ"
        )
    size = (spec.inner[1], spec.inner[2])
    other = Classifier(spec.model_copy(update={"shape": shape, "resize": size}), network.network)
    other.normalize = network.normalize
    return other.train(network.training)


def adapted_to(teacher: Checkpoint, student: Checkpoint) -> Checkpoint:
    """Adapt a teacher to the student's images and data, resizing images of another size.

    Raises:
        InputError: they differ in more than height and width.
    """
    shape = student.model.spec.shape
    if teacher.model.spec.shape == shape:
        return teacher
    return replace(teacher, model=adapted(teacher.model, shape), data=student.data)


def describes_itself(name: str) -> bool:
    """Tell whether a network needs no architecture: a checkpoint of ours, an ONNX file, or ``source:name``."""
    if name.endswith(".onnx") or not is_path(name):
        return True
    return checkpoint.describes(name) and checkpoint.class_of(name) is None


@dataclass(frozen=True)
class FileFormat:
    """Say what the file of a network does not say itself.

    Attributes:
        mean, std: normalisation that bare weights or an ONNX file expect, per channel.
        layout: arrangement of an ONNX file's images; see ``certkd.networks.onnx.classifier``.
        output: name or place of the logits among several outputs of an ONNX file, or of a network of the user's own.
        weights_key: the name of the weights in a file with several, like ``model_ema``.
    """

    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    layout: str | None = None
    output: str | int | None = None
    weights_key: str | None = None

    def check(self, name: str, architecture: str | None) -> None:
        """Refuse what does not fit a kind of file.

        Raises:
            InputError: an option has no effect on this file, or is no normalisation.
        """
        mean, std, onnx = self.mean, self.std, name.endswith(".onnx")
        if len(mean) != len(std) or min(std, default=1) <= 0 or (std and architecture is None and not onnx):
            raise InputError(
                "--mean and --std belong together and to --arch or an .onnx file, --std is positive: "
                f"got {mean} and {std}"
            )
        check_units(mean, std)
        if self.layout is not None and not onnx:
            raise InputError(f"--layout {self.layout} is for .onnx files: {name} describes its own images")
        if self.output is not None and not onnx and architecture is None:
            raise InputError(f"--output {self.output} is for .onnx files and for --arch: {name} has one output")


def load(
    name: str | os.PathLike[str],
    *,
    architecture: str | None = None,
    data: DataSet | None = None,
    form: FileFormat = FileFormat(),
) -> Checkpoint:
    """Load a trained network: a checkpoint, bare weights, an ONNX file, or a source's pre-trained network.

    Example:
        >>> network = certkd.load_checkpoint("student.pt").model
        >>> network(images).argmax(dim=1)

    Args:
        name: path of the file, or ``source:name`` for its source's pre-trained weights.
        architecture: ``source:name`` and options of bare weights, as in ``certkd:resnet,depth=20``; or a class in a
            file, ``path/file.py:Class,width=8``, whose code is run, for bare weights or what was trained from it.
        data: the data set, whose classes and shape are used if there is no checkpoint.
        form: what the file does not say itself.

    Raises:
        InputError: as for ``checkpoint.load``, ``classifier`` and ``build``, or a needed data set is missing.
    """
    name, output = os.fspath(name), form.output
    form.check(name, architecture)
    if name.endswith(".onnx"):
        if architecture is not None:
            raise InputError(f"{name} describes its own network: drop --arch")
        shape, layout = None if data is None else data.shape, form.layout or "nchw"
        return classifier(name, shape=shape, layout=layout, mean=form.mean, std=form.std, output=output)
    check_names(name)
    if is_path(name) or ":" not in name:
        own = _own(name, architecture)
        bare = None if own is not None else _bare(architecture, data, form.mean, form.std)
        bare = bare if bare is None or output is None else bare.model_copy(update={"output": output})
        return checkpoint.load(name, architecture=bare, own=own, key=form.weights_key)
    if data is None:
        raise InputError(f"{name} needs --data, which says how many classes and what shape")
    return Checkpoint(build(parse_architecture(name, data.classes, data.shape), pretrained=True).eval())


@wraps(load)
def load_checkpoint(*args: Any, **options: Any) -> Checkpoint:
    """Load a trained network as ``load`` does, and warn of what was chosen or converted on the way."""
    found = load(*args, **options)
    for remark in found.remarks:
        warnings.warn(f"{args[0] if args else options['name']}: {remark}", stacklevel=2)
    return found


def image_size(architecture: str) -> str | None:
    """Return the size of images that an architecture's options name, as "H,W"; None if they name none."""
    given = parse_architecture(architecture, 1, (1,)).options.get("img_size")
    sides = list(given) if isinstance(given, list | tuple) else [given, given]
    return ",".join(map(str, sides)) if all(isinstance(side, int) for side in sides) else None


def _own(path: str, architecture: str | None) -> tuple[str, dict[str, Any]] | None:
    """Return the user's class and options for a checkpoint that was trained from a class; None for any other file."""
    if architecture is None or not is_own(architecture.partition(",")[0]) or checkpoint.class_of(path) is None:
        return None
    spec = parse_architecture(architecture, 1, (1,))
    return spec.name, spec.options


def check_names(name: str, architecture: str | None = None) -> None:
    """Check that a network is a path or known to its source, and so is its architecture, before data are loaded.

    Raises:
        InputError: one of them is unknown.
    """
    if not is_path(name) and ":" in name:
        check_known(name.partition(",")[0])
    elif not is_path(name) and not Path(name).exists():
        known = did_you_mean(name, known_models("certkd"))
        raise InputError(f"{name!r} is neither a checkpoint's path nor a network's name like timm:resnet18.{known}")
    if architecture is not None and not name.endswith(".onnx"):
        check_known(architecture.partition(",")[0])


def check_units(mean: Sequence[float], std: Sequence[float]) -> None:
    """Check that a normalisation is for pixels in [0, 1].

    Raises:
        InputError: it is for pixels of 0 to 255.
    """
    if max([*map(abs, mean), *std], default=0) <= LARGEST:
        return
    raise InputError(
        f"--mean {_listed(mean)} --std {_listed(std)} are for pixels of 0 to 255, here they are in [0, 1]: "
        f"did you mean --mean {_listed(mean, '/255')} --std {_listed(std, '/255')}?"
    )


def _listed(values: Sequence[float], unit: str = "") -> str:
    return ",".join(f"{value:g}{unit}" for value in values)


def _bare(
    architecture: str | None, data: DataSet | None, mean: Sequence[float], std: Sequence[float]
) -> ModelSpec | None:
    """Describe the network of bare weights, with its normalisation; None without an architecture."""
    if architecture is None:
        return None
    if data is None:
        raise InputError(f"--arch {architecture} needs --data, which says how many classes and what shape")
    spec = parse_architecture(architecture, data.classes, data.shape)
    return spec.model_copy(update={"mean": tuple(mean), "std": tuple(std)})


def randomly_initialised(name: str, classes: int, shape: tuple[int, ...]) -> Classifier:
    """Build ``source:name,key=value`` with random weights, in eval mode, for inspection only.

    Raises:
        InputError: as ``build``.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(parse_architecture(name, classes, shape)).eval()


def parse_architecture(text: str, classes: int, shape: tuple[int, ...]) -> ModelSpec:
    """Parse ``certkd:resnet,depth=20``, for a number of classes and an image shape.

    Raises:
        InputError: an option that is not key=value.
    """
    name, *pairs = re.split(r",(?![^\[]*\])", text)  # not at the commas of a list
    options = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator:
            raise InputError(f"--arch {text!r}: {pair!r} must look like key=value, as in certkd:resnet,depth=20")
        try:
            options[key.strip()] = value_of(value)
        except InputError:
            raise InputError(f"--arch {text!r}: {value!r} is not a value: write depth=20 or hidden=[64,64]") from None
    return ModelSpec(name=name, options=options, classes=classes, shape=shape)


def data_of(checkpoint: Checkpoint, named: DataConfig) -> DataConfig:
    """Choose the data set for certification: the named one, or the checkpoint's own.

    Images in folders get the size and the channels that the network takes, unless a size is given.

    Args:
        checkpoint: the network.
        named: the settings that were given; only those count.

    Raises:
        InputError: no data set was named, and the checkpoint has none or a file outside of the current folder.
    """
    given, stored, shape = named.model_dump(exclude_unset=True), dict(checkpoint.data), checkpoint.model.spec.shape
    if given.get("name", stored.get("name")) != stored.get("name"):
        stored = {}
    if not stored and "name" not in given:
        raise InputError(
            f"{quoted(checkpoint.model.spec.name)} does not name its data set: name it with --data, as digits, "
            "cifar10, a folder of images, or a file like images.npz"
        )
    if "name" not in given:
        _check_inside(str(stored.get("name", "digits")), named.root)
    config = DataConfig(**{**stored, "root": None, "download": False, **given})
    if not config.in_folders or len(shape) != 3 or shape[0] not in (1, 3):
        return config
    own: dict[str, int | str] = {"channels": shape[0] if config.channels is None else config.channels}
    if "image_size" not in {*stored, *given}:
        own["image_size"] = f"{shape[1]},{shape[2]}"
    return DataConfig(**{**config.model_dump(), **own})


def _check_inside(name: str, root: str | None) -> None:
    """Check that a checkpoint's data lie in the current folder or in the one that is given.

    Raises:
        InputError: they lie elsewhere: nobody asked for that file.
    """
    places = [Path.cwd(), *([Path(root)] if root is not None else [])]
    path = Path(name).expanduser()
    if name not in NAMES and not any((place / path).resolve().is_relative_to(place.resolve()) for place in places):
        raise InputError(
            f"the checkpoint names its data set {quoted(name)}, which lies outside of this folder: name it with --data"
        )
