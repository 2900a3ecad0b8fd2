"""Record the operators by which a network computes its logits from one image, and compare two recordings.

A network's Python code can tell that it is captured: by the type of its input, a copy's flags, or its callers. The
graph is then that of another branch. The operators that run on plain tensors show it, even where all values agree.
The recording is made in a thread of its own, where nothing of this package is among the network's callers.
"""

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from verifiers.graph.exported import kind_of
from verifiers.graph.watch import line_at, own_line
from verifiers.runtime.dispatch import DispatchMode
from verifiers.runtime.modes import usual_modes

#: Operators that only move or copy values, which a program may leave out.
_MOVES = frozenset(
    "clone copy _to_copy contiguous detach alias lift_fresh lift_fresh_copy _unsafe_view expand slice_scatter "
    "select_scatter fill zero zeros_like empty_like".split()
)
#: Constants of at most so many numbers are part of a recording.
_FEW = 16
#: An operator: its name, its numbers and its small constants.
Key = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class _Step:
    """Hold an operator that ran: the storages that it read and wrote, and the line of the network's code."""

    key: Key
    reads: frozenset[int]
    writes: frozenset[int]
    line: tuple[str, int] | None


class _Recorder(DispatchMode):
    """Record the operators on values that depend on the image."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.steps: list[_Step] = []
        self._kept: dict[int, Any] = {}  # kept alive, so that no address is used twice
        self._follow(image)

    def _follow(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        self._kept[storage._cdata] = storage
        return int(storage._cdata)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        tensors = [leaf for leaf in given if isinstance(leaf, Tensor)]
        reads = frozenset(map(storage_of, tensors)).intersection(self._kept)
        key = self._key(func, given) if reads else ("", ())
        result = func(*args, **(kwargs or {}))
        if reads:
            written = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
            if func._schema.is_mutable:
                written += tensors
            writes = frozenset(self._follow(tensor) for tensor in written)
            self.steps.append(_Step(key, reads, writes, own_line(sys._getframe(1))))
        return result

    def _key(self, func: Any, given: list[Any]) -> Key:
        """Name an operator as both forms of it are named, ``relu_`` and ``relu``; moves have no name."""
        name = kind_of(func).rstrip("_")
        if name in _MOVES or func.is_view:
            return "", ()
        if "batch_norm" in name:  # of several forms
            return "batch_norm", ()
        if name == "bmm":  # torch folds a batch of products into one where that is faster
            return "mm", ()
        numbers = (_number(leaf, self._kept) for leaf in given)
        return name, tuple(number for number in numbers if number)


def storage_of(tensor: Tensor) -> int:
    """Return the address of a tensor's storage."""
    return int(tensor.untyped_storage()._cdata)


def _number(leaf: Any, images: dict[int, Any]) -> str:
    """Write a number or a small constant of an operator; empty for anything else."""
    if isinstance(leaf, bool | int | float):
        return repr(float(leaf))
    if isinstance(leaf, Tensor) and leaf.numel() <= _FEW and storage_of(leaf) not in images:
        return repr([float(value) for value in leaf.detach().reshape(-1).double().tolist()])
    return ""


Tape = dict[Key, list[tuple[str, int] | None]]


def tape_of(network: nn.Module, image: Tensor, *, gradients: bool = False, here: bool = False) -> Tape:
    """Run a network on one image; return the operators that its output depends on, with the lines of its code.

    Args:
        gradients: run with gradients on.
        here: run in this thread, not in one of its own.
    """
    x = image.detach().clone()
    recorder, mode = _Recorder(x), torch.enable_grad() if gradients else torch.no_grad()
    if here:
        with usual_modes(), mode, recorder:
            output = network(x)
    else:
        with usual_modes(), ThreadPoolExecutor(1) as thread:
            for each in (mode, recorder):
                thread.submit(each.__enter__).result()
            try:
                output = thread.submit(network, x).result()
            finally:
                thread.submit(recorder.__exit__, None, None, None).result()
    first = next((leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)), None)
    live = set() if first is None else {storage_of(first)}
    tape: Tape = {}
    for step in reversed(recorder.steps):
        if step.writes & live:
            live |= step.reads
            if step.key[0]:
                tape.setdefault(step.key, []).append(step.line)
    return tape


def difference(network: Tape, program: Tape) -> str | None:
    """Name an operator that one of two recordings has more often, with its line; None if they agree."""
    ours, theirs = (Counter({key: len(lines) for key, lines in tape.items()}) for tape in (network, program))
    for count, other, tape in ((ours, theirs, network), (theirs, ours, program)):
        more = count - other
        if more:
            key = next(iter(more))
            lines = [line for line in tape[key] if line is not None]
            return f"{key[0]!r}{line_at(lines[0]) if lines else ''}"
    return None
