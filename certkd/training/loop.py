"""The training loop: batches, selection on the validation split, checkpoints, resume."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn

from certkd import files
from certkd.config.settings import Recipe, SelectionConfig
from certkd.data.sources import Split
from certkd.networks import checkpoint
from certkd.networks.builders import Classifier
from certkd.objectives import Objective
from certkd.objectives.base import Batch, Terms
from certkd.reporter import TrainingReporter
from certkd.training.checks import as_split, check_settings, check_student, check_teacher
from certkd.training.evaluation import evaluate, has_collapsed, key, keyed_generator
from certkd.training.log import RunLog
from certkd.training.monitor import Threat, alarms, diagnostics, warnings
from certkd.training.step import Average, backward, batches, forward_of, learning_rate, optimizer_of, rehearse
from verifiers.core.errors import InputError, one_line
from verifiers.runtime.device import choose_device
from verifiers.runtime.modes import eval_mode, suitable_threads

RESUME = "resume.pt"


@dataclass
class Progress:
    """Everything a resumed training needs besides the networks; plain values."""

    epoch: int = 0
    best_epoch: int = -1
    best_score: tuple[float, float] = (-1.0, -1.0)
    history: list[dict[str, Any]] = field(default_factory=list)
    best_state: dict[str, Tensor] = field(default_factory=dict)
    memory: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TrainingResult:
    """What a training ended with. The student holds the weights of the best epoch.

    Attributes:
        history: one record per epoch: mean of each term, learning rate, validation metrics, seconds.
        best_epoch: 0-based epoch of the highest validation score.
        collapsed: the last epoch's student gives (almost) every validation image the same class.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    collapsed: bool

    @property
    def best(self) -> dict[str, Any]:
        """Validation metrics of the best epoch."""
        return dict(self.history[self.best_epoch]["validation"])


@dataclass(frozen=True)
class _Run:
    """What every epoch of a training works with; ``forward`` is the student, or its compiled form."""

    student: nn.Module
    forward: nn.Module
    teacher: nn.Module | None
    natural_teacher: nn.Module | None
    fit: Split
    held_out: Split
    selection: SelectionConfig
    metric: str
    threat: Threat | None
    objective: Objective
    optimizer: torch.optim.Optimizer
    average: Average | None
    recipe: Recipe
    seed: int
    place: torch.device
    reporter: TrainingReporter

    def shown(self, epoch: int) -> nn.Module:
        """The network that is measured and saved after an epoch."""
        return self.student if self.average is None else self.average.network(self.student, epoch)

    @property
    def steps(self) -> int:
        """Optimiser steps in an epoch."""
        return len(batches(torch.arange(len(self.fit)), self.recipe.batch_size))


