"""``certkd certify``."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.networks import check_network, loader, named_data, network, teacher_of
from certkd.cli.options import (
    Assignment,
    EpsilonType,
    Value,
    bare_or_named,
    data_options,
    network_options,
    run_options,
    sample_options,
    teacher_options,
)
from certkd.cli.output import Command
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.core.status import About

if TYPE_CHECKING:
    from certkd.cli.networks import Load
    from certkd.comparison.requirement import Requirement
    from certkd.data.selection import Selection
    from certkd.networks.checkpoint import Checkpoint
    from verifiers.certify.config import CertifyConfig
    from verifiers.results.rows import Certificates


@click.command(cls=Command)
@click.argument("bare", metavar="[NETWORK]", required=False)
@click.option("--model", metavar="NETWORK", help="The same: checkpoint, .onnx, or source:name.")
@click.option("--teacher", metavar="NETWORK", help="Certify this network too, compare, and bound both jointly.")
@click.option("--eps", "--radius", type=EpsilonType(), help="Radius in pixel units, like 8/255.")
@click.option("--norm", default="linf", show_default=True, help="linf, l2 or l1.")
@click.option("--methods", help="See 'certkd methods'.  [default: pgd,ibp,crown; joint too with a teacher]")
@click.option("--complete", is_flag=True, help="Decide each sample at eps: attack, bounds, branch and bound.")
@click.option("--time-limit", type=Value(), metavar="SECONDS", help="Limit for one sample, in methods that have one.")
@click.option("--option", "settings", multiple=True, type=Assignment(), help="A method's setting, like steps=50.")
@click.option("--engine", metavar="NAME", help="Bound propagation: auto, native or auto-lirpa.  [default: auto]")
@click.option(
    "--cross-check", type=Value(), metavar="N", help="Samples whose bounds the other engine checks.  [default: 2]"
)
@sample_options
@click.option(
    "--instances", metavar="FILE.csv", help="A list instead of --eps: image_index, label, eps; or what export wrote."
)
@click.option("--out", metavar="FILE", help="Certificate file.  [default: next to the checkpoint]")
@click.option("--teacher-out", metavar="FILE", help="The teacher's certificate file.  [default: next to the teacher]")
@run_options
@network_options
@teacher_options
@click.option(
    "--sigma", type=Value(), metavar="NUMBER", help="Smoothing: standard deviation of the noise, pixel units."
)
@click.option("--n", type=Value(), metavar="COUNT", help="Smoothing: most noisy copies of a sample.  [default: 100000]")
@click.option("--n0", type=Value(), metavar="COUNT", help="Smoothing: copies that select the class.  [default: 100]")
@click.option(
    "--alpha", type=Value(), metavar="NUMBER", help="Smoothing: error probability of a sample.  [default: 0.001]"
)
@click.option("--noise", help="Smoothing: gaussian or uniform.  [default: gaussian]")
@click.option("--grid", type=Value(), metavar="STEP", help="Smoothing: radii down to a multiple of STEP.")
@click.option("--full", is_flag=True, help="Smoothing: all n copies of every sample.")
@click.option(
    "--require",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="As in compare, with --teacher.",
)
@data_options
def certify(bare: str | None, model: str | None, teacher: str | None, eps: Epsilon | None, **options: Any) -> int:
    """Certify a network sample by sample.

    NETWORK is a checkpoint, an .onnx file, or source:name. First clean accuracy is measured. Then an attack gives an
    upper limit, and bound propagation certifies samples at eps and finds the largest certified radius of each. With
    --teacher, both networks are certified, compared, and bounded jointly. Rows are written to an HDF5 file as they are
    finished; to resume an interrupted run, run the same command again. --complete settles the samples of small ReLU
    networks as CERTIFIED or FALSIFIED, and reports what each stage decided and cost. --instances certifies a list of
    images, each at its own radius, writes a file for each radius, and reports how many instances were decided.
    """
    return certified(bare, model, teacher, eps, **options).code


@dataclass(frozen=True)
class Certified:
    """The results of a command.

    Attributes:
        student, teacher: the networks.
        answers: the certificates of each radius, or of each relation, by role.
        load: loads the data, once.
        code: the exit code.
    """

    student: "Checkpoint"
    teacher: "Checkpoint | None"
    answers: "list[dict[str, Certificates]]"
    load: "Load"
    code: int


def certified(
    bare: str | None, model: str | None, teacher: str | None, eps: Epsilon | None, **options: Any
) -> Certified:
    """Do what ``certkd certify`` does, and keep the results."""
    from certkd.cli.question import about, certify_configs
    from certkd.report import tables
    from certkd.report.console import display, stderr

    options["teacher"] = teacher
    model = bare_or_named(bare, model, "--model", "certkd certify student.pt --eps 8/255")
    _check_question(eps, options)
    configs = certify_configs(eps or Epsilon.parse("1"), options)
    config = configs[0]
    requirements = _requirements(options, config)
    for each in configs:
        _check_files(model, teacher, each, options)
    load = loader()  # one data set for all networks of the command
    options["kinds"] = {name.endswith(".onnx") for name in (model, teacher) if name is not None}
    student = network(model, options, load)
    reference = None if teacher is None else _reference(model, student, teacher, teacher_of(teacher, options, load))
    if reference is not None and any(method.about is About.PAIR for method in config.methods):
        _check_two(str(teacher), reference, model, student)
    failed: list[str] = []
    answers: list[dict[str, Certificates]] = []
    questions = _questions(eps, model, student, options, load)
    for each, (radius, selection) in product(configs, questions):
        outs = {name: options[name] and Path(options[name]) for name in ("out", "teacher_out")}
        if len(questions) > 1:
            outs = {name: _at(options[name], radius) for name in outs}
        if len(configs) > 1:
            outs["out"] = about(options["out"], each)
        asked = each.at(radius).with_points(*(str(done["student"].path) for done in answers))
        certification = _Certification(options, asked, selection, load, outs)
        answers.append(certification.certify_both(model, student, teacher, reference))
        failed += _report(answers[-1], requirements)
    if options["instances"] is not None and config.alone() is not None:
        for role in answers[0]:
            line = tables.instances([done[role] for done in answers])
            display(line if teacher is None else f"{role}: {line}")
    for line in failed:
        stderr().print(f"failed: {line}")
    return Certified(student, reference, answers, load, 1 if failed else 0)


def _reference(model: str, student: "Checkpoint", teacher: str, known: "Checkpoint") -> "Checkpoint":
    """Adapt the teacher to the student's images.

    Raises:
        InputError: the student is the teacher's own teacher, or their images differ in more than their size.
    """
    from certkd.networks import resolve as networks

    if known.teacher_sha256 and known.teacher_sha256 == student.sha256 != known.sha256:
        raise InputError(f"{teacher} is a student of {model}: give the student as the network, and --teacher {model}")
    return networks.adapted_to(known, student)


def _check_two(teacher: str, reference: "Checkpoint", model: str, student: "Checkpoint") -> None:
    """Refuse a relation of one network with itself, and of networks with other classes.

    Raises:
        InputError: it names both networks.
    """
    from verifiers.runtime.fingerprint import structure_sha256

    classes = student.model.spec.classes, reference.model.spec.classes
    if classes[0] != classes[1]:
        raise InputError(f"{model} has {classes[0]} classes, {teacher} {classes[1]}: give networks of the same")
    if student.sha256 == reference.sha256 and structure_sha256(student.model) == structure_sha256(reference.model):
        raise InputError(f"{model} and {teacher} are the same network: give a student and its teacher")


def _requirements(options: dict[str, Any], config: "CertifyConfig") -> "list[Requirement]":
    from certkd.comparison.carried_over import CARRY_OVER_METRICS
    from certkd.comparison.requirement import Requirement

    requirements = [Requirement.parse(text) for text in options["conditions"]]
    if requirements and options["teacher"] is None:
        raise InputError("--require compares with a teacher: add --teacher")
    if config.alone() is None:
        kinds = ",".join(config.kinds)
        if requirements:
            raise InputError(f"--require compares both networks' own rows: name a method that has some: crown,{kinds}")
        if options["teacher_out"] is not None:
            raise InputError(f"--teacher-out {options['teacher_out']}: the rows of {kinds} are in one file, drop it")
    for requirement in requirements:
        if requirement.metric in CARRY_OVER_METRICS and "transfer" not in config.kinds:
            raise InputError(f"--require {requirement.text!r} needs the method transfer: run 'certkd transfer'")
    return requirements


@dataclass(frozen=True)
class _Certification:
    """One radius of a command: the configuration, the samples, and the files."""

    options: dict[str, Any]
    config: "CertifyConfig"
    selection: "Selection"
    load: "Load"
    outs: dict[str, Path | None]

    def certify_both(
        self, model: str, student: "Checkpoint", teacher: str | None, reference: "Checkpoint | None"
    ) -> "dict[str, Certificates]":
        """Certify the teacher, where there is one, and the student."""
        done, alone = {}, self.config.alone()
        places = _places(model, teacher, self.config, self.options, self.outs)
        _check_places(places, overwrite=self.options["overwrite"])
        if teacher is not None and reference is not None and alone is not None:
            done["teacher"] = self._certify(reference, teacher, alone, places["teacher"], None)
        config = self.config.with_points(*(str(certificates.path) for certificates in done.values()))
        done["student"] = self._certify(student, model, config, places["student"], reference)
        return done

    def _certify(
        self, known: "Checkpoint", name: str, config: "CertifyConfig", out: Path, teacher: "Checkpoint | None"
    ) -> "Certificates":
        from certkd.certification import data_for, numbering
        from certkd.networks import resolve as networks
        from certkd.report.progress import CertifyProgress
        from verifiers.certify.certify import certify as certify_network
        from verifiers.certify.finished import may_answer
        from verifiers.results.writer import discard
        from verifiers.runtime.device import choose_device

        options, split, reporter = self.options, self.options["split"], CertifyProgress(name)
        source = networks.data_of(known, named_data(options))
        samples = self.load(source)
        device = choose_device(options["device"] or "auto")
        data = data_for(known, samples, source, split, self.selection)
        remark = numbering(samples, split, self.selection)
        if remark is not None:
            reporter.inform(remark)
        if options["overwrite"]:
            discard(out)
        network, reference = known.model.to(device), None if teacher is None else teacher.model.to(device)
        for place in () if out.exists() else self._larger(name, config, teacher):
            with suppress(InputError):  # damaged, or about other data, say: the question gets a file of its own
                if data.indices is not None and may_answer(place, known.model, config, data.indices):
                    return certify_network(network, data, config, teacher=reference, out=place, reporter=reporter)
        return certify_network(network, data, config, teacher=reference, out=out, reporter=reporter)

    def _larger(self, name: str, config: "CertifyConfig", teacher: "Checkpoint | None") -> list[Path]:
        """List the finished files that may hold the answer, where the command names none and begins nothing again."""
        from certkd.cli.question import larger_questions, marks_of

        options = self.options
        if options["overwrite"] or any(self.outs.values()):
            return []
        return larger_questions(name, config, marks_of(options), options["teacher"] if teacher is not None else None)


def _check_question(eps: Epsilon | None, options: dict[str, Any]) -> None:
    """Check the radius, or the list that says samples and radii, and where the answers are written."""
    from verifiers.results.writer import check_output

    others = {"--eps": eps} | {
        f"--{name.replace('_', '-')}": options[name] for name in ("indices", "indices_file", "limit")
    }
    given = [name for name, value in others.items() if value is not None]
    if options["instances"] is None and eps is None:
        raise InputError("which radius? Give --eps, like --eps 8/255, or a list with --instances FILE.csv")
    if options["instances"] is not None and given:
        raise InputError(f"--instances lists its own samples and radii: drop {given[0]}")
    if options["teacher_out"] is not None and options["teacher"] is None:
        raise InputError(f"--teacher-out {options['teacher_out']} is the teacher's certificate file: add --teacher")
    for out in (options["out"], options["teacher_out"]):
        if out is not None:
            check_output(out, anew=options["overwrite"])


def _check_files(model: str, teacher: str | None, config: "CertifyConfig", options: dict[str, Any]) -> None:
    """Check all files and the device before networks and data are loaded."""
    from certkd.data.selection import chosen, text_of
    from verifiers.runtime.device import choose_device

    choose_device(options["device"] or "auto")
    for name in (model, teacher):
        if name is not None:
            check_network(name)
    if options["instances"] is None:
        chosen(options["indices"], options["indices_file"], options["limit"])
        outs = {name: options[name] and Path(options[name]) for name in ("out", "teacher_out")}
        _check_places(_places(model, teacher, config, options, outs), overwrite=options["overwrite"])
    elif not Path(options["instances"]).is_file():
        text_of(Path(options["instances"]))


def _places(
    model: str, teacher: str | None, config: "CertifyConfig", options: dict[str, Any], outs: dict[str, Path | None]
) -> dict[str, Path]:
    """Name the certificate file of each network."""
    from certkd.cli.question import default_out, marks_of

    marks, alone = marks_of(options), config.alone()
    places = {"student": outs["out"] or default_out(model, config, marks, teacher)}
    if teacher is not None and alone is not None:
        places["teacher"] = outs["teacher_out"] or default_out(teacher, alone, marks)
    return places


def _check_places(places: dict[str, Path], *, overwrite: bool) -> None:
    from verifiers.results.writer import check_output

    for place in places.values():
        check_output(place, anew=overwrite)
    if len(set(places.values())) < len(places):
        raise InputError(f"{places['student']} would be the file of both networks: name another with --teacher-out")


def _questions(
    eps: Epsilon | None, model: str, known: "Checkpoint", options: dict[str, Any], load: "Load"
) -> "list[tuple[Epsilon, Selection]]":
    """List the radii to certify at, each with its samples."""
    from certkd.certification import split_of
    from certkd.data.selection import chosen
    from certkd.exchange.instance_list import by_eps, read
    from certkd.exchange.property_list import is_table, read_properties
    from certkd.networks import resolve as networks

    if eps is not None:
        return [(eps, chosen(options["indices"], options["indices_file"], options["limit"]))]
    path = Path(options["instances"])
    data = load(networks.data_of(known, named_data(options)))
    split = split_of(data, options["split"])
    name = f"the {options['split']} split of {data.name}"
    if path.is_file() and is_table(path):
        listed = read_properties(path, Path(model).stem, split, known.model.spec.classes)
    else:
        listed = read(path, Path(model).stem)
    return by_eps(listed, path, split.labels.tolist(), name)


def _at(place: str | None, eps: Epsilon) -> Path | None:
    """Name the file of one radius among several."""
    return Path(place).with_stem(f"{Path(place).stem}-{eps.text.replace('/', '_')}") if place else None


def _report(done: "dict[str, Certificates]", requirements: "list[Requirement]") -> list[str]:
    """Print the results, compared with the teacher's if there is one; return a line for each failure."""
    from certkd.comparison.compare import compare
    from certkd.report import tables
    from certkd.report.console import display, record
    from verifiers.core.status import About

    record(files=[{"role": role, **tables.figures(certificates)} for role, certificates in done.items()])
    about = [About.NETWORK, About.SMOOTHED] if "teacher" in done else list(About)
    for certificates in done.values():
        display(*tables.answer(certificates), *tables.contents(certificates))
        display(*tables.summaries(certificates, about))
        display(f"written to {certificates.path}")
    failed = [line for certificates in done.values() for line in _failures(certificates)]
    if "teacher" not in done or failed:
        return failed
    result = compare(done["teacher"], done["student"])
    display(*tables.comparison(result, "teacher", "student"), *tables.pair_summaries(done["teacher"], done["student"]))
    return [requirement.missed(result) for requirement in requirements if not requirement.holds(result)]


def _failures(certificates: "Certificates") -> list[str]:
    """Return a line for each method that ended in ERROR, and one if no certificate method could run."""
    from verifiers.core.status import Status
    from verifiers.core.table import counted
    from verifiers.methods.registry import certifies

    errors = {name: rows.count(Status.ERROR) for name, rows in certificates.methods.items()}
    failed = [f"{counted(count, 'row')} of {name} ended in ERROR" for name, count in errors.items() if count]
    proofs = [rows for rows in certificates if certifies(rows.name)]
    if proofs and all(rows.count(Status.UNSUPPORTED) for rows in proofs):
        failed.append("no certificate method could run")
    return failed
