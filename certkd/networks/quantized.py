"""Load the weights of torch.ao's quantised modules into the network that a user's class builds of them."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from certkd.networks.builders import Classifier
from certkd.networks.stored import Stored
from verifiers.core.errors import InputError, quoted
from verifiers.graph.integers import dynamic_form
from verifiers.graph.quantized import has_quantized, in_integers


def load_quantized(model: Classifier, state: Mapping[str, Stored], path: Path) -> None:
    """Load a state dict and write the network with exact integers.

    Args:
        model: its network has the quantised modules of the file, with any weights; it is replaced.
        state: the stored weights.
        path: of the file, for messages.

    Raises:
        InputError: the network has other modules than the file, or a form that is not read.
    """
    network = model.network
    if (why := dynamic_form(network)) is not None:
        raise InputError(f"{path}: {why}")
    if not has_quantized(network):
        raise InputError(
            f"{path} holds weights of torch.ao's quantised modules: give --arch a function of your own that returns "
            "the network as torch.ao.quantization.convert makes it, or export the float network to ONNX and quantise "
            "that file with onnxruntime.quantization.quantize_static"
        )
    left = dict(state)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch says of its own quantised tensors that they are old
        values = network.state_dict()  # it also knows the version of each module's form
        for name, own in list(values.items()):
            values[name] = _value(name, own, left, path)
        if left:
            raise InputError(f"{path} holds {quoted(next(iter(left)))}, which the quantised network has not")
        network.load_state_dict(values)
        try:
            model.network = in_integers(network.eval(), model.spec.inner)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def _value(name: str, own: Any, left: dict[str, Stored], path: Path) -> Any:
    """Take an entry of a state dict: a tensor, what a linear layer packs, or the absence of a bias."""
    if own is None or isinstance(own, torch.dtype):
        return own
    if isinstance(own, tuple):
        return tuple(_value(f"{name}.{i}", part, left, path) for i, part in enumerate(own))
    value = _tensor(name, own, left, path)
    return torch.nn.Parameter(value) if isinstance(own, torch.nn.Parameter) else value


def _tensor(name: str, own: torch.Tensor, left: dict[str, Stored], path: Path) -> torch.Tensor:
    if name not in left:
        raise InputError(f"{path} lacks {quoted(name)} of the quantised network: was it converted in the same way?")
    found = left.pop(name)
    if found.shape != tuple(own.shape) or found.dtype is not own.dtype:
        raise InputError(
            f"{path}: {quoted(name)} has shape {found.shape} and type {found.dtype}, the network's "
            f"{tuple(own.shape)} and {own.dtype}"
        )
    value = found.read()
    numbers = torch.empty(0) if value.is_quantized else value
    if numbers.is_floating_point() and not bool(numbers.isfinite().all()):
        raise InputError(f"{path}: {quoted(name)} holds NaN or infinity")
    if name.endswith("scale") and not bool((numbers > 0).all()):
        raise InputError(f"{path}: {quoted(name)} is a scale that is not positive")
    return value
