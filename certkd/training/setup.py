"""Check the inputs of a training, and prepare its networks."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from certkd.config.settings import SelectionConfig, TrainConfig
from certkd.data.keys import keyed_generator
from certkd.data.loading import check_augmentation
from certkd.data.splits import Split
from certkd.networks.copies.masks import Masks
from certkd.networks.copies.rounded import computing_in_int8
from certkd.objectives import Objective
from certkd.reporter import TrainingReporter
from certkd.training.average import Average
from certkd.training.checks import as_split, check_settings, check_student, check_teacher, teacher_disagrees
from certkd.training.monitor import threat_of
from certkd.training.optimizer import optimizer_of, schedule_of
from certkd.training.ranks import Ranks
from certkd.training.run import Run, Teachers, TrainingData
from certkd.training.step import batches, forward_of
from verifiers.core.errors import InputError
from verifiers.runtime.device import choose_device
from verifiers.runtime.modes import eval_mode, suitable_threads


def prepare(
    student: nn.Module,
    data: TrainingData,
    config: TrainConfig,
    teachers: Teachers,
    reporter: TrainingReporter,
    ranks: Ranks,
) -> Run:
    """Check all inputs of a training, and move the networks to its device.

    Raises:
        InputError: as for ``train``.
    """
    selection, metric = _selection(config.selection, config.objective)
    place = ranks.place(choose_device(config.device))
    fit, held_out = _splits(data, config.seed)
    check_settings(config, teachers, ranks)
    classes = check_student(student.to(place), (fit, held_out), place)
    check_augmentation(config.augment, fit.images[torch.tensor([0])].shape[1:])
    for role, teacher in (("teacher", teachers.robust), ("natural teacher", teachers.natural)):
        if teacher is not None:
            probabilities = check_teacher(student, teacher.to(place), role, classes, fit)
            if probabilities:
                reporter.warn(f"the {role} gives probabilities rather than logits: leave out its softmax")
            chance = teacher_disagrees(teacher, classes, held_out, place)
            if chance is not None:
                reporter.warn(f"the {role}'s clean accuracy {chance}")
    optimizer = optimizer_of(student, config.optimizer)
    steps = len(batches(torch.arange(len(fit)), config.batch_size))
    return Run(
        student=student,
        forward=forward_of(student, config),
        teachers=teachers,
        fit=fit,
        held_out=held_out,
        config=config,
        selection=selection,
        metric=metric,
        threat=threat_of(config),
        optimizer=optimizer,
        schedule=schedule_of(optimizer, config.optimizer, config.epochs, steps),
        average=Average(student, config) if config.average != "none" else None,
        masks=Masks(student),
        place=place,
        ranks=ranks,
        reporter=reporter,
    )


def _selection(selection: SelectionConfig, objective: Objective) -> tuple[SelectionConfig, str]:
    """Return the selection, with a sigma if the objective trains under noise, and the deciding metric."""
    sigma = getattr(objective, "sigma", 0)
    metric = selection.metric or ("noisy" if sigma else "clean")
    return selection.model_copy(update={"sigma": selection.sigma or sigma or None}), metric


def _splits(data: TrainingData, seed: int) -> tuple[Split, Split]:
    """Return images for training and for selecting the best epoch: a tenth, cut by the seed, unless both are given."""
    if isinstance(data, Mapping):
        missing = [name for name in ("train", "validation") if name not in data]
        if missing:
            raise InputError(f"the data has no split {missing[0]!r}, only {', '.join(data) or 'none'}")
        return as_split(data["train"]), as_split(data["validation"])
    whole = as_split(data)
    order = torch.randperm(len(whole), generator=keyed_generator(seed, 0, 4))
    held_out = max(1, len(whole) // 10)
    return whole.take(order[held_out:]), whole.take(order[:held_out])


@contextmanager
def ready(run: Run) -> Iterator[None]:
    """Freeze the teachers, set threads, memory layout and rounding, and keep torch's random state; undo all of it."""
    sample, _ = run.fit.batch(torch.zeros(1, dtype=torch.long), run.place)
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng())
        for teacher in (run.teachers.robust, run.teachers.natural):
            if teacher is not None:
                stack.enter_context(_frozen(teacher))
        stack.enter_context(suitable_threads(run.teachers.robust or run.student, sample, run.config.batch_size))
        if run.config.quantize == "int8":
            stack.enter_context(computing_in_int8(run.student, *([run.average.averaged] if run.average else [])))
        if run.config.channels_last:
            run.student.to(memory_format=torch.channels_last)
            stack.callback(run.student.to, memory_format=torch.contiguous_format)
        yield


@contextmanager
def _frozen(teacher: nn.Module) -> Iterator[None]:
    """Put a teacher into eval mode without parameter gradients, and restore it afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in teacher.parameters()]
    with eval_mode(teacher):
        teacher.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, requires_grad in before:
                parameter.requires_grad_(requires_grad)
