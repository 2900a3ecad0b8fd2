"""A network in the form in which torch.export writes it down."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Exported:
    """A network as torch.export writes it down, apart from its weights.

    Attributes:
        nodes: of the exported graph.
        weights: the parameter or buffer of each input that is one, by its name in the module.
        constants: tensors that are neither.
        images: names of the inputs that are the image.
        state: the weights that the network had.
    """

    nodes: list[Any]
    weights: dict[str, str]
    constants: dict[str, Tensor]
    images: frozenset[str]
    state: dict[str, Tensor]