def train(
    student: nn.Module,
    data: Split | tuple[Tensor, Tensor],
    objective: Objective,
    *,
    teacher: nn.Module | None = None,
    natural_teacher: nn.Module | None = None,
    validation: Split | tuple[Tensor, Tensor] | None = None,
    recipe: Recipe | None = None,
    selection: SelectionConfig | None = None,
    threat: Threat | None = None,
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
    begin: Callable[[], None] | None = None,
    about: Mapping[str, Any] | None = None,
    reporter: TrainingReporter | None = None,
) -> TrainingResult:
    """Train ``student`` by ``objective``; it ends with the weights of its best epoch, in eval mode.

    All randomness depends on (seed, epoch, step) alone, so a resumed training ends with the same weights as an
    uninterrupted one. Teachers are frozen and come back bit for bit as they were. A step on a copy of the student comes
    first, so that an objective that does not run on it is refused before anything is written.

    Args:
        student: from images in [0, 1] to logits.
        data: training images and labels, as a split or as two tensors.
        objective: one of ``certkd.objectives``.
        teacher: a network with the same classes, for objectives that need one.
        natural_teacher: a second one, accurate but not robust, for objectives that need two.
        validation: for the selection of the best epoch; a tenth of ``data``, cut by the seed, when None.
        recipe: optimiser, schedule, epochs, batch size, augmentation, precision, averaging.
        selection: what "best" means.
        threat: the ball in which diagnostics attack where neither selection nor objective has an eps.
        seed: of initial order, attacks, augmentation.
        device: "auto", "cpu" or "cuda".
        out: folder for ``best.pt``, ``last.pt``, ``log.jsonl`` and the resume state; nothing is written when None.
        resume: go on from the resume state in ``out``.
        begin: called when all checks have passed, before the first write; it may clear ``out``, which may be occupied.
        about: what to store in the checkpoints besides the weights (``data``, ``teacher_sha256``, ``training``).
        reporter: told about progress.

    Raises:
        InputError: images outside [0, 1], labels of other classes, a missing teacher, one of other classes or images, a
            device that is absent, an occupied folder, a network that the objective does not run on (one without second
            derivatives, for example).
    """
    recipe, reporter = recipe or Recipe(), reporter or TrainingReporter()
    selection, metric = _selection(selection or SelectionConfig(), objective)
    place = choose_device(device)
    fit, held_out = _splits(data, validation, seed)
    check_settings(objective, recipe, teacher, natural_teacher)
    if out is not None and not resume and begin is None and (out / RESUME).exists():
        raise InputError(f"{out} already holds a training: resume it, or give another folder")
    classes = check_student(student.to(place), (fit, held_out), place)
    for role, other in (("teacher", teacher), ("natural teacher", natural_teacher)):
        if other is not None:
            check_teacher(student, other.to(place), role, classes, fit, place, reporter)
    run = _Run(
        student=student,
        forward=forward_of(student, recipe),
        teacher=teacher,
        natural_teacher=natural_teacher,
        fit=fit,
        held_out=held_out,
        selection=selection,
        metric=metric,
        threat=Threat.of_selection(selection) or Threat.of_objective(objective.model_dump()) or threat,
        objective=objective,
        optimizer=optimizer_of(student, recipe.optimizer),
        average=Average(student, recipe) if recipe.average != "none" else None,
        recipe=recipe,
        seed=seed,
        place=place,
        reporter=reporter,
    )
    progress = _load_progress(out, run) if resume else Progress()
    with torch.random.fork_rng(), _frozen(teacher), _frozen(natural_teacher), _settings(run):
        if not resume:
            _rehearse(run)
        if begin is not None:
            begin()
        with closing(RunLog(out, progress.history)) as log:
            reporter.start(recipe.epochs, progress.epoch, run.steps)
            for epoch in range(progress.epoch, recipe.epochs):
                record = _measured_epoch(run, epoch, progress)
                if out is not None:
                    _save_epoch(out, progress, run, about or {})
                log.write(record)
                reporter.epoch(record)
                if epoch + 1 < recipe.epochs:
                    _tell(reporter, alarms(progress.history, objective))
    last = progress.history[-1]["validation"]
    collapsed = has_collapsed(last)
    _tell(reporter, warnings(last, objective, teacher, held_out, place))
    student.load_state_dict(progress.best_state)
    student.eval()
    return TrainingResult(progress.history, progress.best_epoch, collapsed)


def _tell(reporter: TrainingReporter, texts: Iterator[str]) -> None:
    for text in texts:
        reporter.warn(text)


def _selection(selection: SelectionConfig, objective: Objective) -> tuple[SelectionConfig, str]:
    """The selection with a sigma where the objective trains under noise, and the metric that decides."""
    sigma = getattr(objective, "sigma", 0)
    metric = selection.metric or ("noisy" if sigma else "clean")
    return selection.model_copy(update={"sigma": selection.sigma or sigma or None}), metric


