"""The parts of one training, and the types of its data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from certkd.config.settings import SelectionConfig, Threat, TrainConfig
from certkd.data.splits import Split
from certkd.networks.copies.masks import Masks
from certkd.objectives import Objective
from certkd.reporter import TrainingReporter
from certkd.training.average import Average
from certkd.training.ranks import Ranks

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from torch.optim import Optimizer

#: Images, in [0, 1] or as bytes, and labels: a pair of tensors, arrays or lists, a torch data set or a loader.
Labelled = Split | tuple[Any, Any] | Dataset[Any] | DataLoader[Any]
#: Training images alone, or the splits "train" and "validation".
TrainingData = Labelled | Mapping[str, Labelled]


@dataclass(frozen=True)
class Teachers:
    """The teachers of a student.

    Attributes:
        robust: the teacher of every objective that needs one.
        natural: a second teacher, accurate but not robust, for objectives that need two.
    """

    robust: nn.Module | None = None
    natural: nn.Module | None = None


@dataclass(frozen=True)
class Run:
    """The parts of a training that its epochs use.

    Attributes:
        forward: the student, or its compiled form.
        selection: the selection, with the objective's sigma if it trains under noise.
        metric: the metric that selects the best epoch.
        threat: the ball of the diagnostics' attacks; None for no attack.
        average: the average of the student's weights; None for none.
        ranks: the processes that share the training.
        schedule: sets the learning rate of each step.
        masks: those of a pruned student.
    """

    student: nn.Module
    forward: nn.Module
    teachers: Teachers
    fit: Split
    held_out: Split
    config: TrainConfig
    selection: SelectionConfig
    metric: str
    threat: Threat | None
    optimizer: "Optimizer"
    schedule: "Scheduler"
    average: Average | None
    masks: Masks
    place: torch.device
    ranks: Ranks
    reporter: TrainingReporter

    @property
    def objective(self) -> Objective:
        """The training objective."""
        return self.config.objective

    def shown(self, epoch: int) -> nn.Module:
        """Return the network to measure and save after an epoch (0-based)."""
        return self.student if self.average is None else self.average.network(self.student, epoch)
