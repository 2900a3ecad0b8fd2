"""Average a student's weights while it trains."""

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from certkd.config.settings import Recipe


class Average:
    """A running average of a student's weights and floating-point buffers; integer buffers are the latest ones.

    ``ema``: after each step the average moves towards the weights by 1 - d. After n steps d is min(average_decay,
    (1 + n) / (10 + n)), so that a short training does not average its random start. ``swa``: the mean of the weights
    at the ends of epochs. Both start with epoch ``first``, which follows from ``average_from``.

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
        """Move an average towards the newest value; lerp leaves a constant buffer exactly as it is."""
        if not old.is_floating_point():
            return new
        done = torch.as_tensor(count, dtype=old.dtype, device=old.device)
        share = 1 - ((1 + done) / (10 + done)).clamp(max=self._decay) if self._by_step else 1 / (done + 1)
        return torch.lerp(old, new, share)

    def step(self, student: nn.Module, epoch: int) -> None:
        """Add the weights after one optimiser step."""
        if self._by_step and epoch >= self.first:
            self.averaged.update_parameters(student)

    def epoch(self, student: nn.Module, epoch: int) -> None:
        """Add the weights at the end of an epoch (0-based)."""
        if not self._by_step and epoch >= self.first:
            self.averaged.update_parameters(student)

    def network(self, student: nn.Module, epoch: int) -> nn.Module:
        """Return the network to measure and save after an epoch: the average, once it has begun."""
        return self.averaged.module if epoch >= self.first else student
