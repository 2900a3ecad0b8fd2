"""The training loop: batches, terms, selection on the validation split, checkpoints, resume."""

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certkd import checkpoint
from certkd.attacks import pgd
from certkd.config import OptimizerConfig, Recipe, SelectionConfig
from certkd.data import Split, TensorImages
from certkd.models import Classifier
from certkd.objectives import Objective
from certkd.objectives.base import Batch, Terms, total
from certkd.runlog import RunLog, TrainingReporter
from verifiers.errors import InputError
from verifiers.modes import eval_mode, suitable_threads
from verifiers.quantities import Epsilon
from verifiers.samples import chance_limit

RESUME = "resume.pt"
#: A network has collapsed when this share of the validation images gets one and the same class, or when it guesses.
CONSTANT_SHARE = 0.95
#: A student below this share of its teacher's clean accuracy is worth a warning: a large lambda_iga does that too.
FAR_BELOW = 0.8
#: Accuracy under noise is a mean over so many draws for each validation image: one draw selects early, worse epochs.
NOISE_DRAWS = 4


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
    seed: int = 0,
    device: str = "auto",
    out: Path | None = None,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    reporter: TrainingReporter | None = None,
) -> TrainingResult:
    """Train ``student`` by ``objective``; it ends with the weights of its best epoch, in eval mode.

    All randomness depends on (seed, epoch, step) alone, so a resumed training ends with the same weights as an
    uninterrupted one. The teacher is frozen and comes back bit for bit as it was.

    Args:
        student: from images in [0, 1] to logits.
        data: training images and labels, as a split or as two tensors.
        objective: one of ``certkd.objectives``.
        teacher: a network with the same classes, for objectives that need one.
        natural_teacher: a second one, accurate but not robust, for objectives that need two.
        validation: for the selection of the best epoch; a tenth of ``data``, cut by the seed, when None.
        recipe: optimiser, schedule, epochs, batch size, augmentation.
        selection: what "best" means.
        seed: of initial order, attacks, augmentation.
        device: "auto", "cpu" or "cuda".
        out: folder for ``best.pt``, ``last.pt``, ``log.jsonl`` and the resume state; nothing is written when None.
        resume: go on from the resume state in ``out``.
        about: what to store in the checkpoints besides the weights (``data``, ``teacher_sha256``, ``training``).
        reporter: told about progress.

    Raises:
        InputError: a missing teacher, another number of classes, a device that is absent, an occupied folder.
    """
    recipe, reporter = recipe or Recipe(), reporter or TrainingReporter()
    selection, metric = _selection(selection or SelectionConfig(), objective)
    place = choose_device(device)
    fit, held_out = _splits(data, validation, seed)
    if objective.needs_teacher and teacher is None:
        raise InputError(f"the objective {objective.kind!r} needs a teacher: give one")  # type: ignore[attr-defined]
    if out is not None and not resume and (out / RESUME).exists():
        raise InputError(f"{out} already holds a training: resume it, or give another folder")
    student.to(place)
    if teacher is not None:
        if {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}:
            raise InputError("teacher and student share weights: copy one of them first (copy.deepcopy)")
        teacher.to(place)
        _check_classes(student, teacher, fit, place)
    optimizer = _optimizer(student, recipe.optimizer)
    progress = _load_progress(out, student, optimizer) if resume else Progress()
    threads = suitable_threads(
        student if teacher is None else teacher,
        fit.batch(torch.zeros(1, dtype=torch.long), place)[0],
        recipe.batch_size,
    )
    with closing(RunLog(out, progress.history)) as log, torch.random.fork_rng(), _frozen(teacher), threads:
        reporter.start(recipe.epochs, progress.epoch, -(-len(fit) // recipe.batch_size))
        for epoch in range(progress.epoch, recipe.epochs):
            started = time.perf_counter()
            terms = _epoch(student, teacher, fit, objective, optimizer, recipe, seed, epoch, place, reporter)
            metrics = evaluate(student, held_out, selection, place, seed)
            record = {"epoch": epoch, **terms, "validation": metrics, "seconds": time.perf_counter() - started}
            _keep(progress, record, student, metric)
            if out is not None:
                _save_epoch(out, progress, student, optimizer, about or {})
            log.write(record)
            reporter.epoch(record)
    last = progress.history[-1]["validation"]
    collapsed = has_collapsed(last)
    if collapsed:
        reporter.warn(_collapse_message(last, objective))
    elif teacher is not None and last["clean"] < FAR_BELOW * (theirs := _clean_accuracy(teacher, held_out, place)):
        reporter.warn(f"clean accuracy {last['clean']:.1%} is far below the teacher's {theirs:.1%}{_hint(objective)}")
    student.load_state_dict(progress.best_state)
    student.eval()
    return TrainingResult(progress.history, progress.best_epoch, collapsed)


def _selection(selection: SelectionConfig, objective: Objective) -> tuple[SelectionConfig, str]:
    """The selection with a sigma where the objective trains under noise, and the metric that decides."""
    sigma = getattr(objective, "sigma", 0)
    metric = selection.metric or ("noisy" if sigma else "clean")
    return selection.model_copy(update={"sigma": selection.sigma or sigma or None}), metric


def _epoch(
    student: nn.Module,
    teacher: nn.Module | None,
    fit: Split,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    seed: int,
    epoch: int,
    place: torch.device,
    reporter: TrainingReporter,
) -> dict[str, Any]:
    """One pass over the training images; the mean of each term and the learning rate."""
    rate = learning_rate(recipe.optimizer, epoch, recipe.epochs)
    for group in optimizer.param_groups:
        group["lr"] = rate
    torch.manual_seed(_key(seed, epoch, 0))
    student.train()
    order = torch.randperm(len(fit), generator=_generator(seed, epoch, 1))
    sums: dict[str, Tensor] = {}
    for step, rows in enumerate(order.split(recipe.batch_size)):
        generator = _generator(seed, epoch, 2 + step)
        x, y = fit.batch(rows, place)
        if recipe.augment == "crop-flip":
            x = crop_and_flip(x, generator)
        terms = objective.terms(Batch(student, teacher, x, y, generator))
        loss = total(terms)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        _add(sums, terms, loss, len(rows))
        reporter.step()
    means = {name: float(value) / len(fit) for name, value in sums.items()}
    if not all(np.isfinite(value) for value in means.values()):
        raise InputError(f"the loss is not finite in epoch {epoch} ({means}): lower the learning rate or the weights")
    return {"terms": means, "rate": rate}


def _add(sums: dict[str, Tensor], terms: Terms, loss: Tensor, rows: int) -> None:
    values = {**{name: term.value for name, term in terms.items()}, "loss": loss}
    for name, value in values.items():
        sums[name] = sums.get(name, torch.zeros((), device=loss.device)) + value.detach() * rows


def learning_rate(config: OptimizerConfig, epoch: int, epochs: int) -> float:
    """The rate of an epoch (0-based): constant, dropped at each milestone (a share of the epochs), or half a cosine."""
    if config.schedule == "cosine":
        return float(config.rate * 0.5 * (1 + np.cos(np.pi * epoch / epochs)))
    if config.schedule == "steps":
        passed = sum(epoch >= round(share * epochs) for share in config.milestones)
        return config.rate * config.drop**passed
    return config.rate


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


def evaluate(
    model: nn.Module, split: Split, selection: SelectionConfig, place: torch.device, seed: int = 0, batch: int = 500
) -> dict[str, float]:
    """Clean accuracy, PGD accuracy (when selection has an eps), accuracy under Gaussian noise (when it has a sigma; the
    same noise each time), size of input gradients, share of the commonest class.
    """
    clean = attacked = noisy = gradient = 0.0
    predictions = []
    with eval_mode(model):
        for number, rows in enumerate(torch.arange(len(split)).split(batch)):
            x, y = split.batch(rows, place)
            x = x.requires_grad_(True)
            with torch.enable_grad():
                logits = model(x)
                loss = nn.functional.cross_entropy(logits, y, reduction="sum")
                (slope,) = torch.autograd.grad(loss, x)
            predicted = logits.argmax(1)
            predictions.append(predicted.cpu())
            clean += float((predicted == y).sum())
            gradient += float(slope.flatten(1).norm(dim=1).sum())
            if selection.eps is not None:
                attacked += _attacked_correct(model, x.detach(), y, selection, _generator(seed, number, 3))
            if selection.sigma is not None:
                noisy += _noisy_correct(model, x.detach(), y, selection.sigma, _generator(seed, number, 5))
    share = float(torch.cat(predictions).bincount().max()) / len(split)
    metrics = {"clean": clean / len(split), "gradient_norm": gradient / len(split), "constant_share": share}
    metrics["chance_limit"] = chance_limit(logits.shape[1], len(split)) if len(split) >= 20 else 0.0
    if selection.eps is not None:
        metrics["pgd"] = attacked / len(split)
    if selection.sigma is not None:
        metrics["noisy"] = noisy / len(split)
    return metrics


def has_collapsed(metrics: Mapping[str, float]) -> bool:
    """Whether a network that was measured by ``evaluate`` is (almost) a constant classifier."""
    constant = metrics["constant_share"] >= CONSTANT_SHARE > metrics["clean"]
    return constant or metrics["clean"] <= metrics["chance_limit"]


def _attacked_correct(
    model: nn.Module, x: Tensor, y: Tensor, selection: SelectionConfig, generator: torch.Generator
) -> float:
    assert selection.eps is not None
    eps = Epsilon.parse(selection.eps).value
    adversarial = pgd(model, x, y, eps=eps, norm=selection.norm, steps=selection.steps, generator=generator)
    with torch.no_grad():
        return float((model(adversarial).argmax(1) == y).sum())


def _noisy_correct(model: nn.Module, x: Tensor, y: Tensor, sigma: float, generator: torch.Generator) -> float:
    """The number of images classified correctly under noise, averaged over the draws."""
    batch = Batch(model, None, x, y, generator)
    with torch.no_grad():
        right = [float((model(batch.noisy(sigma)).argmax(1) == y).sum()) for _ in range(NOISE_DRAWS)]
    return sum(right) / NOISE_DRAWS


def _keep(progress: Progress, record: dict[str, Any], student: nn.Module, metric: str) -> None:
    """Remember the epoch's weights when it is the best so far; of equal ones, the one of higher PGD accuracy."""
    metrics = record["validation"]
    score = (metrics[metric], metrics.get("pgd", 0.0))
    progress.history.append(record)
    progress.epoch = record["epoch"] + 1
    if score > progress.best_score:
        progress.best_score, progress.best_epoch = score, record["epoch"]
        progress.best_state = {name: value.detach().cpu().clone() for name, value in student.state_dict().items()}


def _save_epoch(
    out: Path, progress: Progress, student: nn.Module, optimizer: torch.optim.Optimizer, about: Mapping[str, Any]
) -> None:
    """last.pt, best.pt when this epoch is the best, then the resume state: each whole or not at all.

    The resume state comes last: killed before it, a resumed training repeats the epoch and writes the same files.
    """
    names = ["last.pt"] + (["best.pt"] if progress.best_epoch == progress.epoch - 1 else [])
    for name in names:
        save_network(student, out / name, about, progress.history[-1]["validation"])
    state = {
        "progress": vars(progress),
        "student": student.state_dict(),
        "optimizer": optimizer.state_dict(),
        "about": json.dumps(about, sort_keys=True),
    }
    checkpoint.write_whole(out / RESUME, lambda path: torch.save(state, path))


def save_network(student: nn.Module, path: Path, about: Mapping[str, Any], metrics: Mapping[str, Any]) -> None:
    """A self-describing checkpoint of a ``Classifier``, bare weights of any other module."""
    if isinstance(student, Classifier):
        checkpoint.save(checkpoint.Checkpoint(student, **about, metrics=metrics), path)
    else:
        state = {name: value.detach().cpu() for name, value in student.state_dict().items()}
        checkpoint.write_whole(path, lambda temporary: torch.save(state, temporary))


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
        return {key: state[key] for key in ("progress", "student", "optimizer", "about")}
    except Exception as error:
        raise InputError(f"{path} is damaged ({type(error).__name__}): delete it to start again") from error


def _load_progress(out: Path | None, student: nn.Module, optimizer: torch.optim.Optimizer) -> Progress:
    state = resume_state(out) if out is not None else None
    if state is None:
        raise InputError(f"nothing to resume: {out} holds no {RESUME}")
    try:
        student.load_state_dict(state["student"])
        optimizer.load_state_dict(state["optimizer"])
    except (RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:160]
        raise InputError(f"{out}/{RESUME} belongs to another network or optimizer: {why}") from None
    return Progress(**state["progress"])


def _splits(
    data: Split | tuple[Tensor, Tensor], validation: Split | tuple[Tensor, Tensor] | None, seed: int
) -> tuple[Split, Split]:
    whole = _as_split(data)
    if validation is not None:
        return whole, _as_split(validation)
    order = torch.randperm(len(whole), generator=_generator(seed, 0, 4))
    held_out = max(1, len(whole) // 10)
    return whole.take(order[held_out:]), whole.take(order[:held_out])


def _as_split(data: Split | tuple[Tensor, Tensor]) -> Split:
    if isinstance(data, Split):
        return data
    images, labels = data
    if len(images) != len(labels):
        raise InputError(f"need as many images as labels: got {len(images)} and {len(labels)}")
    return Split(TensorImages(images), labels.long(), torch.arange(len(labels)))


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU when there is one.

    Raises:
        InputError: unknown, or not in this machine.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise InputError(f"unknown device {name!r}: use auto, cpu or cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {name!r} was asked for, but this machine has no CUDA device: use --device cpu")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device {name!r}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


def _optimizer(student: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    if config.kind == "adam":
        return torch.optim.Adam(parameters, lr=config.rate, weight_decay=config.weight_decay)
    return torch.optim.SGD(parameters, lr=config.rate, momentum=0.9, nesterov=True, weight_decay=config.weight_decay)


def _check_classes(student: nn.Module, teacher: nn.Module, fit: Split, place: torch.device) -> None:
    x, _ = fit.batch(torch.zeros(1, dtype=torch.long), place)
    with torch.no_grad(), eval_mode(student), eval_mode(teacher):
        ours, theirs = student(x).shape[1], teacher(x).shape[1]
    if ours != theirs:
        raise InputError(f"the teacher has {theirs} classes, the student {ours}: they must have the same")


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


def _collapse_message(metrics: Mapping[str, float], objective: Objective) -> str:
    return (
        f"the student collapsed: one class for {metrics['constant_share']:.0%} of the validation images, "
        f"clean accuracy {metrics['clean']:.1%}, mean input gradient {metrics['gradient_norm']:.2g}{_hint(objective)}"
    )


def _hint(objective: Objective) -> str:
    weight = getattr(objective, "lambda_iga", 0)
    return f": lambda_iga {weight} is too large from these weights; lower it" if weight else ": lower the learning rate"


def _clean_accuracy(model: nn.Module, split: Split, place: torch.device) -> float:
    return evaluate(model, split, SelectionConfig(), place)["clean"]


def _key(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _generator(*parts: int) -> torch.Generator:
    return torch.Generator().manual_seed(_key(*parts))
