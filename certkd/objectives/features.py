"""Features of a network: the input of its last linear layer, or of its last convolution where that comes later."""

from contextlib import ExitStack

import torch
from jaxtyping import Float
from torch import Tensor, nn

from certkd.objectives.base import Batch
from verifiers.core.errors import InputError

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def with_features(
    network: nn.Module, x: Float[Tensor, "batch *shape"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch *features"]]:
    """Compute the logits and the features of images in one forward pass.

    Raises:
        InputError: the network has no linear layer and no convolution.
    """
    network, inputs = getattr(network, "_orig_mod", network), list[Tensor]()  # compiled code calls no hooks
    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, _LAYERS):
                kept = layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
                hooks.callback(kept.remove)
        logits = network(x)
    if not inputs:
        raise InputError("features are the input of a network's last linear layer, and this network has none")
    return logits, inputs[-1]


def features_of_teacher(
    batch: Batch, x: Float[Tensor, "batch *shape"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch *features"]]:
    """Compute the teacher's logits and features, without gradients."""
    assert batch.teacher is not None
    with torch.no_grad():
        return with_features(batch.teacher, x)


def check_same(ours: Tensor, theirs: Tensor) -> None:
    """Check that features of student and teacher can be subtracted.

    Raises:
        InputError: they have different shapes.
    """
    if ours.shape != theirs.shape:
        told = " and ".join("x".join(map(str, found.shape[1:])) for found in (ours, theirs))
        raise InputError(
            f"the student and the teacher have {told} features before their last layers: this objective subtracts "
            "them, so take a student as wide as its teacher there"
        )