def _measured_epoch(run: _Run, epoch: int, progress: Progress) -> dict[str, Any]:
    """Train for an epoch, measure the network, and remember it when it is the best so far; the record of the epoch."""
    started = time.perf_counter()
    if run.average is not None and epoch == run.average.first:
        progress.best_score = (-1.0, -1.0)  # the best of the averages counts, not of what came before
    terms, shown = _epoch(run, epoch, progress.memory), run.shown(epoch)
    metrics = evaluate(shown, run.held_out, run.selection, run.place, run.seed)
    metrics |= diagnostics(shown, run.teacher, run.held_out, run.threat, run.place, run.seed)
    record = {"epoch": epoch, **terms, "validation": metrics, "seconds": time.perf_counter() - started}
    _keep(progress, record, shown, run.metric)
    return record


def _epoch(run: _Run, epoch: int, memory: dict[str, float]) -> dict[str, Any]:
    """One pass over the training images; the mean of each term and the learning rate."""
    recipe, seed = run.recipe, run.seed
    rate = learning_rate(recipe.optimizer, epoch, recipe.epochs)
    for group in run.optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed(key(seed, epoch, 0))
    run.student.train()
    order = torch.randperm(len(run.fit), generator=keyed_generator(seed, epoch, 1))
    sums: dict[str, Tensor] = {}
    parts = batches(order, recipe.batch_size)
    for step, rows in enumerate(parts):
        done = (epoch * len(parts) + step + 1) / (recipe.epochs * len(parts))
        batch = _batch(run, rows, keyed_generator(seed, epoch, 2 + step), done, memory)
        run.optimizer.zero_grad(set_to_none=True)
        terms, loss = backward(run.objective, batch, recipe)
        run.optimizer.step()
        if run.average is not None:
            run.average.step(run.student, epoch)
        _add(sums, terms, loss, len(rows))
        run.reporter.step()
    if run.average is not None:
        run.average.epoch(run.student, epoch)
    means = {name: float(value) / len(run.fit) for name, value in sums.items()}
    if not all(np.isfinite(value) for value in means.values()):
        raise InputError(f"the loss is not finite in epoch {epoch} ({means}): lower the learning rate or the weights")
    return {"terms": means, "rate": rate}


def _batch(
    run: _Run, rows: Int[Tensor, " batch"], generator: torch.Generator, progress: float, memory: dict[str, float]
) -> Batch:
    """Some training images, augmented, with all that an objective may ask for."""
    x, y = run.fit.batch(rows, run.place)
    if run.recipe.augment == "crop-flip":
        x = crop_and_flip(x, generator)
    if run.recipe.channels_last and x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    return Batch(run.forward, run.teacher, x, y, generator, progress, run.natural_teacher, memory)


def _rehearse(run: _Run) -> None:
    """The first and the last step on a copy of the student with the first images: some terms come, others go.

    Raises:
        InputError: as ``rehearse``.
    """
    rows = torch.arange(max(2, min(4, len(run.fit)))) % len(run.fit)
    for progress in (1 / (run.recipe.epochs * run.steps), 1.0):
        batch = _batch(run, rows, keyed_generator(run.seed, 0, 6), progress, {})
        rehearse(run.objective, replace(batch, student=run.student), run.recipe)


def _add(sums: dict[str, Tensor], terms: Terms, loss: Tensor, rows: int) -> None:
    values = {**{name: term.value for name, term in terms.items()}, "loss": loss}
    for name, value in values.items():
        sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + value.detach() * rows


def crop_and_flip(x: Tensor, generator: torch.Generator, padding: int = 4) -> Tensor:
    """The usual CIFAR augmentation: zero padding, a random crop of the old size, a random mirror image, per sample."""
    count, _, height, width = x.shape
    padded = nn.functional.pad(x, [padding] * 4)
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    rows = (tops[:, None] + torch.arange(height)).to(x.device)
    columns = (lefts[:, None] + torch.arange(width)).to(x.device)
    sample = torch.arange(count, device=x.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(x.device)[:, None, None, None]
    return torch.where(mirrored, cropped.flip(3), cropped)


def _keep(progress: Progress, record: dict[str, Any], student: nn.Module, metric: str) -> None:
    """Remember the epoch's weights when it is the best so far; of equal ones, the one of higher PGD accuracy."""
    metrics = record["validation"]
    score = (metrics[metric], metrics.get("pgd", 0.0))
    progress.history.append(record)
    progress.epoch = record["epoch"] + 1
    if score > progress.best_score:
        progress.best_score, progress.best_epoch = score, record["epoch"]
        progress.best_state = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}


