"""Fake quantisation: the rounding of a slow NumPy version, gradients that pass through, networks as before."""

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certkd.networks.copies.rounded import computing_in_int8, rounded_values, rounded_weight
from tests.certkd.networks.copies.originals import images, original
from verifiers.core.errors import InputError


def weights_by_hand(weight: np.ndarray) -> np.ndarray:
    """Each output's weights as multiples of their largest magnitude / 127."""
    made = np.empty_like(weight)
    for row, values in enumerate(weight):
        scale = max(np.abs(values).max() / np.float32(127), np.finfo(np.float32).tiny)
        made[row] = np.clip(np.round(values / scale), -127, 127) * scale
    return made


def values_by_hand(values: np.ndarray) -> np.ndarray:
    """Codes 0 to 255 between the least and the largest value, 0 among them."""
    least, largest = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = max(np.float32((largest - least) / 255), np.finfo(np.float32).tiny)
    zero = int(np.round(-least / scale))
    codes = np.clip(np.round(values / scale) + zero, 0, 255)
    return ((codes - zero) * scale).astype(np.float32)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 300.0])
@pytest.mark.parametrize("shift", [-2.0, 0.0, 2.0])
def test_rounding_is_that_of_int8(scale: float, shift: float) -> None:
    torch.manual_seed(0)
    values = scale * (torch.randn(20, 3, 2, 2) + shift)
    assert np.allclose(rounded_weight(values).numpy(), weights_by_hand(values.numpy()), rtol=1e-6, atol=0)
    found, wanted = rounded_values(values).numpy(), values_by_hand(values.numpy())
    step = float(values.max().clamp(min=0) - values.min().clamp(max=0)) / 255
    assert np.mean(np.abs(found - wanted) <= 1e-4 * step) >= 0.99, "all but ties"
    assert np.abs(found - values.numpy()).max() <= 0.51 * step + 1e-30, (
        "0.5 of a step, and the rounding of the zero point"
    )
    assert len(np.unique(found)) <= 256 and not rounded_values(torch.zeros(3, 4)).any()


@pytest.mark.parametrize("rounded", [rounded_weight, rounded_values])
def test_gradients_pass_through_twice(rounded: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(4, 5, requires_grad=True)
    (once,) = torch.autograd.grad(rounded(x).pow(3).sum(), x, create_graph=True)
    assert torch.allclose(once, 3 * rounded(x).pow(2), rtol=1e-5), "as if the rounding were not there"
    (twice,) = torch.autograd.grad(once.sum(), x)
    assert torch.allclose(twice, 6 * rounded(x), rtol=1e-4)


def test_layers_round_while_the_block_runs_and_keep_their_weights() -> None:
    network = nn.Sequential(
        nn.Conv1d(2, 3, 2), nn.Unflatten(2, (2, 2)), nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(4, 3)
    )
    x, before, state = torch.rand(6, 2, 5), network.state_dict(), deepcopy(network.state_dict())
    plain = network(x)
    with computing_in_int8(network):
        copy = deepcopy(network)
        inside, kinds = network(x), [type(layer) for layer in network]
        with torch.no_grad():
            copy[-1].weight.zero_()
        assert torch.equal(network(x), inside), "a deep copy has its own weights"
        by_hand = torch.conv1d(rounded_values(x), rounded_weight(network[0].weight), network[0].bias)
        assert torch.equal(network[0](x), by_hand)
    assert not torch.equal(inside, plain) and torch.allclose(inside, plain, atol=0.05)
    assert torch.equal(network(x), plain) and kinds != [type(layer) for layer in network]
    assert all(torch.equal(state[name], value) and before[name] is not None for name, value in state.items())


def test_padding_is_that_of_the_layer() -> None:
    layer = nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect")
    x = torch.rand(2, 2, 4, 4)
    with computing_in_int8(layer):
        rounded = layer(x)
    assert rounded.shape == (2, 2, 4, 4) and torch.allclose(rounded, layer(x), atol=0.05)


def test_classes_are_as_before_after_an_error_and_other_networks_are_refused() -> None:
    network = original("certkd:mlp", hidden=[4]).model
    x = images(original("certkd:mlp", hidden=[4]))
    plain = network(x)
    with pytest.raises(RuntimeError, match="inside"), computing_in_int8(network):
        raise RuntimeError("inside")
    assert torch.equal(network(x), plain)
    with pytest.raises(InputError, match="no linear layer or convolution"), computing_in_int8(nn.Flatten()):
        raise AssertionError("it was not refused")
