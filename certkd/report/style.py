"""The style of all figures: colours for colour-blind readers with line styles, embedded fonts, files by suffix."""

from pathlib import Path
from typing import Any

from certkd.files import write_whole
from verifiers.core.errors import InputError, printable

#: How the name of a figure may end.
FORMATS = (".png", ".pdf", ".svg")
#: Colours that readers with deuteranopia and protanopia tell apart, each of contrast 3:1 or more on white: four and
#: black of Okabe and Ito (Color Universal Design, 2008), a brown and a dark blue.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#772200", "#000088", "#000000")
#: The light colours of Okabe and Ito, for areas with a dark edge.
FILLS = ("#56B4E9", "#E69F00")
#: Line styles in the same order, for print without colour.
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (6, 1)), (0, (4, 1, 1, 1)), (0, (1, 1)))
MARKERS = ("o", "v", "^", "x", "s", "D", "+")
GREY = "#767676"
#: The longest name in a figure.
_LONGEST = 48
#: PDF with TrueType fonts inside, as publishers want them; SVG with letters as outlines.
_FONTS: Any = {"pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "certkd"}


def look(number: int) -> dict[str, Any]:
    """Return colour and line style of the n-th network."""
    return {"color": COLORS[number % len(COLORS)], "linestyle": LINES[number % len(LINES)], "linewidth": 1.8}


def text(name: str) -> str:
    """Return a name as a figure shows it: no control characters, no formulas, not too long, and never left out."""
    shown = printable(name)
    shown = shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 3]}..."
    return (f" {shown}" if shown.startswith("_") else shown).replace("$", r"\$")


def figure(height: float = 4.8) -> tuple[Any, Any]:
    """Make a figure with one pair of axes, without a window."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(6.4, height), layout="constrained")
    FigureCanvasAgg(made)
    axes = made.add_subplot()
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return made, axes


def save(made: Any, path: Path) -> None:
    """Write a figure in the format that the suffix names; the same figure gives the same bytes.

    Raises:
        InputError: the suffix is none of ``FORMATS``.
    """
    kind = path.suffix[1:].lower()
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: the name of a figure ends in {', '.join(FORMATS)}")
    about = {"pdf": {"CreationDate": None}, "svg": {"Date": None}}.get(kind)
    from matplotlib import rc_context

    with rc_context(_FONTS):
        write_whole(path, lambda temporary: made.savefig(temporary, dpi=200, format=kind, metadata=about))
