"""Run a whole experiment: train a teacher and students, certify all, compare.

Run again, an experiment keeps its finished parts and resumes the others.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from certkd import files
from certkd.certification import data_for, samples_of
from certkd.comparison.compare import Comparison, compare, figures, plain, radii
from certkd.config.settings import ExperimentConfig, RoleConfig, TrainJob
from certkd.data import sources as data
from certkd.data.selection import Selection
from certkd.networks import resolve as networks
from certkd.networks.checkpoint import Checkpoint
from certkd.report import plots
from certkd.report.page import Page
from certkd.report.page import write as write_page
from certkd.reporter import TrainingReporter
from certkd.training.evaluation import has_collapsed
from certkd.training.job import run_training
from certkd.training.loop import TrainingResult
from certkd.training.resume import RESUME
from verifiers.certify.certify import certify
from verifiers.core.errors import InputError
from verifiers.core.reporter import Reporter
from verifiers.core.status import Guarantee
from verifiers.methods.match import Match
from verifiers.results.rows import Certificates
from verifiers.results.summaries.match import Matched
from verifiers.runtime.device import choose_device


@dataclass(frozen=True)
class Experiment:
    """The results of an experiment by network name; the teacher comes first.

    ``pairs`` are the students' files about one property each, where several are asked; the first is also in
    ``networks``.
    """

    networks: dict[str, Certificates]
    pairs: dict[str, list[Certificates]]
    comparisons: dict[str, Comparison]
    collapsed: list[str]
    folder: Path


def run(
    config: ExperimentConfig,
    *,
    overwrite: bool = False,
    training_reporter: Callable[[str], TrainingReporter] | None = None,
    reporter: Callable[[str], Reporter] | None = None,
) -> Experiment:
    """Run an experiment into ``config.out``; the same call resumes one that was interrupted.

    Writes ``teacher/``, ``students/NAME/`` (checkpoints and logs), ``certificates/NAME.h5``, and ``report/`` (a page,
    a summary as JSON, plots as PNG).

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
        files.delete_outputs(folder, f"teacher/{RESUME}", ("teacher", "students", "certificates", "report"))
    trainings = {"teacher": _training(config, "teacher", config.teacher, None)}
    teacher = f"{trainings['teacher'].out}/best.pt"
    for name in config.students.objectives:
        trainings[name] = _training(config, name, _student(config, name), teacher)
    results = {}
    for name, training in trainings.items():
        reported = training_reporter(name) if training_reporter else None
        results[name] = _train_once(training, reported)
    reference = networks.load(teacher, architecture=_class_of(trainings["teacher"]))
    certificates = {  # the teacher first: its counterexamples are tried on every pair
        name: _certify(config, name, training, None if name == "teacher" else reference, reporter)
        for name, training in trainings.items()
    }
    return _report(config, folder, results, certificates)


def _check_natural_teacher(config: ExperimentConfig) -> None:
    """Check, before any training begins, that a natural teacher is there when a network needs one.

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


def _training(config: ExperimentConfig, name: str, role: RoleConfig, teacher: str | None) -> TrainJob:
    """Configure one network's training; a student that needs no teacher still records it, for the comparison."""
    folder = Path(config.out) / (name if teacher is None else f"students/{name}")
    return TrainJob(
        **dict(role),
        out=str(folder),
        seed=config.seed,
        data=config.data,
        teacher=teacher,
        teacher_arch=None if teacher is None else _users_class(config.teacher.model.name),
        natural_teacher=config.natural_teacher if role.objective.needs_natural_teacher else None,
        selection=config.selection,
        device=config.device,
    )


def _class_of(training: TrainJob) -> str | None:
    return _users_class(training.model.name)


def _users_class(name: str) -> str | None:
    """Return a network's name if it is a class of the user's, which its checkpoint needs again."""
    return name if networks.is_own(name) else None


def _train_once(training: TrainJob, reporter: TrainingReporter | None) -> TrainingResult:
    return run_training(training, resume=(Path(training.out) / RESUME).exists(), reporter=reporter)


def _certify(
    config: ExperimentConfig,
    name: str,
    training: TrainJob,
    teacher: Checkpoint | None,
    reporter: Callable[[str], Reporter] | None,
) -> list[Certificates]:
    """Certify a network: one file, and one for each further property of a student and its teacher."""
    known = networks.load(f"{training.out}/best.pt", architecture=_class_of(training))
    device = choose_device(config.device)
    samples = data_for(known, data.load(config.data), config.data, selection=Selection(limit=config.certify.limit))
    folder = Path(config.out) / "certificates"
    done, files = list[Certificates](), [folder / "teacher.h5"]
    for wanted in [config.certify.alone()] if teacher is None else config.certify.asked():
        assert wanted is not None  # checked before any training
        further = [m.relation.label for m in wanted.methods if isinstance(m, Match)] if done else []
        out = folder / f"{'-'.join([name, *further])}.h5"
        found = certify(
            known.model.to(device),
            samples,
            wanted.with_points(*map(str, files)),
            teacher=teacher.model.to(device) if teacher is not None and wanted.pairs else None,
            out=out,
            reporter=reporter(out.stem) if reporter else None,
        )
        done, files = [*done, found], [*files, out]
    return done


def _report(
    config: ExperimentConfig, folder: Path, results: dict[str, TrainingResult], certified: dict[str, list[Certificates]]
) -> Experiment:
    networks = {name: files[0] for name, files in certified.items()}
    pairs = {name: files for name, files in certified.items() if len(files) > 1}
    teacher = networks["teacher"]
    comparisons = {name: compare(teacher, c) for name, c in networks.items() if name != "teacher"}
    collapsed = [name for name, result in results.items() if has_collapsed(result.history[-1]["validation"])]
    report = folder / "report"
    curves = {name: radii(certificates) for name, certificates in networks.items()}
    used = next(iter(comparisons.values())).methods if comparisons else ()
    about = plots.Caption(str(config.certify.norm), teacher.eps, len(curves["teacher"]), used)
    plots.radius_curves(report / "radius.png", {name: [values] for name, values in curves.items()}, about)
    plots.training_curves(report / "training.png", {name: result.history for name, result in results.items()})
    for name in comparisons:
        path = report / f"{name}-against-teacher.png"
        plots.paired_radii(path, curves["teacher"], curves[name], about, ("teacher", name))
    content = {
        "config": config.model_dump(mode="json"),
        "networks": {name: plain(vars(figures(certificates))) for name, certificates in networks.items()},
        "comparisons": {name: result.to_dict() for name, result in comparisons.items()},
        "properties": {
            name: [Matched.of(each["match"], each).to_dict() for each in files] for name, files in pairs.items()
        },
        "collapsed": collapsed,
    }
    images = samples_of(teacher, data.load(config.data))
    remark = "Images: samples whose certificate changed, and falsified ones, come first."
    write_page(Page(f"Experiment {folder.name}", networks, images, remark), report / "report.html")
    files.write_whole(report / "summary.json", lambda path: path.write_text(json.dumps(content, indent=1)))
    return Experiment(networks, pairs, comparisons, collapsed, folder)
