"""Run the points at which two ONNX files differ in onnxruntime."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certkd.networks.onnx.file import read
from certkd.networks.onnx.function import Session
from certkd.networks.onnx.network import OnnxNetwork
from verifiers.certify.audit.points import violation
from verifiers.core.relation import Relation
from verifiers.runtime.alone import logits_alone
from verifiers.runtime.samples import device_of


def broken_in_onnxruntime(
    relation: Relation,
    student: tuple[str, nn.Module],
    teacher: tuple[str, nn.Module],
    images: Float[Tensor, "points *shape"],
    points: Float[Tensor, "points *shape"],
) -> list[bool]:
    """Tell at which points onnxruntime breaks a property, strictly; each point runs alone.

    Args:
        relation: the property.
        student, teacher: the path of each file, and the network that was read from it.
        images: the images, at which the teacher's class counts.
        points: in the images' balls.

    Raises:
        InputError: onnxruntime does not run a file.
    """
    with ExitStack() as stack:
        for path, network in (student, teacher):
            _replace(stack, path, network, images[:1])
        found = [_alone(network, points) for _, network in (student, teacher)]
        c = _alone(teacher[1], images).argmax(1)
    return [bool(size > 0) for size in violation(relation, found[0], found[1], c)]


def _alone(network: nn.Module, points: Tensor) -> Float[Tensor, "points classes"]:
    return logits_alone(network, points.to(device_of(network))).cpu()


def _replace(stack: ExitStack, path: str, network: nn.Module, image: Tensor) -> None:
    """Have onnxruntime compute what the file defines, inside the network: its normalisation and layout stay."""
    core = next(module for module in network.modules() if isinstance(module, OnnxNetwork))
    shapes: list[tuple[int, ...]] = []
    handle = core.register_forward_pre_hook(lambda _, given: shapes.append(tuple(given[0].shape[1:])))
    try:
        _alone(network, image)
    finally:
        handle.remove()
    file = read(Path(path), shape=shapes[0], output=core.logits)
    session = Session(file)

    def run(module: nn.Module, given: tuple[Any, ...], own: Tensor) -> Tensor:
        """Return onnxruntime's logits in the place of the network's own."""
        theirs = session(given[0][0].cpu().numpy())
        return torch.from_numpy(theirs).reshape(own.shape).to(own)

    stack.callback(core.register_forward_hook(run).remove)
