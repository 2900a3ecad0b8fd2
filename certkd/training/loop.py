"""Train a student: epochs of steps, selection on the validation split, checkpoints."""

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certkd.config.settings import TrainConfig
from certkd.data.keys import key, keyed_generator
from certkd.data.loading import Batches, loaded
from certkd.objectives.base import Terms
from certkd.reporter import TrainingReporter
from certkd.training.checks import check_types
from certkd.training.evaluation import evaluate, has_collapsed
from certkd.training.log import RunLog
from certkd.training.monitor import alarms, diagnostics, warnings
from certkd.training.optimizer import rate_of
from certkd.training.ranks import Ranks
from certkd.training.resume import Progress, TrainingFolder, load_progress, save_epoch
from certkd.training.run import Run, Teachers, TrainingData
from certkd.training.setup import prepare, ready
from certkd.training.step import backward, batch_of, batches
from certkd.training.trial import try_training
from verifiers.core.errors import InputError
from verifiers.runtime.fingerprint import weights_sha256

#: Diagnostics run every this many epochs, and after the last one.
DIAGNOSED_EVERY = 10


@dataclass(frozen=True)
class TrainingResult:
    """The result of a training. The student has the weights of the best epoch.

    Attributes:
        history: one record per epoch: mean of each term, learning rate, validation metrics, seconds.
        best_epoch: 0-based epoch of the highest validation score.
        collapsed: after the last epoch, the student gives (almost) every validation image the same class.
    """

    history: list[dict[str, Any]]
    best_epoch: int
    collapsed: bool

    @property
    def best(self) -> dict[str, Any]:
        """Validation metrics of the best epoch."""
        return dict(self.history[self.best_epoch]["validation"])


def train(
    student: nn.Module,
    data: TrainingData,
    config: TrainConfig,
    *,
    teacher: nn.Module | Teachers | None = None,
    out: str | Path | TrainingFolder | None = None,
    reporter: TrainingReporter | None = None,
) -> TrainingResult:
    """Train ``student``; it ends with the weights of its best epoch, in eval mode.

    All randomness depends on (seed, epoch, step) alone, so a resumed training ends with the same weights as an
    uninterrupted one. Teachers are frozen, and restored bit for bit. The objective is first tried on a copy of the
    student, so that an objective that fails on it is rejected before anything is written.

    Example:
        >>> config = certkd.TrainConfig(objective=certkd.Kdiga(lambda_iga=0.3), epochs=30)
        >>> certkd.train(student, (images, labels), config, teacher=teacher).best["clean"]

    Args:
        student: maps images in [0, 1] to logits.
        data: training images and labels, of which a tenth is held out for selecting the best epoch; or the splits
            "train" and "validation" by name. Each is a pair of tensors, arrays or lists, a torch ``Dataset`` or a
            ``DataLoader``; pixels are bytes or in [0, 1].
        config: objective, optimiser, epochs, selection, seed, device.
        teacher: a network with the same classes, for objectives that need one; ``Teachers`` for those that need two.
        out: folder for ``best.pt``, ``last.pt``, ``log.jsonl`` and the resume state; nothing is written when None.
            ``TrainingFolder(path, resume=True)`` continues a training.
        reporter: called at every step and epoch.

    Raises:
        InputError: images are outside [0, 1], labels are of other classes, a teacher is missing or has other classes or
            images, the device is absent, the folder is occupied, or the objective does not run on the network (for
            example, because it has no second derivatives).
    """
    ranks = Ranks.of_environment()
    reporter = reporter if reporter is not None and ranks.first else TrainingReporter()
    folder = out if isinstance(out, TrainingFolder) or out is None else TrainingFolder(Path(out))
    if folder is not None:
        folder.check()
    teachers = teacher if isinstance(teacher, Teachers) else Teachers(teacher)
    check_types(student, config, teachers)
    run = prepare(student, data, config, teachers, reporter, ranks)
    progress = load_progress(folder, run)
    with ready(run), ranks.joined(run.place):
        ranks.check_same(f"{progress.epoch} {weights_sha256(run.student)}", "the network they begin with", run.place)
        if not (folder is not None and folder.resume):
            try_training(run)
        ranks.wait()
        folder = folder if ranks.first else None
        if folder is not None and folder.begin is not None:
            folder.begin()
        _epochs(run, progress, folder)
    last = progress.history[-1]["validation"]
    _warn(reporter, warnings(last, run.objective, teachers.robust, run.held_out, run.place))
    student.load_state_dict(progress.best_state)
    student.eval()
    return TrainingResult(progress.history, progress.best_epoch, has_collapsed(last))


