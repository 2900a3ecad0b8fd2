"""What a training of a configuration costs: operations, seconds and memory of a step here, and hours on GPUs.

Operations are counted while one step runs, by the formulas of ``torch.utils.flop_counter``: convolutions, matrix
products and attention, in the forward and all backward passes of student and teacher, attacks included. Seconds and
memory are measured with few images on one thread, in float32, in a process for each configuration; memory is the
largest resident set, and its growth from image to image. Hours on GPUs are an estimate, not a measurement: the
operations of all steps at a rate that a GPU sustains in bfloat16, and on eight GPUs an eighth of it.

    uv run python bench/step_cost.py [--only imagenet] [--sustained 1e14] > bench/results/step-cost.md
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from timing import machine
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from certkd.config.reading import read
from certkd.config.settings import TrainJob
from certkd.networks.resolve import randomly_initialised
from certkd.objectives.base import Batch
from certkd.training.optimizer import optimizer_of
from certkd.training.step import backward

ROOT = Path(__file__).parents[1]
#: Shape, classes and training images of the data sets, and the teachers of their configurations.
DATA = {"imagenet": ((3, 224, 224), 1000, 1_281_167), "cifar10": ((3, 32, 32), 10, 45_000)}
TEACHERS = {"imagenet": "torchvision:resnet50", "cifar10": "certkd:preact-resnet18"}
FEW, MORE = 2, 6


class Operations(TorchDispatchMode):
    """Counts multiplications and additions; FlopCounterMode itself fails where a loss asks for gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=found)
        return found


def peak() -> float:
    """Return the largest resident set of this process so far, GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def network(name: str, options: dict[str, object], data: str) -> nn.Module:
    shape, classes, _ = DATA[data]
    given = ",".join([name, *(f"{key}={value}" for key, value in options.items())])
    return randomly_initialised(given, classes, shape)


def one(path: str) -> None:
    """Measure one configuration in this process, and print the figures as JSON."""
    torch.set_num_threads(1)
    job = read(path, TrainJob)
    data = job.data.name
    shape, classes, images = DATA[data]
    student = network(job.model.name, job.model.options, data).train()
    teacher = network(TEACHERS[data], {}, data).eval().requires_grad_(False) if job.teacher else None
    optimizer = optimizer_of(student, job.optimizer)
    recipe = job.model_copy(update={"precision": "float32", "compile": False})

    def step(count: int) -> None:
        draws = torch.Generator().manual_seed(0)
        x, y = torch.rand(count, *shape, generator=draws), torch.randint(classes, (count,), generator=draws)
        optimizer.zero_grad()
        backward(job.objective, Batch(student, teacher, x, y, draws, progress=0.5), recipe)
        optimizer.step()

    with Operations() as counter:
        step(FEW)
    before = peak()
    step(MORE)
    grown, started = peak(), time.process_time()
    step(MORE)
    took = time.process_time() - started
    epochs = job.epochs
    print(
        json.dumps(
            {
                "operations": counter.total / FEW,
                "seconds": took / MORE,
                "image": (grown - before) / (MORE - FEW),
                "base": before,
                "batch": job.batch_size,
                "total": counter.total / FEW * images * epochs,
            }
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="configurations whose path has these words")
    parser.add_argument("--sustained", type=float, default=1e14, help="operations a second of a GPU")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(arguments.one)
        return
    print(f"{machine()}; hours at {arguments.sustained:.0e} operations a second\n")
    print("| configuration | GFLOP an image | CPU s an image | GiB an image | batch, GiB | 1 GPU, h | 8 GPUs, h |")
    print("| --- | --: | --: | --: | --: | --: | --: |")
    for path in sorted([*(ROOT / "configs/imagenet").glob("*.yaml"), *(ROOT / "configs/cifar10").glob("*.yaml")]):
        name = path.relative_to(ROOT / "configs").as_posix()
        if arguments.only not in name or name.endswith("common.yaml"):
            continue
        run = subprocess.run(
            [sys.executable, __file__, "--one", str(path)], capture_output=True, text=True, check=False
        )
        if run.returncode:
            raise SystemExit(run.stderr)
        found = json.loads(run.stdout.splitlines()[-1])
        hours = found["total"] / arguments.sustained / 3600
        whole = found["base"] + found["image"] * (found["batch"] - FEW)
        print(
            f"| {name} | {found['operations'] / 1e9:.1f} | {found['seconds']:.2f} | {found['image']:.2f} "
            f"| {found['batch']}, {whole:.0f} | {hours:.1f} | {hours / 8:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
