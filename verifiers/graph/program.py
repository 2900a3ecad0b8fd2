"""A network prepared for certification: its module, its float64 copy and its graph, each made once."""

import copy
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.core.errors import Contradiction, Unsupported
from verifiers.graph.capture import capture
from verifiers.graph.graph import Graph
from verifiers.runtime.samples import device_of

T = TypeVar("T")


class Program:
    """Hold a network whose graph is captured once and shared by every method.

    Do not change the weights while a program is in use.

    Args:
        module: maps images in [0, 1] to logits, in eval mode.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._made: dict[Hashable, Any] = {}

    @classmethod
    def of(cls, network: "nn.Module | Program") -> "Program":
        """Wrap a module; a program is returned unchanged."""
        return network if isinstance(network, Program) else cls(network)

    @cached_property
    def exact(self) -> nn.Module:
        """A frozen copy in float64."""
        return copy.deepcopy(self.module).double().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return device_of(self.module)

    def graph(self, x: Float[Tensor, "batch *shape"]) -> Graph:
        """Capture the float64 graph for images like ``x``.

        Raises:
            Unsupported: the network cannot be exported, or an operator is not known.
        """
        return self.once(("graph", x.shape[1:]), lambda: capture(self.exact, x[:1]))

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """Call ``make`` once per key and return its stored result afterwards.

        Unsupported and Contradiction are statements about the network: they are stored and raised again.
        """
        if key not in self._made:
            try:
                self._made[key] = make()
            except (Unsupported, Contradiction) as error:
                self._made[key] = error
        found = self._made[key]
        if isinstance(found, Unsupported | Contradiction):
            raise found.with_traceback(None)
        return found
