"""Fit the names of stored weights to a network's own: prefixes of wrappers, pruning masks, counters of profilers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from certkd.networks.stored import Stored
from verifiers.core.errors import quoted

#: Parts of names that wrappers insert: DataParallel and DistributedDataParallel, and torch.compile.
_WRAPPERS = ("module", "_orig_mod")
#: What wrappers and profilers store beside weights.
_EXTRA = ("n_averaged", "total_ops", "total_params")
_COUNTER = "num_batches_tracked"


def fitted(state: Mapping[str, Stored], own: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Rename weights to a network's names, apply pruning masks, and leave out what profilers store.

    A prefix is taken off if all names have it. A counter of batches, which old files lack, is the network's.

    Args:
        state: the stored weights.
        own: the network's state dict.
    """
    kept = {name: value for name, value in state.items() if name in own or name.rpartition(".")[2] not in _EXTRA}
    kept = _renamed(_masked(kept), own)
    missing = [name for name in own if name not in kept and name.rpartition(".")[2] == _COUNTER]
    counters = {
        name: Stored(tuple(own[name].shape), own[name].dtype, own[name].clone)
        for name in missing
        if f"{name.removesuffix(_COUNTER)}running_mean" in kept
    }
    return {**kept, **counters}


def _masked(state: Mapping[str, Stored]) -> dict[str, Stored]:
    """Multiply pruned weights, ``NAME_orig``, by their masks, as torch's pruning does before each forward pass."""
    made = dict(state)
    for name in state:
        plain, mask = name.removesuffix("_orig"), f"{name.removesuffix('_orig')}_mask"
        if plain != name and mask in state and plain not in state and state[mask].shape == state[name].shape:
            made[plain] = replace(made.pop(name), read=_product(state[name].read, made.pop(mask).read))
    return made


def _product(weight: Callable[[], Tensor], mask: Callable[[], Tensor]) -> Callable[[], Tensor]:
    return lambda: weight() * mask().to(weight().dtype)


def _renamed(state: dict[str, Stored], own: Mapping[str, Tensor]) -> dict[str, Stored]:
    """Take off the wrappers' parts and a shared prefix, where more of the network's names are found so."""
    best, most = state, _common(state, own)
    for names in (list(state), [_unwrapped(name) for name in state]):
        for prefix in _prefixes(names, own):
            renamed = [name.removeprefix(prefix) for name in names]
            if len(set(renamed)) == len(renamed) and all(name.startswith(prefix) for name in names):
                made = dict(zip(renamed, state.values(), strict=True))
                if (found := _common(made, own)) > most:
                    best, most = made, found
    return best


def _common(state: Mapping[str, Stored], own: Mapping[str, Tensor]) -> int:
    return sum(name in own for name in state)


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _prefixes(names: list[str], own: Mapping[str, Tensor]) -> list[str]:
    """List what comes before the network's first name in the stored ones."""
    first = next((name for name in own if name.rpartition(".")[2] != _COUNTER), "")
    ends = [name.removesuffix(first) for name in names if first and (name == first or name.endswith(f".{first}"))]
    return list(islice(dict.fromkeys(["", *ends]), 20))


def misfit(state: Mapping[str, Stored], own: Mapping[str, Tensor], last: str | None) -> str | None:
    """Say in one line why weights do not fit a network, and what the file has; None if they fit.

    Args:
        state: the weights, renamed.
        own: the network's state dict.
        last: the path of the network's last linear layer.
    """
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is unknown" for name in state if name not in own]
    shapes = [name for name, value in own.items() if name in state and state[name].shape != tuple(value.shape)]
    problems += [f"{name} has shape {state[name].shape} instead of {tuple(own[name].shape)}" for name in shapes]
    problems += [
        f"{name} holds {state[name].dtype} instead of {value.dtype}"
        for name, value in own.items()
        if name in state and state[name].dtype.is_floating_point != value.is_floating_point()
    ]
    if not problems:
        return None
    more = f", and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{problems[0]}{more}; {_held(state)}{_advice(state, own, shapes, last, len(problems))}"


def _held(state: Mapping[str, Stored]) -> str:
    """Describe the first weights of a file."""
    few = ", ".join(f"{quoted(name, 60)} {value.shape}" for name, value in islice(state.items(), 2))
    numbers = sum(math.prod(value.shape) for value in state.values())
    return f"the file has {len(state)} tensors of {numbers} numbers: {few}{', ...' if len(state) > 2 else ''}"


def _advice(
    state: Mapping[str, Stored], own: Mapping[str, Tensor], shapes: list[str], last: str | None, problems: int
) -> str:
    """Say what would fit where that is known: a number of classes, normalisation that belongs to the network."""
    if last is not None and len(shapes) == problems and all(name.startswith(f"{last}.") for name in shapes):
        classes = state[shapes[0]].shape[0] if state[shapes[0]].shape else 0
        return f"; it is of {classes} classes, the data has {own[shapes[0]].shape[0]}"
    small = [name for name, value in state.items() if name not in own and 1 <= math.prod(value.shape) <= 4]
    if len(small) == problems and state[small[0]].dtype in (torch.float32, torch.float64):
        return "; if these are the mean and deviation of its images, leave them out and give them as a normalisation"
    return ""
