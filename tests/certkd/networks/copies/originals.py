"""Small networks with fixed weights, of which tests make copies."""

from typing import Any

import torch
from torch import Tensor, nn

from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint


def original(
    name: str = "certkd:cnn", shape: tuple[int, ...] = (1, 8, 8), classes: int = 3, **options: Any
) -> Checkpoint:
    """A network with fixed random weights, normalisation and batch statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        spec = ModelSpec(
            name=name, options=options, classes=classes, shape=shape, mean=(0.4,) * shape[0], std=(0.3,) * shape[0]
        )
        model = build(spec)
        for layer in model.modules():
            if isinstance(layer, nn.BatchNorm2d) and layer.running_mean is not None:
                layer.running_mean.normal_(std=0.1)
        return Checkpoint(model.eval(), data={"name": "digits", "seed": 0, "image_size": 224})


def images(network: Checkpoint, count: int = 5) -> Tensor:
    """Random images that a network takes."""
    return torch.rand(count, *network.model.spec.shape, generator=torch.Generator().manual_seed(1))
