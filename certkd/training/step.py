"""Take one optimiser step: batch, precision, micro-batches, gradients."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from certkd.config.settings import Recipe
from certkd.data.augmentation import crop_and_flip
from certkd.data.keys import keyed_generator
from certkd.objectives import Objective
from certkd.objectives.base import Batch, Term, Terms, total
from certkd.training.ranks import Ranks
from certkd.training.run import Run

ALONE = Ranks()


def precision(recipe: Recipe, place: torch.device) -> AbstractContextManager[Any]:
    """Compute losses in float32, or matrix products and convolutions in bfloat16 (autocast)."""
    return torch.autocast(place.type, dtype=torch.bfloat16) if recipe.precision == "bfloat16" else nullcontext()


def forward_of(student: nn.Module, recipe: Recipe) -> nn.Module:
    """Return the network that objectives call: the student, or its compiled form, which shares its weights.

    Each batch shape is compiled on its own, so that a resumed training runs the same kernels.
    """
    return torch.compile(student, dynamic=False) if recipe.compile else student  # type: ignore[return-value]


def batch_of(
    run: Run, samples: tuple[Tensor, Tensor], generator: torch.Generator, progress: float, memory: dict[str, float]
) -> Batch:
    """Assemble a batch of training images, augmented as a whole.

    Args:
        samples: the images, in [0, 1], and their labels.
        generator: the random numbers of this step.
        progress: share of the training that is done after this step.
        memory: numbers that the objective keeps from step to step.
    """
    x, y = samples
    if run.config.augment == "crop-flip":
        x = crop_and_flip(x, generator)
    if run.config.channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return Batch(run.forward, run.teachers.robust, x, y, generator, progress, run.teachers.natural, memory)


def backward(objective: Objective, batch: Batch, recipe: Recipe, ranks: Ranks = ALONE) -> tuple[Terms, Tensor]:
    """Add the gradients of a batch's loss to the student's weights; return its terms and the loss, detached.

    With ``accumulate``, and with several processes, the batch is processed in several parts, each weighted by its share
    of the rows. Values and gradients add up to those of the whole batch if terms are means over samples and no layer
    mixes samples (batch normalisation uses each part's statistics).
    """
    terms: Terms = {}
    losses = []
    for part, share in ranks.share(list(_parts(batch, recipe.accumulate * ranks.count))):
        with precision(recipe, batch.x.device):
            found = objective.terms(part)
        loss = total(found) * share if share < 1 else total(found)
        loss.backward()
        losses.append(loss.detach())
        for name, term in found.items():
            before = terms[name].value if name in terms else 0.0
            terms[name] = Term(term.weight, before + term.value.detach() * share)
    loss = torch.stack(losses).sum()
    ranks.add([loss, *(term.value for term in terms.values())])
    ranks.add(p.grad for p in batch.student.parameters() if p.grad is not None)
    return terms, loss


def batches(order: Int[Tensor, " rows"], size: int) -> list[Int[Tensor, " some"]]:
    """Cut rows into batches; a last batch of a single row joins the one before, for batch normalisation."""
    parts = list(order.split(size))
    if len(parts) > 1 and size > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _parts(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """Split a batch into ``count`` parts of (almost) equal size, at least two rows each, with their shares of rows.

    Each part has random numbers of its own, which do not depend on who goes through the others.
    """
    count = max(1, min(count, len(batch.y) // 2))
    if count == 1:
        yield batch, 1.0
        return
    rows, seed = len(batch.y), batch.generator.initial_seed()
    for number, (x, y) in enumerate(zip(batch.x.tensor_split(count), batch.y.tensor_split(count), strict=True)):
        yield replace(batch, x=x, y=y, generator=keyed_generator(seed, number)), len(y) / rows
