"""Int8 networks written by hand, for tests: torch modules of the operators of :mod:`verifiers.graph.integers`."""

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from verifiers.graph import integers


def whole(*shape: int, seed: int, most: int = 127) -> np.ndarray:
    """Random integers."""
    return np.random.default_rng(seed).integers(-most, most + 1, shape)


class Dense(nn.Module):
    """Images to codes, two layers of codes, and logits.

    Args:
        inputs, hidden, classes: sizes.
        seed: of the weights.
        step: the scale of the codes of the image.
        scale: of the hidden sums.
        floats: a runtime may add in float32.
    """

    int8 = True

    def __init__(
        self,
        inputs: int = 2,
        hidden: int = 4,
        classes: int = 2,
        *,
        seed: int = 0,
        step: float = 1 / 16,
        scale: float = 0.02,
        floats: bool = False,
    ) -> None:
        super().__init__()
        self.floats = floats
        self.register_buffer("first", torch.from_numpy(whole(hidden, inputs, seed=seed)).to(torch.int8))
        self.register_buffer("bias", torch.from_numpy(whole(hidden, seed=seed + 1, most=400)).to(torch.int32))
        self.register_buffer("second", torch.from_numpy(whole(classes, hidden, seed=seed + 2)).to(torch.int8))
        self.register_buffer("step", torch.tensor(step))
        self.register_buffer("scale", torch.tensor([scale] * hidden) * torch.linspace(0.5, 1.5, hidden))

    def codes(self, x: Tensor) -> Tensor:
        """The codes of the image."""
        return integers.requantize(x.flatten(1), self.step, True, -3.0, 252.0, 0.0)

    def after(self, codes: Tensor) -> Tensor:
        """The sums that are the logits, from codes."""
        hidden = integers.linear(codes, self.first, self.bias, self.floats)
        hidden = integers.requantize(hidden, self.scale, False, 0.0, 127.0, 0.0)
        return integers.linear(hidden, self.second, None, self.floats)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.codes(x)) * 0.01


class Branches(nn.Module):
    """Two convolutions of codes, whose codes are added, and a linear layer."""

    int8 = True

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        for k, channels in enumerate((1, 2)):
            weight = torch.from_numpy(whole(2, channels, 3, 3, seed=10 + k)).to(torch.int8)
            self.register_buffer(f"conv{k}", weight)
        self.register_buffer("head", torch.from_numpy(whole(classes, 32, seed=13)).to(torch.int8))
        self.register_buffer("scales", torch.tensor([0.03, 0.05])[:, None, None])
        self.register_buffer("step", torch.tensor(1 / 32))
        self.register_buffer("scale", torch.tensor(0.004))
        self.register_buffer("ratios", torch.tensor([0.7, 0.4]))
        self.register_buffer("zeros", torch.tensor([3.0, 0.0, 11.0]))

    def forward(self, x: Tensor) -> Tensor:
        around = [1, 1, 1, 1, 1, 1]
        codes = integers.requantize(x, self.step, True, -3.0, 252.0, 0.0)
        sums = integers.conv(codes, self.conv0, None, around, 1, False)
        one = integers.requantize(sums, self.scales, False, -3.0, 252.0, 0.0)
        sums = integers.conv(one, self.conv1, None, around, 1, False)
        other = integers.requantize(sums, self.scale, False, 0.0, 255.0, 0.0)
        both = integers.add(one, other, self.ratios, self.zeros, 0.0, 244.0)
        return integers.linear(both.flatten(1), self.head, None, False) * 0.01


def boxes_of_codes(network: Dense, x: Tensor, eps: float) -> Iterator[Tensor]:
    """All codes of the image that a ball reaches, in the image box; ties count for both."""
    step = float(network.step)
    reach = []
    for pixel in x.flatten().tolist():
        low, high = max(pixel - eps, 0.0) / step, min(pixel + eps, 1.0) / step
        first, last = np.ceil(low - 0.5 - 1e-6), np.floor(high + 0.5 + 1e-6)
        reach.append(np.arange(first, last + 1).clip(-3, 252))
    for chosen in itertools.product(*reach):
        yield torch.tensor(chosen, dtype=torch.float32)[None]


def least_margin(network: Dense, x: Tensor, eps: float) -> float:
    """The least margin over a ball by full enumeration, for the class of the image; in integers, times 0.01."""
    codes = torch.cat(list(boxes_of_codes(network, x, eps)))
    logits = network.after(codes).double()
    chosen = int(network(x)[0].argmax())
    others = [j for j in range(logits.shape[1]) if j != chosen]
    return 0.01 * float((logits[:, [chosen]] - logits[:, others]).min())
