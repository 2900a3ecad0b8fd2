"""The cost of classes: CPU seconds a sample of each method at 10, 100 and 1,000 classes.

Networks of one architecture with fixed random weights; samples with the label that is predicted. Runs take turns.

    uv run python bench/classes.py [--methods crown,alpha-crown] [--samples 8] [--runs 3] [--classes 10,100,1000]
"""

import argparse
import warnings
from collections.abc import Callable

import torch
from timing import alternate, machine, report
from torch import nn

from verifiers.certify.answers import Asked
from verifiers.certify.config import CertifyConfig
from verifiers.core.question import Question
from verifiers.graph.program import Program
from verifiers.runtime.certifier import Certifier
from verifiers.runtime.samples import Samples

EPS = "0.001"


def network(classes: int) -> nn.Module:
    """Two convolutions and two layers of 128, whose last layer alone depends on the classes."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, classes),
    ).eval()  # fmt: skip


def prepared(kind: str, classes: int, count: int) -> Callable[[], object]:
    """One batch of a method as a function; networks, graphs and checks are made before."""
    options = {"cross_check": 0} if kind in ("ibp", "crown", "alpha-crown") else {}
    config = CertifyConfig(eps=EPS, methods=(kind,), options=options)
    made = network(classes)
    images = torch.rand(count, 1, 16, 16, generator=torch.Generator().manual_seed(1))
    teacher = network(classes)
    with torch.no_grad():
        predicted = made(images).argmax(1)
        for weight in teacher.parameters():
            weight.mul_(1.001)
    program, other = Program(made), Program(teacher)
    program.hold(images[:2])
    other.hold(images[:2])
    question = Question(config.ball, teacher=other if config.pairs else None)
    certifier: Certifier = config.methods[0].prepare(program, images[:2], question)
    everything = torch.arange(count)
    samples = Samples(images, predicted, predicted, everything >= 0, everything, "", classes)

    def run() -> object:
        batch = Asked(program, samples).batch(everything.numpy())
        return list(certifier(batch))

    return run


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--methods", default="crown")
    parser.add_argument("--classes", default="10,100,1000")
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(machine())
    counts = [int(text) for text in given.classes.split(",")]
    for kind in given.methods.split(","):
        ways = {f"{count} classes": prepared(kind, count, given.samples) for count in counts}
        seconds = alternate(ways, given.runs)
        each = {name: [value / given.samples for value in values] for name, values in seconds.items()}
        report(f"{kind}, seconds a sample", each, base=f"{100 if 100 in counts else counts[0]} classes")


if __name__ == "__main__":
    main()
