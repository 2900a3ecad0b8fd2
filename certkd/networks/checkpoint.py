"""Save and load checkpoints: weights and plain metadata, never code.

A checkpoint describes how to rebuild its network (architecture, classes, input shape, normalisation), its data and
training, and the SHA-256 of its teacher's weights. A pickle that would run code is rejected, and so is a network that
is larger than the stored weights. ``.safetensors`` files have the same metadata as JSON in their header.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, ValidationError

from certkd import files
from certkd.config.settings import DataConfig
from certkd.networks import stored
from certkd.networks.builders import Budget, Classifier, ModelSpec, build
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
        remarks: what was chosen or converted when the network was read, a line each.
    """

    model: Classifier
    data: Mapping[str, Any] = field(default_factory=dict)
    teacher_sha256: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def sha256(self) -> str:
        """The SHA-256 of the weights."""
        return weights_sha256(self.model)


def save(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint, whole or not at all (a temporary name, then a rename); ``.safetensors`` by its suffix."""
    path = Path(path)
    metadata = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "architecture": checkpoint.model.spec.model_dump(mode="json"),
        "data": dict(checkpoint.data),
        "teacher_sha256": checkpoint.teacher_sha256,
        "training": dict(checkpoint.training),
        "metrics": dict(checkpoint.metrics),
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


def load(path: str | os.PathLike[str], *, architecture: ModelSpec | None = None) -> Checkpoint:
    """Read a checkpoint, or bare weights for the network that ``architecture`` describes.

    A checkpoint's own network is built only if it is no larger than the weights of the file.

    Raises:
        InputError: the file is missing, empty or truncated, an HTML page, a pickle with code, has weights of another
            architecture, or has bare weights and ``architecture`` is None.
    """
    path = Path(path)
    state, metadata = stored.read(path)
    version = metadata.get("format_version", FORMAT_VERSION)
    if version != FORMAT_VERSION:
        raise InputError(f"{path} has checkpoint version {quoted(version)}, not {FORMAT_VERSION}: update certkd")
    if metadata and architecture is not None:
        raise InputError(f"{path} describes its own network: drop --arch")
    if not metadata and architecture is None:
        raise InputError(
            f"{path} holds bare weights: describe their network with --arch and --data (to train from them "
            "with name: source:name and weights: the file)"
        )
    about = _About.parse({key: metadata[key] for key in _About.model_fields if key in metadata}, source=f"{path}")
    if about.data:
        DataConfig.parse(about.data, source=f"{path}: data")
    with loading(path, "a complete checkpoint"):
        if architecture is not None:
            model = build(architecture)
        else:
            shapes = [value.shape for value in state.values()]
            model = build(_spec(metadata, path), budget=Budget.of(shapes, str(path)))
        _load_strictly(model, state, path, bare=not metadata)
    return Checkpoint(model.eval(), **dict(about))


class _About(Strict):
    """What a checkpoint says about its network."""

    data: dict[str, Any] = {}
    teacher_sha256: Annotated[str, Field(max_length=64, pattern="^[0-9a-f]*$")] = ""
    training: dict[str, Any] = {}
    metrics: dict[str, Any] = {}


def _spec(metadata: Mapping[str, Any], path: Path) -> ModelSpec:
    given = metadata.get("architecture")
    try:
        return ModelSpec.model_validate(given)
    except ValidationError as error:
        problem = first_problem(error, ModelSpec, given if isinstance(given, Mapping) else {})
        raise InputError(f"{path} is damaged: architecture: {problem}") from None


def begin_with(model: Classifier, path: str | os.PathLike[str], head: str | None) -> bool:
    """Load a file's bare weights into a network; return whether its layer ``head`` differs in classes and is kept.

    Raises:
        InputError: as for ``load``, or the file is a checkpoint, which describes its own network.
    """
    path = Path(path)
    state, metadata = stored.read(path)
    if metadata:
        raise InputError(f"{path} is a checkpoint and describes its own network: give it as the model's name")
    state = _without_module(state)
    own = model.network.state_dict()
    of_head = [name for name in own if head is not None and name.startswith(f"{head}.")]
    other = any(name in state and state[name].shape != tuple(own[name].shape) for name in of_head)
    if other:
        state |= {name: Stored(tuple(own[name].shape), own[name].dtype, own[name].clone) for name in of_head}
    with loading(path, "a complete checkpoint"):
        _load_strictly(model, state, path, bare=True)
    return other


def _without_module(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Remove the prefix of torch's DataParallel from the names."""
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _load_strictly(model: Classifier, state: Mapping[str, Stored], path: Path, *, bare: bool) -> None:
    """Load weights whose names and shapes all match. Bare weights belong to the network without normalisation."""
    target: torch.nn.Module = model.network if bare else model
    state = _without_module(state) if bare else state
    wanted = target.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {state[name].shape} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != tuple(value.shape)
    ]
    problems += [
        f"{name} holds {state[name].dtype} instead of {value.dtype}"
        for name, value in wanted.items()
        if name in state and state[name].dtype.is_floating_point != value.is_floating_point()
    ]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(f"{path} holds weights of another architecture than {model.spec.name}: {problems[0]}{more}")
    target.load_state_dict({name: value.read() for name, value in state.items()})
