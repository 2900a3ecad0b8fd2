"""Keep the zeros of pruned layers while a network is trained."""

import torch
from torch import Tensor, nn

from certkd.networks.builders import Classifier
from certkd.networks.builders.changed import Masked


class Masks:
    """The masks of a network's pruned layers, as its weights have them when it is made."""

    def __init__(self, network: nn.Module) -> None:
        self._masks: list[tuple[Tensor, Tensor]] = []
        if isinstance(network, Classifier):
            for change in network.spec.layers:
                weight = getattr(network.network.get_submodule(change.path), "weight", None)
                if isinstance(change, Masked) and isinstance(weight, Tensor):  # it may be a product of layers now
                    self._masks.append((weight, weight.detach() != 0))

    @torch.no_grad()
    def keep(self) -> None:
        """Set masked weights to 0 again, after a step of the optimiser."""
        for weight, mask in self._masks:
            weight.masked_fill_(~mask, 0.0)
