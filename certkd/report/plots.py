"""Plot certificates and trainings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from certkd.files import write_whole
from verifiers.core.errors import InputError

#: How the name of a plot may end.
FORMATS = (".png", ".pdf", ".svg")


def radius_curves(path: Path, radii: Mapping[str, np.ndarray], *, norm: str, eps: float, samples: int) -> None:
    """Plot certified accuracy at every radius, one step curve per network.

    Args:
        path: of the plot; its suffix is one of ``FORMATS``.
        radii: certified radius per sample by network name; misclassified samples have 0.
        norm: named on the axis.
        eps: marked by a vertical line.
        samples: named in the title.
    """
    figure, axes = _figure()
    top = max(float(values.max()) for values in radii.values())
    for name, values in radii.items():
        steps = np.sort(values[values > 0])
        remaining = len(steps) - np.arange(len(steps) + 1)
        x = np.concatenate([[0.0], steps])
        axes.step(x, remaining / len(values), where="post", label=name, linewidth=1.8)
    axes.axvline(eps, color="grey", linewidth=1, linestyle=":", label=f"eps = {eps:.4g}")
    axes.set(xlabel=f"radius r ({norm}, pixels in [0, 1])", ylabel="certified accuracy at r")
    axes.set(xlim=(0, top * 1.02 or 1), ylim=(0, 1.02), title=f"Certified radius, {samples} test samples")
    axes.legend()
    save(figure, path)


def paired_radii(path: Path, teacher: np.ndarray, student: np.ndarray, *, norm: str, eps: float, name: str) -> None:
    """Plot each sample's radius under the student against that under the teacher; above the diagonal is a gain."""
    figure, axes = _figure()
    top = max(float(teacher.max()), float(student.max())) * 1.05 or 1.0
    axes.plot([0, top], [0, top], color="grey", linewidth=1)
    axes.axvline(eps, color="grey", linewidth=1, linestyle=":")
    axes.axhline(eps, color="grey", linewidth=1, linestyle=":")
    had = teacher >= eps
    for chosen, color, label in (
        (had & (student >= eps), "tab:blue", "kept at eps"),
        (had & (student < eps), "tab:red", "lost at eps"),
        (~had & (student >= eps), "tab:green", "gained at eps"),
        (~had & (student < eps), "lightgrey", "neither"),
    ):
        axes.scatter(teacher[chosen], student[chosen], s=12, color=color, label=f"{label} ({int(chosen.sum())})")
    axes.set(xlabel=f"teacher's certified radius ({norm})", ylabel=f"certified radius of {name}")
    axes.set(xlim=(-0.01 * top, top), ylim=(-0.01 * top, top), aspect="equal", title=f"{name} against the teacher")
    axes.legend(loc="upper left")
    save(figure, path)


def training_curves(path: Path, histories: Mapping[str, list[dict[str, Any]]]) -> None:
    """Plot validation accuracy over the epochs, clean, under PGD and under noise, one colour per network."""
    figure, axes = _figure()
    for number, (name, history) in enumerate(histories.items()):
        epochs = [record["epoch"] + 1 for record in history]
        for metric, style in (("clean", "-"), ("pgd", "--"), ("noisy", ":")):
            values = [record["validation"].get(metric, np.nan) for record in history]
            if not np.isnan(values).all():
                axes.plot(epochs, values, style, color=f"C{number}", linewidth=1.4, label=f"{name}, {metric}")
    axes.set(xlabel="epoch", ylabel="validation accuracy", ylim=(0, 1.02), title="Training")
    axes.legend(fontsize="small", ncols=2)
    save(figure, path)


def _figure() -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.grid(alpha=0.3)
    return figure, axes


def check_name(path: Path) -> None:
    """Check that a plot can have this name.

    Raises:
        InputError: its suffix is none of ``FORMATS``.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(f"{path}: the name of a plot ends in {', '.join(FORMATS)}")


def save(figure: Any, path: Path) -> None:
    """Write a figure in the format that the suffix names."""
    check_name(path)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=130, format=path.suffix[1:].lower()))
