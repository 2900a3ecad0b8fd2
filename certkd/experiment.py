"""``certkd run``: teacher, students, certificates for all, one comparison.

Finished parts are kept and begun ones resumed when the same experiment is run again.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from certkd.certification import data_for
from certkd.comparison.compare import Comparison, compare, figures, plain, radii
from certkd.config.settings import ExperimentConfig, RoleConfig, TrainConfig
from certkd.data import sources as data
from certkd.data.selection import Selection
from certkd.files import write_whole
from certkd.networks import resolve as networks
from certkd.networks.builders import Classifier
from certkd.networks.checkpoint import Checkpoint
from certkd.report import plots
from certkd.reporter import TrainingReporter
from certkd.training.evaluation import has_collapsed
from certkd.training.loop import RESUME, TrainingResult, resume_state, train
from certkd.training.monitor import Threat
from verifiers.certify.certify import certify
from verifiers.core.errors import InputError
from verifiers.core.reporter import Reporter
from verifiers.core.status import Guarantee
from verifiers.results.rows import Certificates
from verifiers.runtime.device import choose_device

#: Settings that do not change what a training computes (teachers are known by their hashes).
_FREE = {"out", "device", "teacher"}
TRAINING_OUTPUTS = ("best.pt", "last.pt", "log.jsonl", RESUME, "tensorboard")


@dataclass(frozen=True)
class Experiment:
    """What a run ended with, by network name; the teacher comes first."""

    networks: dict[str, Certificates]
    comparisons: dict[str, Comparison]
    collapsed: list[str]
    folder: Path


def run_training(
    config: TrainConfig, *, resume: bool = False, overwrite: bool = False, reporter: TrainingReporter | None = None
) -> TrainingResult:
    """Train as a configuration says, into its ``out`` folder.

    Raises:
        InputError: the folder holds a training and neither ``resume`` nor ``overwrite`` was given, or one with other
            settings is to be resumed; and whatever ``train`` refuses.
    """
    out, reporter = Path(config.out), reporter or TrainingReporter()
    device = choose_device(config.device)
    names = {"teacher": config.teacher, "natural teacher": config.natural_teacher}
    teachers = {role: networks.load(name) for role, name in names.items() if name is not None}
    about = _about(config, teachers)
    state = None if overwrite else resume_state(out)
    if state is not None:
        _check_resumable(out, state, about, resume)
    samples = data.load(config.data)
    student = networks.for_training(config.model, samples, config.seed, reporter.warn)
    compared = getattr(config.objective, "lambda_iga", 0) > 0
    fitted = {
        role: _fitted(known.model, f"{role} {names[role]}", student, reporter if compared else TrainingReporter())
        for role, known in teachers.items()
    }

    def begin() -> None:
        if overwrite:
            _delete(out, RESUME, TRAINING_OUTPUTS)
        _make_folder(out)

    return train(
        student,
        samples.splits["train"],
        config.objective,
        teacher=fitted.get("teacher"),
        natural_teacher=fitted.get("natural teacher"),
        validation=samples.splits["validation"],
        recipe=config,
        selection=config.selection,
        threat=_threat(teachers.get("teacher")),
        seed=config.seed,
        device=str(device),
        out=out,
        resume=state is not None,
        begin=begin,
        about=about,
        reporter=reporter,
    )


def _threat(teacher: Checkpoint | None) -> Threat | None:
    """The ball in which a teacher was trained to be robust, when its checkpoint says so."""
    return None if teacher is None else Threat.of_objective(teacher.training.get("objective") or {})


def _fitted(teacher: Classifier, name: str, student: Classifier, reporter: TrainingReporter) -> Classifier:
    """A teacher that takes the student's images; those of another size are resized for it.

    Raises:
        InputError: it wants other channels.
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


def _delete(folder: Path, mark: str, outputs: tuple[str, ...]) -> None:
    """Delete earlier outputs in a folder, and nothing else.

    Raises:
        InputError: the folder holds other things and no ``mark`` of certkd.
    """
    try:
        if not (folder / mark).exists():
            if folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder} is no output of certkd and is not overwritten: give another out")
            return
        for name in outputs:
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"cannot delete {folder}: {error.strerror}") from None


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write {folder}: {error.strerror}: give another out") from None
    if not os.access(folder, os.W_OK):
        raise InputError(f"cannot write {folder}: no permission: give another out")


def _about(config: TrainConfig, teachers: Mapping[str, Checkpoint]) -> dict[str, Any]:
    """What checkpoints store: the data set, the teachers' hashes and the settings."""
    hashes = {role: known.sha256 for role, known in teachers.items()}
    settings = config.model_dump(mode="json", exclude=_FREE)
    settings["natural_teacher"] = hashes.get("natural teacher")
    kept = ("name", "seed", "image_size", "limit")
    settings["data"] = {key: settings["data"][key] for key in kept if settings["data"][key] is not None}
    return {"data": settings["data"], "teacher_sha256": hashes.get("teacher", ""), "training": settings}


def _check_resumable(out: Path, state: dict[str, Any], about: dict[str, Any], resume: bool) -> None:
    there, wanted = json.loads(state["about"]), about
    if not resume:
        epochs = f"{state['progress']['epoch']} of {there.get('training', {}).get('epochs', '?')} epochs"
        raise InputError(f"{out} already holds a training ({epochs}): add --resume to go on, or --overwrite")
    for part in wanted:
        if there.get(part) != wanted[part]:
            keys = [key for key in wanted["training"] if there["training"].get(key) != wanted["training"][key]]
            what = f"other settings ({', '.join(keys)})" if keys else f"another {part}"
            raise InputError(f"{out} holds a training with {what}: give another out, or --overwrite")


