"""Run a whole experiment: train a teacher and students, make compressed copies, certify all, compare.

Run again, an experiment keeps its finished parts and resumes the others.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from certkd import files
from certkd.certification import data_for, samples_of
from certkd.comparison.compare import Comparison, compare, figures, plain, radii
from certkd.config.copies import Int8
from certkd.config.experiment import ExperimentConfig, RoleConfig, StudentsConfig
from certkd.config.settings import ModelConfig, TrainJob
from certkd.copying import Deployed, make
from certkd.data import sources as data
from certkd.data.selection import Selection
from certkd.networks import resolve as networks
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.copies.compress import check_installed
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
    ``networks``. ``deployed`` are the networks themselves.
    """

    deployed: dict[str, Deployed]
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

    Writes ``teacher/``, ``students/NAME/`` (checkpoints and logs), ``copies/``, ``certificates/NAME.h5``, and
    ``report/`` (a page, a summary as JSON, plots as PNG).

    Raises:
        InputError: the folder holds an experiment with other settings, and whatever its parts refuse.
    """
    folder = Path(config.out)
    alone = config.certify.alone()
    if alone is None or all(method.guarantee is Guarantee.ESTIMATE for method in alone.methods):
        raise InputError(f"certify.methods {', '.join(config.certify.kinds)} proves nothing: add ibp or crown")
    _check_natural_teacher(config)
    _check_copies(config)
    if overwrite:
        data.load(config.data)  # what cannot work is known before anything is deleted
        files.delete_outputs(folder, f"teacher/{RESUME}", ("teacher", "students", "copies", "certificates", "report"))
    results: dict[str, TrainingResult] = {}

    def train(name: str, training: TrainJob) -> Path:
        reported = training_reporter(name) if training_reporter else None
        out = Path(training.out)
        results[name] = run_training(training, resume=(out / RESUME).exists(), reporter=reported)
        return out / "best.pt"

    known = _networks(config, train)
    certificates = {  # the teacher first: its counterexamples are tried on every pair
        name: _certify(config, name, one.network, None if name == "teacher" else known["teacher"].network, reporter)
        for name, one in known.items()
    }
    return _report(config, known, results, certificates)


def _check_natural_teacher(config: ExperimentConfig) -> None:
    """Check, before any training begins, that a natural teacher is there when a network needs one.

    Raises:
        InputError: a network needs one and none is named, or it cannot be read.
    """
    tuned = {name: copy.tune.objective for name, copy in config.students.copies.items() if copy.tune is not None}
    objectives = {"teacher": config.teacher.objective, **config.students.objectives, **tuned}
    needing = [name for name, objective in objectives.items() if objective.needs_natural_teacher]
    if not needing:
        return
    if config.natural_teacher is None:
        raise InputError(f"{needing[0]} needs a natural teacher: name its checkpoint with the key natural_teacher")
    networks.load(config.natural_teacher)


def _check_copies(config: ExperimentConfig) -> None:
    """Check, before any training begins, that copies can be made, and those that are trained further can be.

    Raises:
        InputError: a package is missing, or one is of a class of the user's, which a checkpoint does not name to a
            training.
    """
    for name, copy in config.students.copies.items():
        check_installed(copy.how)
        role: RoleConfig | StudentsConfig = config.teacher if copy.of == "teacher" else config.students
        if copy.tune is not None and _users_class(role.model.name) is not None:
            raise InputError(f"the copy {name} is of a class of your own and cannot be trained further: drop its tune")


def _networks(config: ExperimentConfig, train: Callable[[str, TrainJob], Path]) -> dict[str, Deployed]:
    """Train the teacher and the students, and make the copies; the teacher comes first."""
    roles = {"teacher": config.teacher, **{name: _student(config, name) for name in config.students.objectives}}
    own = {name: _users_class(role.model.name) for name, role in roles.items()}
    known: dict[str, Deployed] = {}
    for name, role in roles.items():
        teacher = known["teacher"].file if known else None
        file = train(name, _training(config, name, role, (teacher, own["teacher"])))
        known[name] = Deployed.of(networks.load(file, architecture=own[name]), file)
    for name, copy in config.students.copies.items():
        known[name] = _copy(config, name, (known[copy.of], own[copy.of]), train)
        network = replace(
            known[name].network, teacher_sha256=known["teacher"].network.sha256
        )  # what it is held against
        known[name] = replace(known[name], network=network)
    return known


def _copy(
    config: ExperimentConfig,
    name: str,
    original: tuple[Deployed, str | None],
    train: Callable[[str, TrainJob], Path],
) -> Deployed:
    """Make a copy of a network, given with the user's class that it is of, and train it with that network's help."""
    (known, own), copy, data_set = original, config.students.copies[name], data.load(config.data)

    def tune(begin: Path) -> Path:
        assert copy.tune is not None
        settings = dict(copy.tune) | ({"quantize": "int8"} if isinstance(copy.how, Int8) else {})
        role = RoleConfig(**settings, model=ModelConfig(name=str(begin)))
        return train(name, _training(config, name, role, (known.file, own)))

    def load(file: Path) -> Checkpoint:
        return networks.load(file, architecture=None if file.suffix == ".onnx" else own, data=data_set)

    return make(copy, known, data_set, Path(config.out) / "copies" / name, tune=tune, load=load)


def _student(config: ExperimentConfig, name: str) -> RoleConfig:
    common = {key: value for key, value in config.students if key not in ("objectives", "copies")}
    return RoleConfig(**common, objective=config.students.objectives[name])


def _training(
    config: ExperimentConfig, name: str, role: RoleConfig, teacher: tuple[Path | None, str | None]
) -> TrainJob:
    """Configure one network's training, with its teacher's file and class of the user's.

    A student that needs no teacher still records it, for the comparison.
    """
    file, own = teacher
    folder = Path(config.out) / (name if name == "teacher" else f"students/{name}")
    return TrainJob(
        **dict(role),
        out=str(folder),
        seed=config.seed,
        data=config.data,
        teacher=None if file is None else str(file),
        teacher_arch=None if file is None else own,
        natural_teacher=config.natural_teacher if role.objective.needs_natural_teacher else None,
        selection=config.selection,
        device=config.device,
    )


def _users_class(name: str) -> str | None:
    """Return a network's name if it is a class of the user's, which its checkpoint needs again."""
    return name if networks.is_own(name) else None


def _certify(
    config: ExperimentConfig,
    name: str,
    known: Checkpoint,
    teacher: Checkpoint | None,
    reporter: Callable[[str], Reporter] | None,
) -> list[Certificates]:
    """Certify a network: one file, and one for each further property of a student and its teacher."""
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
    config: ExperimentConfig,
    known: dict[str, Deployed],
    results: dict[str, TrainingResult],
    certified: dict[str, list[Certificates]],
) -> Experiment:
    folder = Path(config.out)
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
        "sizes": {name: {"file_bytes": one.file.stat().st_size, **dict(one.facts)} for name, one in known.items()},
        "collapsed": collapsed,
    }
    images = samples_of(teacher, data.load(config.data))
    remark = "Images: samples whose certificate changed, and falsified ones, come first."
    write_page(Page(f"Experiment {folder.name}", networks, images, remark), report / "report.html")
    files.write_whole(report / "summary.json", lambda path: path.write_text(json.dumps(content, indent=1)))
    return Experiment(known, networks, pairs, comparisons, collapsed, folder)
