"""A study as a table for a paper: LaTeX with booktabs, Markdown, CSV."""

import csv
import io
import math
import re

from certkd.comparison.study import Entry, Study
from certkd.report.tables.study import SHARES, answer, difference, notes, p_value, share
from verifiers.core.errors import printable

#: The formats of a study besides tables on the terminal and JSON.
FORMATS = ("markdown", "latex", "csv")
_HEADS = ("network", "seeds", *SHARES.values(), "difference", "95 % interval", "p (Holm)")
#: The column at which the differences begin.
_SPLIT = 2 + len(SHARES)
_LATEX = {
    **{char: f"\\{char}" for char in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "\\": r"\textbackslash{}",
    "±": r"$\pm$",
    "–": "--",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
}


def written(found: Study, kind: str) -> str:
    """Write a study in one of ``FORMATS``."""
    return {"markdown": _markdown, "latex": _latex, "csv": _csv}[kind](found)


def latex_text(text: str) -> str:
    """Escape a text for LaTeX; control characters are shown, characters beyond ASCII stay for its UTF-8."""
    escaped = "".join(_LATEX.get(char, char) for char in printable(text))
    return re.sub(r"(?<![\w.-])-(?=\d)", "$-$", escaped)


def markdown_text(text: str) -> str:
    """Escape a text for a cell of a Markdown table: no markup, no HTML, no end of the cell."""
    escaped = printable(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", escaped)


def _cells(entry: Entry) -> list[str]:
    given = difference(entry)
    return [entry.label, str(len(entry.files)), *(share(entry, name) for name in SHARES), *given, p_value(entry.p_holm)]


def _best(found: Study) -> set[tuple[int, int]]:
    """Return the rows and columns of the largest shares among the compared networks; ties are all best."""
    best = set()
    for column, name in enumerate(SHARES, 2):
        values = [round(entry.figures[name].mean, 3) for entry in found.entries[1:]]
        known = [value for value in values if not math.isnan(value)]
        if len(known) > 1:
            best |= {(row, column) for row, value in enumerate(values, 1) if value == max(known)}
    return best


def _markdown(found: Study) -> str:
    best = _best(found)
    lines = [markdown_text(answer(found)), "", f"| {' | '.join(_HEADS)} |", f"| --- |{' ---: |' * (len(_HEADS) - 1)}"]
    for row, entry in enumerate(found.entries):
        cells = [markdown_text(cell) for cell in _cells(entry)]
        cells = [f"**{cell}**" if (row, column) in best else cell for column, cell in enumerate(cells)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", "In %.", *map(markdown_text, notes(found))])


def _latex(found: Study) -> str:
    """Write two tabulars below each other, as one would be wider than a page: accuracies, and differences."""
    best = _best(found)
    cells = [["--" if cell == "-" else latex_text(cell) for cell in _cells(entry)] for entry in found.entries]
    for row, column in best:
        cells[row][column] = f"\\textbf{{{cells[row][column]}}}"
    for names in cells:  # after the end of a line LaTeX reads these as its argument
        names[0] = f"{{}}{names[0]}" if names[0].startswith(("[", "*")) else names[0]
    heads = [latex_text(head) for head in _HEADS]
    heads[_SPLIT] += f" to {latex_text(found.reference.label)}"
    remarks = " ".join(latex_text(note) for note in ("In %.", *notes(found)))
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            "\\begin{table}",
            "  \\centering",
            "  \\small\\setlength{\\tabcolsep}{4pt}",
            f"  \\caption{{{latex_text(answer(found))}}}",
            "  \\medskip",
            *_tabular(heads[:_SPLIT], [row[:_SPLIT] for row in cells]),
            "",
            "  \\medskip",
            *_tabular([heads[0], *heads[_SPLIT:]], [[row[0], *row[_SPLIT:]] for row in cells[1:]]),
            "",
            "  \\smallskip",
            f"  {{\\footnotesize\\raggedright {remarks}\\par}}",
            "\\end{table}",
        ]
    )


def _tabular(heads: list[str], rows: list[list[str]]) -> list[str]:
    lines = [f"    {' & '.join(row)} \\\\" for row in (heads, *rows)]
    begin = [f"  \\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}", "    \\toprule", lines[0], "    \\midrule"]
    return [*begin, *lines[1:], "    \\bottomrule", "  \\end{tabular}"]


def _csv(found: Study) -> str:
    """Write a row per network, with every number in full."""
    names = [name for figure in (*SHARES, "mean_radius") for name in (figure, f"{figure}_sd")]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    about = ("norm", "eps", "samples", "methods", "arithmetic", "engines")
    writer.writerow(["network", "seeds", *names, "difference", "low", "high", "p", "p_holm", *about])
    shared = [found.norm, found.eps, found.samples, "+".join(found.methods), found.arithmetic, "+".join(found.engines)]
    for entry in found.entries:
        numbers: list[float] = []
        for figure in (*SHARES, "mean_radius"):
            value = entry.figures.get(figure)
            numbers += [value.mean, value.deviation] if value else [math.nan, math.nan]
        one = entry.difference
        numbers += [one.mean, one.low, one.high, one.p, entry.p_holm] if one else [math.nan] * 5
        cells = ["" if math.isnan(value) else repr(float(value)) for value in numbers]
        writer.writerow([printable(entry.label), len(entry.files), *cells, *shared])
    return out.getvalue().rstrip("\n")
