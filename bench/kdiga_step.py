"""What a KDIGA training step costs: against the authors' formulation, plain distillation, and every other objective.

The authors' code computes the distillation loss from one pair of forward passes and the input gradients from another.
Both ways give the same loss; the script checks it before it times them. Memory is the growth of a fresh process's
largest resident size in one step, after a step with two images.

    uv run python bench/kdiga_step.py [--runs 15]
    uv run python bench/kdiga_step.py --objectives [--runs 5]      # all objectives over cross-entropy on clean images
    uv run python bench/kdiga_step.py --cifar [--runs 5]           # those of the CIFAR-10 study, under a large teacher
"""

import argparse
import resource
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Any, get_args

import torch
from objectives import STUDIES
from timing import alternate, machine, table
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.networks.builders import Classifier, ModelSpec, build
from certkd.objectives import OBJECTIVES, Kd, Kdiga, Objective
from certkd.objectives.base import Batch, total
from certkd.objectives.kdiga import Target

EPS, ATTACK_STEPS = 0.1, 10
PROBES = 3


@dataclass(frozen=True)
class Case:
    """A student, a teacher, and a batch of random images; so many steps are timed as one."""

    title: str
    student: tuple[str, dict[str, int]]
    teacher: tuple[str, dict[str, int]]
    shape: tuple[int, ...]
    size: int
    repeat: int


CASES = {
    "8x8": Case(
        "digits: mlp student, cnn teacher, batch 128", ("certkd:mlp", {}), ("certkd:cnn", {}), (1, 8, 8), 128, 20
    ),
    "28x28": Case(
        "28x28: cnn student, wider cnn teacher, batch 128",
        ("certkd:cnn", {}),
        ("certkd:cnn", {"width": 32}),
        (1, 28, 28),
        128,
        4,
    ),
    "32x32": Case(
        "32x32: resnet-8 student, resnet-20 teacher, batch 32",
        ("certkd:resnet", {}),
        ("certkd:resnet", {"depth": 20}),
        (3, 32, 32),
        32,
        1,
    ),
}
LARGE = Case(
    "32x32: resnet-20 student, torchvision resnet18 teacher, batch 16",
    ("certkd:resnet", {"depth": 20}),
    ("torchvision:resnet18", {}),
    (3, 32, 32),
    16,
    1,
)
DISTILLATIONS: dict[str, Objective] = {
    "kd": Kd(),
    "kdiga(ce)": Kdiga(target="ce"),
    "kdiga(projection)": Kdiga(target="projection"),
}


class Trainer:
    """Optimiser steps of one case, all on the same batch."""

    def __init__(self, case: Case, size: int | None = None) -> None:
        torch.manual_seed(0)
        self.student = network(case.student, case.shape).train()
        self.teacher = network(case.teacher, case.shape).eval().requires_grad_(False)
        self.natural = network(case.teacher, case.shape).eval().requires_grad_(False)
        size = case.size if size is None else size
        self.x, self.y = torch.rand(size, *case.shape), torch.randint(0, 10, (size,))
        self.optimizer = torch.optim.SGD(self.student.parameters(), lr=1e-3)

    def loss(self, objective: Objective) -> Tensor:
        """The objective's loss, at the end of a training."""
        batch = Batch(self.student, self.teacher, self.x, self.y, torch.Generator(), natural_teacher=self.natural)
        return total(objective.terms(batch))

    def steps(self, loss: Callable[[], Tensor], count: int = 1) -> None:
        """What the training loop does with a loss, so many times."""
        for _ in range(count):
            self.optimizer.zero_grad(set_to_none=True)
            loss().backward()
            self.optimizer.step()

    def ways(self, losses: Mapping[str, Callable[[], Tensor]], count: int) -> dict[str, Callable[[], object]]:
        """So many steps with each of the losses, for ``alternate``."""
        return {name: partial(self.steps, loss, count) for name, loss in losses.items()}

    def losses(self, objectives: Mapping[str, Objective]) -> dict[str, Callable[[], Tensor]]:
        """The loss of each objective."""
        return {name: partial(self.loss, objective) for name, objective in objectives.items()}


def network(known: tuple[str, dict[str, int]], shape: tuple[int, ...]) -> Classifier:
    """A network for ten classes."""
    return build(ModelSpec(name=known[0], options=known[1], classes=10, shape=shape))