def _epochs(run: Run, progress: Progress, folder: TrainingFolder | None) -> None:
    """Train until the last epoch; log and save each epoch."""
    epochs = run.config.epochs
    with closing(RunLog(None if folder is None else folder.path, progress.history)) as log:
        steps = len(batches(torch.arange(len(run.fit)), run.config.batch_size))
        run.reporter.start(epochs, progress.epoch, steps)
        for epoch in range(progress.epoch, epochs):
            record = _measured_epoch(run, epoch, progress)
            if folder is not None:
                save_epoch(folder, progress, run)
            log.write(record)
            run.reporter.epoch(record)
            if epoch + 1 < epochs:
                _warn(run.reporter, alarms(progress.history, run.objective))


def _warn(reporter: TrainingReporter, texts: Iterator[str]) -> None:
    for text in texts:
        reporter.warn(text)


def _measured_epoch(run: Run, epoch: int, progress: Progress) -> dict[str, Any]:
    """Train for an epoch, measure the network, and keep it if it is the best so far; return the epoch's record."""
    started = time.perf_counter()
    if run.average is not None and epoch == run.average.first:
        progress.best_score = (-1.0, -1.0)  # only averages compete for the best epoch from here on
    terms, shown = _epoch(run, epoch, progress.memory), run.shown(epoch)
    metrics = evaluate(shown, run.held_out, run.selection, run.place, run.config.seed)
    if (epoch + 1) % DIAGNOSED_EVERY == 0 or epoch + 1 == run.config.epochs:
        teacher, seed = run.teachers.robust, run.config.seed
        metrics |= diagnostics(shown, teacher, run.held_out, run.threat, run.place, seed)
    record = {"epoch": epoch, **terms, "validation": metrics, "seconds": time.perf_counter() - started}
    progress.keep(record, shown, run.metric)
    return record


def _epoch(run: Run, epoch: int, memory: dict[str, float]) -> dict[str, Any]:
    """Pass once over the training images; return the mean of each term and the learning rate."""
    config, seed = run.config, run.config.seed
    torch.manual_seed(key(seed, epoch, 0) + run.ranks.rank)
    run.student.train()
    order = torch.randperm(len(run.fit), generator=keyed_generator(seed, epoch, 1))
    sums: dict[str, Tensor] = {}
    parts = batches(order, config.batch_size)
    ahead = Batches(run.fit, parts, config.augment, seed, epoch)
    for step, (rows, x, y) in enumerate(loaded(ahead, config.loaders, run.place)):
        number = epoch * len(parts) + step
        done = (number + 1) / (config.epochs * len(parts))
        batch = batch_of(run, (x, y), keyed_generator(seed, epoch, 2 + step), done, memory)
        run.optimizer.zero_grad()
        terms, loss = backward(run.objective, batch, config, run.ranks)
        run.schedule.step_update(number)
        run.optimizer.step()
        run.ranks.average_buffers(run.student)
        run.masks.keep()
        if run.average is not None:
            run.average.step(run.student, epoch)
        _add(sums, terms, loss, len(rows))
        run.reporter.step()
    if run.average is not None:
        run.average.epoch(run.student, epoch)
    means = {name: float(value) / len(run.fit) for name, value in sums.items()}
    if not all(np.isfinite(value) for value in means.values()):
        raise InputError(f"the loss is not finite in epoch {epoch} ({means}): lower the learning rate or the weights")
    return {"terms": means, "rate": rate_of(run.optimizer)}


def _add(sums: dict[str, Tensor], terms: Terms, loss: Tensor, rows: int) -> None:
    values = {**{name: term.value for name, term in terms.items()}, "loss": loss}
    for name, value in values.items():
        sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + value.detach() * rows
