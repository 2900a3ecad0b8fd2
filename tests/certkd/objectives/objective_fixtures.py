"""Small networks and batches that the tests of training objectives share."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from certkd.objectives import Objective
from certkd.objectives.base import Batch, total

SHAPE, CLASSES = (1, 2, 3), 4
Weights = list[nn.Parameter]


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(11)


def network(seed: int, activation: type[nn.Module] = nn.Tanh, classes: int = CLASSES) -> nn.Sequential:
    """A perceptron in float64 with gradients of order one."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(6, 7), activation(), nn.Linear(7, classes)).double()
        for parameter in model.parameters():
            parameter.data.mul_(3)
        return model


def linear(seed: int, classes: int = CLASSES) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Flatten(), nn.Linear(6, classes)).double()


def batch_of(student: nn.Module, teacher: nn.Module, count: int = 5, classes: int = CLASSES) -> Batch:
    x = 0.2 + 0.6 * torch.rand((count, *SHAPE), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    natural = linear(5, classes)
    return Batch(student, teacher, x, torch.arange(count) % classes, generator(), natural_teacher=natural)


def smooth_batch() -> Batch:
    return batch_of(network(0), network(1))


def anew(batch: Batch) -> Batch:
    """The same batch with a fresh generator and no memory."""
    return replace(batch, generator=generator(), memory={})


def values(batch: Batch, objective: Objective) -> dict[str, float]:
    terms = objective.terms(anew(batch))
    return {name: float(term.value.detach()) for name, term in terms.items()}


def loss_of(batch: Batch, objective: Objective) -> Tensor:
    return total(objective.terms(anew(batch)))


def weights_of(model: nn.Module) -> Weights:
    return list(model.parameters())
