"""``certkd compare``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.options import EpsilonType, label_option, overwrite_option
from certkd.cli.output import Command
from certkd.cli.places import new_file
from verifiers.core.errors import InputError, loading
from verifiers.core.quantities import Epsilon

if TYPE_CHECKING:
    from certkd.comparison.compare import Comparison
    from certkd.comparison.requirement import Requirement
    from verifiers.results.rows import Certificates

FORMATS = ("table", "markdown", "latex", "csv", "json")


@click.command(cls=Command)
@click.argument("files", nargs=-1, metavar="TEACHER STUDENT...")
@label_option
@click.option("--method", default="best", show_default=True, help="Whose radii: a method's, or the best of all proofs.")
@click.option("--eps", type=EpsilonType(), help="Another radius than the files', where radii allow it.")
@click.option(
    "--format", "kind", type=click.Choice(FORMATS), default="table", show_default=True, help="For a page or a paper."
)
@click.option(
    "--require", "conditions", multiple=True, metavar="CONDITION", help="Like 'retention>=0.9': exit 1 if not."
)
@click.option("--plot", metavar="FILE", help="Also plot the radius distributions (.png, .pdf or .svg).")
@overwrite_option
def compare(
    files: tuple[str, ...], labels: tuple[str, ...], method: str, eps: Epsilon | None, kind: str, **options: Any
) -> int:
    """Compare certificate files, sample by sample.

    The files are those of 'certkd certify', the teacher's first. Students whose files differ only in the seed
    (kd-seed0.h5 and kd-seed1.h5, kd/0.h5 and kd/1.h5) are one network; so are the files of a quoted glob, with a label
    if one is in front: 'kd=runs/kd*.h5'. A teacher of several seeds is compared seed by seed. retention is the share of
    the teacher's samples certified at eps that the student has certified too; radius_retention is the share where its
    radius is also at least the teacher's. --require takes these, and clean, pgd, certified and mean_radius (of every
    student; teacher_clean and so on of the teacher), gains, losses and mcnemar (the p-value of McNemar's exact test at
    eps); with transfer rows, kept and kept_directly too. Files without a common proof are compared by smoothing.
    """
    from certkd.comparison.groups import group
    from certkd.comparison.requirement import Requirement
    from certkd.report import plots

    requirements = [Requirement.parse(text) for text in options["conditions"]]
    plot = options["plot"]
    if plot is not None:
        plot = new_file(plot, plots.FORMATS, overwrite=options["overwrite"], option="--plot")
    groups = group(files, labels)
    if len(groups) < 2:
        given = ", ".join(files) or "none"
        raise InputError(f"compare needs a teacher's file and a student's, like teacher.h5 student.h5; got {given}")
    _begin(kind)
    read = _read(groups)
    with loading(" or ".join(files), "a certificate file"):
        results = _show(read, method, eps, "table" if kind == "json" else kind, labelled=bool(labels))
        missed = _missed(results, requirements)
        if plot is not None:
            _plot(plot, read, results)
    from certkd.report.console import stderr

    for line in missed:
        stderr().print(line)
    return 1 if missed else 0


def _begin(kind: str) -> None:
    """Print JSON as ``--json`` does, and refuse two formats."""
    from certkd.report.console import Mode, begin, current

    mode = current()
    if mode.plain and kind not in ("table", "json"):
        raise InputError(f"--format {kind} and --json are two formats: give one of them")
    if kind == "json":
        begin(Mode(mode.quiet, plain=True, parts=mode.parts, values=mode.values))


def _read(groups: "dict[str, tuple[str, ...]]") -> "dict[str, list[Certificates]]":
    from verifiers.results.reader import read

    return {label: [read(file) for file in files] for label, files in groups.items()}


def _show(
    files: "dict[str, list[Certificates]]", method: str, eps: Epsilon | None, kind: str, *, labelled: bool
) -> "dict[str, list[Comparison]]":
    """Print the comparison: of two files in detail, of more as one table."""
    from certkd.comparison.compare import compare as compare_files
    from certkd.comparison.study import study
    from certkd.report import paper, tables
    from certkd.report.console import display, record

    (reference, teachers), *others = files.items()
    if kind == "table" and len(others) == 1 and len(teachers) == len(others[0][1]) == 1:
        teacher, student = teachers[0], others[0][1][0]
        result = compare_files(teacher, student, method=method, eps=eps)
        pairs = tables.pair_summaries(teacher, student)
        record(**result.to_dict())
        names = (reference, others[0][0]) if labelled else ("teacher", "student")
        display(*tables.comparison(result, *names), *pairs)
        return {others[0][0]: [result]}
    found = study((reference, teachers), dict(others), method=method, eps=eps)
    record(**found.to_dict())
    display(*(tables.study(found) if kind == "table" else [paper.written(found, kind)]))
    return {entry.label: list(entry.comparisons) for entry in found.entries[1:]}


def _missed(results: "dict[str, list[Comparison]]", requirements: "list[Requirement]") -> list[str]:
    """Say which requirements are not met, and by which network where there are several."""
    several = sum(map(len, results.values())) > 1
    return [
        f"{f'{label}: ' if several else ''}{requirement.missed(result)}"
        for label, group in results.items()
        for result in group
        for requirement in requirements
        if not requirement.holds(result)
    ]


def _plot(path: Path, files: "dict[str, list[Certificates]]", results: "dict[str, list[Comparison]]") -> None:
    from certkd.comparison.compare import radii
    from certkd.report import plots
    from certkd.report.console import display

    first = next(iter(results.values()))[0]
    curves = {label: [radii(one, first.methods) for one in group] for label, group in files.items()}
    eps = Epsilon.parse(first.eps).value
    plots.radius_curves(path, curves, plots.Caption(first.norm, eps, first.samples, first.methods))
    display(f"written to {path}")
