"""How far student and teacher margins can differ on a ball: joint bounds against subtracting two separate CROWN bounds.

The width is that of the interval proved for (student margin - teacher margin) towards a class, mean over classes and
samples; an attack (PGD on both ends) says what it is at least. Students: those of the digits experiment, a CNN's MLP
students, and copies of the kdiga student, pruned (30 % of the weights) and rounded to 8 bits.

    uv run python bench/joint_bounds.py [--samples 60]
"""

import argparse

import torch
from changed_copies import pruned, rounded
from torch import Tensor, nn

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.networks import checkpoint
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

FOLDER = "artifacts/reference/digits"


def widths(student: nn.Module, teacher: nn.Module, x: Tensor, eps: float) -> tuple[float, float, float]:
    """Mean width by separate bounds, by joint bounds, and what an attack reaches of it."""
    with torch.no_grad():
        predicted = teacher(x).argmax(1)
    rows = margin_specification(predicted, 10, torch.float64)
    both, radius = torch.cat([rows, -rows], 1), torch.full((len(x),), eps, dtype=torch.float64)
    separate = torch.zeros(len(x), rows.shape[1], dtype=torch.float64)
    for network in (student, teacher):
        low, high = Native(network, x).ask(Balls(x, radius, Norm.LINF), both, "crown").bound.chunk(2, 1)
        separate += -high - low
    difference = torch.cat([both, -both], 2)
    engine = JointEngine(student, teacher, x)
    low, high = engine.ask(Balls(x, radius, Norm.LINF), difference, "crown").bound.chunk(2, 1)
    reached = attacked(engine.model, x.double(), difference, radius)
    return float(separate.mean()), float((-high - low).mean()), reached


def attacked(pair: nn.Module, x: Tensor, rows: Tensor, radius: Tensor) -> float:
    """Mean width between the extremes that PGD finds."""
    half, total = rows.shape[1] // 2, 0.0
    for j in range(half):
        ends = []
        for row in (rows[:, j], rows[:, half + j]):
            z = ascend(lambda z, r=row: (r * pair(z)).sum(1), Balls(x, radius, Norm.LINF), steps=20)  # type: ignore[misc]
            with torch.no_grad():
                ends.append((row * pair(z)).sum(1))
        total += float((ends[0] + ends[1]).mean())
    return total / half


def main() -> None:
    """Print one line per pair and eps."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--samples", type=int, default=60)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    test = data.load(DataConfig()).splits["test"]
    x = test.images[torch.arange(chosen.samples)]
    known = {
        name: checkpoint.load(f"{FOLDER}/{name}.pt").model.eval() for name in ("teacher", "standard", "kd", "kdiga")
    }
    pairs = {f"{name} of teacher": (known[name], known["teacher"]) for name in ("standard", "kd", "kdiga")}
    pairs["pruned copy of kdiga"] = (pruned(known["kdiga"], 0.3), known["kdiga"])
    pairs["8-bit copy of kdiga"] = (rounded(known["kdiga"]), known["kdiga"])
    print(f"{'student':<22} {'eps':>5} {'separate':>9} {'joint':>9} {'tighter':>8} {'attack':>9}")
    for name, (student, teacher) in pairs.items():
        for eps in (0.01, 0.03, 0.05, 0.1):
            separate, joint, reached = widths(student, teacher, x, eps)
            ratio = separate / joint
            print(f"{name:<22} {eps:5.2f} {separate:9.3f} {joint:9.3f} {ratio:7.2f}x {reached:9.3f}", flush=True)


if __name__ == "__main__":
    main()
