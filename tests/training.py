"""Short calls of ``certkd.train`` for tests."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from certkd.config.settings import Recipe, TrainConfig
from certkd.objectives import Objective
from certkd.training import loop
from certkd.training.resume import TrainingFolder
from certkd.training.run import Labelled, Teachers


def train(
    student: nn.Module,
    data: Labelled,
    objective: Objective,
    *,
    recipe: Recipe | None = None,
    teacher: nn.Module | None = None,
    natural_teacher: nn.Module | None = None,
    validation: Labelled | None = None,
    out: Path | None = None,
    resume: bool = False,
    about: Mapping[str, Any] | None = None,
    reporter: Any = None,
    **settings: Any,
) -> loop.TrainingResult:
    """Train by an objective; ``settings`` are those of ``TrainConfig``."""
    return loop.train(
        student,
        data if validation is None else {"train": data, "validation": validation},
        TrainConfig(**dict(recipe or Recipe()), objective=objective, **settings),
        teacher=Teachers(teacher, natural_teacher),
        out=None if out is None else TrainingFolder(out, resume=resume, about=about or {}),
        reporter=reporter,
    )
