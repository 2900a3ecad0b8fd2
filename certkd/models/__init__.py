"""Networks by name: ``certkd:mlp``, ``certkd:cnn``, ``certkd:resnet``, ``torchvision:NAME``, ``timm:NAME``."""

from certkd.models.build import Classifier, ModelSpec, build, known_models

__all__ = ["Classifier", "ModelSpec", "build", "known_models"]
