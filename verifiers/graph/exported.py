"""The form in which torch.export returns a network."""

from dataclasses import dataclass
from functools import cache
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
        buffers: the names of those that are buffers.
    """

    nodes: list[Any]
    weights: dict[str, str]
    constants: dict[str, Tensor]
    images: frozenset[str]
    state: dict[str, Tensor]
    buffers: frozenset[str] = frozenset()


@cache
def kind_of(target: Any) -> str:
    """Return an operator's name: aten.conv2d.default -> conv2d."""
    return str(target.name()).removeprefix("aten::").split(".")[0] if hasattr(target, "name") else str(target)


def path_of(node: Any) -> str:
    """Return the path of the module that a node belongs to."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values()]
    return str(paths[-1]).removeprefix("L['self'].") if paths else ""
