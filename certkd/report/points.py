"""Draw the points at which a student does not match its teacher, with their images."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from certkd.report.style import save

#: Inches of a picture, and of the lines above it.
SIDE, LINES = 1.5, 0.42
#: Characters of a line of the title, and of the name of a class.
WIDTH, NAME = 80, 18


@dataclass(frozen=True)
class Refuted:
    """A point of a ball that breaks a property.

    Attributes:
        index: of the sample.
        image, point: in [0, 1].
        before, after: names of the classes of student and teacher at the image and at the point.
        violation: by how much the point breaks the property, in logits.
    """

    index: int
    image: Float[np.ndarray, "channels height width"]
    point: Float[np.ndarray, "channels height width"]
    before: tuple[str, str]
    after: tuple[str, str]
    violation: float


def is_drawn(shape: Sequence[int]) -> bool:
    """Return whether images of a shape can be drawn: vectors cannot."""
    return len(shape) == 3


def sheet(path: Path, shown: Sequence[Refuted], title: str) -> None:
    """Draw a row for each point: the image, the point, and their difference, amplified.

    Args:
        path: of the PNG.
        shown: the points.
        title: above all of them.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3 * (SIDE + 0.7), len(shown) * (SIDE + LINES) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(textwrap.fill(title, WIDTH), fontsize=8)
    for axes, one in zip(figure.subplots(len(shown), 3, squeeze=False), shown, strict=True):
        change = one.point.astype(float) - one.image
        largest = float(np.abs(change).max())
        factor = 0.5 / largest if largest else 1.0
        moved = f"x {factor:.3g}" if largest else "none: the image itself"
        _picture(axes[0], one.image, f"sample {one.index}\n{_said(one.before)}")
        _picture(axes[1], one.point, f"point, violation {one.violation:.3g}\n{_said(one.after)}")
        _picture(axes[2], 0.5 + factor * change, f"difference\n{moved}")
    save(figure, path)


def _said(classes: tuple[str, str]) -> str:
    student, teacher = (name if len(name) <= NAME else f"{name[: NAME - 1]}…" for name in classes)
    return f"student {student}, teacher {teacher}"


def _picture(axes: Any, image: np.ndarray, title: str) -> None:
    """Draw an image in colour if it has three channels, else the mean of its channels in grey."""
    colour = len(image) == 3
    pixels = image.transpose(1, 2, 0) if colour else image.mean(0)
    axes.imshow(np.clip(pixels, 0, 1), cmap=None if colour else "gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_title(title, fontsize=7)
    axes.set_axis_off()
