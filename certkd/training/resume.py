"""Write the networks of a training and its resume state, and read that state."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from certkd import files
from certkd.networks import checkpoint
from certkd.networks.builders import Classifier
from certkd.networks.torch_file import TorchFile
from certkd.training.run import Run
from verifiers.core.errors import InputError, one_line

RESUME = "resume.pt"


@dataclass(frozen=True)
class TrainingFolder:
    """The folder of a training's ``best.pt``, ``last.pt``, ``log.jsonl`` and resume state.

    Attributes:
        path: path of the folder.
        resume: continue the training in the folder.
        about: the checkpoints' metadata (``data``, ``teacher_sha256``, ``training``).
        begin: called after all checks, before the first write; it may clear an occupied folder.
    """

    path: Path
    resume: bool = False
    about: Mapping[str, Any] = field(default_factory=dict)
    begin: Callable[[], None] | None = None

    def check(self) -> None:
        """Reject a folder with another training.

        Raises:
            InputError: the folder has a training, and is neither to be resumed nor cleared.
        """
        if not self.resume and self.begin is None and (self.path / RESUME).exists():
            raise InputError(f"{self.path} already holds a training: resume it, or give another folder")


@dataclass
class Progress:
    """The state of a resumed training besides its networks, in plain values."""

    epoch: int = 0
    best_epoch: int = -1
    best_score: tuple[float, float] = (-1.0, -1.0)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)

    def keep(self, record: dict[str, Any], network: nn.Module, metric: str) -> None:
        """Add an epoch, and its weights if it is the best so far; PGD accuracy breaks ties."""
        metrics = record["validation"]
        score = (metrics[metric], metrics.get("pgd", 0.0))
        self.history.append(record)
        self.epoch = record["epoch"] + 1
        if score > self.best_score:
            self.best_score, self.best_epoch = score, record["epoch"]
            self.best_state = {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def save_epoch(folder: TrainingFolder, progress: Progress, run: Run) -> None:
    """Write last.pt, best.pt if this epoch is the best, then the resume state: each whole or not at all.

    The resume state is last: if killed before it, a resumed training repeats the epoch and writes the same files.
    """
    names = ["last.pt"] + (["best.pt"] if progress.best_epoch == progress.epoch - 1 else [])
    for name in names:
        metrics = progress.history[-1]["validation"]
        _save_network(run.shown(progress.epoch - 1), folder.path / name, folder.about, metrics)
    state = {
        "progress": vars(progress),
        "student": run.student.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.averaged.state_dict() if run.average is not None else {},
        "about": json.dumps(folder.about, sort_keys=True),
    }
    files.write_whole(folder.path / RESUME, lambda path: torch.save(state, path))


def _save_network(student: nn.Module, path: Path, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """Write a self-describing checkpoint of a ``Classifier``, or bare weights of any other module."""
    if isinstance(student, Classifier):
        checkpoint.save(checkpoint.Checkpoint(student, **about, metrics=metrics), path)
    else:
        state = {name: value.detach().cpu() for name, value in student.state_dict().items()}
        files.write_whole(path, lambda temporary: torch.save(state, temporary))


def resume_state(folder: Path) -> dict[str, Any] | None:
    """Read the resume state of a training folder; None if there is none.

    Raises:
        InputError: the state is damaged.
    """
    path = folder / RESUME
    if not path.exists():
        return None
    try:
        state = dict(TorchFile(path).whole())
        return {part: state[part] for part in ("progress", "student", "optimizer", "average", "about")}
    except Exception as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): delete it to start again") from error


def load_progress(folder: TrainingFolder | None, run: Run) -> Progress:
    """Return the progress of a training, and restore its networks and optimiser.

    Raises:
        InputError: there is nothing to resume, or it belongs to another network or optimiser.
    """
    if folder is None or not folder.resume:
        return Progress()
    state = resume_state(folder.path)
    if state is None:
        raise InputError(f"nothing to resume: {folder.path} holds no {RESUME}")
    try:
        run.student.load_state_dict(state["student"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.average is not None:
            run.average.averaged.load_state_dict(state["average"])
    except (RuntimeError, ValueError) as error:
        why = one_line(error)
        raise InputError(f"{folder.path}/{RESUME} belongs to another network or optimizer: {why}") from None
    return Progress(**state["progress"])
