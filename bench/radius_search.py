"""Largest certified radius of 256 digits: certkd's search against the loop that auto-LiRPA's documentation leads to.

The loop takes one sample at a time, builds its graph, and bisects eps with one bound computation per step, as users do
who start from the documented example. Both search to the same relative tolerance with CROWN
bounds for the same clipped linf balls, both on one thread.

    uv run python bench/radius_search.py [--samples 256] [--runs 3] [--network artifacts/reference/digits/kdiga.pt]
"""

import argparse
import math
from collections.abc import Callable

import numpy as np
import torch
from timing import alternate, report
from torch import Tensor, nn

from certkd import checkpoint, data
from certkd.config import DataConfig
from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.engine import margin_specification
from verifiers.certify import certify

EPS, TOLERANCE = 0.1, 0.005


def documented_loop(model: nn.Module, images: Tensor, predicted: Tensor) -> list[float]:
    """One sample, one graph, one eps at a time, in float32; the ball clipped to the image box, as certkd does."""
    lirpa = compat.load()
    radii = []
    for image, label in zip(images, predicted, strict=True):
        x = image[None]
        graph = lirpa.BoundedModule(model, torch.empty_like(x))
        specification = margin_specification(label[None], 10, torch.float32)

        def holds(eps: float, graph: nn.Module = graph, x: Tensor = x, rows: Tensor = specification) -> bool:
            box = {"x_L": (x - eps).clamp(0, 1), "x_U": (x + eps).clamp(0, 1)}
            ball = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=np.inf, eps=eps, **box))
            lower, _ = graph.compute_bounds(x=(ball,), C=rows, method="CROWN", bound_upper=False)
            return bool(lower.min() > 0)

        radii.append(bisect(holds))
    return radii


def bisect(holds: Callable[[float], bool]) -> float:
    """Double from EPS while it holds, then halve the bracket to TOLERANCE of the radius."""
    low, high = 0.0, EPS
    while holds(high):
        low, high = high, 2 * high
    while high - low > TOLERANCE * max(low, 1e-3 * EPS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def main() -> None:
    """Print both times, their ratio, and how the radii compare."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=256)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--network", default="artifacts/reference/digits/kdiga.pt")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    model = checkpoint.load(chosen.network).model
    test = data.load(DataConfig()).splits["test"]
    images = test.images[torch.arange(len(test))]
    with torch.no_grad():
        predicted = model(images).argmax(1)
    right = torch.nonzero(predicted == test.labels).squeeze(1)[: chosen.samples]
    images, predicted = images[right], predicted[right]
    found: dict[str, list[float]] = {}

    def ours() -> None:
        result = certify(model, images, predicted, eps=EPS, methods=("crown",), options={"tolerance": TOLERANCE})
        found["ours"] = result["crown"]["radius"].tolist()

    def loop() -> None:
        with torch.no_grad():
            found["loop"] = documented_loop(model, images, predicted)

    seconds = alternate({"documented loop, graph per sample": loop, "certkd": ours}, chosen.runs, warmup=0)
    report(f"{chosen.network}: {len(right)} digits, linf", seconds, "documented loop, graph per sample")
    ratio = [a / b for a, b in zip(found["ours"], found["loop"], strict=True) if b > 0]
    mean = math.fsum(ratio) / len(ratio)
    print(f"  radius, certkd over loop: mean {mean:.4f}, min {min(ratio):.4f}, max {max(ratio):.4f}")


if __name__ == "__main__":
    main()