def _save_epoch(out: Path, progress: Progress, run: _Run, about: Mapping[str, Any]) -> None:
    """last.pt, best.pt when this epoch is the best, then the resume state: each whole or not at all.

    The resume state comes last: killed before it, a resumed training repeats the epoch and writes the same files.
    """
    names = ["last.pt"] + (["best.pt"] if progress.best_epoch == progress.epoch - 1 else [])
    for name in names:
        save_network(run.shown(progress.epoch - 1), out / name, about, progress.history[-1]["validation"])
    state = {
        "progress": vars(progress),
        "student": run.student.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "average": run.average.averaged.state_dict() if run.average is not None else {},
        "about": json.dumps(about, sort_keys=True),
    }
    files.write_whole(out / RESUME, lambda path: torch.save(state, path))


def save_network(student: nn.Module, path: Path, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """A self-describing checkpoint of a ``Classifier``, bare weights of any other module."""
    if isinstance(student, Classifier):
        checkpoint.save(checkpoint.Checkpoint(student, **about, metrics=metrics), path)
    else:
        state = {name: value.detach().cpu() for name, value in student.state_dict().items()}
        files.write_whole(path, lambda temporary: torch.save(state, temporary))


def resume_state(out: Path) -> dict[str, Any] | None:
    """The resume state of a training folder; None when it has none.

    Raises:
        InputError: the state is damaged.
    """
    path = out / RESUME
    if not path.exists():
        return None
    try:
        state = dict(torch.load(path, map_location="cpu", weights_only=True))
        return {part: state[part] for part in ("progress", "student", "optimizer", "average", "about")}
    except Exception as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): delete it to start again") from error


def _load_progress(out: Path | None, run: _Run) -> Progress:
    state = resume_state(out) if out is not None else None
    if state is None:
        raise InputError(f"nothing to resume: {out} holds no {RESUME}")
    try:
        run.student.load_state_dict(state["student"])
        run.optimizer.load_state_dict(state["optimizer"])
        if run.average is not None:
            run.average.averaged.load_state_dict(state["average"])
    except (RuntimeError, ValueError) as error:
        why = one_line(error)
        raise InputError(f"{out}/{RESUME} belongs to another network or optimizer: {why}") from None
    return Progress(**state["progress"])


def _splits(
    data: Split | tuple[Tensor, Tensor], validation: Split | tuple[Tensor, Tensor] | None, seed: int
) -> tuple[Split, Split]:
    whole = as_split(data)
    if validation is not None:
        return whole, as_split(validation)
    order = torch.randperm(len(whole), generator=keyed_generator(seed, 0, 4))
    held_out = max(1, len(whole) // 10)
    return whole.take(order[held_out:]), whole.take(order[:held_out])


@contextmanager
def _settings(run: _Run) -> Iterator[None]:
    """The threads that suit the network, and the memory layout that the recipe asks for; afterwards as it was."""
    sample, _ = run.fit.batch(torch.zeros(1, dtype=torch.long), run.place)
    with suitable_threads(run.teacher or run.student, sample, run.recipe.batch_size):
        if run.recipe.channels_last:
            run.student.to(memory_format=torch.channels_last)
        try:
            yield
        finally:
            if run.recipe.channels_last:
                run.student.to(memory_format=torch.contiguous_format)


@contextmanager
def _frozen(teacher: nn.Module | None) -> Iterator[None]:
    """The teacher in eval mode without parameter gradients, and afterwards as it was."""
    if teacher is None:
        yield
        return
    before = [(parameter, parameter.requires_grad) for parameter in teacher.parameters()]
    with eval_mode(teacher):
        teacher.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, requires_grad in before:
                parameter.requires_grad_(requires_grad)
