"""Certificates and comparisons as tables."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Group
from rich.table import Table

from certkd.comparison.compare import QUANTILES, Comparison, Side, summary
from certkd.comparison.verdict import Verdict
from certkd.report.console import table
from verifiers.certify.inspect import Preflight
from verifiers.certify.verify import Finding
from verifiers.core.quantities import Epsilon
from verifiers.core.statistics import wilson
from verifiers.core.status import FAILURES, About, Status
from verifiers.methods.registry import certifies, find, proves
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.summaries.complete import Stage
from verifiers.results.summaries.diagnostics import Diagnosis
from verifiers.smoothing.shared import SameCopies


def percent(value: float) -> str:
    """A share with one decimal; a dash for nan."""
    return "-" if math.isnan(value) else f"{value:.1%}"


def _short(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def contents(certificates: Certificates) -> Table:
    """What is in a certificate file: one row per method."""
    rows = []
    for name, method in certificates.methods.items():
        counts = {status: method.count(status) for status in Status}
        states = ", ".join(f"{count} {status.name}" for status, count in counts.items() if count)
        radius = f"{np.mean(method['radius']):.4f}" if certifies(name) and method.answered else "-"
        seconds = f"{np.nanmean(method['seconds']):.4f}" if np.isfinite(method["seconds"]).any() else "-"
        rows.append([name, str(method.attributes["guarantee"]), _accuracy(method), radius, seconds, states])
    attributes = certificates.attributes
    title = (
        f"{attributes['norm']} ball, eps {attributes['eps_text']} (pixels in [0, 1]), {attributes['samples']} samples"
    )
    return table(title, ["method", "guarantee", "accuracy at eps", "mean radius", "s/sample", "rows"], rows)


def _accuracy(method: MethodRows) -> str:
    """Certified accuracy, the upper limit that an attack leaves; a dash while rows have no answer."""
    if not method.answered:
        return "-"
    if certifies(method.name):
        return f">= {percent(float(np.mean(method['certified'])))}"
    unbroken = (method["status"] == Status.NOT_CERTIFIED) & (method["margin"] >= 0)
    return f"<= {percent(float(np.mean(unbroken)))}"


def cascade(rows: MethodRows) -> Table:
    """What each stage of complete verification was asked and decided, and what it cost."""
    asked, lines = rows["stage"] > 0, []
    for stage in Stage:
        decided = {status: int(np.sum((rows["stage"] == stage) & (rows["status"] == status))) for status in _DECIDED}
        count, spent = int(asked.sum()), float(np.nansum(rows[stage.column][asked]))
        each = f"{spent / count:.4f}" if count else "-"
        lines.append([stage.title, str(count), *(str(n) for n in decided.values()), f"{spent:.1f}", each])
        asked = asked & (rows["stage"] != stage)
    left = (rows["stage"] == Stage.BRANCH_AND_BOUND) & ~np.isin(rows["status"], _DECIDED)
    title = f"Stages of complete verification; {int(left.sum())} samples stay undecided"
    return table(title, ["stage", "asked", "certified", "falsified", "seconds", "s/sample"], lines)


def recheck(findings: Sequence[Finding]) -> Table:
    """What became of a file's claims when they were looked at again."""
    rows = [
        [one.method, *map(str, (one.claims, one.asked, one.again, one.open, len(one.contradictions))), one.remark]
        for one in findings
    ]
    title = "Claims that were looked at again"
    return table(title, ["method", "claims", "asked", "hold", "open", "contradicted", "what, and by what"], rows)


_DECIDED = (Status.CERTIFIED, Status.FALSIFIED)


def instances(files: Sequence[Certificates]) -> str:
    """How many instances of a list are decided, over the files of all its radii, and how."""
    outcomes = [outcome for certificates in files for outcome in _outcomes(certificates)]
    counts = {name: outcomes.count(name) for name in ("certified", "falsified", "misclassified", "undecided", "failed")}
    radii = f"at {len(files)} radii" if len(files) > 1 else f"at eps {files[0].attributes['eps_text']}"
    return f"{len(outcomes)} instances {radii}: {', '.join(f'{n} {name}' for name, n in counts.items() if n)}"


