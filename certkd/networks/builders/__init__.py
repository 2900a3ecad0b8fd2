"""Build networks by name: ``certkd:mlp``, ``certkd:cnn``, ``certkd:resnet``, ``torchvision:NAME``, ``timm:NAME``."""

from certkd.networks.builders.build import (
    Classifier,
    ModelSpec,
    build,
    is_fetched,
    known_models,
    last_linear,
    usual_statistics,
)
from certkd.networks.cost import Budget

__all__ = [
    "Budget",
    "Classifier",
    "ModelSpec",
    "build",
    "is_fetched",
    "known_models",
    "last_linear",
    "usual_statistics",
]
