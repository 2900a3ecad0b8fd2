"""Build networks by name: ``certkd:mlp``, ``certkd:cnn``, ``certkd:resnet``, ``torchvision:NAME``, ``timm:NAME``."""

from certkd.networks.builders.build import Classifier, ModelSpec, build, known_models, last_linear, usual_statistics

__all__ = ["Classifier", "ModelSpec", "build", "known_models", "last_linear", "usual_statistics"]