def _outcomes(certificates: Certificates) -> list[str]:
    """One word per sample; certified by the best of all proofs about this network, or by smoothing alone."""
    alone = {name: rows for name, rows in certificates.methods.items() if find(name).about is not About.PAIR}
    certifying = [rows for rows in alone.values() if certifies(rows.name)]
    proofs = [rows for rows in certifying if proves(rows.name)] or certifying[:1]
    status = np.stack([rows["status"] for rows in alone.values()])
    certified = np.any([rows["certified"] == 1 for rows in proofs], axis=0) & np.ones(status.shape[1], bool)
    cases = {
        "certified": certified,
        "falsified": (status == Status.FALSIFIED).any(0),
        "misclassified": (status == Status.MISCLASSIFIED).any(0),
        "failed": np.isin(status, [one for one in FAILURES if one is not Status.TIMEOUT]).any(0),
    }
    return list(np.select(list(cases.values()), list(cases), "undecided").tolist())


def facts(certificates: Certificates) -> list[str]:
    """Where a file's rows come from, one line each."""
    attributes = certificates.attributes
    settings = json.loads(str(attributes["settings"]))
    lines = [
        *_origin(attributes),
        f"data       {attributes.get('data') or 'given as arrays'}  sha256 {attributes['data_sha256']}",
        f"settings   {'; '.join(f'{m} {s}' for m, s in settings.items())}  seed {attributes['seed']}",
    ]
    for name, method in certificates.methods.items():
        engine = f", engine {method.attributes['engine']}" if "engine" in method.attributes else ""
        lines.append(f"{name:<10} {method.attributes['claim']}{engine}")
        for remark in ("reason", "passed_over", "cross_check", "radii", "doubt"):
            if remark in method.attributes:
                lines.append(f"{'':<10} {method.attributes[remark]}")
    return lines


def _origin(attributes: Mapping[str, Any]) -> list[str]:
    """What was certified with what: a network here, or a log of another program."""
    if attributes.get("imported"):
        by = f"certkd {attributes['certkd_version']}, numpy {attributes['numpy_version']}, at {attributes['started']}"
        return [f"log        {attributes['log']}  sha256 {attributes['log_sha256']}", f"read by    {by}"]
    return [
        f"model      {attributes['architecture']}  sha256 {attributes['model_sha256']}",
        *([f"teacher    sha256 {attributes['teacher_sha256']}"] if attributes.get("teacher_sha256") else []),
        f"made by    certkd {attributes['certkd_version']}, torch {attributes['torch_version']}, "
        f"auto-LiRPA {attributes['auto_lirpa_version']}, on {attributes['device']} at {attributes['started']}",
        f"command    {attributes['command']}",
    ]


def sides(named: dict[str, Side], norm: str, eps: str, samples: int) -> Table:
    """Clean, attacked and certified accuracy and the radius distribution of several networks."""
    columns = ["network", "clean", "PGD", "certified", "mean radius", *(f"{q:.0%} quantile" for q in QUANTILES)]
    rows = [
        [name, percent(s.clean), percent(s.pgd), percent(s.certified), f"{s.mean_radius:.4f}"]
        + [f"{q:.4f}" for q in s.quantiles]
        for name, s in named.items()
    ]
    return table(f"{norm} ball, eps {eps} (pixels in [0, 1]), {samples} samples", columns, rows)


