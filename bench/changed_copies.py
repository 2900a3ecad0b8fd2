"""Copies of networks for benches: pruned, with weights of 8 bits, trained a little further."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from certkd.data.splits import Split


def changed(network: nn.Module, change: Callable[[Tensor], Tensor]) -> nn.Module:
    """Copy a network with other weight matrices."""
    network = copy.deepcopy(network)
    for weight in network.parameters():
        if weight.ndim > 1:
            weight.data = change(weight.data)
    return network


def pruned(network: nn.Module, share: float) -> nn.Module:
    """Copy a network without the smallest weights of each layer."""
    return changed(network, lambda w: w * (w.abs() > w.abs().flatten().kthvalue(max(1, int(share * w.numel()))).values))


def rounded(network: nn.Module) -> nn.Module:
    """Copy a network with weights of 8 bits."""
    return changed(network, lambda w: (w / (w.abs().max() / 127)).round() * (w.abs().max() / 127))


def tuned(network: nn.Module, train: Split, steps: int = 50, batch: int = 64, rate: float = 1e-4) -> nn.Module:
    """Copy a network and train the copy further on clean images, by Adam."""
    network = copy.deepcopy(network).requires_grad_(True)
    optimizer = torch.optim.Adam(network.parameters(), rate)
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    for rows in order[: steps * batch].split(batch):
        optimizer.zero_grad()
        images, labels = train.batch(rows, rows.device)
        F.cross_entropy(network(images), labels).backward()
        optimizer.step()
    return network.requires_grad_(False)
