"""Summarise AutoAttack: what each attack found, and signs that the attacks do not fit the network."""

from collections.abc import Iterable

import numpy as np

from verifiers.core.status import Status
from verifiers.core.table import Part, Table, counted, percent
from verifiers.results.rows import Certificates, MethodRows

#: The attacks by column, in the standard order.
TITLES = {"apgd_ce": "APGD-CE", "apgd_t": "APGD-T", "fab_t": "FAB-T", "square": "Square"}
#: The attribute that says that the network gives probabilities.
SOFTMAX = "gives_probabilities"
#: Square warns where it breaks more than this share of the samples that the other attacks leave.
BLACK_BOX = 0.002


def summary(rows: MethodRows, certificates: Certificates) -> list[Part]:
    """Tabulate what each attack found, and the accuracy that is left after it; then the flags."""
    if rows.count(Status.UNSUPPORTED):
        return []
    lines = []
    broken = ~(rows["correct"] == 1)
    for name, title in TITLES.items():
        ran, found = rows[name] >= 0, rows[name] == 1
        broken = broken | found
        left = percent(float(1 - broken.mean())) if ran.any() else "-"
        lines.append([title, str(int(ran.sum())), str(int(found.sum())), left])
    table = Table("AutoAttack, in its order", ["attack", "samples", "broken", "accuracy left"], lines)
    return [table, *(f"warning: {line}" for line in flags(rows))]


def flags(rows: MethodRows) -> Iterable[str]:
    """Say what makes robust accuracy look higher than it is, one line each."""
    if rows.attributes.get(SOFTMAX):
        yield (
            "the network gives probabilities: attacks that follow gradients are weak behind a softmax; "
            "give the network without it"
        )
    flat = int((rows["zero_gradient"] == 1).sum())
    if flat:
        yield (
            f"the gradient was zero at starts of {counted(flat, 'sample')}: what the attacks miss there says little; "
            "attack a differentiable version of the network, or raise queries"
        )
    others = np.any([rows[name] == 1 for name in TITLES if name != "square"], axis=0)
    alone = int(((rows["square"] == 1) & ~others).sum())
    if alone > BLACK_BOX * len(rows):
        yield (
            f"Square, which needs no gradient, broke {counted(alone, 'sample')} that the other attacks left: "
            "gradients mislead on this network; raise queries and restarts"
        )
