"""``certkd compare``."""

from pathlib import Path

import click

from verifiers.core.errors import loading


@click.command()
@click.argument("teacher")
@click.argument("student")
@click.option("--method", default="best", show_default=True, help="Whose radii: a method's, or the best of all proofs.")
@click.option(
    "--require", "conditions", multiple=True, metavar="CONDITION", help="Like 'retention>=0.9': exit 1 if not."
)
@click.option("--plot", metavar="FILE", help="Also plot both radius distributions (.png, .pdf or .svg).")
def compare(teacher: str, student: str, method: str, conditions: tuple[str, ...], plot: str | None) -> int:
    """Compare two certificate files, sample by sample.

    TEACHER and STUDENT are files of 'certkd certify'. retention is the share of the teacher's samples certified at
    eps that the student has certified too; radius_retention is the share where its radius is also at least the
    teacher's. --require takes these, and clean, pgd, certified and mean_radius (of the student; teacher_clean and
    so on of the teacher), gains, losses and mcnemar (the p-value of McNemar's exact test at eps); with transfer
    rows, kept and kept_directly too. Files without a common proof are compared by smoothing.
    """
    from certkd.comparison.compare import compare as compare_files
    from certkd.comparison.compare import radii
    from certkd.comparison.requirement import Requirement
    from certkd.report import plots, tables
    from certkd.report.console import display, record, stderr
    from verifiers.results.reader import KIND, read

    requirements = [Requirement.parse(text) for text in conditions]
    if plot is not None:
        plots.check_name(Path(plot))
    files = {"teacher": read(teacher), "student": read(student)}
    with loading(f"{teacher} or {student}", KIND):
        result = compare_files(files["teacher"], files["student"], method=method)
        missed = [requirement for requirement in requirements if not requirement.holds(result)]
        pairs = tables.pair_summaries(files["teacher"], files["student"])
    record(**result.to_dict())
    display(*tables.comparison(result, "teacher", "student"))
    display(*pairs)
    if plot is not None:
        curves = {name: radii(certificates, result.methods) for name, certificates in files.items()}
        eps = files["teacher"].eps
        plots.radius_curves(Path(plot), curves, norm=result.norm, eps=eps, samples=result.samples)
        display(f"written to {plot}")
    for requirement in missed:
        stderr().print(requirement.missed(result))
    return 1 if missed else 0