def run(
    config: ExperimentConfig,
    *,
    overwrite: bool = False,
    training_reporter: Callable[[str], TrainingReporter] | None = None,
    reporter: Callable[[str], Reporter] | None = None,
) -> Experiment:
    """Run an experiment into ``config.out``; the same call goes on with one that was interrupted.

    Writes ``teacher/``, ``students/NAME/`` (checkpoints and logs), ``certificates/NAME.h5``, and ``report/`` (summary
    as JSON, plots as PNG).

    Raises:
        InputError: the folder holds an experiment with other settings, and whatever its parts refuse.
    """
    folder = Path(config.out)
    alone = config.certify.alone()
    if alone is None or all(method.guarantee is Guarantee.ESTIMATE for method in alone.methods):
        raise InputError(f"certify.methods {', '.join(config.certify.kinds)} proves nothing: add ibp or crown")
    _check_natural_teacher(config)
    if overwrite:
        data.load(config.data)  # what cannot work is known before anything is deleted
        _delete(folder, f"teacher/{RESUME}", ("teacher", "students", "certificates", "report"))
    trainings = {"teacher": _training(config, "teacher", config.teacher, None)}
    teacher = f"{trainings['teacher'].out}/best.pt"
    for name in config.students.objectives:
        trainings[name] = _training(config, name, _student(config, name), teacher)
    results = {}
    for name, training in trainings.items():
        reported = training_reporter(name) if training_reporter else None
        results[name] = _train_once(training, reported)
    reference = networks.load(teacher)
    certificates = {
        name: _certify(config, name, training, None if name == "teacher" else reference, reporter)
        for name, training in trainings.items()
    }
    return _report(config, folder, results, certificates)


def _check_natural_teacher(config: ExperimentConfig) -> None:
    """It is there, before any training begins, when a network needs it.

    Raises:
        InputError: a network needs one and none is named, or it cannot be read.
    """
    objectives = {"teacher": config.teacher.objective, **config.students.objectives}
    needing = [name for name, objective in objectives.items() if objective.needs_natural_teacher]
    if not needing:
        return
    if config.natural_teacher is None:
        raise InputError(f"{needing[0]} needs a natural teacher: name its checkpoint with the key natural_teacher")
    networks.load(config.natural_teacher)


def _student(config: ExperimentConfig, name: str) -> RoleConfig:
    common = {key: value for key, value in config.students if key != "objectives"}
    return RoleConfig(**common, objective=config.students.objectives[name])


def _training(config: ExperimentConfig, name: str, role: RoleConfig, teacher: str | None) -> TrainConfig:
    """One network's training; students without need of a teacher still record it, for the comparison."""
    folder = Path(config.out) / (name if teacher is None else f"students/{name}")
    return TrainConfig(
        **dict(role),
        out=str(folder),
        seed=config.seed,
        data=config.data,
        teacher=teacher,
        natural_teacher=config.natural_teacher if role.objective.needs_natural_teacher else None,  # type: ignore[attr-defined]
        selection=config.selection,
        device=config.device,
    )


def _train_once(training: TrainConfig, reporter: TrainingReporter | None) -> TrainingResult:
    return run_training(training, resume=(Path(training.out) / RESUME).exists(), reporter=reporter)


def _certify(
    config: ExperimentConfig,
    name: str,
    training: TrainConfig,
    teacher: Checkpoint | None,
    reporter: Callable[[str], Reporter] | None,
) -> Certificates:
    known, device = networks.load(f"{training.out}/best.pt"), choose_device(config.device)
    wanted = config.certify if teacher is not None else config.certify.alone()
    assert wanted is not None  # checked before any training
    return certify(
        known.model.to(device),
        data_for(known, data.load(config.data), config.data, selection=Selection(limit=config.certify.limit)),
        wanted,
        teacher=teacher.model.to(device) if teacher is not None and wanted.pairs else None,
        out=Path(config.out) / "certificates" / f"{name}.h5",
        reporter=reporter(name) if reporter else None,
    )


def _report(
    config: ExperimentConfig, folder: Path, results: dict[str, TrainingResult], networks: dict[str, Certificates]
) -> Experiment:
    teacher = networks["teacher"]
    comparisons = {name: compare(teacher, c) for name, c in networks.items() if name != "teacher"}
    collapsed = [name for name, result in results.items() if has_collapsed(result.history[-1]["validation"])]
    report = folder / "report"
    curves = {name: radii(certificates) for name, certificates in networks.items()}
    norm, eps, samples = str(config.certify.norm), teacher.eps, len(curves["teacher"])
    plots.radius_curves(report / "radius.png", curves, norm=norm, eps=eps, samples=samples)
    plots.training_curves(report / "training.png", {name: result.history for name, result in results.items()})
    for name in comparisons:
        path = report / f"{name}-against-teacher.png"
        plots.paired_radii(path, curves["teacher"], curves[name], norm=norm, eps=eps, name=name)
    content = {
        "config": config.model_dump(mode="json"),
        "networks": {name: plain(vars(figures(certificates))) for name, certificates in networks.items()},
        "comparisons": {name: result.to_dict() for name, result in comparisons.items()},
        "collapsed": collapsed,
    }
    write_whole(report / "summary.json", lambda path: path.write_text(json.dumps(content, indent=1)))
    return Experiment(networks, comparisons, collapsed, folder)