def comparison(result: Comparison, teacher: str, student: str) -> list[Table | str]:
    """The two networks side by side, what changed, and what was kept."""
    parts: list[Table | str] = [
        sides({teacher: result.teacher, student: result.student}, result.norm, result.eps, result.samples)
    ]
    rows = [
        [name, f"{d.mean:+.4f}", _figure(d.standard_error), _figure(d.unpaired_error)]
        for name, d in result.differences.items()
        if not math.isnan(d.mean)
    ]
    columns = ["figure", "difference", "standard error", "if it were unpaired"]
    parts.append(table(f"{student} minus {teacher}, paired", columns, rows))
    parts.append(curve(result, teacher, student))
    parts += [votes(result.settings["smoothing"])] if "smoothing" in result.settings else []
    parts.append(verdict(result))
    parts += transfer(result.verdict) if result.verdict is not None else []
    parts += diagnoses({student: result.diagnosis}, result.norm, result.eps) if result.diagnosis is not None else []
    parts += [same_copies(result.same_copies)] if result.same_copies is not None else []
    for what, indices in (("gained", result.gains), ("lost", result.losses)):
        shown = ", ".join(str(i) for i in indices[:20]) + (" ..." if len(indices) > 20 else "")
        parts.append(f"{what} at eps: {len(indices)} samples{f' (index {shown})' if indices else ''}")
    return parts


def curve(result: Comparison, teacher: str, student: str) -> Table:
    """Certified accuracy of both over the radius, and what was kept."""
    eps = Epsilon.parse(result.eps).value
    rows = []
    for at in result.curve:
        shares = [percent(share) for share in (at.teacher, at.student, at.retention)]
        name = f"{at.radius:.4g}{' (eps)' if at.radius == eps else ''}"
        rows.append([name, *shares, str(at.gains), str(at.losses), f"{at.mcnemar:.2g}"])
    columns = ["radius", teacher, student, "retention", "gained", "lost", "McNemar's p"]
    return table(f"Certified accuracy over the radius ({', '.join(result.methods)})", columns, rows)


def votes(settings: Mapping[str, Any]) -> str:
    """What certificates of smoothing rest on, in one sentence."""
    extent = {
        "eps": "; a vote ended once eps was decided, so radii, their means and clean are lower limits",
        "grid": f"; a vote ended between two multiples of {settings['step']:g}, so radii are lower limits in between",
    }
    return (
        f"Smoothing: of the smoothed classifiers, {settings['noise']} noise of sigma {settings['sigma']:g}, at most "
        f"{settings['n']} copies after {settings['n0']}, each certificate wrong with probability {settings['alpha']:g}"
        f"{extent.get(settings['question'], '')}."
    )


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def verdict(result: Comparison) -> str:
    """One sentence a person can read."""
    kept, full = result.retention, result.radius_retention
    if kept.cases == 0:
        return f"the teacher has no certificate at eps {result.eps} ({result.norm}): there is nothing to keep"
    return (
        f"On {result.samples} samples at eps {result.eps} ({result.norm}) the student keeps {kept.value:.1%} "
        f"[{kept.low:.1%}, {kept.high:.1%}] of the teacher's {kept.cases} certificates; on {full.value:.1%} "
        f"[{full.low:.1%}, {full.high:.1%}] of them its radius is at least the teacher's."
    )


def transfer(verdict: Verdict) -> list[str]:
    """What carried the teacher's certificates over, and what did not."""
    if verdict.held == 0:
        return []
    share = wilson(verdict.kept, verdict.held)
    lines = [
        f"With what carries over from the teacher it keeps {share.value:.1%} [{share.low:.1%}, {share.high:.1%}]: "
        f"{verdict.direct} of {verdict.held} by its own certificates, {verdict.through} through the teacher's; "
        f"{verdict.at_least} with a radius at least the teacher's."
    ]
    if verdict.blocked:
        reasons = ", ".join(f"{count} {reason}" for reason, count in verdict.blocked.items())
        lines.append(f"Of the {verdict.held - verdict.kept} that it loses: {reasons}.")
    if not math.isnan(verdict.shortfall):
        lines.append(
            "The condition for a student to inherit its teacher's radius to first order (output deficit + eps x "
            f"gradient gap + its non-linearity at most the teacher's own) is proved on {verdict.to_first_order} of "
            f"{verdict.held}; on the median sample it lacks {max(verdict.shortfall, 0.0):.3g} logits."
        )
    return lines


