"""A GPU in under eight minutes: its tests, seconds of proofs and training steps beside the CPU's, and a small study.

Prints a page in Markdown. Times are wall-clock medians of runs that take turns, after one that warms up; the GPU is
waited for. auto-LiRPA bounds the same batch on the same device. The study trains and certifies a teacher and a student
on 2,000 CIFAR-10 images, where CERTKD_DATA has them.

    uv run python bench/gpu.py [--device cuda] [--runs 3] [--no-tests] > bench/results/gpu.md
"""

import argparse
import copy
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from nets import Case, case
from timing import machine

import certkd
from certkd.config.settings import Recipe
from certkd.networks.resolve import randomly_initialised
from certkd.objectives import Adversarial, Kdiga, Objective
from certkd.objectives.base import Batch
from certkd.training.optimizer import optimizer_of
from certkd.training.step import backward
from verifiers.bound_propagation import engine_of
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

ROOT = Path(__file__).parents[1]
STUDY = (
    "data.limit=2000",
    "teacher.epochs=4",
    "students.epochs=4",
    "students.model.options.depth=8",
    "certify.limit=100",
    "certify.eps=1/255",
)


def bounding(engine: str, method: str, found: Case, device: str, images: int) -> Callable[[], object]:
    """Bound the margins of a batch of images at eps."""
    network, x = copy.deepcopy(found.network).to(device), found.images[:images].to(device)
    bounds = engine_of(engine, network, x[:2])
    with torch.no_grad():
        rows = margin_specification(network(x).argmax(1), 10, torch.float64).to(device)
    return lambda: bounds.ask(Balls.around(x.double(), found.eps, Norm.LINF), rows, method, iterations=5)


def certifying(found: Case, device: str, images: int, **settings: object) -> Callable[[], object]:
    """Certify images by one method, as ``certkd.certify`` does."""
    network = copy.deepcopy(found.network).to(device)
    data = (found.images[:images], found.labels[:images])
    return lambda: certkd.certify(network, *data, **settings)  # type: ignore[call-overload]


def stepping(objective: Objective, device: str, size: int) -> Callable[[], object]:
    """Take one step of a PreActResNet-18 on a batch of CIFAR's shape, with a teacher of the same kind."""
    student, teacher = (randomly_initialised("certkd:preact-resnet18", 10, (3, 32, 32)).to(device) for _ in range(2))
    optimizer = optimizer_of(student.train(), Recipe().optimizer)
    draws = torch.Generator().manual_seed(0)
    x, y = torch.rand(size, 3, 32, 32, generator=draws).to(device), torch.randint(10, (size,), generator=draws)
    teacher.eval().requires_grad_(False)

    def step() -> None:
        batch = Batch(student, teacher, x, y.to(device), torch.Generator().manual_seed(0))
        optimizer.zero_grad()
        backward(objective, batch, Recipe())
        optimizer.step()

    return step


def tasks(device: str) -> Iterator[tuple[str, Callable[[str], Callable[[], object]], str]]:
    """Name what is timed, with how it is made on a device; the last entry is what else runs on the GPU."""
    cnn, resnet = case("cnn"), case("resnet")
    for method, images in (("crown", 32), ("alpha-crown", 8)):
        for name, net in (("CNN", cnn), ("ResNet", resnet)):

            def make(place: str, net: Case = net, method: str = method, images: int = images) -> Callable[[], object]:
                return bounding("native", method, net, place, images)

            yield f"{method}, {name}, {images} images", make, ""
            other = bounding("auto-lirpa", method, net, device, images)
            yield f"{method}, {name}, {images} images, auto-LiRPA", lambda _, other=other: other, "auto-LiRPA"
    decide = {"eps": str(cnn.eps), "methods": ("complete",), "options": {"time_limit": 5}}
    yield "complete, CNN, 32 images", lambda place: certifying(cnn, place, 32, **decide), ""
    smooth = {"eps": "0.25", "norm": "l2", "methods": ("smoothing",), "options": {"sigma": 0.25, "n": 10_000}}
    yield "smoothing, ResNet, 8 images, n 10,000", lambda place: certifying(resnet, place, 8, **smooth), ""
    for objective in (Kdiga(), Adversarial(eps=8 / 255, step_size=2 / 255)):
        yield (
            f"a step of {objective.kind}, PreActResNet-18, batch 32",
            lambda place, objective=objective: stepping(objective, place, 32),
            "",
        )


def seconds(way: Callable[[], object], device: str) -> float:
    """Wall-clock seconds of one call, the GPU's part included."""
    started = time.perf_counter()
    way()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def measured(make: Callable[[str], Callable[[], object]], places: tuple[str, ...], runs: int) -> list[float]:
    """Median seconds on each device, in turns."""
    ways = [(place, make(place)) for place in places]
    for place, way in ways:
        seconds(way, place)
    found = [[seconds(way, place) for place, way in ways] for _ in range(runs)]
    return [statistics.median(each) for each in zip(*found, strict=True)]


def tests(device: str) -> str:
    """Run the tests of the GPU; return their last line."""
    environment = {**os.environ, "CERTKD_TEST_DEVICE": device}
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "--no-header", "--tb=line", "tests/gpu"]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    failures = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    last = (run.stdout.strip().splitlines() or [run.stderr[-200:]])[-1]
    return "\n".join([*failures, last, f"exit code {run.returncode}"])


def study(device: str) -> str:
    """Train, certify and compare on a few CIFAR-10 images; return the seconds, or the error."""
    with tempfile.TemporaryDirectory() as folder:
        chosen = [*STUDY, f"out={folder}/study", f"device={device}", "students.objectives={kdiga: {kind: kdiga}}"]
        command = [sys.executable, "-m", "certkd", "run", "configs/cifar10.yaml", "--quiet"]
        started = time.perf_counter()
        command += [word for setting in chosen for word in ("--set", setting)]
        run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        took = time.perf_counter() - started
    return f"{took:.0f} s\n\n```\n{(run.stdout if run.returncode == 0 else run.stderr)[-2000:]}\n```"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-tests", action="store_true")
    arguments = parser.parse_args()
    device = arguments.device
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else "no GPU"
    print(f"{machine()}, {name}\n")
    if not arguments.no_tests:
        print(f"Tests: {tests(device)}\n", flush=True)
    print("| what | CPU s | GPU s | CPU / GPU |\n| --- | --: | --: | --: |")
    for what, make, only in tasks(device):
        if only:
            (there,) = measured(make, (device,), arguments.runs)
            print(f"| {what} | | {there:.4f} | |", flush=True)
            continue
        here, there = (
            measured(make, ("cpu", device), arguments.runs) if device != "cpu" else 2 * measured(make, ("cpu",), 1)
        )
        print(f"| {what} | {here:.3f} | {there:.4f} | {here / there:.1f} |", flush=True)
    if os.environ.get("CERTKD_DATA"):
        print(f"\nStudy on CIFAR-10: {study(device)}")


if __name__ == "__main__":
    main()
