"""Compute conditions that follow from the shapes of a network's values."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from certkd.networks.cost import check_cost
from certkd.networks.onnx.live import live
from verifiers.core.errors import InputError


def truth_of(
    model: Any, given: tuple[Sequence[Any], Sequence[Any], str], path: Path, shape: Sequence[int] | None
) -> bool | None:
    """Compute a condition for one image and, where the file takes any number of them, for two.

    Args:
        model: the file.
        given: the nodes and weights before the condition, and its name.
        path: path of the file.
        shape: shape of an image, for axes that the file leaves open.

    Returns:
        None if it depends on the values of the image.

    Raises:
        InputError: it depends on the number of images, or the nodes before it cannot be read.
    """
    from certkd.networks.onnx.file import DOMAINS, finished
    from certkd.networks.onnx.network import OnnxNetwork

    nodes, weights, name = given
    part = type(model)(ir_version=model.ir_version, opset_import=model.opset_import)
    part.graph.input.extend(model.graph.input)
    part.graph.node.extend(live(nodes, [name]))
    if not part.graph.node:
        return None
    part.graph.initializer.extend(_used(weights, part.graph.node))
    part.graph.output.add().name = name
    opset = next(entry.version for entry in model.opset_import if entry.domain in DOMAINS)
    try:
        file = finished(part, opset, path, shape)
        network = OnnxNetwork(file, numbers=True).eval()
        check_cost(_Size(network), file.shape, str(path), strict=True)
        counts = (file.count,) if file.count else (1, 2)
        sides = [file.shape if file.single else (count, *file.shape) for count in counts]
        with torch.no_grad():
            found = [network.values(torch.zeros(each))[name] for each in sides]
    except InputError as error:
        raise InputError(f"{error} (the network branches on a computed value, export it for one fixed path)") from None
    if any(isinstance(value, Tensor) or np.size(value) != 1 for value in found):
        return None
    truths = {bool(np.asarray(value).reshape(())) for value in found}
    if len(truths) > 1:
        raise InputError(f"{path} branches on the number of images: export it for a fixed number, such as one")
    return truths.pop()


def _used(weights: Sequence[Any], nodes: Sequence[Any]) -> list[Any]:
    names = {name for node in nodes for name in node.input}
    return [weight for weight in weights if weight.name in names]


class _Size(nn.Module):
    """Run the nodes before a condition, for what they cost."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Tensor:
        self.network.values(x[0] if self.network.single else x)
        return x
