"""Measure float64's own rounding: how far a value moves if each weight moves by a unit in its last place.

Bounds over the real numbers are computed in float64. Where weights cancel by sixteen digits, neither those bounds nor
the network's float64 values mean anything, and a broken bound is no contradiction.
"""

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from verifiers.core.errors import Unsupported

#: Rounding explains errors up to this many times what the last places of the weights move a value by.
SAFETY = 64.0


def nudged(model: nn.Module) -> nn.Module:
    """Copy a float64 network with each weight moved by a unit in its last place."""
    moved, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in (*moved.parameters(), *moved.buffers()):
            if weight.is_floating_point():
                sign = torch.randint(0, 2, weight.shape, generator=generator).to(weight) * 2 - 1
                weight.mul_(1 + 2.0**-52 * sign)
    return moved


def refuse_coarse(name: str, excess: float, model: nn.Module, value: Callable[[nn.Module], Tensor]) -> None:
    """Refuse a network if float64's rounding explains that a value exceeds its bound.

    Args:
        name: of the engine or method, for the message.
        excess: the amount.
        model: the network in float64.
        value: computes the value with a network.

    Raises:
        Unsupported: the last places of the weights move the value by as much.
    """
    moved = float((value(nudged(model)) - value(model)).detach().abs().max())
    if excess <= SAFETY * moved:
        raise Unsupported(
            f"{name}: float64 is too coarse for this network: a value exceeds its bound by {excess:.3g}, and the last "
            f"places of the weights move it by {moved:.3g}; scale down the weights that cancel"
        )
