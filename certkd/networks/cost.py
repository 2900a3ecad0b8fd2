"""Limit what a stranger's network may cost, before it costs anything."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from verifiers.core.errors import InputError, one_line
from verifiers.runtime.dispatch import DispatchMode

#: Most entries of one value, entries of all values, and multiplications and additions for one image.
ONE_VALUE, ALL_VALUES, OPERATIONS = 1 << 26, 1 << 27, 2 * 10**11
#: Entries that a network may have beyond its weights while it is built: indices, masks, tables of positions.
_SLACK = 1 << 24
_MAKERS = frozenset(
    "empty zeros ones full rand randn randint empty_strided new_zeros new_empty new_ones new_full".split()
)
_SPREADING = frozenset(
    "repeat repeat_interleave tile expand pad interpolate one_hot kron outer cdist meshgrid cartesian_prod".split()
)


class Budget(TorchFunctionMode):
    """Watch a network being built: it may have no more and no larger tensors than its weights' file.

    The entries of new tensors are counted before they are allocated.
    """

    def __init__(self, entries: int, tensors: int, where: str) -> None:
        super().__init__()
        self._entries, self._tensors, self._where = 3 * entries + _SLACK, 20 * tensors + 1000, where

    @classmethod
    def of(cls, shapes: Sequence[Sequence[int]], where: str, *, copied: bool = False) -> "Budget":
        """Return the budget of a network with weights of these shapes; ``where`` begins the message of a refusal.

        That of a compressed copy is larger: its original is built first.
        """
        entries = sum(math.prod(shape) for shape in shapes)
        return cls(entries + min(30 * entries, ALL_VALUES) * copied, len(shapes), where)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        if name in _MAKERS:
            self._make(_size(args[name.startswith("new_") :], kwargs))
        elif name in ("linspace", "logspace"):
            self._make(_integer(kwargs.get("steps", args[2] if len(args) > 2 else 0)))
        elif name in ("arange", "eye"):
            self._make(_span(args) if name == "arange" else math.prod(map(_integer, args[:2])) ** (3 - len(args[:2])))
        elif not name.endswith("_"):
            self._derive(name, function, args, kwargs)
        return function(*args, **kwargs)

    def _make(self, entries: int) -> None:
        self._entries -= entries
        self._tensors -= 1
        if self._entries < 0 or self._tensors < 0:
            raise InputError(f"{self._where} describes a larger network than its weights are for: it is damaged")

    def _derive(self, name: str, function: Any, args: Any, kwargs: Any) -> None:
        """Refuse an operation with a large result, whose size is found without computing it."""
        sizes = [max(1, value.numel()) for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        if not sizes or (math.prod(sizes) <= _SLACK and name not in _SPREADING):
            return
        try:
            given, named = tree_map(
                lambda value: value.to("meta") if isinstance(value, Tensor) else value, (args, kwargs)
            )
            found = function(*given, **named)
        except Exception:  # noqa: BLE001 - operations without a form for sizes alone, such as item()
            return
        if any(isinstance(value, Tensor) and value.numel() > self._entries for value in tree_leaves(found)):
            self._make(self._entries + 1)


def _integer(value: Any) -> int:
    return int(value) if isinstance(value, int | float) else 0


def _size(args: Sequence[Any], kwargs: dict[str, Any]) -> int:
    """Return the number of entries that a factory function makes."""
    size = kwargs.get("size", args)
    if size and isinstance(size[0], Sequence):
        size = size[0]
    return math.prod(max(0, _integer(side)) for side in size)


def _span(args: Sequence[Any]) -> int:
    bounds = [value for value in args if isinstance(value, int | float)]
    if len(bounds) < 2:
        return _integer(bounds[0]) if bounds else 0
    return int(abs(bounds[1] - bounds[0]) / (abs(bounds[2]) if len(bounds) > 2 and bounds[2] else 1))


class Cost(DispatchMode):
    """Count what a network computes, on tensors without numbers.

    Attributes:
        operations: multiplications and additions so far.
    """

    def __init__(self, where: str) -> None:
        from torch.utils.flop_counter import flop_registry  # it imports triton

        super().__init__()
        self.operations, self._entries, self._where, self._counts = 0, 0, where, flop_registry

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        count = self._counts.get(function._overloadpacket)
        if count is not None:
            self.operations += count(*args, **(kwargs or {}), out_val=found)
        largest = max([value.numel() for value in tree_leaves(found) if isinstance(value, Tensor)], default=0)
        self._entries += largest
        if largest > ONE_VALUE or self._entries > ALL_VALUES:
            raise InputError(f"{self._where} computes {self._entries} numbers for one image: it is too large")
        if self.operations > OPERATIONS:
            raise InputError(
                f"{self._where} needs more than {OPERATIONS:.0e} operations for one image: it is too large"
            )
        return found


def check_cost(network: nn.Module, shape: Sequence[int], where: str, *, strict: bool = False) -> int:
    """Limit the memory and the operations that a network needs for an image, without computing anything.

    Args:
        network: the network, in eval mode.
        shape: shape of one image.
        where: the file, which begins the message of a refusal.
        strict: refuse a network that cannot be followed without numbers; otherwise it is not limited.

    Returns:
        The number of multiplications and additions.

    Raises:
        InputError: it needs too much.
    """
    tensors = {**dict(network.named_parameters()), **dict(network.named_buffers())}
    empty = {name: torch.empty_like(value, device="meta") for name, value in tensors.items()}
    cost = Cost(where)
    try:
        with torch.no_grad(), cost:
            torch.func.functional_call(network, empty, (torch.empty(1, *shape, device="meta"),))
    except InputError:
        raise
    except Exception as error:  # what goes wrong on real images is told when they are computed
        if strict:
            why = f"{type(error).__name__}: {one_line(error)}"
            raise InputError(f"{where} cannot be run as a torch network: {why}") from error
    return cost.operations
