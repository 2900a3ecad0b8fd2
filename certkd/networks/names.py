"""Fit the names of stored weights to a network's own: prefixes of wrappers, pruning masks, counters of profilers.

A file may hold more than the network: the state of metrics and of a loss, a second network, a normalisation of images.
The network is then what has all of its names below one prefix; what is left out is said.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path

from torch import Tensor

from certkd.networks.stored import Stored
from verifiers.core.errors import InputError, quoted

#: Parts of names that wrappers insert: DataParallel and DistributedDataParallel, torch.compile, Fabric and DeepSpeed,
#: FSDP, and activation checkpoints.
_WRAPPERS = ("module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
#: What wrappers and profilers store beside weights.
_EXTRA = ("n_averaged", "total_ops", "total_params")
_COUNTER = "num_batches_tracked"
#: Most numbers of a mean or a deviation of images.
_CHANNELS = 4


def fitted(
    state: Mapping[str, Stored], own: Mapping[str, Tensor], path: Path, *, normalised: bool = False
) -> tuple[dict[str, Stored], list[str]]:
    """Rename weights to a network's names, apply pruning masks, and leave out what belongs to others.

    A prefix is taken off if all names have it, or the only one below which all of the network's names are. A counter of
    batches, which old files lack, is the network's.

    Args:
        state: the stored weights.
        own: the network's state dict.
        path: of the file, for messages.
        normalised: whether a normalisation of images is given, which takes the place of the file's.

    Returns:
        The weights by the network's names, and lines about what was left out.

    Raises:
        InputError: several networks in the file have all of the names.
    """
    kept = {name: value for name, value in state.items() if name in own or name.rpartition(".")[2] not in _EXTRA}
    kept, remarks = _apart(_renamed(_masked(kept), own), own, path, normalised)
    missing = [name for name in own if name not in kept and name.rpartition(".")[2] == _COUNTER]
    counters = {
        name: Stored(tuple(own[name].shape), own[name].dtype, own[name].clone)
        for name in missing
        if f"{name.removesuffix(_COUNTER)}running_mean" in kept
    }
    return {**kept, **counters}, remarks


def _apart(
    state: dict[str, Stored], own: Mapping[str, Tensor], path: Path, normalised: bool
) -> tuple[dict[str, Stored], list[str]]:
    """Take the weights of one network among others, and say what is left out.

    Raises:
        InputError: there are several such networks.
    """
    plain = {_unwrapped(name): value for name, value in state.items()}
    plain = state if len(plain) < len(state) or _whole(state, own) else plain
    prefixes = _whole(plain, own)
    if len(prefixes) > 1:
        named = [prefix.removesuffix(".") for prefix in prefixes if prefix]
        raise InputError(
            f"{path} holds the weights of {len(prefixes)} networks: choose one with a weights key. It has "
            + ", ".join(quoted(name, 60) for name in named)
        )
    if not prefixes or plain.keys() <= own.keys():
        return state, []
    (prefix,) = prefixes
    below = {name.removeprefix(prefix): value for name, value in plain.items() if name.startswith(prefix)}
    outside = {name: value for name, value in plain.items() if not name.startswith(prefix)}
    images = {name: value for name, value in (below | outside).items() if name not in own and _is_of_images(value)}
    left = [*(name for name in outside if name not in images), *(images if normalised else ())]
    kept = {name: value for name, value in (below | images).items() if name not in left}
    return kept, [_said(left, prefix)] if left else []


def _said(left: list[str], prefix: str) -> str:
    few = ", ".join(quoted(name, 60) for name in left[:3]) + (", ..." if len(left) > 3 else "")
    return f"{f'the weights under {prefix[:-1]!r} are taken; ' if prefix else ''}left out: {few}"


def _whole(state: Mapping[str, Stored], own: Mapping[str, Tensor]) -> list[str]:
    """List the prefixes below which are all of a network's names; those where shapes agree, if some do."""
    needed = [name for name in own if name.rpartition(".")[2] != _COUNTER]
    found = [prefix for prefix in _prefixes(list(state), own) if all(prefix + name in state for name in needed)]
    same = [p for p in found if all(state[p + name].shape == tuple(own[name].shape) for name in needed)]
    return same or found


def _is_of_images(value: Stored) -> bool:
    """Tell whether numbers may be the mean or the deviation of images."""
    return value.dtype.is_floating_point and 1 <= math.prod(value.shape) <= _CHANNELS


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
    missing = [f"{name} is missing" for name in own if name not in state]
    unknown = [f"{name} is unknown" for name in state if name not in own]
    problems = [*missing[:1], *unknown[:1], *missing[1:], *unknown[1:]]
    shapes = [name for name, value in own.items() if name in state and state[name].shape != tuple(value.shape)]
    problems += [f"{name} has shape {state[name].shape} instead of {tuple(own[name].shape)}" for name in shapes]
    problems += [
        f"{name} holds {state[name].dtype} instead of {value.dtype}"
        for name, value in own.items()
        if name in state and state[name].dtype.is_floating_point != value.is_floating_point()
    ]
    if not problems:
        return None
    shown = 2 if missing and unknown else 1
    more = f", and {len(problems) - shown} more" if len(problems) > shown else ""
    return f"{', '.join(problems[:shown])}{more}; {_held(state)}{_advice(state, own, shapes, last, len(problems))}"


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
    small = [name for name, value in state.items() if name not in own and _is_of_images(value)]
    if len(small) == problems:
        values = [f"{name} is {', '.join(f'{x:.4g}' for x in state[name].read().flatten())}" for name in small[:2]]
        told = "; if these are the mean and deviation of its images, give them with --mean and --std: "
        return told + "; ".join(values)
    return ""
