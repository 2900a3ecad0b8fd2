"""A study of many networks: the answer first, then tables that fit 80 columns, then how they were made."""

import json
import math
from typing import Any

from certkd.comparison.study import Entry, Spread, Study
from certkd.report.tables.comparison import STATED
from verifiers.core.quantities import parse_arithmetic
from verifiers.core.table import Part, Table, counted

#: Accuracies in the order of the columns, with their titles.
SHARES = {"certified": "certified", "pgd": "PGD", "clean": "clean", "retention": "retention"}


def study(found: Study) -> list[Part]:
    """Tabulate every network, its difference to the reference, and how the numbers were made."""
    title = f"{found.norm} ball, eps {found.eps} (pixels in [0, 1]), {counted(found.samples, 'sample')}, in %"
    rows = [[e.label, str(len(e.files)), *(share(e, name) for name in SHARES)] for e in found.entries]
    lines = [
        [entry.label, *difference(entry), p_value(entry.difference.p), p_value(entry.p_holm)]
        for entry in found.entries[1:]
        if entry.difference is not None
    ]
    columns = ["network", "difference", "95 % interval", "p", "p (Holm)"]
    return [
        answer(found),
        Table(title, ["network", "seeds", *SHARES.values()], rows),
        Table(f"Certified accuracy minus {found.reference.label}, percentage points", columns, lines),
        *notes(found),
        STATED,
    ]


def answer(found: Study) -> str:
    """Say in one sentence which network certifies most, and whether it differs from the reference."""
    best, reference = found.best, found.reference
    difference = best.difference
    assert difference is not None  # every compared network has one
    points = abs(difference.mean) * 100
    than = f"{points:.1f} points {'more' if difference.mean > 0 else 'less'} than" if round(points, 1) else "as much as"
    low, high = f"{difference.low * 100:+.1f}", f"{difference.high * 100:+.1f}"
    several = f", the most of {len(found.entries) - 1} networks" if len(found.entries) > 2 else ""
    kept = best.figures["retention"].mean
    keeps = "" if math.isnan(kept) else f"; it keeps {kept:.1%} of {reference.label}'s certificates"
    return (
        f"At eps {found.eps} ({found.norm}) {best.label} certifies {best.figures['certified'].mean:.1%} of "
        f"{counted(found.samples, 'sample')}{several}, {than} {reference.label} (95 % interval {low} to {high})"
        f"{keeps}."
    )


def notes(found: Study) -> list[str]:
    """Say how the numbers were made: n, eps, norm, method, engine, seeds, arithmetic, statistics."""
    engines = f", engine {' and '.join(found.engines)}" if found.engines else ""
    radius = (
        f"n = {found.samples}, {found.norm}, eps {found.eps}, pixels in [0, 1]; {', '.join(found.methods)}{engines}."
    )
    lines = [f"{radius} {_seeds(found)}", f"Settings: {_settings(found)}."]
    for name in filter(None, found.arithmetic.split("+")):
        lines.append(f"Arithmetic {name}: {parse_arithmetic(name).meaning}.")
    lines.append(
        "Certified is a lower limit: correct and proved. PGD is an upper one: correct and not falsified. Retention: of "
        f"the samples certified for {found.reference.label}, the share that is certified here too."
    )
    count = len(found.entries) - 1
    holm = f"; Holm's adjustment for {count} comparisons" if count > 1 else ""
    return [*lines, f"Differences are paired: {'; '.join(found.tests)}{holm}."]


def _seeds(found: Study) -> str:
    counts = {len(entry.files) for entry in found.entries[1:]}
    if counts == {1}:
        return "One seed each."
    words = f"{counts.pop()} seeds" if len(counts) == 1 else "seeds, where there are several"
    own = f", each compared with {found.reference.label} of the same seed" if len(found.reference.files) > 1 else ""
    return f"Mean and standard deviation over {words}{own}."


def _settings(found: Study) -> str:
    return "; ".join(f"{name} {_words(settings)}" for name, settings in found.settings.items())


def _words(settings: dict[str, Any]) -> str:
    words = (f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in settings.items())
    return " ".join(words) or "none"


def share(entry: Entry, name: str) -> str:
    """Write a mean share in percent, with its standard deviation over seeds."""
    return spread(entry.figures.get(name, Spread(math.nan, math.nan)))


def spread(value: Spread, plus: str = " ± ") -> str:
    """Write a mean share and its standard deviation in percent; a dash for nan."""
    if math.isnan(value.mean):
        return "-"
    more = "" if math.isnan(value.deviation) else f"{plus}{value.deviation * 100:.1f}"
    return f"{value.mean * 100:.1f}{more}"


def difference(entry: Entry) -> tuple[str, str]:
    """Write a difference and its interval in percentage points."""
    found = entry.difference
    if found is None:
        return "-", "-"
    return f"{found.mean * 100:+.1f}", f"[{found.low * 100:+.1f}, {found.high * 100:+.1f}]"


def p_value(value: float) -> str:
    """Write a p-value with two digits; those below 0.0001 by that limit."""
    return "-" if math.isnan(value) else "<0.0001" if value < 1e-4 else f"{value:.2g}"
