"""Save and load checkpoints: weights and plain metadata, never code.

A checkpoint describes how to rebuild its network (architecture, classes, input shape, normalisation), its data and
training, and the SHA-256 of its teacher's weights. A pickle that would run code is rejected, and so is a network that
is larger than the stored weights. ``.safetensors`` files have the same metadata as JSON in their header.
"""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError

from certkd import files
from certkd.config.settings import DataConfig
from certkd.networks import stored
from certkd.networks.builders import Budget, Classifier, ModelSpec, build, is_own, last_linear, short
from certkd.networks.builders.changed import WeightsInInt8, change_layers
from certkd.networks.copies.facts import Copied
from certkd.networks.names import fitted, misfit
from certkd.networks.output import Output
from certkd.networks.stored import FORMAT, Stored
from verifiers.core.errors import InputError, loading, quoted
from verifiers.core.problems import first_problem
from verifiers.core.settings import Strict
from verifiers.runtime.fingerprint import weights_sha256

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Checkpoint:
    """A network and its metadata.

    Attributes:
        model: the network, in eval mode, on the CPU.
        data: name, seed and image size of its training data set; {} if unknown.
        teacher_sha256: SHA-256 of the teacher's weights; "" without a teacher.
        training: the resolved training configuration; {} if unknown.
        metrics: the metrics when it was saved.
        copied: what a compressed copy is a copy of, and its size; see ``Copied``. {} for other networks.
        remarks: what was chosen or converted when the network was read, a line each.
    """

    model: Classifier
    data: Mapping[str, Any] = field(default_factory=dict)
    teacher_sha256: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    copied: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights."""
        return weights_sha256(self.model)


def save(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint, whole or not at all (a temporary name, then a rename); ``.safetensors`` by its suffix."""
    path, spec = Path(path), checkpoint.model.spec
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": {**spec.model_dump(mode="json"), "name": short(spec.name)},
        "data": dict(checkpoint.data),
        "teacher_sha256": checkpoint.teacher_sha256,
        "training": dict(checkpoint.training),
        "metrics": dict(checkpoint.metrics),
        **({"copied": dict(checkpoint.copied)} if checkpoint.copied else {}),
    }
    state = {name: value.detach().cpu().contiguous().clone() for name, value in checkpoint.model.state_dict().items()}

    def write(temporary: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import save_file

            try:
                save_file(state, temporary, metadata={"certkd": json.dumps(metadata)})
            except SafetensorError as error:
                raise OSError(str(error)) from None
        else:
            torch.save({**metadata, "state_dict": state}, temporary)

    files.write_whole(path, write)


def load(
    path: str | os.PathLike[str],
    *,
    architecture: ModelSpec | None = None,
    own: tuple[str, Mapping[str, Any]] | None = None,
    key: str | None = None,
) -> Checkpoint:
    """Read a checkpoint, or bare weights for the network that ``architecture`` describes.

    A checkpoint's own network is built only if it is no larger than the weights of the file.

    Args:
        path: of the file.
        architecture: the network of bare weights.
        own: the class, ``file.py:Class``, of a checkpoint that was trained from a user's class, and options.
        key: the name of the weights in a file with several.

    Raises:
        InputError: the file is missing, empty or truncated, an HTML page, a pickle with code, has weights of another
            architecture, or has bare weights and ``architecture`` is None.
    """
    path = Path(path)
    held = stored.read(path, key)
    metadata = held.metadata
    _check_described(path, metadata, architecture, own)
    about = _About.parse({key: metadata[key] for key in _About.model_fields if key in metadata}, source=f"{path}")
    if about.data:
        DataConfig.parse(about.data, source=f"{path}: data")
    if about.copied:
        Copied.parse(about.copied, source=f"{path}: copied")
    with loading(path, "a complete checkpoint"):
        if architecture is not None:
            model = build(architecture)
        else:
            spec, shapes = _spec(metadata, path), [value.shape for value in held.state.values()]
            budget = Budget.of(shapes, str(path), copied=bool(spec.layers))
            if own is None:
                model = build(spec, budget=budget)
            else:
                with budget if spec.layers else nullcontext():
                    model = build(_named(spec, *own))
        if any(value.dtype is torch.qint8 for value in held.state.values()):
            from certkd.networks.quantized import load_quantized  # it imports torch's old modules

            load_quantized(model, held.state, path)
            return Checkpoint(model.eval(), **dict(about), remarks=tuple(held.remarks))
        remarks = _load_strictly(model, held.state, path, bare=not metadata)
    return Checkpoint(model.eval(), **dict(about), remarks=(*held.remarks, *remarks))


def describes(path: str | os.PathLike[str]) -> bool:
    """Return whether a file describes its network.

    Raises:
        InputError: the file cannot be read.
    """
    return bool(stored.read(Path(path)).metadata)


def copied_in(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a file says that its network is a copy of; {} for a network that is none.

    Raises:
        InputError: the file cannot be read.
    """
    found = stored.read(Path(path)).metadata.get("copied")
    return dict(found) if isinstance(found, Mapping) else {}


def class_of(path: str | os.PathLike[str]) -> str | None:
    """Return the user's class that a checkpoint was trained from, ``file.py:Class``; None for any other file.

    Raises:
        InputError: the file cannot be read.
    """
    described = stored.read(Path(path)).metadata.get("architecture")
    name = described.get("name") if isinstance(described, Mapping) else None
    return name if isinstance(name, str) and is_own(name) else None


def _named(spec: ModelSpec, name: str, options: Mapping[str, Any]) -> ModelSpec:
    return spec.model_copy(update={"name": name, "options": {**spec.options, **options}})


def _check_described(
    path: Path, metadata: Mapping[str, Any], architecture: ModelSpec | None, own: tuple[str, Mapping[str, Any]] | None
) -> None:
    """Check that a network is described once: by the file or by the caller.

    Raises:
        InputError: twice or not at all, or the file is newer than this version.
    """
    version = metadata.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has checkpoint version {quoted(version)}, not {FORMAT_VERSION}: update certkd")
    if not metadata and architecture is None:
        raise InputError(
            f"{path} holds bare weights: describe their network with --arch and --data (to train from them "
            "with name: source:name and weights: the file)"
        )
    described = metadata.get("architecture")
    name = str(described.get("name", ""))[:200] if isinstance(described, Mapping) else ""
    if is_own(name) and own is None:
        raise InputError(
            f"{path} was trained from a class of its user, {quoted(name)}, which is not run unless it is named: "
            f"add --arch with the path of the file, like --arch {short(name)}"
        )
    if metadata and (architecture is not None or (own is not None and not is_own(name))):
        raise InputError(f"{path} describes its own network: drop --arch")


class _About(Strict):
    """Hold a checkpoint's own description of its network."""

    data: dict[str, Any] = {}
    teacher_sha256: Annotated[str, Field(max_length=64, pattern="^[0-9a-f]*$")] = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}
    copied: dict[str, Any] = {}


def _spec(metadata: Mapping[str, Any], path: Path) -> ModelSpec:
    given = metadata.get("architecture")
    try:
        return ModelSpec.model_validate(given)
    except ValidationError as error:
        problem = first_problem(error, ModelSpec, given if isinstance(given, Mapping) else {})
        raise InputError(f"{path} is damaged: architecture: {problem}") from None


def begin_with(
    model: Classifier, path: str | os.PathLike[str], head: str | None, key: str | None = None
) -> tuple[bool, list[str]]:
    """Load a file's bare weights into a network.

    Args:
        model: the network.
        path: of the file.
        head: the layer that is kept if it has other classes.
        key: the name of the weights in a file with several.

    Returns:
        Whether the head was kept, and lines about the weights that were taken.

    Raises:
        InputError: as for ``load``, or the file is a checkpoint, which describes its own network.
    """
    path = Path(path)
    held = stored.read(path, key)
    if held.metadata:
        raise InputError(f"{path} is a checkpoint and describes its own network: give it as the model's name")
    own = _bare_network(model).state_dict()
    state, remarks = fitted(held.state, own, path, normalised=bool(model.spec.std))
    of_head = [name for name in own if head is not None and name.startswith(f"{head}.")]
    other = any(name in state and state[name].shape != tuple(own[name].shape) for name in of_head)
    if other:
        state |= {name: Stored(tuple(own[name].shape), own[name].dtype, own[name].clone) for name in of_head}
    with loading(path, "a complete checkpoint"):
        _load_strictly(model, state, path, bare=True)
    return other, [*held.remarks, *remarks]


def _bare_network(model: Classifier) -> torch.nn.Module:
    """Return the network without normalisation and without the choice of an output."""
    return model.network.network if isinstance(model.network, Output) else model.network


def _load_strictly(model: Classifier, state: Mapping[str, Stored], path: Path, *, bare: bool) -> list[str]:
    """Load weights whose names and shapes all match, and say what was left out.

    Bare weights belong to the network without normalisation.

    Raises:
        InputError: they do not match, or are no numbers.
    """
    target: torch.nn.Module = _bare_network(model) if bare else model
    wanted, remarks = target.state_dict(), list[str]()
    if bare:
        state, remarks = fitted(state, wanted, path, normalised=bool(model.spec.std))
    problem = misfit(state, wanted, last_linear(target) if bare else None)
    if problem is not None:
        raise InputError(f"{path} holds weights of another architecture than {model.spec.name}: {problem}")
    with _named_file(path):
        values = _numbers(model, target if bare else None, state)
    broken = next((name for name, value in values.items() if value.is_floating_point() and value.isnan().any()), None)
    if broken is not None:
        raise InputError(f"{path}: {quoted(broken)} holds NaN: the training diverged, take an earlier checkpoint")
    target.load_state_dict(values)
    return remarks


@contextmanager
def _named_file(path: Path) -> Iterator[None]:
    """Say of which file a refusal of weights in int8 is."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _numbers(model: Classifier, target: torch.nn.Module | None, state: Mapping[str, Stored]) -> dict[str, torch.Tensor]:
    """Read the numbers of weights that fit a network; its layers whose weights are codes become such layers.

    Raises:
        InputError: codes are not the weights of a linear layer, or the target is None: the file describes its network.
    """
    found = {}
    for name, value in state.items():
        if value.codes is None:
            found[name] = value.read()
            continue
        if target is None or not name.endswith(".weight"):
            raise InputError(
                f"{quoted(name)} is in int8: only weights of linear layers are read so, in bare state dicts"
            )
        change = WeightsInInt8(path=name.removesuffix(".weight"))
        change_layers(target, [change])
        model.spec = model.spec.model_copy(update={"layers": (*model.spec.layers, change)})
        found[f"{change.path}.codes"], found[f"{change.path}.scales"] = value.codes()
    return found
