"""Write robustness properties as VNN-LIB, and counterexamples in VNN-COMP's format.

A property is the *unsafe* set: a box of inputs, and the outputs at which the network changes its mind. A tool that
proves it empty (unsat) has proved the robustness. Pixels and logits are numbered in the order of their memory,
X_0 ... and Y_0 ....
"""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from jaxtyping import Float

from certkd.exchange.assignments import assignment, decimal
from certkd.files import write_whole
from verifiers.core.quantities import Epsilon

#: The versions that are written, the default first.
VERSIONS = ("1.0", "2.0")


def ball(
    image: Float[np.ndarray, "*shape"], eps: Epsilon
) -> tuple[Float[np.ndarray, "*shape"], Float[np.ndarray, "*shape"]]:
    """Bound the linf ball in [0, 1] from outside, in float64: every step is rounded outwards.

    The radius is taken one float up, which is at least the exact one, and each difference and sum one float outwards.

    Args:
        image: in [0, 1], float32 or float64.
        eps: radius, pixel units.
    """
    pixels, radius = image.astype(np.float64), np.nextafter(eps.value, np.inf)
    low, high = np.nextafter(pixels - radius, -np.inf), np.nextafter(pixels + radius, np.inf)
    return low.clip(min=0.0), high.clip(max=1.0)


@dataclass(frozen=True)
class Style:
    """Hold the form in which properties are written.

    Attributes:
        version: of VNN-LIB.
        about: a comment that says what the property is about.
    """

    version: str = VERSIONS[0]
    about: str = ""


def write_property(
    path: Path,
    low: Float[np.ndarray, "*shape"],
    high: Float[np.ndarray, "*shape"],
    label: int,
    classes: int,
    style: Style | None = None,
) -> None:
    """Write the unsafe set: inputs in the box at which the logit of another class is at least the label's.

    Args:
        path: a text file; its folder is made.
        low, high: the box in pixel units, float64; every digit of a bound is written, so the box is not rounded.
        label: the class that must stay.
        classes: number of logits.
        style: version and comment; the oldest version without a comment if None.

    Raises:
        InputError: the file cannot be written.
    """
    style = style or Style()
    lines = [f"; every image of the box keeps class {label}: this is the set of those that do not"]
    if style.about:
        lines.append(f"; {style.about}")
    written = _second if style.version == "2.0" else _first
    lines += written(low, high, label, classes)
    write_whole(path, lambda temporary: temporary.write_text("\n".join(lines) + "\n"))


def _first(low: np.ndarray, high: np.ndarray, label: int, classes: int) -> Iterator[str]:
    """Write in version 1.0."""
    yield from (f"(declare-const X_{i} Real)" for i in range(low.size))
    yield from (f"(declare-const Y_{j} Real)" for j in range(classes))
    for i, (least, most) in enumerate(zip(low.flat, high.flat, strict=True)):
        yield f"(assert (>= X_{i} {exact(least)}))"
        yield f"(assert (<= X_{i} {exact(most)}))"
    yield "(assert (or"
    yield from (f"    (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    yield "))"


def _second(low: np.ndarray, high: np.ndarray, label: int, classes: int) -> Iterator[str]:
    """Write in version 2.0, for one image at a time."""
    yield "(vnnlib-version <2.0>)"
    yield "(declare-network classifier"
    yield f"    (declare-input X float32 [1,{','.join(map(str, low.shape))}])"
    yield f"    (declare-output Y float32 [1,{classes}])"
    yield ")"
    for place in np.ndindex(low.shape):
        entry = f"X[0,{','.join(map(str, place))}]"
        yield f"(assert (>= {entry} {exact(float(low[place]))}))"
        yield f"(assert (<= {entry} {exact(float(high[place]))}))"
    yield "(assert (or"
    yield from (f"    (>= Y[0,{j}] Y[0,{label}])" for j in range(classes) if j != label)
    yield "))"


def write_counterexample(path: Path, image: Float[np.ndarray, "*shape"], logits: Float[np.ndarray, " classes"]) -> None:
    """Write an image and the network's logits at it, as ``((X_0 0.5) ... (Y_9 1.25))``, with every digit.

    Raises:
        InputError: the file cannot be written.
    """
    x, y = ([Fraction(float(value)) for value in values.flat] for values in (image, logits))
    write_whole(path, lambda temporary: temporary.write_text("\n".join(assignment(x, y)) + "\n"))


def exact(value: float | np.floating) -> str:
    """Write all decimal digits of a binary number; VNN-LIB has no exponents."""
    return decimal(Fraction(float(value)))
