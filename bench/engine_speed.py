"""CPU seconds of the native engine on published networks, for one checkout or for two that take turns.

One run prepares a network, warms up, and measures one task: ``crown`` bounds images at eps; ``alpha`` bounds them by
alpha-CROWN, and prints seconds per step; ``split`` decides listed instances, or the first images, by alpha-CROWN and
branch and bound. Another checkout is measured by the same script in another process, in turns, and the
bounds of both are compared: "looser" is the largest amount by which this checkout's are lower, relative to 1 + |bound|.

Needs a folder with nets.csv, instances.csv and the ONNX files, as ``reference_instances.py``, and the images in
CERTKD_DATA.

    uv run python bench/engine_speed.py FOLDER --task crown --net resnet_2b [--against OTHER_CHECKOUT] [--runs 5]
"""

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch
from reference_instances import network_of
from torch import Tensor, nn

from verifiers.bound_propagation.native.alpha import optimized
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.memory import reuse_memory
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

#: The batch, the radius and the steps of alpha-CROWN that a task uses, by network; others take the first line.
RADII = {"": 1 / 255, "resnet_2b": 1 / 255, "cifar_cnn_a_mix": 2 / 255, "wk_mnist": 0.1, "mnist_cnn_a_adv": 0.1}
STEPS = 20


def bounded(model: nn.Module, images: Tensor, eps: float, task: str) -> tuple[list[float], float]:
    """Margins' bounds of images, and CPU seconds of them: a whole call for CROWN, one step for alpha-CROWN."""
    engine = Native(model, images[:2], arithmetic=Arithmetic.FLOAT32)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    rows = margin_specification(predicted, engine.graph.classes, torch.float64)
    balls = Balls.around(images, eps, Norm.LINF)
    method, steps = ("crown", 1) if task == "crown" else ("alpha-crown", STEPS)
    engine.ask(balls.take(slice(0, 1)), rows[:1], method, iterations=2)
    started = time.process_time()
    found = engine.ask(balls, rows, method, iterations=steps).bound
    return found.amin(1).tolist(), (time.process_time() - started) / steps


def split(model: nn.Module, images: Tensor, eps: float, limit: float) -> tuple[list[float], float]:
    """Bounds of images by alpha-CROWN, then branch and bound of what is left open, and CPU seconds of both."""
    engine = Native(model, images[:2], arithmetic=Arithmetic.FLOAT32)
    with torch.no_grad():
        predicted = model(images).argmax(1)
    rows, balls = (
        margin_specification(predicted, engine.graph.classes, torch.float64),
        Balls.around(images, eps, Norm.LINF),
    )
    engine.ask(balls.take(slice(0, 1)), rows[:1], "alpha-crown", iterations=2)
    found, started = [], time.process_time()
    for ball, row in zip(balls.to(torch.float64).split(1), rows.split(1), strict=True):
        bounds, begun = engine.bounds(ball), time.monotonic()
        proved = optimized(bounds, row, STEPS, begun + limit / 4, goal=0.0).bound[0]
        if float(proved.amin()) <= 0:
            run = BranchAndBound(
                bounds, row, proved, 0.0, deadline=begun + limit, broken=lambda x: x.flatten(1)[:, 0] > 9
            )
            found.append(min(1e-9, run.run().bound))
        else:
            found.append(1e-9)  # alpha-CROWN stops above the goal
    return found, time.process_time() - started


def one_run(chosen: argparse.Namespace) -> None:
    """Measure this checkout, and print the result as JSON."""
    torch.set_num_threads(1)
    reuse_memory()
    with open(chosen.folder / "nets.csv", newline="", encoding="utf-8") as file:
        row = next(one for one in csv.DictReader(file) if one["net"] == chosen.net)
    model, test = network_of(row, chosen.folder)
    if chosen.task != "split":
        images = test.images[torch.arange(chosen.first, chosen.first + chosen.images)]
        eps = chosen.eps or RADII.get(chosen.net, RADII[""])
        bounds, seconds = bounded(model, images, eps, chosen.task)
    else:
        with open(chosen.folder / "instances.csv", newline="", encoding="utf-8") as file:
            listed = [one for one in csv.DictReader(file) if one["net"] == chosen.net]
        rows = [int(one["image_index"]) for one in listed] or list(range(len(test.labels)))
        images = test.images[torch.tensor(rows[chosen.first : chosen.first + chosen.images])]
        eps = chosen.eps or (float(listed[0]["eps"]) if listed else RADII[chosen.net])
        bounds, seconds = split(model, images, eps, chosen.time_limit)
    print(json.dumps({"bounds": bounds, "seconds": seconds}))


def measured(tree: Path, arguments: list[str]) -> tuple[list[float], float]:
    """Run this script on the packages of a checkout."""
    command = [sys.executable, __file__, *arguments, "--once"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr)
    found = json.loads(done.stdout.splitlines()[-1])
    return found["bounds"], found["seconds"]


def main() -> None:
    """Print the median of each checkout, the ratio, and how the bounds compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--task", choices=("crown", "alpha", "split"), default="crown")
    parser.add_argument("--net", default="resnet_2b")
    parser.add_argument("--eps", type=float, help="default: a usual one of the network, or that of the instances")
    parser.add_argument("--first", type=int, default=0, help="the first image or instance")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--time-limit", type=float, default=60.0, help="seconds per instance")
    parser.add_argument("--against", type=Path, help="another checkout")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--once", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.once:
        return one_run(chosen)
    arguments = [one for one in sys.argv[1:] if one != "--once"]
    trees = {"here": Path(__file__).parents[1], **({"other": chosen.against} if chosen.against else {})}
    seconds: dict[str, list[float]] = {name: [] for name in trees}
    bounds: dict[str, list[float]] = {}
    for _ in range(chosen.runs):
        for name, tree in trees.items():
            bounds[name], spent = measured(tree, arguments)
            seconds[name].append(spent)
    print(f"{chosen.net}, {chosen.task}, {chosen.images} images, {chosen.runs} alternating runs, 1 thread")
    for name, values in seconds.items():
        print(f"  {name:<6} median {statistics.median(values):8.3f} s  [{min(values):.3f}, {max(values):.3f}]")
    if chosen.against:
        ratios = sorted(a / b for a, b in zip(seconds["here"], seconds["other"], strict=True))
        looser = max((b - a) / (1 + abs(b)) for a, b in zip(bounds["here"], bounds["other"], strict=True))
        middle = statistics.median(ratios)
        print(f"  ratio  median {middle:.3f} [{ratios[0]:.3f}, {ratios[-1]:.3f}], looser {looser:.1e}")


if __name__ == "__main__":
    main()