#: The bounds of a transfer row and what they are; the cross-entropy's say something where they are below log 2.
_CARRIERS = {
    "direct": "the student's own margin, by CROWN",
    "theorem_a": "A: teacher's least margin - deficit - eps gap - both non-linearities",
    "theorem_b": "B: teacher's margin - deficit - eps (gradient + gap) - student's non-linearity",
    "theorem_c1": "C1: as B, in the cross-entropy",
    "theorem_c2": "C2: as A, in the cross-entropy",
    "joint": "joint: teacher's least margin + least difference of the margins",
}
_TERMS = {
    "deficit": "output deficit a",
    "gradient_gap": "gradient gap, eps b",
    "gamma_student": "student's non-linearity",
    "gamma_teacher": "teacher's non-linearity",
}


def transfer_terms(student: Certificates) -> list[Table]:
    """How many samples each bound certifies at eps, and the sizes of the terms."""
    rows, eps = student["transfer"], student.eps
    asked = np.isfinite(rows["deficit"])
    carried = []
    for name, what in _CARRIERS.items():
        holds = rows[name] < math.log(2) if name.startswith("theorem_c") else rows[name] > 0
        holds &= (rows["teacher"] > 0) | (name == "direct")
        carried.append([what, f"{int((holds & asked).sum())} of {len(rows)}"])
    sizes = []
    for name, what in _TERMS.items():
        values = rows[name][asked] * (eps if name == "gradient_gap" else 1.0)
        quantiles = np.quantile(values, (0.25, 0.5, 0.75)) if len(values) else [math.nan] * 3
        sizes.append([what, *(f"{value:.3g}" for value in quantiles)])
    return [
        table(
            "What certifies the student at eps (all but the first: where the teacher is certified)",
            ["bound", "samples"],
            carried,
        ),
        table("Terms at eps, logits (largest over classes)", ["term", "25%", "median", "75%"], sizes),
    ]


def agreement(student: Certificates) -> str:
    """What the joint bounds of student and teacher say, in one sentence."""
    rows = student["joint"]
    asked = np.isfinite(rows["gap"])
    if not asked.any():
        return f"joint bounds: {rows.attributes.get('reason', 'no sample was classified correctly')}"
    agree, gap, deficit = rows["certified"].mean(), np.median(rows["gap"][asked]), np.median(rows["deficit"][asked])
    return (
        f"Joint bounds ({rows.attributes['graphs']} graph): on {agree:.1%} of the samples student and teacher provably "
        f"predict the same, right class everywhere on the ball; on the median sample their margins differ there by at "
        f"most {gap:.3g} logits, and the student's falls short of the teacher's by at most {max(deficit, 0.0):.3g}."
    )


#: The figures of a diagnosis in the order in which they are read, and how each is written.
_FIGURES: dict[str, tuple[str, Callable[[float], str]]] = {
    "gradient_gap": ("GD: gap of the cross-entropy's gradients, l2 (nats per pixel)", _short),
    "gradient_gap_dual": ("the same in the dual norm of {norm}", _short),
    "gradient_cosine": ("GC: cosine of the two", _short),
    "gradient_norm": ("the student's gradient, l2", _short),
    "margin_gradient_gap": ("gap of the margins' gradients, dual norm (logits per pixel)", _short),
    "ce_llm": ("the student's local linearity LLM, by attack (nats)", _short),
    "ce_attack": ("PGD on the cross-entropy succeeds", percent),
    "margin_attack": ("PGD on the margin succeeds", percent),
    "transfer": ("of what succeeds, the teacher falls for", percent),
    "teacher_entropy": ("the teacher's entropy at attacked points x' (nats)", _short),
    "teacher_right": ("teacher right at x", percent),
    "teacher_right_attacked": ("teacher right at x'", percent),
}


