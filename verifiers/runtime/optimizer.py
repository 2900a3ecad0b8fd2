"""Adam, AdamW and SGD, equal to torch's to the last bit on a CPU.

Constructing one of torch's optimisers imports its compiler, which takes seconds; these import nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

State = dict[str, Any]


class Optimizer(ABC):
    """Update parameters along their gradients; ``rate`` may be set before every step."""

    def __init__(self, parameters: Iterable[Tensor], rate: float, weight_decay: float = 0.0) -> None:
        self.parameters, self.rate, self.weight_decay = list(parameters), rate, weight_decay
        self._states: list[State] = [{} for _ in self.parameters]

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for parameter, state in zip(self.parameters, self._states, strict=True):
            gradient = parameter.grad
            if gradient is not None:
                self._change(parameter, self._decayed(parameter, gradient) if self.weight_decay else gradient, state)

    def keep(self, chosen: Tensor) -> None:
        """Forget the rows of every parameter that are not chosen, by mask or position."""
        self.parameters = [parameter[chosen] for parameter in self.parameters]
        for state in self._states:
            state.update({name: value[chosen] for name, value in state.items() if isinstance(value, Tensor)})

    def state_dict(self) -> list[State]:
        """Return the state of every parameter, in order."""
        return self._states

    def load_state_dict(self, states: list[State]) -> None:
        """Continue from a state.

        Raises:
            ValueError: the state belongs to other parameters.
        """
        if len(states) != len(self.parameters):
            raise ValueError(f"{len(states)} states for {len(self.parameters)} parameters")
        for state, parameter in zip(states, self.parameters, strict=True):
            if any(isinstance(value, Tensor) and value.shape != parameter.shape for value in state.values()):
                raise ValueError("a state has another shape than its parameter")
        self._states = [
            {name: _copied(value, parameter) for name, value in state.items()}
            for state, parameter in zip(states, self.parameters, strict=True)
        ]

    def _decayed(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        """Apply the weight decay, as a term of the gradient; return the gradient that the step takes."""
        return gradient.add(parameter, alpha=self.weight_decay)

    @abstractmethod
    def _change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        """Make one step of one parameter."""


class Adam(Optimizer):
    """Adam with betas 0.9 and 0.999. Source: Kingma and Ba, arXiv 1412.6980."""

    def _change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        if not state:
            state |= {"steps": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
        state["steps"] += 1
        state["mean"].lerp_(gradient, 1 - 0.9)
        state["square"].mul_(0.999).addcmul_(gradient, gradient, value=1 - 0.999)
        size = self.rate / (1 - 0.9 ** state["steps"])
        root = (1 - 0.999 ** state["steps"]) ** 0.5
        parameter.addcdiv_(state["mean"], (state["square"].sqrt() / root).add_(1e-8), value=-size)


class AdamW(Adam):
    """Adam whose weight decay shrinks the weights themselves. Source: Loshchilov and Hutter, arXiv 1711.05101."""

    def _decayed(self, parameter: Tensor, gradient: Tensor) -> Tensor:
        parameter.mul_(1 - self.rate * self.weight_decay)
        return gradient


class SGD(Optimizer):
    """Gradient descent with Nesterov momentum 0.9."""

    def _change(self, parameter: Tensor, gradient: Tensor, state: State) -> None:
        if state:
            state["momentum"].mul_(0.9).add_(gradient)
        else:
            state["momentum"] = gradient.clone()
        parameter.add_(gradient.add(state["momentum"], alpha=0.9), alpha=-self.rate)


def _copied(value: Any, like: Tensor) -> Any:
    return value.to(like.device, like.dtype, copy=True) if isinstance(value, Tensor) else value
