"""Hash a network's weights and the samples, which identify the subject of a certificate."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor, nn


def weights_sha256(weights: nn.Module | Mapping[str, Tensor]) -> str:
    """Compute the SHA-256 of a state dict: name, dtype, shape and bytes of each tensor in name order.

    The hash depends on the values alone, so a ``.pt`` and a ``.safetensors`` file of the same weights share it.
    """
    state = weights.state_dict() if isinstance(weights, nn.Module) else weights
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}|{str(tensor.dtype).removeprefix('torch.')}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def structure_sha256(model: nn.Module) -> str:
    """Compute the SHA-256 of the rest of a network: types and settings of its layers, and buffers that are not saved.

    The hash separates networks with the same weights and different layers. It does not see functions called in
    ``forward``.
    """
    saved = model.state_dict().keys()
    unsaved = {name: buffer for name, buffer in model.named_buffers() if name not in saved}
    return hashlib.sha256(f"{model!r}|{weights_sha256(unsaved)}".encode()).hexdigest()


class DataFingerprint:
    """Compute the SHA-256 of images (as float32) and labels, added in order, batch by batch."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Add the next samples."""
        for image, label in zip(images.float().cpu(), labels.tolist(), strict=True):
            self._digest.update(image.contiguous().numpy().tobytes())
            self._digest.update(int(label).to_bytes(8, "little", signed=True))

    def hexdigest(self) -> str:
        """Return the hash of all samples added so far."""
        return self._digest.hexdigest()