def diagnoses(named: dict[str, Diagnosis], norm: str, eps: str) -> list[Table | str]:
    """Gradients and attacks of students beside their teacher, five a table, and what must not be trusted."""
    title = f"Diagnostics (estimates), {norm} eps {eps}, means"
    tables, names = [], list(named)
    for some in (names[start : start + 5] for start in range(0, len(names), 5)):
        rows = [["samples that the student gets right", *(str(named[name].samples) for name in some)]]
        for figure, (what, written) in _FIGURES.items():
            rows.append([what.format(norm=norm), *(written(getattr(named[name], figure)) for name in some)])
        tables.append(table(title, ["figure", *some], rows))
    warnings = [f"warning: {name}: {text}" for name, found in named.items() for text in found.warnings]
    return [*tables, *warnings]


def same_copies(shared: SameCopies) -> str:
    """What student and teacher voted on the same noisy copies, in one sentence."""
    ratio = (
        f"{shared.unpaired_variance / shared.variance:.3g} times less variance"
        if shared.variance > 0
        else "no variance, less"
    )
    return (
        f"On the same noisy copies student and teacher vote alike on {shared.agreement:.1%}; only the teacher gives "
        f"the class of the student on {shared.lost:.1%}, only the student on {shared.gained:.1%}. The difference of "
        f"their vote shares has {ratio} than on copies of their own."
    )


def preflight(found: Preflight, eps: str, norm: str) -> list[Table | str]:
    """Layers, engines with their refusals, and what the native engine's methods cost."""
    layers = ", ".join(f"{count} {name}" for name, count in found.layers.items())
    parts: list[Table | str] = [f"{found.parameters:,} parameters; layers: {layers}"]
    rows = [
        [name, "takes it" if reason is None else "refuses it", reason or _lacking(found.refused.get(name, {}))]
        for name, reason in found.engines.items()
    ]
    parts.append(table("Bound-propagation engines", ["engine", "", "reason"], rows))
    if found.costs:
        title = f"One evaluation of one sample at {norm} eps {eps}, native engine; a radius takes about five"
        rows = [
            [cost.method, f"{cost.rows:,}", _seconds(cost.seconds), f"{cost.memory / 2**30:.2f} GiB"]
            for cost in found.costs
        ]
        parts.append(table(title, ["method", "rows", "time", "memory"], rows))
        parts.append(
            "ibp is timed; the others are estimated from pilot rows, crown and alpha-crown from above. PGD and "
            "smoothing take any network."
        )
    if found.lipschitz:
        rows = [[where, "yes" if reason is None else "no", reason or ""] for where, reason in found.lipschitz.items()]
        parts.append(table("Lipschitz constants", ["", "", "reason"], rows))
    return parts


def _lacking(refused: dict[str, str]) -> str:
    """Methods that an engine lacks or that were not tried, those of one reason together."""
    methods = {reason: [name for name, why in refused.items() if why == reason] for reason in refused.values()}
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in methods.items())


def _seconds(value: float) -> str:
    """A time a person can read."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.3g} s"


def experiment(networks: dict[str, Certificates], comparisons: dict[str, Comparison]) -> Group:
    """One line per network: accuracies, mean radius, and for students what they kept; then their diagnoses."""
    columns = ["network", "clean", "PGD", "certified", "mean radius", "retention", "radius >= teacher's"]
    rows = []
    for name, certificates in networks.items():
        side, result = summary(certificates), comparisons.get(name)
        kept = [percent(result.retention.value), percent(result.radius_retention.value)] if result else ["", ""]
        rows.append(
            [name, percent(side.clean), percent(side.pgd), percent(side.certified), f"{side.mean_radius:.4f}", *kept]
        )
    attributes = next(iter(networks.values())).attributes
    norm, eps = str(attributes["norm"]), str(attributes["eps_text"])
    title = f"{norm} ball, eps {eps}, {attributes['samples']} test samples"
    found = {name: result.diagnosis for name, result in comparisons.items() if result.diagnosis is not None}
    return Group(table(title, columns, rows), *(diagnoses(found, norm, eps) if found else []))


#: What the columns of an experiment's table mean.
EXPLANATION = (
    "PGD: correct and not falsified by the attack at eps (an upper limit). certified: correct and proved at eps. "
    "retention: of the teacher's certified samples, the share the student has certified too; "
    "radius >= teacher's: the share where its certified radius is also at least the teacher's."
)
