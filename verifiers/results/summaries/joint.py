"""Summarise the joint bounds of student and teacher."""

import numpy as np

from verifiers.core.table import Part, Table, figure, percent
from verifiers.results.rows import Certificates, MethodRows


def summary(rows: MethodRows, certificates: Certificates) -> list[Part]:
    """Tabulate on how many samples both provably predict the same, and how far their margins are apart."""
    answered = np.isfinite(rows["gap"])
    if not answered.any():
        return [f"{rows.name}: {rows.attributes.get('reason', 'no sample was classified correctly')}"]
    gap, deficit = (float(np.median(rows[name][answered])) for name in ("gap", "deficit"))
    agree = f"{rows.at_eps} of {len(rows)} ({percent(rows.at_eps / len(rows))})"
    lines = [
        ["both provably predict the right class on the ball", agree],
        ["largest gap of their margins, logits (median)", figure(gap)],
        ["largest deficit of the student's margin, logits (median)", figure(max(deficit, 0.0))],
    ]
    return [Table(f"Student and teacher at eps, bounds of the {rows.attributes['graphs']} graph", ["", ""], lines)]
