"""A comparison of two files as tables and sentences."""

import math

from certkd.comparison.carried_over import CarriedOver
from certkd.comparison.compare import Comparison
from certkd.comparison.statistics import QUANTILES, Side
from verifiers.core.quantities import Epsilon
from verifiers.core.statistics import wilson
from verifiers.core.table import Part, Table, counted, percent
from verifiers.results.summaries.smoothing import SameCopies, basis

#: What a comparison takes from the files.
STATED = (
    "Radii are as the files state them: no row contradicts another one, and only 'certkd verify' checks them on the "
    "networks."
)


def comparison(result: Comparison, teacher: str, student: str) -> list[Part]:
    """Show the two networks side by side, their differences, and how much was kept."""
    named = {teacher: result.teacher, student: result.student}
    title = f"{result.norm} ball, eps {result.eps} (pixels in [0, 1]), {counted(result.samples, 'sample')}"
    parts: list[Part] = [_headline(result), *sides(named, title)]
    rows = [
        [name, f"{d.mean:+.4f}", _figure(d.standard_error), _figure(d.unpaired_error)]
        for name, d in result.differences.items()
        if not math.isnan(d.mean)
    ]
    columns = ["figure", "difference", "standard error", "if unpaired"]
    parts += [Table(f"{student} minus {teacher}, paired", columns, rows), curve(result, teacher, student)]
    parts += [basis(settings) for settings in result.settings.values() if "sigma" in settings]
    parts += kept(result.carried_over) if result.carried_over is not None else []
    parts += [_same_copies(result.same_copies)] if result.same_copies is not None else []
    for word, indices in (("gained", result.gains), ("lost", result.losses)):
        shown = ", ".join(str(i) for i in indices[:20]) + (" ..." if len(indices) > 20 else "")
        parts += [f"{word} at eps, by index: {shown}"] if indices else []
    return [*parts, STATED]


def sides(named: dict[str, Side], title: str) -> list[Table]:
    """Tabulate certified, attacked and clean accuracy, then the distribution of the radius, of several networks."""
    shares = [[name, percent(s.certified), percent(s.pgd), percent(s.clean)] for name, s in named.items()]
    radii = [[name, f"{s.mean_radius:.4f}", *(f"{q:.3g}" for q in s.quantiles)] for name, s in named.items()]
    return [
        Table(title, ["network", "certified", "PGD", "clean"], shares),
        Table("Certified radius: mean and quantiles", ["network", "mean", *(f"{q:.0%}" for q in QUANTILES)], radii),
    ]


def curve(result: Comparison, teacher: str, student: str) -> Table:
    """Tabulate certified accuracy of both over the radius, and how much was kept."""
    eps = Epsilon.parse(result.eps).value
    rows = []
    for at in result.curve:
        shares = [percent(share) for share in (at.teacher, at.student, at.retention)]
        name = f"{at.radius:.4g}{' (eps)' if at.radius == eps else ''}"
        rows.append([name, *shares, str(at.gains), str(at.losses), f"{at.mcnemar:.2g}"])
    columns = ["radius", teacher, student, "retention", "gained", "lost", "McNemar's p"]
    return Table(f"Certified accuracy over the radius ({', '.join(result.methods)})", columns, rows)


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _headline(result: Comparison) -> str:
    """Say in one sentence how much the student kept."""
    retention, full = result.retention, result.radius_retention
    if retention.cases == 0:
        return f"The teacher has no certificate at eps {result.eps} ({result.norm}): there is nothing to keep."
    return (
        f"At eps {result.eps} ({result.norm}) the student keeps {retention.hits} of the teacher's {retention.cases} "
        f"certificates: {retention.value:.1%} [{retention.low:.1%}, {retention.high:.1%}]; on {full.value:.1%} "
        f"[{full.low:.1%}, {full.high:.1%}] of them its radius is at least the teacher's."
    )


def kept(carried: CarriedOver) -> list[str]:
    """Say which of the teacher's certificates carry over, and what blocks the others."""
    if carried.held == 0:
        return []
    share = wilson(carried.kept, carried.held)
    lines = [
        "Including what carries over from the teacher, it keeps "
        f"{share.value:.1%} [{share.low:.1%}, {share.high:.1%}]: "
        f"{carried.direct} of {carried.held} by its own certificates, {carried.through} through the teacher's; "
        f"{carried.at_least} with a radius at least the teacher's."
    ]
    if carried.blocked:
        reasons = ", ".join(f"{count} {reason}" for reason, count in carried.blocked.items())
        lines.append(f"Of the {carried.held - carried.kept} that it loses: {reasons}.")
    if not math.isnan(carried.shortfall):
        lines.append(
            "The condition for a student to inherit its teacher's radius to first order (output deficit + eps x "
            f"gradient gap + its non-linearity at most the teacher's own) is proved on {carried.to_first_order} of "
            f"{carried.held}; on the median sample it lacks {max(carried.shortfall, 0.0):.3g} logits."
        )
    return lines


def _same_copies(shared: SameCopies) -> str:
    """Say how student and teacher voted on the same noisy copies."""
    less = shared.unpaired_variance / shared.variance if shared.variance > 0 else math.inf
    ratio = f"{less:.3g} times less variance" if less < math.inf else "no variance, less"
    return (
        f"On the same noisy copies student and teacher vote alike on {shared.agreement:.1%}; only the teacher gives "
        f"the class of the student on {shared.lost:.1%}, only the student on {shared.gained:.1%}. The difference of "
        f"their vote shares has {ratio} than on copies of their own."
    )
