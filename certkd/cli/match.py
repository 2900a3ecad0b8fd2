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
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.core.table import counted

if TYPE_CHECKING:
    from torch import Tensor

    from certkd.report.points import Refuted
    from verifiers.results.rows import Certificates, MethodRows

#: Settings of the method that have an option of their own here.
SETTINGS = ("property", "tolerance", "delta", "bisect")
#: The most points of a sheet.
SHOWN = 24


@click.command()
@click.argument("bare", metavar="[STUDENT]", required=False)
@pair_options
@ball_options
@click.option("--property", metavar="NAME", help="same-class, close, not-worse or transfer.  [default: same-class]")
@click.option("--tolerance", type=Value(), metavar="T", help="Of close and not-worse, in logits.  [default: 0]")
@click.option("--delta", type=Value(), metavar="D", help="Of same-class: where the teacher is surer.  [default: 0]")
@click.option("--bisect", is_flag=True, default=None, help="Bisect the least tolerance, or delta, proved too.")
@click.option("--time-limit", type=Value(), metavar="SECONDS", help="Limit for one sample.  [default: 30]")
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
    image, the student gives it.

    The refuted points are drawn next to their images in a PNG file next to the certificate file. The command is
    'certkd certify --teacher' with the method match, and 'certkd verify --teacher' audits its file.
    """
    student = bare_or_named(bare, student, "--student", "certkd match student.pt --teacher teacher.pt --eps 8/255")
    if teacher is None:
        raise InputError("match relates a student to its teacher: give --teacher, like --teacher teacher.pt")
    given = {name: options.pop(name) for name in SETTINGS}
    settings = tuple((name, value) for name, value in given.items() if value is not None)
    run = click.Command("match", params=certify.params, callback=certified)
    done = ctx.invoke(run, model=student, teacher=teacher, methods="match", settings=settings, **options)
    if student.endswith(".onnx") and teacher.endswith(".onnx"):
        _run_again(done, (student, teacher), options)
    _draw(done, options)
    return int(done.code)


def _draw(done: Certified, options: dict[str, Any]) -> None:
    """Draw the refuted points with their images, next to the certificate file."""
    from certkd.cli.question import marks_of
    from certkd.report.console import display, record
    from certkd.report.points import is_drawn, sheet
    from verifiers.results.reader import read
    from verifiers.results.summaries.match import Matched

    certificates = done.answers[0]["student"]
    rows = certificates["match"]
    count = rows.count(Status.FALSIFIED)
    if not count or not is_drawn(done.student.model.spec.shape):
        return
    some = len(rows) < len(read(certificates.path)["match"])  # of the samples of a finished file
    marks = marks_of({**options, "instances": None, "data": None}) if some else []
    path = Path(certificates.path)
    place = path.with_name(f"{'-'.join([path.stem, *marks, 'points'])}.png")
    sheet(place, _shown(done, certificates, options), Matched.of(rows, certificates).sentence)
    record(sheet=str(place))
    more = "" if count <= SHOWN else f", the first {SHOWN} of {count}; 'certkd export' writes all of them"
    display(f"points drawn in {place}{more}")


def _shown(done: Certified, certificates: "Certificates", options: dict[str, Any]) -> "list[Refuted]":
    """Return the first refuted points, with both networks' classes at the images and at the points."""
    import torch

    from certkd.report.points import Refuted
    from verifiers.runtime.samples import device_of

    rows = certificates["match"]
    chosen = _refuted(rows)[:SHOWN]
    images, points = _pixels(done, certificates, chosen, options)
    assert done.teacher is not None
    network = done.teacher.model.eval()
    with torch.no_grad():
        teacher = network(images.to(device_of(network))).argmax(1).tolist()
    return [
        Refuted(
            index=int(rows["index"][row]),
            image=images[i].numpy(),
            point=points[i].numpy(),
            before=(int(rows["predicted"][row]), teacher[i]),
            after=(int(rows["student_class"][row]), int(rows["teacher_class"][row])),
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


def _run_again(done: Certified, names: tuple[str, str], options: dict[str, Any]) -> None:
    """Run the refuted points of two ONNX files in onnxruntime, where the files' outputs are the logits."""
    from certkd.exchange.pair_points import broken_in_onnxruntime
    from certkd.report.console import display, record
    from verifiers.results.summaries.match import Matched

    certificates = done.answers[0]["student"]
    rows, left_out = certificates["match"], ("last_layer", "joint_teacher_last_layer")
    chosen = _refuted(rows)
    if not chosen or any(certificates.attributes.get(name) for name in left_out):
        return
    assert done.teacher is not None
    pair = (names[0], done.student.model), (names[1], done.teacher.model)
    images, points = _pixels(done, certificates, chosen, options)
    broken = broken_in_onnxruntime(Matched.of(rows, certificates).relation, *pair, images, points)
    others = [int(rows["index"][row]) for row, found in zip(chosen, broken, strict=True) if not found]
    record(onnxruntime={"points": len(chosen), "break": sum(broken), "others": others})
    but = f"; not those of samples {', '.join(map(str, others))}, by rounding" if others else ""
    display(f"in onnxruntime the property fails at {sum(broken)} of {counted(len(chosen), 'point')} too{but}")