def reference_loss(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, weights: Kdiga) -> Tensor:
    """CE and KL from one forward pass of each network, the gradient gap from a second one of each."""
    logits, target = student(x), teacher(x).detach()
    kl = F.kl_div(F.log_softmax(logits, 1), F.softmax(target, 1), reduction="batchmean")
    loss = weights.lambda_ce * F.cross_entropy(logits, y) + weights.lambda_kl * kl
    points = x.clone().requires_grad_(True)
    ours = torch.autograd.grad(F.cross_entropy(student(points), y, reduction="sum"), points, create_graph=True)[0]
    theirs = torch.autograd.grad(F.cross_entropy(teacher(points), y, reduction="sum"), points)[0]
    return loss + weights.lambda_iga * (ours - theirs).flatten(1).norm(dim=1).mean()


def against_reference(case: Case, runs: int) -> str:
    """kdiga(ce) and the authors' formulation of it."""
    trainer, weights = Trainer(case), Kdiga(target="ce")
    losses: dict[str, Callable[[], Tensor]] = {
        "reference formulation": lambda: reference_loss(
            trainer.student, trainer.teacher, trainer.x, trainer.y, weights
        ),
        "kdiga(ce)": partial(trainer.loss, weights),
    }
    found = [float(loss().detach()) for loss in losses.values()]
    assert abs(found[0] - found[1]) <= 1e-4 * abs(found[0]), f"the two formulations disagree: {found}"
    seconds = alternate(trainer.ways(losses, case.repeat), runs, warmup=2)
    return table(case.title, seconds, "reference formulation", case.repeat)


def against_kd(case: Case, runs: int) -> str:
    """kdiga and plain distillation."""
    trainer = Trainer(case)
    seconds = alternate(trainer.ways(trainer.losses(DISTILLATIONS), case.repeat), runs, warmup=2)
    return table(case.title, seconds, "kd", case.repeat)


def memory() -> str:
    """Growth of fresh processes in one step, in MB; they are forked, so that this one must not have trained yet."""
    lines = [f"| case | {' | '.join(DISTILLATIONS)} |", "| --- |" + " --: |" * len(DISTILLATIONS)]
    Trainer(CASES["8x8"])  # torch imports the rest of itself with the first optimiser: here, not in each process
    for case in CASES.values():
        cells = []
        for way in DISTILLATIONS:
            with get_context("fork").Pool(1, maxtasksperchild=1) as pool:
                cells.append(statistics.median(pool.map(partial(growth, case), [way] * PROBES, chunksize=1)))
        lines.append(f"| {case.title} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    return "\n".join([*lines, ""])


def growth(case: Case, way: str) -> float:
    """By how many MB this process's largest resident size grows in a step with the whole batch."""
    small, trainer, objective = Trainer(case, size=2), Trainer(case), DISTILLATIONS[way]
    small.steps(partial(small.loss, objective))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    trainer.steps(partial(trainer.loss, objective))
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def everything() -> dict[str, Objective]:
    """Each objective with its defaults, at the eps and the number of attack steps of this script; kdiga by target."""
    settings: dict[str, Any] = {"eps": EPS, "steps": ATTACK_STEPS}
    found: dict[str, Objective] = {}
    for kind in OBJECTIVES:
        known = {key: value for key, value in settings.items() if key in kind.model_fields}
        name = kind.model_fields["kind"].default
        if kind is not Kdiga:
            found[name] = kind.model_validate(known)
            continue
        for target in get_args(Target):
            point = "random" if target == "finite_difference" else "clean"
            found[f"{name}({target})"] = Kdiga.model_validate({**known, "target": target, "point": point})
    return found


def over_standard(case: Case, objectives: Mapping[str, Objective], runs: int) -> str:
    """Objectives against cross-entropy on clean images."""
    trainer, repeat = Trainer(case), max(1, case.repeat // 4)
    seconds = alternate(trainer.ways(trainer.losses(objectives), repeat), runs)
    return table(case.title, seconds, "standard", repeat)


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=15)
    arguments.add_argument("--objectives", action="store_true", help="all objectives over the standard one")
    arguments.add_argument("--cifar", action="store_true", help="a large teacher, over the standard objective")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    print(machine(), end="\n\n")
    if given.objectives:
        print(f"Every objective over `standard`, eps {EPS}, {ATTACK_STEPS} attack steps, defaults otherwise\n")
        for case in (CASES["8x8"], CASES["28x28"]):
            print(over_standard(case, everything(), given.runs), flush=True)
        return
    if given.cifar:
        print(f"The CIFAR-10 study's objectives over `standard`, eps 8/255, {ATTACK_STEPS} attack steps\n")
        print(over_standard(LARGE, STUDIES["cifar10"].objectives(8 / 255), given.runs))
        return
    print(
        f"Growth of the largest resident size (ru_maxrss) in a step, MB, median of {PROBES} processes\n\n{memory()}",
        flush=True,
    )
    for case in CASES.values():
        print(against_reference(case, given.runs), flush=True)
    for case in CASES.values():
        print(against_kd(case, given.runs), flush=True)


if __name__ == "__main__":
    main()
