"""Largest certified radius: certkd's search against the documented loop of auto-LiRPA.

The loop takes one sample and one eps at a time, ten bisection steps of [0, 0.25], its graph built once, in
float32 and in float64. Same CROWN bounds and clipped linf balls, one thread, runs that take turns. certkd computes in
float64 and proves each radius there; its tolerance of 0.5 % is finer than the last step of the loop.

    uv run python bench/radius_search.py [--nets mlp,cnn,resnet] [--samples 64] [--runs 3] [--engines native,auto-lirpa]
"""

import argparse
import copy
import math

import torch
from nets import Case, case
from timing import alternate, report
from torch import Tensor

from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.memory import reuse_memory
from verifiers.geometry.margins import margin_specification
from verifiers.methods.crown import Crown

LIMIT, STEPS = 0.25, 10


def documented_loop(known: Case, images: Tensor, predicted: Tensor, dtype: torch.dtype) -> list[float]:
    """One sample, one eps at a time; the ball clipped to the image box, as certkd does."""
    lirpa, images = compat.load(), images.to(dtype)
    graph = lirpa.BoundedModule(copy.deepcopy(known.network).to(dtype), images[:1])
    radii = []
    for image, label in zip(images.split(1), predicted.split(1), strict=True):
        rows, low, high = margin_specification(label, 10, dtype), 0.0, LIMIT
        for _ in range(STEPS):
            eps = (low + high) / 2
            box = {"x_L": (image - eps).clamp(0, 1), "x_U": (image + eps).clamp(0, 1)}
            ball = lirpa.BoundedTensor(image, lirpa.PerturbationLpNorm(norm=float("inf"), eps=eps, **box))
            with torch.no_grad():
                lower, _ = graph.compute_bounds(x=(ball,), C=rows, method="CROWN", bound_upper=False)
            low, high = (eps, high) if bool(lower.min() > 0) else (low, eps)
        radii.append(low)
    return radii


def compared(name: str, samples: int, runs: int, engines: list[str]) -> None:
    """Times, their ratios, and how the radii compare."""
    known = case(name)
    with torch.no_grad():
        predicted = known.network(known.images).argmax(1)
    right = torch.nonzero(predicted == known.labels).squeeze(1)[:samples]
    images, predicted = known.images[right], predicted[right]
    found: dict[str, list[float]] = {}

    def config(engine: str) -> CertifyConfig:
        return CertifyConfig(eps=known.eps, methods=(Crown(engine=engine, cross_check=0),))

    def ours(engine: str) -> None:
        result = certify(known.network, (images, predicted), config(engine))
        found[engine] = result["crown"]["radius"].tolist()

    def loop(dtype: torch.dtype, name: str) -> None:
        torch.set_default_dtype(dtype)
        try:
            found[name] = documented_loop(known, images, predicted, dtype)
        finally:
            torch.set_default_dtype(torch.float32)

    loops = {"documented loop": torch.float32, "documented loop, float64": torch.float64}
    ways = {name: (lambda n=name, d=dtype: loop(d, n)) for name, dtype in loops.items()}
    ways |= {f"certkd, {engine}": (lambda e=engine: ours(e)) for engine in engines}
    certify(known.network, (images[:2], predicted[:2]), config("native"))  # imports
    seconds = alternate(ways, runs, warmup=0)
    report(f"{name}: {len(right)} digits, linf", seconds, "documented loop")
    for engine in engines:
        pairs = zip(found[engine], found["documented loop"], strict=True)
        ratio = [a / b for a, b in pairs if b > 0]
        mean = math.fsum(ratio) / len(ratio)
        print(f"  radius, {engine} over loop: mean {mean:.4f}, min {min(ratio):.4f}, max {max(ratio):.4f}", flush=True)


def main() -> None:
    """Compare on each network."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--nets", default="mlp,cnn,resnet")
    arguments.add_argument("--samples", type=int, default=64)
    arguments.add_argument("--runs", type=int, default=3)
    arguments.add_argument("--engines", default="native,auto-lirpa")
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    reuse_memory()  # as the command line does; it helps every way here
    for name in chosen.nets.split(","):
        compared(name, chosen.samples, chosen.runs, chosen.engines.split(","))


if __name__ == "__main__":
    main()
