"""Save and load checkpoints: weights and plain metadata, never code.

A checkpoint describes how to rebuild its network (architecture, classes, input shape, normalisation), its data and
training, and the SHA-256 of its teacher's weights. Files are read with ``weights_only=True``: a pickle that would run
code is rejected. ``.safetensors`` files have the same metadata as JSON in their header.
"""

import json
import os
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from certkd import files
from certkd.networks.builders import Classifier, ModelSpec, build
from verifiers.core.errors import InputError, one_line
from verifiers.core.problems import first_problem
from verifiers.runtime.fingerprint import weights_sha256

FORMAT = "certkd-checkpoint"
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
    """

    model: Classifier
    data: Mapping[str, Any] = field(default_factory=dict)
    teacher_sha256: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)

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

    Raises:
        InputError: the file is missing, empty or truncated, an HTML page, a pickle with code, has weights of another
            architecture, or has bare weights and ``architecture`` is None.
    """
    path = Path(path)
    state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if metadata.get("format_version", FORMAT_VERSION) != FORMAT_VERSION:
        raise InputError(
            f"{path} has checkpoint version {metadata['format_version']}, not {FORMAT_VERSION}: update certkd"
        )
    if metadata and architecture is not None:
        raise InputError(f"{path} describes its own network: drop --arch")
    if metadata:
        spec = _spec(metadata, path)
    elif architecture is not None:
        spec = architecture
    else:
        raise InputError(
            f"{path} holds bare weights: describe their network with --arch and --data (to train from them "
            "with name: source:name and weights: the file)"
        )
    model = build(spec)
    _load_strictly(model, state, path, bare=not metadata)
    about = {key: metadata[key] for key in ("data", "teacher_sha256", "training", "metrics") if key in metadata}
    return Checkpoint(model.eval(), **about)


def _spec(metadata: Mapping[str, Any], path: Path) -> ModelSpec:
    given = metadata.get("architecture")
    try:
        return ModelSpec.model_validate(given)
    except ValidationError as error:
        problem = first_problem(error, ModelSpec, given if isinstance(given, Mapping) else {})
        raise InputError(f"{path} is damaged: architecture: {problem}") from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    _sniff(path)
    try:
        with warnings.catch_warnings():  # warnings about foreign pickles, which are rejected
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        culprit = _culprit(str(error))
        what = f"holds code ({culprit})" if culprit else "torch.save did not write"
        raise InputError(
            f"{path} is a pickle that {what} and is not run: save plain weights with "
            "torch.save(model.state_dict(), ...)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, AttributeError, struct.error) as error:
        why = one_line(error) or "it ends too early"
        raise InputError(f"{path} is damaged or truncated: {why}") from None
    if isinstance(content, dict) and content.get("format") == FORMAT:
        state = content.pop("state_dict", {})
        return state, content
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    named = isinstance(content, dict) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items())
    if not named or not content:
        raise InputError(f"{path} holds no weights (a state dict of tensors), but {type(content).__name__}")
    return content, {}


def _sniff(path: Path) -> None:
    """Reject common files that are not checkpoints, by name."""
    if path.is_dir():
        raise InputError(f"{path} is a folder: give a checkpoint in it, such as {path / 'best.pt'}")
    head = files.sniff(path, "checkpoint")
    if path.suffix != ".safetensors" and not head.startswith((b"PK", b"\x80")):
        raise InputError(f"{path} is not a checkpoint: its content is not what torch.save writes")
    if head.startswith(b"PK") and not zipfile.is_zipfile(path):
        raise InputError(f"{path} is truncated: its archive has no end; copy or download it again")


def _culprit(message: str) -> str | None:
    """Find the function that a rejected pickle calls; None if torch does not name it."""
    marked = re.search(r"GLOBAL ([\w.]+)", message)
    return marked[1].rstrip(".") if marked else None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    _sniff(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get("certkd", "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {' '.join(str(error).split())[:120]}") from None


def begin_with(model: Classifier, path: str | os.PathLike[str], head: str | None) -> bool:
    """Load a file's bare weights into a network; return whether its layer ``head`` differs in classes and is kept.

    Raises:
        InputError: as for ``load``, or the file is a checkpoint, which describes its own network.
    """
    path = Path(path)
    state, metadata = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path)
    if metadata:
        raise InputError(f"{path} is a checkpoint and describes its own network: give it as the model's name")
    state = _without_module(state)
    own = model.network.state_dict()
    of_head = [name for name in own if head is not None and name.startswith(f"{head}.")]
    other = any(name in state and state[name].shape != own[name].shape for name in of_head)
    if other:
        state |= {name: own[name] for name in of_head}
    _load_strictly(model, state, path, bare=True)
    return other


def _without_module(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove the prefix of torch's DataParallel from the names."""
    prefix = "module." if all(name.startswith("module.") for name in state) else ""
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _load_strictly(model: Classifier, state: Mapping[str, Tensor], path: Path, *, bare: bool) -> None:
    """Load weights whose names and shapes all match. Bare weights belong to the network without normalisation."""
    target: torch.nn.Module = model.network if bare else model
    state = _without_module(state) if bare else state
    wanted = target.state_dict()
    problems = [f"{name} is missing" for name in wanted if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in wanted]
    problems += [
        f"{name} has shape {tuple(state[name].shape)} instead of {tuple(value.shape)}"
        for name, value in wanted.items()
        if name in state and state[name].shape != value.shape
    ]
    if problems:
        more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
        raise InputError(f"{path} holds weights of another architecture than {model.spec.name}: {problems[0]}{more}")
    target.load_state_dict(dict(state))
