"""Random weights of certified training, with which intervals keep their width from layer to layer."""

import math

from torch import nn

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def draw_for_intervals(model: nn.Module) -> None:
    """Draw the weights of all linear layers and convolutions but the last from N(0, 2 pi / fan_in^2).

    Biases and normalisations keep theirs. Torch's random numbers are used.

    Source: Shi et al., arXiv 2103.17268.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, _LAYERS)]
    for layer in layers[:-1]:
        fan_in = layer.weight[0].numel()
        nn.init.normal_(layer.weight, std=math.sqrt(2 * math.pi) / fan_in)
