"""One optimiser step and what surrounds it: optimiser, rate, precision, micro-batches, averaged weights."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from certkd.config.settings import OptimizerConfig, Recipe
from certkd.objectives import Objective
from certkd.objectives.base import Batch, Term, Terms, total
from verifiers.core.errors import InputError, one_line

#: What torch says when it cannot differentiate a network's gradient.
NO_SECOND_DERIVATIVE = ("derivative for", "double backward", "once_differentiable", "differentiate twice")


def optimizer_of(student: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Adam, or SGD with Nesterov momentum 0.9, over the weights that are not frozen.

    Raises:
        InputError: all weights are frozen.
    """
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if not parameters:
        raise InputError("the student has no weights to train: set requires_grad on some of them")
    if config.kind == "adam":
        return torch.optim.Adam(parameters, lr=config.rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)


def learning_rate(config: OptimizerConfig, epoch: int, epochs: int) -> float:
    """The rate of an epoch (0-based): constant, dropped at each milestone (a share of the epochs), or half a cosine.

    In the first ``warmup`` epochs it is (epoch + 1) / (warmup + 1) of that.
    """
    rise = min(1.0, (epoch + 1) / (config.warmup + 1))
    if config.schedule == "cosine":
        return rise * float(config.rate * 0.5 * (1 + np.cos(np.pi * epoch / epochs)))
    if config.schedule == "steps":
        passed = sum(epoch >= share * epochs - 1e-9 for share in config.milestones)
        return rise * config.rate * config.drop**passed
    return rise * config.rate


def precision(recipe: Recipe, place: torch.device) -> AbstractContextManager[Any]:
    """Where losses are computed: as they are, or with matrix products and convolutions in bfloat16 (autocast)."""
    return torch.autocast(place.type, dtype=torch.bfloat16) if recipe.precision == "bfloat16" else nullcontext()


def forward_of(student: nn.Module, recipe: Recipe) -> nn.Module:
    """What objectives call: the student, or its compiled form, which shares its weights.

    Each batch shape is compiled on its own, so that a resumed training runs the same kernels.
    """
    return torch.compile(student, dynamic=False) if recipe.compile else student  # type: ignore[return-value]


def backward(objective: Objective, batch: Batch, recipe: Recipe) -> tuple[Terms, Tensor]:
    """Add the gradients of a batch's loss to the student's weights; its terms and the loss, detached.

    With ``accumulate`` the batch is gone through in so many parts, each weighted by its share of the rows: sums of
    values and of gradients are those of the whole batch where terms are means over samples and no layer mixes samples
    (batch normalisation takes each part's statistics).
    """
    terms: Terms = {}
    losses = []
    for part, share in _parts(batch, recipe.accumulate):
        with precision(recipe, batch.x.device):
            found = objective.terms(part)
        loss = total(found) * share if share < 1 else total(found)
        loss.backward()
        losses.append(loss.detach())
        for name, term in found.items():
            before = terms[name].value if name in terms else 0.0
            terms[name] = Term(term.weight, before + term.value.detach() * share)
    return terms, torch.stack(losses).sum()


def batches(order: Int[Tensor, " rows"], size: int) -> list[Int[Tensor, " some"]]:
    """Rows in batches; a last one of a single row, which batch normalisation cannot take, joins the one before."""
    parts = list(order.split(size))
    if len(parts) > 1 and size > 1 and len(parts[-1]) == 1:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def _parts(batch: Batch, count: int) -> Iterator[tuple[Batch, float]]:
    """A batch in ``count`` parts of (almost) the same size, two rows at least, with each one's share of the rows."""
    count = max(1, min(count, len(batch.y) // 2))
    if count == 1:
        yield batch, 1.0
        return
    rows = len(batch.y)
    for x, y in zip(batch.x.tensor_split(count), batch.y.tensor_split(count), strict=True):
        yield replace(batch, x=x, y=y), len(y) / rows


def rehearse(objective: Objective, batch: Batch, recipe: Recipe) -> None:
    """A step's losses and gradients on a copy of the student, so that what it cannot do is known before anything else.

    Args:
        batch: a few images; its generator and memory are used up, its student stays as it is.

    Raises:
        InputError: the objective needs second derivatives that the network has not, or torch fails in another way.
    """
    whole = recipe.model_copy(update={"accumulate": 1})
    try:
        copy = forward_of(deepcopy(batch.student).train(), recipe)
        backward(objective, replace(batch, student=copy), whole)
    except (RuntimeError, ValueError) as error:
        raise InputError(_failure(objective, one_line(error, None), recipe)) from error


def _failure(objective: Objective, why: str, recipe: Recipe) -> str:
    kind = objective.kind  # type: ignore[attr-defined]
    if not any(words in why for words in NO_SECOND_DERIVATIVE):
        return f"the objective {kind!r} does not run on this student: {why[:200]}"
    ways = ["compile: false"] if recipe.compile else []
    ways += (
        ["target: finite_difference with point: random and an eps, which needs no second derivative"]
        if hasattr(objective, "target")
        else []
    )
    return (
        f"the objective {kind!r} needs second derivatives, which this student does not have ({why[:160]}): "
        f"use {' or '.join(ways) or 'another objective'}"
    )


class Average:
    """Running averages of a student's weights and floating-point buffers; integer buffers are the last ones.

    ``ema``: after each step the average moves towards the weights by 1 - d, d = min(average_decay, (1 + n) / (10 + n))
    after n steps, so that a short training is not an average of its random start. ``swa``: the mean of the weights at
    the ends of epochs. Both begin with the epoch ``first``, that of ``average_from``.

    Sources: Polyak and Juditsky, 1992; Izmailov et al., arXiv 1803.05407.
    """

    def __init__(self, student: nn.Module, recipe: Recipe) -> None:
        share = recipe.average_from
        if share is None:
            share = 0.75 if recipe.average == "swa" else 0.0
        self.first = min(round(share * recipe.epochs), recipe.epochs - 1)
        self._by_step, self._decay = recipe.average == "ema", recipe.average_decay
        self.averaged = AveragedModel(student, avg_fn=self._moved, use_buffers=True)

    def _moved(self, old: Tensor, new: Tensor, count: Tensor | int) -> Tensor:
        """lerp leaves a constant buffer exactly as it is."""
        if not old.is_floating_point():
            return new
        done = torch.as_tensor(count, dtype=old.dtype, device=old.device)
        share = 1 - ((1 + done) / (10 + done)).clamp(max=self._decay) if self._by_step else 1 / (done + 1)
        return torch.lerp(old, new, share)

    def step(self, student: nn.Module, epoch: int) -> None:
        """One optimiser step was made."""
        if self._by_step and epoch >= self.first:
            self.averaged.update_parameters(student)

    def epoch(self, student: nn.Module, epoch: int) -> None:
        """One epoch (0-based) ended."""
        if not self._by_step and epoch >= self.first:
            self.averaged.update_parameters(student)

    def network(self, student: nn.Module, epoch: int) -> nn.Module:
        """What is measured and saved after an epoch: the average once it has begun."""
        return self.averaged.module if epoch >= self.first else student
