"""SHA-256 of what a certificate is about: a network's weights and the samples."""

import hashlib
from collections.abc import Mapping

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor, nn


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """SHA-256 of a state dict: name, dtype, shape and bytes of each tensor in name order.

    It depends on the values alone, so a ``.pt`` and a ``.safetensors`` file of the same weights have the same one.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def structure_sha256(model: nn.Module) -> str:
    """SHA-256 of what a state dict leaves out: types and settings of the layers, and buffers that are not saved.

    Networks with the same weights and other layers differ in it; functions called in ``forward`` do not show.
    """
    saved = model.state_dict().keys()
    unsaved = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    return hashlib.sha256(f"{model!r}|{weights_sha256(unsaved)}".encode()).hexdigest()


def indices_sha256(indices: Int[np.ndarray, " samples"]) -> str:
    """SHA-256 of sample indices, in their order."""
    return hashlib.sha256(indices.astype(np.int64).tobytes()).hexdigest()


class DataFingerprint:
    """SHA-256 over images (as float32) and labels, fed in order, batch by batch."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add the next samples."""
        for image, label in zip(images.float().cpu(), labels.tolist(), strict=True):
            self._digest.update(image.contiguous().numpy().tobytes())
            self._digest.update(int(label).to_bytes(8, "little", signed=True))

    def hexdigest(self) -> str:
        """The fingerprint of everything fed so far."""
        return self._digest.hexdigest()
