"""``certkd certify``."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.options import Assignment, EpsilonType, Number, data_options, network_options, numbers
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon

if TYPE_CHECKING:
    from certkd.comparison.compare import Requirement
    from certkd.config.settings import DataConfig
    from certkd.data.selection import Selection
    from certkd.data.sources import DataSet
    from certkd.networks.checkpoint import Checkpoint
    from verifiers.results.rows import Certificates

    Load = Callable[[DataConfig], DataSet]


@click.command()
@click.option("--model", required=True, metavar="NETWORK", help="Checkpoint, .onnx, or source:name.")
@click.option("--teacher", metavar="NETWORK", help="Certify this network too, compare, and bound both jointly.")
@click.option("--eps", "--radius", type=EpsilonType(), help="Radius in pixel units, like 8/255.")
@click.option("--norm", default="linf", show_default=True, help="linf, l2 or l1.")
@click.option("--methods", help="See 'certkd methods'.  [default: pgd,ibp,crown]")
@click.option("--complete", is_flag=True, help="Decide each sample at eps: attack, bounds, branch and bound.")
@click.option("--time-limit", type=Number(), metavar="SECONDS", help="For one sample, where a method can take long.")
@click.option("--option", "settings", multiple=True, type=Assignment(), help="A method's setting, like steps=50.")
@click.option("--engine", default="auto", show_default=True, help="Of bound propagation: auto, auto-lirpa or native.")
@click.option("--cross-check", default=0, metavar="N", help="Hold the bounds of N samples against the other engine's.")
@click.option("--data", metavar="NAME", help="Data set.  [default: the checkpoint's own]")
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many samples.")
@click.option("--indices", metavar="I,J-K,...", help="Only these samples of the split, like 3,17,40-99.")
@click.option("--indices-file", metavar="FILE", help="Only the samples that a file lists, an index or range a line.")
@click.option("--instances", metavar="FILE.csv", help="A benchmark's list instead of --eps: image_index, label, eps.")
@click.option("--out", metavar="FILE", help="Certificate file.  [default: beside the checkpoint]")
@click.option("--teacher-out", metavar="FILE", help="The teacher's certificate file.  [default: beside it]")
@network_options
@click.option("--seed", default=0, show_default=True, help="Keys the attack's random starts.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Samples at a time.  [default: the method's own]")
@click.option("--sigma", type=Number(), help="Smoothing: standard deviation of the noise, pixel units.")
@click.option("--n", type=int, help="Smoothing: noisy copies of a sample at most.  [default: 100000]")
@click.option("--n0", type=int, help="Smoothing: copies that select the class.  [default: 100]")
@click.option("--alpha", type=Number(), help="Smoothing: error probability of a sample.  [default: 0.001]")
@click.option("--noise", help="Smoothing: gaussian or uniform.  [default: gaussian]")
@click.option("--grid", type=Number(), metavar="STEP", help="Smoothing: radii to the next multiple of STEP.")
@click.option("--full", is_flag=True, help="Smoothing: all n copies of every sample.")
@click.option("--require", "conditions", multiple=True, metavar="CONDITION", help="With --teacher; as in compare.")
@data_options
def certify(model: str, teacher: str | None, eps: Epsilon | None, norm: str, **options: Any) -> int:
    """Certify a network sample by sample.

    Clean accuracy first, then an attack (an upper limit) and bound propagation: certified at eps, and the largest
    certified radius of each sample. With --teacher, crown brings joint bounds of both networks too. Rows go to an HDF5
    file as they are done; the same command goes on with an unfinished one. --complete ends the samples of small ReLU
    networks in CERTIFIED or FALSIFIED, and says what each stage decided and cost. --instances certifies a list of
    images, each at its own radius: a file for each radius, and how many could be decided.
    """
    from certkd.certification import without_pairs
    from certkd.comparison.compare import Requirement
    from certkd.comparison.verdict import VERDICT_METRICS
    from certkd.data import sources as data
    from certkd.networks import resolve as networks
    from certkd.report import tables
    from certkd.report.console import stderr, stdout
    from verifiers.certify.certify import check_options
    from verifiers.runtime.modes import reuse_memory

    _check_question(eps, options)
    reuse_memory()
    methods = _methods(options)
    options["settings"] = _settings(options, methods)
    requirements = [Requirement.parse(text) for text in options["conditions"]]
    if requirements and teacher is None:
        raise InputError("--require compares with a teacher: add --teacher")
    for requirement in requirements:
        if requirement.metric in VERDICT_METRICS and "transfer" not in methods:
            raise InputError(f"--require {requirement.text!r} needs the method transfer: run 'certkd transfer'")
    check_options(methods, options["settings"])
    alone, settings, pairs = without_pairs(methods, options["settings"])
    if pairs and (teacher is None or not alone):
        raise InputError(
            f"the method {pairs[0]} needs --teacher, and another method for each network: --methods crown,{pairs[0]}"
        )
    load = cache(data.load)  # one data set for all that is asked here
    options["kinds"] = {name.endswith(".onnx") for name in (model, teacher) if name is not None}
    student = network(model, options, load)
    reference = None if teacher is None else networks.beside(network(teacher, options, load), student)
    if teacher is not None:
        methods = [*alone, *(pairs or (["joint"] if "crown" in alone else []))]
    failed: list[str] = []
    answers: list[dict[str, Certificates]] = []
    questions = _questions(eps, model, student, options, load)
    for radius, selection in questions:
        asked, done = {**options, "selection": selection}, {}
        if len(questions) > 1:
            asked |= {name: _at(options[name], radius) for name in ("out", "teacher_out")}
        if teacher is not None and reference is not None:
            own = {**asked, "settings": settings, "out": asked["teacher_out"]}
            done["teacher"] = _certify(reference, teacher, radius, norm, alone, own, load)
        asked["out"] = asked["out"] or _default_out(model, radius, norm, options, teacher)
        done["student"] = _certify(student, model, radius, norm, methods, asked, load, reference)
        failed += _report(done, requirements)
        answers.append(done)
    if options["instances"] is not None:
        for role in answers[0]:
            line = tables.instances([done[role] for done in answers])
            stdout().print(line if teacher is None else f"{role}: {line}", soft_wrap=True)
    for line in failed:
        stderr().print(f"failed: {line}")
    return 1 if failed else 0


def _check_question(eps: Epsilon | None, options: dict[str, Any]) -> None:
    """One radius for all samples, or a list that says both."""
    others = {"--eps": eps} | {
        f"--{name.replace('_', '-')}": options[name] for name in ("indices", "indices_file", "limit")
    }
    given = [name for name, value in others.items() if value is not None]
    if options["instances"] is None and eps is None:
        raise InputError("which radius? Give --eps, like --eps 8/255, or a list with --instances FILE.csv")
    if options["instances"] is not None and given:
        raise InputError(f"--instances says itself which samples at which eps: drop {given[0]}")


def _methods(options: dict[str, Any]) -> list[str]:
    if options["complete"] and options["methods"] is not None:
        raise InputError(f"--complete means --methods complete, not {options['methods']}: give one of them")
    default = "complete" if options["complete"] else "pgd,ibp,crown"
    named = default if options["methods"] is None else options["methods"]
    return [name.strip() for name in named.split(",")]


def _questions(
    eps: Epsilon | None, model: str, known: "Checkpoint", options: dict[str, Any], load: "Load"
) -> "list[tuple[Epsilon, Selection]]":
    """The radii to certify at, and the samples of each."""
    from certkd.certification import split_of
    from certkd.data.selection import chosen
    from certkd.exchange.instance_list import by_eps, read
    from certkd.networks import resolve as networks

    if eps is not None:
        return [(eps, chosen(options["indices"], options["indices_file"], options["limit"]))]
    path = Path(options["instances"])
    listed = read(path, Path(model).stem)
    data = load(networks.data_of(known, options["data"], options["data_root"], options["download"]))
    labels = split_of(data, options["split"]).labels.tolist()
    return by_eps(listed, path, labels, f"the {options['split']} split of {data.name}")


def _at(place: str | None, eps: Epsilon) -> Path | None:
    """The file of one radius among several."""
    return Path(place).with_stem(f"{Path(place).stem}-{eps.text.replace('/', '_')}") if place else None


def _report(done: "dict[str, Certificates]", requirements: "list[Requirement]") -> list[str]:
    """Print what was certified, and compared where there is a teacher; the lines of what failed."""
    from certkd.comparison.compare import compare
    from certkd.report import tables
    from certkd.report.console import stdout

    console = stdout()
    for certificates in done.values():
        console.print(tables.contents(certificates))
        if "complete" in certificates.methods:
            console.print(tables.cascade(certificates["complete"]))
        console.print(f"written to {certificates.path}", soft_wrap=True)
    failed = [line for certificates in done.values() for line in _failures(certificates)]
    if "teacher" not in done or failed:
        return failed
    result = compare(done["teacher"], done["student"])
    for part in tables.comparison(result, "teacher", "student"):
        console.print(part, soft_wrap=isinstance(part, str))
    if "transfer" in done["student"].methods:
        for made in tables.transfer_terms(done["student"]):
            console.print(made)
    if "joint" in done["student"].methods:
        console.print(tables.agreement(done["student"]), soft_wrap=True)
    return [requirement.missed(result) for requirement in requirements if not requirement.holds(result)]


def network(name: str, options: dict[str, Any], load: "Load") -> "Checkpoint":
    """The network of a name; beside one of the other kind, options for that kind alone are not meant for it.

    Raises:
        InputError: as ``networks.load``.
    """
    from certkd.config.settings import DataConfig
    from certkd.networks import resolve as networks

    data, onnx = options["data"], name.endswith(".onnx")
    wanted = DataConfig(name=data, root=options["data_root"], download=options["download"]) if data else None
    mixed = len(options["kinds"]) > 1
    normalised = not mixed or onnx or options["arch"] is not None
    return networks.load(
        name,
        architecture=None if mixed and onnx else options["arch"],
        data=None if wanted is None else load(wanted),
        mean=numbers(options["mean"], "--mean") if normalised else (),
        std=numbers(options["std"], "--std") if normalised else (),
        layout=None if mixed and not onnx else options["layout"],
    )


def _certify(
    known: "Checkpoint",
    name: str,
    eps: Epsilon,
    norm: str,
    methods: list[str],
    options: dict[str, Any],
    load: "Load",
    teacher: "Checkpoint | None" = None,
) -> "Certificates":
    from certkd.certification import certify_checkpoint
    from certkd.networks import resolve as networks
    from certkd.report.console import CertifyProgress
    from verifiers.runtime.device import choose_device

    config = networks.data_of(known, options["data"], options["data_root"], options["download"])
    return certify_checkpoint(
        known,
        load(config),
        config,
        eps=eps,
        norm=norm,
        methods=methods,
        out=options["out"] or _default_out(name, eps, norm, options),
        split=options["split"],
        selection=options["selection"],
        seed=options["seed"],
        batch_size=options["batch_size"],
        options=options["settings"],
        engine=options["engine"],
        cross_check=options["cross_check"],
        teacher=teacher,
        device=choose_device(options["device"] or "auto"),
        reporter=CertifyProgress(name),
    )


def _settings(options: dict[str, Any], methods: list[str]) -> dict[str, Any]:
    """The methods' settings by name; some of smoothing's have options of their own."""
    given = dict(options["settings"])
    typed = [name for name in ("sigma", "n", "n0", "alpha", "noise", "grid") if options[name] is not None]
    typed += ["full"] if options["full"] else []
    limited = [] if options["time_limit"] is None else ["time_limit"]
    if typed and "smoothing" not in methods:
        raise InputError(f"--{typed[0]} is a setting of smoothing: add --methods smoothing")
    twice = [name for name in (*typed, *limited) if name in given]
    if twice:
        raise InputError(f"{twice[0]} is given twice: by --{twice[0].replace('_', '-')} and by --option")
    if options["full"] and options["grid"] is not None:
        raise InputError("--full and --grid answer different questions: give one of them")
    given |= {name: options[name] for name in (*typed, *limited) if name not in ("grid", "full")}
    if options["grid"] is not None:
        given |= {"question": "grid", "step": options["grid"]}
    if options["full"]:
        given["question"] = "full"
    return given


def _default_out(name: str, eps: Epsilon, norm: str, options: dict[str, Any], teacher: str | None = None) -> Path:
    """Beside the checkpoint, named after it and norm, eps, sigma, teacher, list: another of them is another file."""
    place = Path(name) if "/" in name or Path(name).exists() else Path(name.replace(":", "-"))
    pair = f"-with-{Path(teacher.replace(':', '-')).stem}" if teacher else ""
    noise = "" if options["sigma"] is None else f"-sigma{options['sigma']:g}"
    listed = "" if options["instances"] is None else f"-{Path(options['instances']).stem}"
    complete = "-complete" if options["complete"] else ""
    return place.with_name(f"{place.stem}-{norm}-{eps.text.replace('/', '_')}{noise}{pair}{listed}{complete}.h5")


def _failures(certificates: "Certificates") -> list[str]:
    """Methods that ended in ERROR, and the lack of any certificate method that could run."""
    from verifiers.core.status import Status
    from verifiers.methods.registry import certifies

    errors = {name: rows.count(Status.ERROR) for name, rows in certificates.methods.items()}
    failed = [f"{count} rows of {name} ended in ERROR" for name, count in errors.items() if count]
    proofs = [rows for rows in certificates if certifies(rows.name)]
    if proofs and all(rows.count(Status.UNSUPPORTED) for rows in proofs):
        failed.append("no certificate method could run")
    return failed
