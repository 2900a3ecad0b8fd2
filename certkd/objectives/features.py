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


def features_of_both(
    batch: Batch, x: Float[Tensor, "batch *shape"], shown: Float[Tensor, "batch *shape"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch *features"], Float[Tensor, "batch *features"]]:
    """Compute the student's logits and features of x, and the teacher's features of what it is shown, as constants.

    Raises:
        InputError: a network has no features, or theirs have different shapes.
    """
    assert batch.teacher is not None
    logits, ours = with_features(batch.student, x)
    with torch.no_grad():
        _, theirs = with_features(batch.teacher, shown)
    if ours.shape != theirs.shape:
        told = " and ".join("x".join(map(str, found.shape[1:])) for found in (ours, theirs))
        raise InputError(
            f"the student and the teacher have {told} features before their last layers: this objective subtracts "
            "them, so take a student as wide as its teacher there"
        )
    return logits, ours, theirs
