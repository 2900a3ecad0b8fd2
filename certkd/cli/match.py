"""``certkd match``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.certify import Certified, certified, certify
from certkd.cli.networks import named_data
from certkd.cli.options import (
    Value,
    ball_options,
    bare_or_named,
    data_options,
    network_options,
    pair_options,
    run_options,
    sample_options,
    teacher_options,
)
from certkd.cli.output import Command
from verifiers.core.errors import InputError
from verifiers.core.relation import TOLERANT, Property, settings_of
from verifiers.core.status import Status
from verifiers.core.table import counted

if TYPE_CHECKING:
    from torch import Tensor

    from certkd.comparison.gate import Rule
    from certkd.report.points import Refuted
    from verifiers.results.rows import Certificates, MethodRows

#: Stands for every property.
ALL = "all"
#: The most points of a sheet.
SHOWN = 24


@click.command(cls=Command)
@click.argument("bare", metavar="[STUDENT]", required=False)
@pair_options
@ball_options
@click.option(
    "--property",
    "properties",
    multiple=True,
    metavar="NAME[=T]",
    help="same-class, close, not-worse, transfer or all; again for several, each with its own threshold: close=0.5.  "
    "[default: same-class]",
)
@click.option("--tolerance", type=Value(), metavar="T", help="Of close and not-worse, in logits.  [default: 0]")
@click.option("--delta", type=Value(), metavar="D", help="Of same-class: where the teacher is surer.  [default: 0]")
@click.option("--bisect", is_flag=True, default=None, help="Bisect the least tolerance, or delta, proved too.")
@click.option("--time-limit", type=Value(), metavar="SECONDS", help="Limit for one sample.  [default: 30]")
@click.option(
    "--points", multiple=True, metavar="FILE", help="Try the counterexamples of a certificate file too.  [repeatable]"
)
@click.option(
    "--require",
    "conditions",
    multiple=True,
    metavar="CONDITION",
    help="Like 'same-class>=0.95': of a property asked, answered as 'certkd gate' does.",
)
@sample_options
@click.option("--out", metavar="FILE", help="Certificate file.  [default: next to the student]")
@run_options
@network_options
@teacher_options
@data_options
@click.pass_context
def match(ctx: click.Context, bare: str | None, student: str | None, teacher: str | None, **options: Any) -> int:
    """Decide whether a student matches its teacher on each ball.

    Each sample, misclassified or not, is proved, refuted by a point of its ball that is stored, or open. The property
    is one of these, in logits. same-class: the student gives the class that the teacher prefers, or prefers by more
    than --delta. close: no logit is further than --tolerance from the teacher's. not-worse: the student's margin of the
    teacher's class is at most --tolerance below the teacher's. transfer: wherever the teacher keeps its class of the
    image, the student gives it. Several properties are asked one after another, each with a file of its own.

    The refuted points are drawn next to their images in a PNG file next to the certificate file. The command is
    'certkd certify --teacher' with the method match, and 'certkd verify --teacher' audits its file.

    --require is about all images like the samples; a sample counts if it is proved. Exit code 0: all are met. 1: one
    failed. 2: the samples cannot decide, or bad input.
    """
    student = bare_or_named(bare, student, "--student", "certkd match student.pt --teacher teacher.pt --eps 8/255")
    if teacher is None:
        raise InputError("match relates a student to its teacher: give --teacher, like --teacher teacher.pt")
    options["relations"] = _relations(options)
    rules = _rules(options.pop("conditions"), [dict(settings)["property"] for settings in options["relations"]])
    run = click.Command("match", params=certify.params, callback=certified)
    done = ctx.invoke(run, model=student, teacher=teacher, methods="match", settings=(), **options)
    several = [each["student"] for each in done.answers]
    for certificates in several:
        if student.endswith(".onnx") and teacher.endswith(".onnx"):
            _run_again(done, certificates, (student, teacher), options)
        _draw(done, certificates, options)
    if len(several) > 1:
        _join(several)
    return _required(rules, several) or int(done.code)


def _relations(options: dict[str, Any]) -> tuple[tuple[tuple[str, Any], ...], ...]:
    """Take the options of the method; return the settings of each property that is asked.

    Among several properties, ``--tolerance``, ``--delta`` and ``--bisect`` are for those that have a threshold.

    Raises:
        InputError: an option is for none of them, or a threshold is given to what has none.
    """
    names = options.pop("properties") or (str(Property.SAME_CLASS),)
    points, shared = options.pop("points"), {name: options.pop(name) for name in ("tolerance", "delta", "bisect")}
    shared = {name: value for name, value in shared.items() if value is not None}
    if ALL in names:
        names = tuple(name for name in names if name != ALL)
        named = {name.partition("=")[0] for name in names}
        names += tuple(name for name in map(str, Property) if name not in named)
    found: list[dict[str, Any]] = []
    used: set[str] = set()
    for text in names:
        own: dict[str, Any] = {**settings_of(text)}
        name = own["property"]
        fits = shared if len(names) == 1 else {key: shared[key] for key in _thresholds(name) if key in shared}
        own |= {key: Value().convert(value, None, None) for key, value in own.items() if key != "property"}
        used |= fits.keys() - own.keys()
        found.append({**fits, **own, **({"points": list(points)} if points else {})})
    idle = next((name for name in shared if name not in used), None)
    if idle is not None:
        raise InputError(f"--{idle} is for none of {', '.join(names)}: drop it")
    return tuple(tuple(settings.items()) for settings in found)


def _rules(conditions: tuple[str, ...], asked: list[str]) -> "list[Rule]":
    """Read requirements about the properties asked.

    Raises:
        InputError: one is about a property that is not asked, or that is asked with several thresholds.
    """
    from certkd.comparison.gate import Rule

    rules = [Rule.parse(text, list(map(str, Property))) for text in conditions] if conditions else []
    for rule in rules:
        if (count := asked.count(rule.metric)) != 1:
            advice = "ask it with one threshold alone" if count else f"add --property {rule.metric}"
            raise InputError(f"--require {rule.text} is about {rule.metric}, asked {count} times: {advice}")
    return rules


def _required(rules: "list[Rule]", several: "list[Certificates]") -> int:
    """Answer requirements from the proved samples; return the exit code."""
    from certkd.cli.gate import ALPHA, said
    from certkd.comparison.gate import decide
    from certkd.report.gate import Gated
    from verifiers.results.summaries.match import Matched

    if not rules:
        return 0
    proved = {Matched.of(each["match"], each).kind: each["match"]["status"] == Status.CERTIFIED for each in several}
    decisions = decide(rules, {name: (one, one) for name, one in proved.items()}, float(ALPHA))
    facts = {"samples": str(len(several[0]["match"])), "alpha": ALPHA}
    return said(Gated((several[0].path,) * 2, facts, decisions, ()))


def _thresholds(name: str) -> tuple[str, ...]:
    """List the options that are for a property."""
    if name == Property.SAME_CLASS:
        return "delta", "bisect"
    return ("tolerance", "bisect") if name in TOLERANT else ()


def _join(several: "list[Certificates]") -> None:
    """Print one table of all properties."""
    from certkd.report.console import display
    from verifiers.results.summaries.match import Matched, answers

    first = several[0]
    samples = counted(len(first["match"]), "sample")
    title = f"All properties on the {first.norm} ball of eps {first.eps_text}, {samples}"
    display(answers(title, [Matched.of(each["match"], each) for each in several]))


def _draw(done: Certified, certificates: "Certificates", options: dict[str, Any]) -> None:
    """Draw the refuted points with their images, next to the certificate file."""
    from certkd.cli.question import marks_of
    from certkd.report.console import display, record
    from certkd.report.points import is_drawn, sheet
    from verifiers.results.reader import read
    from verifiers.results.summaries.match import Matched

    rows = certificates["match"]
    count = rows.count(Status.FALSIFIED)
    if not count or not is_drawn(done.student.model.spec.shape):
        return
    some = len(rows) < len(read(certificates.path)["match"])  # of the samples of a finished file
    marks = marks_of({**options, "instances": None, "data": None}) if some else []
    path = Path(certificates.path)
    place = path.with_name(f"{'-'.join([path.stem, *marks, 'points'])}.png")
    sheet(place, _shown(done, certificates, options), Matched.of(rows, certificates).sentence)
    record(sheets=[str(place)])
    more = "" if count <= SHOWN else f", the first {SHOWN} of {count}; 'certkd export' writes all of them"
    display(f"points drawn in {place}{more}")


def _shown(done: Certified, certificates: "Certificates", options: dict[str, Any]) -> "list[Refuted]":
    """Return the first refuted points, with both networks' classes at the images and at the points."""
    import torch

    from certkd.networks import resolve as networks
    from certkd.report.points import Refuted
    from verifiers.runtime.samples import device_of

    rows = certificates["match"]
    chosen = _refuted(rows)[:SHOWN]
    images, points = _pixels(done, certificates, chosen, options)
    called = done.load(networks.data_of(done.student, named_data(options))).called
    assert done.teacher is not None
    network = done.teacher.model.eval()
    with torch.no_grad():
        teacher = network(images.to(device_of(network))).argmax(1).tolist()
    return [
        Refuted(
            index=int(rows["index"][row]),
            image=images[i].numpy(),
            point=points[i].numpy(),
            before=(called(int(rows["predicted"][row])), called(teacher[i])),
            after=(called(int(rows["student_class"][row])), called(int(rows["teacher_class"][row]))),
            violation=float(rows["violation"][row]),
        )
        for i, row in enumerate(chosen)
    ]


