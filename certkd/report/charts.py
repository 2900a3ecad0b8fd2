"""The figures of the page, which answer to the mouse: Bokeh's, with its library inside the page."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from certkd.report.style import COLORS, GREY
from verifiers.core.errors import printable

#: The width of a figure in pixels; a narrow window shrinks it.
WIDTH = 540
#: The most steps of a curve, and Bokeh's names of line styles in the order of the colours.
STEPS = 400
_DASHES = ("solid", "dashed", "dotdash", "dotted", "dashdot", [8, 2], [2, 2])


def library() -> str:
    """Return Bokeh's minified JavaScript, without an end of a script element inside."""
    import bokeh

    text = (Path(bokeh.__file__).parent / "server/static/js/bokeh.min.js").read_text(encoding="utf-8")
    text = re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE)
    return text.replace("</script", "<\\/script")


def curves(radii: Mapping[str, np.ndarray], norm: str, eps: float) -> Any:
    """Draw certified accuracy over the radius, one curve per network."""
    from bokeh.models import HoverTool

    made, answering = _figure(f"radius r ({norm}, pixels in [0, 1])", "certified accuracy at r"), []
    for number, (name, values) in enumerate(radii.items()):
        steps = np.concatenate([[0.0], np.unique(values[values > 0])])
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, min(STEPS, len(steps))).astype(int))]
        share = 1 - np.searchsorted(np.sort(values), steps, side="right") / len(values)
        answering.append(_line(made, number, name, steps, share))
    tips = [("", "@name"), ("r", "$x{0.0000}"), ("share", "@y{0.000}")]
    made.add_tools(HoverTool(renderers=answering, mode="vline", line_policy="prev", tooltips=tips))
    _mark(made, eps, "height")
    made.legend.location = "top_right"
    return made


def scatter(
    teacher: np.ndarray, student: np.ndarray, index: Sequence[int], names: tuple[str, str], norm: str, eps: float
) -> Any:
    """Draw each sample's radius under the student against that under the teacher."""
    from bokeh.models import ColumnDataSource, HoverTool

    x, y = (f"radius of {printable(name)} ({norm}, pixels in [0, 1])" for name in names)
    made = _figure(x, y)
    top = float(max(teacher.max(), student.max()))
    made.line([0, top], [0, top], color=GREY, line_width=1)
    had, has = teacher >= eps, student >= eps
    answering = []
    groups = {"kept": had & has, "lost": had & ~has, "gained": ~had & has, "neither": ~had & ~has}
    for number, (word, chosen) in enumerate(groups.items()):
        rows = np.flatnonzero(chosen)
        source = ColumnDataSource(
            {
                "x": _down(teacher[rows]),
                "y": _down(student[rows]),
                "index": np.asarray(index)[rows],
            }
        )
        color, marker = (*COLORS[:3], GREY)[number], ("circle", "inverted_triangle", "triangle", "x")[number]
        label = f"{word} ({len(rows)})"
        dots = {"color": color, "marker": marker, "size": 6, "fill_alpha": 0.4, "legend_label": label}
        answering.append(made.scatter("x", "y", source=source, **dots))
    tips = [("sample", "@index"), (printable(names[0]), "@x{0.00000}"), (printable(names[1]), "@y{0.00000}")]
    made.add_tools(HoverTool(renderers=answering, tooltips=tips))
    _mark(made, eps, "height")
    _mark(made, eps, "width")
    legend = made.legend[0]
    made.center.remove(legend)
    made.add_layout(legend, "above")  # inside it would hide samples
    legend.orientation, legend.ncols = "horizontal", 2
    return made


def _down(radii: np.ndarray) -> np.ndarray:
    """Round radii down to the digits that the mouse reads."""
    return (np.floor(radii * 1e5) / 1e5).astype("float32")


def _figure(x: str, y: str) -> Any:
    from bokeh.plotting import figure

    size: Any = {"width": WIDTH, "max_width": WIDTH, "height": 400, "sizing_mode": "stretch_width"}
    plain: Any = {"tools": "pan", "active_drag": None, "toolbar_location": None}  # the page has buttons of its own
    return figure(**size, **plain, x_axis_label=x, y_axis_label=y)


def _line(made: Any, number: int, name: str, x: np.ndarray, y: np.ndarray) -> Any:
    """Draw a step curve; return what the mouse reads: at a radius between two steps, the value of the left one."""
    from bokeh.models import ColumnDataSource

    shown = printable(name)
    source = ColumnDataSource({"x": x, "y": y, "name": [shown] * len(x)})
    color, dash = COLORS[number % len(COLORS)], _DASHES[number % len(_DASHES)]
    made.step("x", "y", source=source, mode="after", color=color, line_dash=dash, line_width=2, legend_label=shown)
    return made.line("x", "y", source=source, line_alpha=0, legend_label=shown)  # Bokeh's steps do not answer


def _mark(made: Any, eps: float, dimension: Literal["width", "height"]) -> None:
    from bokeh.models.annotations import Span

    made.add_layout(Span(location=eps, dimension=dimension, line_color=GREY, line_dash="dotted"))


def documents(figures: Mapping[str, Any]) -> str:
    """Write figures as JSON that the page embeds into the elements of these names."""
    from bokeh.core.types import ID
    from bokeh.embed import json_item

    return json.dumps([json_item(made, ID(target)) for target, made in figures.items()])
