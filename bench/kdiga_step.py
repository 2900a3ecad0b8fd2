"""One KDIGA training step against the formulation of the reference code: two student and two teacher forward passes.

The reference computes the distillation loss from one pair of forward passes and the input gradients from another. Both
ways give the same loss; the script checks it before it times them.

    uv run python bench/kdiga_step.py [--runs 15]
"""

import argparse
from collections.abc import Callable

import torch
from timing import alternate, report
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.models import ModelSpec, build
from certkd.objectives import Kdiga
from certkd.objectives.base import Batch, total

CASES = (
    ("digits: mlp student, cnn teacher, batch 128", "certkd:mlp", {}, "certkd:cnn", {}, (1, 8, 8), 128, 20),
    (
        "28x28: cnn student, wider cnn teacher, batch 128",
        "certkd:cnn",
        {},
        "certkd:cnn",
        {"width": 32},
        (1, 28, 28),
        128,
        4,
    ),
    (
        "32x32: resnet-8 student, resnet-20 teacher, batch 32",
        "certkd:resnet",
        {},
        "certkd:resnet",
        {"depth": 20},
        (3, 32, 32),
        32,
        1,
    ),
)


def reference_loss(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, weights: Kdiga) -> Tensor:
    """CE and KL from one forward pass of each network, the gradient gap from a second one of each."""
    logits, target = student(x), teacher(x).detach()
    kl = F.kl_div(F.log_softmax(logits, 1), F.softmax(target, 1), reduction="batchmean")
    loss = weights.lambda_ce * F.cross_entropy(logits, y) + weights.lambda_kl * kl
    points = x.clone().requires_grad_(True)
    ours = torch.autograd.grad(F.cross_entropy(student(points), y, reduction="sum"), points, create_graph=True)[0]
    theirs = torch.autograd.grad(F.cross_entropy(teacher(points), y, reduction="sum"), points)[0]
    return loss + weights.lambda_iga * (ours - theirs).flatten(1).norm(dim=1).mean()


def main() -> None:
    """Print both times and their ratio for each case."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=15)
    runs = arguments.parse_args().runs
    torch.set_num_threads(1)
    weights = Kdiga()
    for title, name, options, teacher_name, teacher_options, shape, size, repeat in CASES:
        torch.manual_seed(0)
        student = build(ModelSpec(name=name, options=options, classes=10, shape=shape)).train()
        teacher = build(ModelSpec(name=teacher_name, options=teacher_options, classes=10, shape=shape)).eval()
        teacher.requires_grad_(False)
        x, y = torch.rand(size, *shape), torch.randint(0, 10, (size,))
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-3)
        generator = torch.Generator()

        def ours() -> Tensor:
            return total(weights.terms(Batch(student, teacher, x, y, generator)))  # noqa: B023 - called in this turn

        def reference() -> Tensor:
            return reference_loss(student, teacher, x, y, weights)  # noqa: B023

        assert torch.allclose(ours(), reference(), rtol=1e-4), "the two formulations disagree"

        def steps(loss: Callable[[], Tensor]) -> None:
            for _ in range(repeat):  # noqa: B023
                optimizer.zero_grad(set_to_none=True)  # noqa: B023
                loss().backward()
                optimizer.step()  # noqa: B023

        ways = {"reference formulation": lambda: steps(reference), "certkd": lambda: steps(ours)}
        report(title, alternate(ways, runs, warmup=2), "reference formulation")


if __name__ == "__main__":
    main()
