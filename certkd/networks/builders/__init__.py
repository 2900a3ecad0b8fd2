"""Build networks by name: ``certkd:mlp``, ``torchvision:NAME``, ``timm:NAME``, or a user's own ``file.py:Class``."""

from certkd.networks.builders.build import (
    LARGEST,
    Classifier,
    ModelSpec,
    build,
    is_fetched,
    last_linear,
    usual_statistics,
)
from certkd.networks.builders.known import check_known, known_models
from certkd.networks.builders.own import is_own, short
from certkd.networks.builders.weights import check_present
from certkd.networks.cost import Budget

__all__ = [
    "LARGEST",
    "Budget",
    "Classifier",
    "ModelSpec",
    "build",
    "check_known",
    "check_present",
    "is_fetched",
    "is_own",
    "known_models",
    "last_linear",
    "short",
    "usual_statistics",
]
