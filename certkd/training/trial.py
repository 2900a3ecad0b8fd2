"""Try an objective on a copy of the student, so that failures show before anything is written."""

from copy import deepcopy
from dataclasses import replace

import torch

from certkd.config.settings import Recipe
from certkd.data.keys import keyed_generator
from certkd.objectives import Objective
from certkd.objectives.base import Batch
from certkd.training.run import Run
from certkd.training.step import backward, batch_of, batches, forward_of
from verifiers.core.errors import InputError, one_line

#: Parts of torch's messages when it cannot differentiate a network's gradient.
NO_SECOND_DERIVATIVE = ("derivative for", "double backward", "once_differentiable", "differentiate twice")


def try_training(run: Run) -> None:
    """Try the first and the last step on the first images: terms may appear or disappear in between.

    Raises:
        InputError: the objective needs second derivatives that the network does not have, or torch fails otherwise.
    """
    count = len(run.fit)
    rows = torch.arange(max(2, min(4, count))) % count
    steps = len(batches(torch.arange(count), run.config.batch_size))
    for progress in (1 / (run.config.epochs * steps), 1.0):
        batch = batch_of(run, run.fit.batch(rows, run.place), keyed_generator(run.config.seed, 0, 6), progress, {})
        try_step(run.objective, replace(batch, student=run.student), run.config)


def try_step(objective: Objective, batch: Batch, recipe: Recipe) -> None:
    """Try a step on a copy of the batch's student, which does not change.

    Raises:
        InputError: as for ``try_training``.
    """
    whole = recipe.model_copy(update={"accumulate": 1})
    try:
        copy = forward_of(deepcopy(batch.student).train(), recipe)
        backward(objective, replace(batch, student=copy), whole)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        raise InputError(_failure(objective, one_line(error, None), recipe)) from error


def _failure(objective: Objective, why: str, recipe: Recipe) -> str:
    kind = objective.kind
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
