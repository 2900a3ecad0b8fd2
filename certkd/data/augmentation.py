"""Augment batches of training images."""

import torch
from jaxtyping import Float
from torch import Tensor, nn


def crop_and_flip(
    x: Float[Tensor, "batch channels height width"], generator: torch.Generator, padding: int = 4
) -> Float[Tensor, "batch channels height width"]:
    """Pad with zeros, crop and mirror each image at random: the usual CIFAR augmentation."""
    count, _, height, width = x.shape
    padded = nn.functional.pad(x, [padding] * 4)
    tops, lefts = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    rows = (tops[:, None] + torch.arange(height)).to(x.device)
    columns = (lefts[:, None] + torch.arange(width)).to(x.device)
    sample = torch.arange(count, device=x.device)[:, None, None]
    cropped = padded.permute(0, 2, 3, 1)[sample, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
    mirrored = (torch.rand(count, generator=generator) < 0.5).to(x.device)[:, None, None, None]
    return torch.where(mirrored, cropped.flip(3), cropped)