def _refuted(rows: "MethodRows") -> list[int]:
    return [row for row, status in enumerate(rows["status"].tolist()) if status == Status.FALSIFIED]


def _pixels(
    done: Certified, certificates: "Certificates", chosen: list[int], options: dict[str, Any]
) -> "tuple[Tensor, Tensor]":
    """Read the images and the stored points of some rows."""
    import torch

    from certkd.certification import rows_of
    from certkd.networks import resolve as networks
    from verifiers.results.reader import read, read_images

    samples = rows_of(certificates, done.load(networks.data_of(done.student, named_data(options))))
    images = samples.images[torch.as_tensor(chosen)].float().clamp(0.0, 1.0)
    place = {index: row for row, index in enumerate(read(certificates.path)["match"]["index"].tolist())}
    stored = [place[index] for index in certificates["match"]["index"][chosen].tolist()]
    return images, torch.from_numpy(read_images(certificates.path, "match", "counterexample", stored))


def _run_again(done: Certified, certificates: "Certificates", names: tuple[str, str], options: dict[str, Any]) -> None:
    """Run the refuted points of two ONNX files in onnxruntime, where the files' outputs are the logits."""
    from certkd.exchange.pair_points import broken_in_onnxruntime
    from certkd.report.console import display, record
    from verifiers.results.summaries.match import Matched

    rows, left_out = certificates["match"], ("last_layer", "joint_teacher_last_layer")
    chosen = _refuted(rows)
    if not chosen or any(certificates.attributes.get(name) for name in left_out):
        return
    assert done.teacher is not None
    pair = (names[0], done.student.model), (names[1], done.teacher.model)
    images, points = _pixels(done, certificates, chosen, options)
    broken = broken_in_onnxruntime(Matched.of(rows, certificates).relation, *pair, images, points)
    others = [int(rows["index"][row]) for row, found in zip(chosen, broken, strict=True) if not found]
    record(onnxruntime=[{"points": len(chosen), "break": sum(broken), "others": others}])
    but = f"; not those of samples {', '.join(map(str, others))}, by rounding" if others else ""
    display(f"in onnxruntime the property fails at {sum(broken)} of {counted(len(chosen), 'point')} too{but}")
