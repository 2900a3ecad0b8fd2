"""The form in which torch.export returns a network."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Exported:
    """A network as torch.export returns it, apart from its weights.

    Attributes:
        nodes: the nodes of the exported graph.
        weights: for each input that is a parameter or a buffer, its name in the module.
        constants: tensors that are neither parameters nor buffers.
        images: names of the inputs that hold the image.
        state: the network's weights at export.
    """

    nodes: list[Any]
    weights: dict[str, str]
    constants: dict[str, Tensor]
    images: frozenset[str]
    state: dict[str, Tensor]
