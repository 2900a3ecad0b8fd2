"""Attacks on published networks: what pgd finds of what the strongest attack finds, and AutoAttack beside the original.

Needs the folder of bench/reference_instances.py, and MNIST and CIFAR-10 in CERTKD_DATA. With --original, the public
implementation must be importable as ``autoattack`` (PYTHONPATH); each of its attacks then runs on the same images.
Seconds are CPU seconds of one thread.

    uv run python bench/attacks.py FOLDER [--images 100] [--original] [--queries 5000] [NET:EPS:NORM ...]
"""

import argparse
import csv
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from reference_instances import network_of
from timing import machine
from torch import Tensor, nn

from verifiers.core.quantities import Epsilon, Norm
from verifiers.geometry.attack import Attack
from verifiers.geometry.attacks.autoattack import SPARSE_STARTS, SPARSE_TARGETS, AutoAttack, Stage
from verifiers.methods.pgd import Pgd

CASES = (
    "resnet_2b:2/255:linf",
    "mnist_cnn_a_adv:0.3:linf",
    "wk_mnist:0.15:linf",
    "mnist_madry_tiny:0.3:linf",
    "resnet_2b:0.25:l2",
    "wk_mnist:1.5:l2",
)
#: The original's names of norms.
NAMES = {Norm.LINF: "Linf", Norm.L2: "L2", Norm.L1: "L1"}


class Question(NamedTuple):
    """A network, images that it classifies correctly, and a ball."""

    title: str
    network: nn.Module
    x: Tensor
    own: Tensor
    eps: float
    norm: Norm

    @classmethod
    def read(cls, text: str, nets: dict[str, dict[str, str]], folder: Path, count: int) -> "Question":
        """Read NET:EPS:NORM, and take the images among the first of the test split."""
        name, eps, norm = text.split(":")
        network, test = network_of(nets[name], folder)
        network.requires_grad_(False)
        x, labels = test.images[torch.arange(count)], test.labels[:count]
        with torch.no_grad():
            right = network(x).argmax(1) == labels
        return cls(f"{name} | {norm} | {eps}", network, x[right], labels[right], Epsilon.parse(eps).value, Norm(norm))


def timed(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Which samples a run breaks, and its CPU seconds."""
    started = time.process_time()
    return run(), time.process_time() - started


def ours(question: Question, stages: tuple[Stage, ...], queries: int) -> Tensor:
    """Which samples our attacks break."""
    attack = AutoAttack(question.eps, question.norm, queries=queries, stages=stages)
    return attack(question.network, question.x, question.own, list(range(len(question.x)))).found.broken


def original(question: Question, stage: Stage, queries: int) -> Tensor:
    """Which samples one of the original's attacks breaks."""
    from autoattack import AutoAttack as Original  # type: ignore[import-not-found, unused-ignore]

    name = NAMES[question.norm]
    attack = Original(question.network, norm=name, eps=question.eps, seed=0, device="cpu", verbose=False)
    attack.attacks_to_run, attack.square.n_queries = [str(stage)], queries
    found = attack.run_standard_evaluation(question.x, question.own, bs=len(question.x))
    with torch.no_grad():
        return question.network(found).argmax(1) != question.own


def quick(question: Question, queries: int) -> str:
    """One line: what pgd finds, and what it misses of what any attack finds."""
    pgd = Attack(question.eps, question.norm, steps=Pgd().steps, restarts=Pgd().restarts)
    indices = list(range(len(question.x)))
    found, seconds = timed(lambda: pgd(question.network, question.x, question.own, indices).broken)
    strong, longer = timed(lambda: ours(question, tuple(Stage), queries))
    every = found | strong
    cells = (len(found), int(found.sum()), int(strong.sum()), int((every & ~found).sum()), f"{seconds:.1f}")
    return f"| {question.title} | {' | '.join(map(str, cells))} | {longer:.1f} |"


def beside(question: Question, stage: Stage, queries: int, images: int) -> str:
    """One line: accuracy under an attack of ours and of the original, of all images."""
    mine, seconds = timed(lambda: ours(question, (stage,), queries))
    theirs, longer = timed(lambda: original(question, stage, queries))
    shares = [100 * int((~broken).sum()) / images for broken in (mine, theirs)]
    alone = f"{int((mine & ~theirs).sum())} | {int((theirs & ~mine).sum())}"
    accuracy = f"{shares[0]:.2f} | {shares[1]:.2f} | {shares[0] - shares[1]:+.2f}"
    return f"| {question.title} | {stage} | {accuracy} | {alone} | {seconds:.1f} | {longer:.1f} |"


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("cases", nargs="*", default=CASES)
    arguments.add_argument("--images", type=int, default=100)
    arguments.add_argument("--queries", type=int, default=5000)
    arguments.add_argument("--original", action="store_true")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    nets = {row["net"]: row for row in csv.DictReader((given.folder / "nets.csv").open())}
    print(machine(), end="\n\n")
    if given.original:
        print(f"In l1 the original has {SPARSE_STARTS} starts and {SPARSE_TARGETS} targets, as ours.\n")
        print(
            "| network | norm | eps | attack | accuracy % | original's | difference | ours alone | original alone ",
            end="",
        )
        print("| CPU s | original's |\n|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|")
    else:
        print("| network | norm | eps | images | pgd finds | autoattack | pgd misses | CPU s | autoattack's |")
        print("|---|---|---|--:|--:|--:|--:|--:|--:|")
    for text in given.cases:
        question = Question.read(text, nets, given.folder, given.images)
        lines = (
            (beside(question, stage, given.queries, given.images) for stage in Stage)
            if given.original
            else (quick(question, given.queries),)
        )
        for line in lines:
            print(line, flush=True)


if __name__ == "__main__":
    main()
