"""Run a training from a file: build the networks, load the data, and write into its folder."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from certkd import files
from certkd.config.settings import TrainConfig, TrainJob
from certkd.data import sources
from certkd.networks import checkpoint
from certkd.networks import resolve as networks
from certkd.networks.builders import Classifier, check_known, check_present
from certkd.networks.checkpoint import Checkpoint
from certkd.reporter import TrainingReporter
from certkd.training.loop import TrainingResult, train
from certkd.training.monitor import threat_of, threat_of_objective
from certkd.training.resume import RESUME, TrainingFolder, resume_state
from certkd.training.run import Teachers
from verifiers.core.errors import InputError
from verifiers.runtime.device import choose_device

#: Settings that do not affect the results of a training (teachers are identified by their hashes).
_FREE = {"out", "device", "teacher", "teacher_arch", "loaders"}
_OUTPUTS = ("best.pt", "last.pt", "log.jsonl", RESUME, "tensorboard")


def run_training(
    job: TrainJob, *, resume: bool = False, overwrite: bool = False, reporter: TrainingReporter | None = None
) -> TrainingResult:
    """Train by the settings of a file, into its ``out`` folder.

    Raises:
        InputError: the folder has a training and neither ``resume`` nor ``overwrite`` is set, or one with other
            settings; or as for ``train``.
    """
    reporter = reporter or TrainingReporter()
    choose_device(job.device)  # rejects an absent device before anything is loaded
    names = {"teacher": job.teacher, "natural teacher": job.natural_teacher}
    if ":" in job.model.name and not networks.is_path(job.model.name):
        check_known(job.model.name)
    if job.model.pretrained and not job.data.download:
        check_present(job.model.name)
    known = {role: _teacher(job, role, name) for role, name in names.items() if name is not None}
    folder = _folder(job, known, resume, overwrite)
    data = sources.load(job.data)
    for remark in data.remarks:
        reporter.inform(remark)
    student = networks.for_training(job.model, data, job.seed, reporter.warn)
    aligned = getattr(job.objective, "lambda_iga", 0) > 0
    fitted = {
        role: _fitted(teacher.model, f"{role} {names[role]}", student, reporter if aligned else TrainingReporter())
        for role, teacher in known.items()
    }
    return train(
        student,
        data.splits,
        _with_threat(job, known.get("teacher")),
        teacher=Teachers(fitted.get("teacher"), fitted.get("natural teacher")),
        out=folder,
        reporter=reporter,
    )


def _teacher(job: TrainJob, role: str, name: str) -> Checkpoint:
    """Load a teacher; ``teacher_arch`` is the class, or the network of bare weights, of the first one.

    Raises:
        InputError: as ``networks.load``.
    """
    architecture = job.teacher_arch if role == "teacher" else None
    bare = architecture is not None and not checkpoint.describes(name)
    return networks.load(name, architecture=architecture, data=sources.load(job.data) if bare else None)


def _folder(job: TrainJob, teachers: Mapping[str, Checkpoint], resume: bool, overwrite: bool) -> TrainingFolder:
    """Return the folder to write into, after checking that its contents allow that."""
    out, about = Path(job.out), _about(job, teachers)
    state = None if overwrite else resume_state(out)
    if state is not None:
        _check_resumable(out, state, about, resume)

    def begin() -> None:
        if overwrite:
            files.delete_outputs(out, RESUME, _OUTPUTS)
        files.make_folder(out)

    return TrainingFolder(out, resume=state is not None, about=about, begin=begin)


def _with_threat(job: TrainJob, teacher: Checkpoint | None) -> TrainConfig:
    """Return the settings; without a threat of their own, they get the ball of the teacher's training."""
    if threat_of(job) is not None or teacher is None:
        return job
    return job.model_copy(update={"threat": threat_of_objective(teacher.training.get("objective") or {})})


def _fitted(teacher: Classifier, name: str, student: Classifier, reporter: TrainingReporter) -> Classifier:
    """Adapt a teacher to the student's images, resizing images of another size.

    Raises:
        InputError: the number of channels differs.
    """
    theirs, ours = teacher.spec.shape, student.spec.shape
    if theirs == ours:
        return teacher
    try:
        other = networks.adapted(teacher, ours)
    except InputError:
        raise InputError(f"the {name} takes images {theirs}, the student {ours}") from None
    height, width = other.spec.inner[1:]
    reporter.warn(
        f"the {name} sees images resized from {ours[1]}x{ours[2]} to {height}x{width}, and gradients are compared in "
        "the student's pixels: this is no longer KDIGA as published"
    )
    return other


def _about(job: TrainJob, teachers: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """Collect the metadata of checkpoints: data set, teacher's hash, settings, and what a student is a copy of."""
    hashes = {role: known.sha256 for role, known in teachers.items()}
    settings = job.model_dump(mode="json", exclude=_FREE)
    settings["natural_teacher"] = hashes.get("natural teacher")
    kept = ("name", "seed", "image_size", "channels", "limit")
    settings["data"] = {key: settings["data"][key] for key in kept if settings["data"][key] is not None}
    about = {"data": settings["data"], "teacher_sha256": hashes.get("teacher", ""), "training": settings}
    begun = networks.is_path(job.model.name) and not job.model.name.endswith(".onnx")
    copied = checkpoint.copied_in(job.model.name) if begun else {}
    return {**about, "copied": copied} if copied else about


def _check_resumable(out: Path, state: dict[str, Any], about: dict[str, Any], resume: bool) -> None:
    there, wanted = json.loads(state["about"]), about
    if not resume:
        epochs = f"{state['progress']['epoch']} of {there.get('training', {}).get('epochs', '?')} epochs"
        raise InputError(f"{out} already holds a training ({epochs}): add --resume to continue it, or --overwrite")
    for part in wanted:
        if there.get(part) != wanted[part]:
            keys = [key for key in wanted["training"] if there["training"].get(key) != wanted["training"][key]]
            what = f"other settings ({', '.join(keys)})" if keys else f"another {part}"
            raise InputError(f"{out} holds a training with {what}: give another out, or --overwrite")
