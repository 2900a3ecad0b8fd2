"""Prune networks: weights of least magnitude become 0 (torch), or channels are removed (torch-pruning)."""

import warnings
from copy import deepcopy

import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from certkd.config.copies import Prune
from certkd.networks.builders import Classifier, last_linear
from certkd.networks.builders.changed import AnyLayer, Masked, Resized, change_layers
from verifiers.core.errors import InputError, one_line

PRUNED = (nn.Linear, nn.Conv1d, nn.Conv2d)


def pruned(model: Classifier, how: Prune) -> Classifier:
    """Return a pruned copy of a network.

    Raises:
        InputError: there is nothing to prune, or channels cannot be removed from the network.
    """
    layers = {path: layer for path, layer in model.network.named_modules() if type(layer) in PRUNED}
    if not layers:
        raise InputError(f"{model.spec.name} has no linear layers and no convolutions to prune")
    return _masked(model, how.share, list(layers)) if how.what == "weights" else _narrowed(model, how.share)


def _masked(model: Classifier, share: float, paths: list[str]) -> Classifier:
    copy, tried = deepcopy(model), deepcopy(model)
    given = [(tried.network.get_submodule(path), "weight") for path in paths]
    prune.global_unstructured(given, pruning_method=prune.L1Unstructured, amount=share)
    with torch.no_grad():
        for path, (layer, _) in zip(paths, given, strict=True):
            copy.network.get_parameter(f"{path}.weight").mul_(layer.get_buffer("weight_mask"))
    return _described(copy, (*model.spec.layers, *(Masked(path=path) for path in paths)))


def _described(copy: Classifier, layers: tuple[AnyLayer, ...]) -> Classifier:
    copy.spec = copy.spec.model_copy(update={"layers": layers})
    return copy


def _narrowed(model: Classifier, share: float) -> Classifier:
    """Remove the channels of least norm from all layers but the last one.

    Raises:
        InputError: torch-pruning fails, or the network does not follow from the sizes of its layers.
    """
    import torch_pruning

    copy, last = deepcopy(model), last_linear(model.network)
    before = {path: tuple(weight.shape) for path, weight in _weights(copy.network).items()}
    for parameter in copy.parameters():
        parameter.requires_grad_(True)  # layers are followed through their gradients
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = torch_pruning.BasePruner(
                copy,
                torch.zeros(1, *model.spec.shape),
                importance=torch_pruning.importance.MagnitudeImportance(p=2),
                pruning_ratio=share,
                ignored_layers=[] if last is None else [copy.network.get_submodule(last)],
            )
            pruner.step()
    except Exception as error:
        raise InputError(f"torch-pruning cannot remove channels of {model.spec.name}: {one_line(error)}") from error
    made = _rebuilt(model, copy, before)
    x = torch.rand(2, *model.spec.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        same = torch.equal(made.eval()(x), copy.eval()(x))
    if not same:
        raise InputError(f"{model.spec.name} computes with sizes beside its layers' weights: its channels are kept")
    return made


def _weights(network: nn.Module) -> dict[str, Tensor]:
    """Return the weight of each layer by its path."""
    found = {path: getattr(layer, "weight", None) for path, layer in network.named_modules()}
    return {path: weight for path, weight in found.items() if isinstance(weight, Tensor)}


def _rebuilt(model: Classifier, narrow: Classifier, before: dict[str, tuple[int, ...]]) -> Classifier:
    """Build a network of the sizes of a narrow one, from the original's description.

    Raises:
        InputError: a layer that became narrow is of a kind that has no description.
    """
    changes = []
    for path, weight in _weights(narrow.network).items():
        if tuple(weight.shape) != before[path]:
            groups = getattr(narrow.network.get_submodule(path), "groups", 1)
            changes.append(Resized(path=path, shape=tuple(weight.shape), groups=groups))
    if not changes:
        raise InputError(f"{model.spec.name} is too narrow to lose channels: take a larger share")
    copy = deepcopy(model)
    change_layers(copy.network, changes)
    try:
        copy.load_state_dict(narrow.state_dict())
    except RuntimeError as error:
        raise InputError(f"channels of {model.spec.name} cannot be removed: {one_line(error)}") from None
    return _described(copy, (*model.spec.layers, *changes))
