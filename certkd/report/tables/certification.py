"""Inspection before a certification, and verification after it, as tables."""

from typing import TYPE_CHECKING

from verifiers.core.table import Part, Table, counted

if TYPE_CHECKING:
    from verifiers.certify.audit.findings import Audit
    from verifiers.certify.inspect import Preflight


def verification(audit: "Audit") -> list[Part]:
    """Tabulate a file's claims that were checked again, and by what; say what nothing looked at."""
    rows = [
        [one.method, *map(str, (one.claims, one.asked, one.again, one.open, len(one.contradictions))), one.remark]
        for one in audit.findings
    ]
    columns = ["method", "claims", "checked", "hold", "open", "contradicted", "what, and by what"]
    lines = [f"not looked at: {line}" for line in audit.missing]
    if audit.contradictions:
        verdict = f"The file is wrong: {counted(len(audit.contradictions), 'contradiction')}."
    elif audit.missing:
        verdict = "Nothing contradicts the file, but not every claim was looked at."
    else:
        verdict = "Every claim was looked at, and nothing contradicts the file."
    limits = f"Looked at in part, or not at all: {'; '.join(audit.limits)}. Rows were drawn with --seed {audit.seed}."
    return [verdict, Table("Claims checked again", columns, rows), *lines, limits]


def inspection(found: "Preflight", eps: str, norm: str) -> list[Part]:
    """Tabulate layers, engines with their refusals, and the cost of the native engine's methods."""
    layers = ", ".join(f"{count} {name}" for name, count in found.layers.items())
    parts: list[Part] = [f"{found.parameters:,} parameters; layers: {layers}"]
    rows = [
        [name, "takes it" if reason is None else "refuses it", reason or _lacking(found.refused.get(name, {}))]
        for name, reason in found.engines.items()
    ]
    parts.append(Table("Bound-propagation engines", ["engine", "", "reason"], rows))
    if found.costs:
        title = f"One evaluation of one sample at {norm} eps {eps}, native engine; a radius takes about five"
        rows = [
            [cost.method, f"{cost.rows:,}", _seconds(cost.seconds), f"{cost.memory / 2**30:.2f} GiB"]
            for cost in found.costs
        ]
        parts.append(Table(title, ["method", "rows", "time", "memory"], rows))
        parts.append(
            "ibp is timed; the others are estimated from pilot rows, crown and alpha-crown from above. PGD and "
            "smoothing take any network."
        )
    if found.lipschitz:
        rows = [[where, "yes" if reason is None else "no", reason or ""] for where, reason in found.lipschitz.items()]
        parts.append(Table("Lipschitz constants", ["", "", "reason"], rows))
    return parts


def _lacking(refused: dict[str, str]) -> str:
    """List the methods that an engine lacks or that were not tried, grouped by reason."""
    methods = {reason: [name for name, why in refused.items() if why == reason] for reason in refused.values()}
    return "; ".join(f"{', '.join(names)}: {reason}" for reason, names in methods.items())


def _seconds(value: float) -> str:
    """Write a time in a suitable unit."""
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if value >= 2 * size:
            return f"{value / size:.1f} {unit}"
    return f"{value:.3g} s"
