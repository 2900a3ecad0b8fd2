"""Reject data, networks and settings that do not fit, before a training begins."""

from typing import Any

import torch
from torch import Tensor, nn

from certkd.config.settings import TrainConfig
from certkd.data.splits import Split, TensorImages
from certkd.training.ranks import Ranks
from certkd.training.run import Teachers
from verifiers.core.errors import InputError, one_line
from verifiers.runtime.arrays import channels_last
from verifiers.runtime.classes import disagreement, out_of_range
from verifiers.runtime.given import labelled
from verifiers.runtime.modes import eval_mode
from verifiers.runtime.outputs import rows_of
from verifiers.runtime.samples import check_dtype, check_pixels, device_of

#: Only the first images of a split are checked: they need not all be in memory.
FIRST = 64
#: Images on which a teacher's accuracy is measured, and how many at a time.
MEASURED, BATCH = 1000, 250


def check_types(student: object, config: object, teachers: Teachers) -> None:
    """Refuse what is no network and no configuration.

    Raises:
        InputError: it names the argument and its type.
    """
    networks = {"student": student, "teacher": teachers.robust, "natural teacher": teachers.natural}
    for name, given in networks.items():
        if not isinstance(given, nn.Module) and not (given is None and name != "student"):
            raise InputError(
                f"the {name} must be a torch.nn.Module, got {type(given).__name__}: "
                "certkd.load_checkpoint(path).model is the network of a file"
            )
    if not isinstance(config, TrainConfig):
        raise InputError(
            f"config must be a TrainConfig, got {type(config).__name__}: write TrainConfig(objective=certkd.Kdiga())"
        )


def as_split(data: Any) -> Split:
    """Make a split of a pair of images and labels, a torch data set or a loader; a split is returned unchanged.

    Raises:
        InputError: there are no images, the numbers of images and labels differ, or their types are wrong.
    """
    if isinstance(data, Split):
        return data
    images, labels = labelled(data, random=True)
    if isinstance(images, Tensor):
        check_pixels(images)
    return Split(TensorImages(images) if isinstance(images, Tensor) else images, labels, torch.arange(len(labels)))


def check_student(student: nn.Module, splits: tuple[Split, Split], place: torch.device) -> int:
    """Check that a network accepts the images of both splits, and return its number of classes.

    Raises:
        InputError: it does not, is not float32, gives no logits, or labels are of other classes.
    """
    check_dtype(student, "the student", "train")
    classes = 0
    for split in splits:
        if len(split) == 0:
            raise InputError("need at least one image to train with and one to select the best epoch by")
        x, _ = split.batch(torch.arange(min(len(split), FIRST)), place)
        check_pixels(x)
        classes = _logits(student, x[:1], "student").shape[1]
        stray = out_of_range(int(split.labels.min()), int(split.labels.max()), classes, "the student")
        if stray is not None:
            raise InputError(stray)
    return classes


def check_teacher(student: nn.Module, teacher: nn.Module, name: str, classes: int, fit: Split) -> bool:
    """Check that a teacher fits a student with ``classes`` classes; return whether it gives probabilities.

    Raises:
        InputError: it shares weights with the student, is not float32, or has other classes or other images.
    """
    if {id(p) for p in teacher.parameters()} & {id(p) for p in student.parameters()}:
        raise InputError(f"{name} and student share weights: copy one of them first (copy.deepcopy)")
    check_dtype(teacher, f"the {name}", "give")
    logits = _logits(teacher, fit.batch(torch.arange(min(len(fit), FIRST)), device_of(student))[0], name)
    if logits.shape[1] != classes:
        raise InputError(f"the {name} has {logits.shape[1]} classes, the student {classes}: they must have the same")
    return bool((logits >= 0).all()) and torch.allclose(logits.sum(1), torch.ones_like(logits[:, 0]), atol=1e-4)


def teacher_disagrees(teacher: nn.Module, classes: int, held_out: Split, place: torch.device) -> str | None:
    """Say it, and the likely reason, if a teacher is no better than chance on the first images of a split."""
    predicted = []
    for rows in torch.arange(min(len(held_out), MEASURED)).split(BATCH):
        with torch.no_grad(), eval_mode(teacher):
            predicted.append(teacher(held_out.batch(rows, place)[0]).argmax(1).cpu())
    theirs, labels = torch.cat(predicted), held_out.labels[:MEASURED].cpu()
    return disagreement(theirs, labels, classes, int((theirs == labels).sum()))


def _logits(model: nn.Module, x: Tensor, name: str) -> Tensor:
    try:
        with torch.no_grad(), eval_mode(model):
            logits = model(x)
    except (RuntimeError, ValueError, AssertionError) as error:
        shape = tuple(x.shape[1:])
        hint = "; they look like channels last: give images.permute(0, 3, 1, 2)" if channels_last(shape) else ""
        raise InputError(f"the {name} does not take images of shape {shape}: {one_line(error)}{hint}") from None
    try:
        rows = rows_of(logits, len(x))
    except InputError as error:
        raise InputError(str(error).replace("the network", f"the {name}", 1)) from None
    if rows.shape[1] < 2:
        raise InputError(f"the {name} has one score: training needs two or more classes")
    return rows


def check_settings(config: TrainConfig, teachers: Teachers, ranks: Ranks) -> None:
    """Check that an objective has its teachers, and that its batches are not parted if it needs them whole.

    Raises:
        InputError: a teacher is missing, or ``accumulate`` or the number of processes does not fit.
    """
    objective = config.objective
    kind = objective.kind
    if objective.needs_teacher and teachers.robust is None:
        raise InputError(f"the objective {kind!r} needs a teacher: give one")
    if objective.needs_natural_teacher and teachers.natural is None:
        raise InputError(f"the objective {kind!r} needs a natural teacher: give one, with Teachers(robust, natural)")
    if ranks.count > 1 and (objective.remembers or getattr(objective, "reduction", "") == "batch_frobenius"):
        raise InputError(f"{kind!r} with these settings needs whole batches: train in one process, not {ranks.count}")
    if config.accumulate > 1 and getattr(objective, "reduction", "") == "batch_frobenius":
        raise InputError(
            f"accumulate {config.accumulate} with reduction batch_frobenius: its norm is over the whole batch, "
            "set accumulate to 1 or take another reduction"
        )
    if config.accumulate > 1 and objective.remembers:
        raise InputError(f"accumulate {config.accumulate}: {kind!r} weighs its terms by whole steps, set it to 1")
