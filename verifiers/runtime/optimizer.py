"""Adam, equal to torch's to the last bit on a CPU, for searches of bounds.

Constructing one of torch's optimisers imports its compiler, which takes seconds; this imports nothing, and rows of its
parameters can be dropped.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Adam:
    """Adam with betas 0.9 and 0.999; ``rate`` may be set before every step. Source: Kingma and Ba, arXiv 1412.6980."""

    def __init__(self, parameters: Iterable[Tensor], rate: float) -> None:
        self.parameters, self.rate = list(parameters), rate
        self._states: list[dict[str, Any]] = [{} for _ in self.parameters]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for parameter, state in zip(self.parameters, self._states, strict=True):
            if parameter.grad is not None:
                self._change(parameter, parameter.grad, state)

    def keep(self, chosen: Tensor) -> None:
        """Forget the rows of every parameter that are not chosen, by mask or position."""
        self.parameters = [parameter[chosen] for parameter in self.parameters]
        for state in self._states:
            state.update({name: value[chosen] for name, value in state.items() if isinstance(value, Tensor)})

    def _change(self, parameter: Tensor, gradient: Tensor, state: dict[str, Any]) -> None:
        """Make one step of one parameter."""
        if not state:
            state |= {"steps": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["steps"] += 1
        state["mean"].lerp_(gradient, 1 - 0.9)
        state["square"].mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        size = self.rate / (1 - 0.9 ** state["steps"])
        root = (1 - 0.999 ** state["steps"]) ** 0.5
        parameter.addcdiv_(state["mean"], (state["square"].sqrt() / root).add_(1e-8), value=-size)
