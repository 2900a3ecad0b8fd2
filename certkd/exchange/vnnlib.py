"""Write robustness properties as VNN-LIB, and counterexamples in VNN-COMP's format.

A property is the *unsafe* set: a box of inputs, and the outputs at which the network changes its mind. A tool that
proves it empty (unsat) has proved the robustness. Pixels and logits are numbered in the order of their memory,
X_0 ... and Y_0 ....
"""

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import numpy as np
from jaxtyping import Float

from certkd.files import write_whole
from verifiers.core.quantities import Epsilon


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


def write_property(
    path: Path, low: Float[np.ndarray, "*shape"], high: Float[np.ndarray, "*shape"], label: int, classes: int
) -> None:
    """Write the unsafe set: inputs in the box at which the logit of another class is at least the label's.

    Args:
        path: a text file; its folder is made.
        low, high: the box in pixel units, float64; every digit of a bound is written, so the box is not rounded.
        label: the class that must stay.
        classes: number of logits.

    Raises:
        InputError: the file cannot be written.
    """
    write_whole(path, lambda temporary: temporary.write_text("\n".join(_property(low, high, label, classes)) + "\n"))


def _property(low: np.ndarray, high: np.ndarray, label: int, classes: int) -> Iterator[str]:
    yield f"; every image of the box keeps class {label}: this is the set of those that do not"
    yield from (f"(declare-const X_{i} Real)" for i in range(low.size))
    yield from (f"(declare-const Y_{j} Real)" for j in range(classes))
    for i, (least, most) in enumerate(zip(low.flat, high.flat, strict=True)):
        yield f"(assert (>= X_{i} {exact(least)}))"
        yield f"(assert (<= X_{i} {exact(most)}))"
    yield "(assert (or"
    yield from (f"    (and (>= Y_{j} Y_{label}))" for j in range(classes) if j != label)
    yield "))"


def write_counterexample(path: Path, image: Float[np.ndarray, "*shape"], logits: Float[np.ndarray, " classes"]) -> None:
    """Write an image and the network's logits at it, as ``((X_0 0.5) ... (Y_9 1.25))``, with every digit.

    Raises:
        InputError: the file cannot be written.
    """
    lines = [f"(X_{i} {exact(value)})" for i, value in enumerate(image.flat)]
    lines += [f"(Y_{j} {exact(value)})" for j, value in enumerate(logits.flat)]
    write_whole(path, lambda temporary: temporary.write_text("(" + "\n ".join(lines) + ")\n"))


def exact(value: float | np.floating) -> str:
    """Write all decimal digits of a binary number; VNN-LIB has no exponents."""
    digits = format(Decimal(float(value)), "f")
    return digits if "." in digits else f"{digits}.0"
