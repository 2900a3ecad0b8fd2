"""Tell out-of-memory errors from other failures, and do with less at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from verifiers.core.errors import out_of_memory

#: The errors that torch raises when memory runs out, on GPUs and CPUs; a RuntimeError can also be anything else.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)

__all__ = ["MEMORY_ERRORS", "fits", "in_parts", "out_of_memory", "pass_on_memory"]


def pass_on_memory(error: BaseException) -> None:
    """Raise an error again if it means that memory ran out; for handlers that take it for another failure."""
    if out_of_memory(error):
        raise error


def fits(call: Callable[[], object]) -> bool:
    """Call a function, and return False if it ran out of memory; other errors propagate."""
    try:
        call()
    except MEMORY_ERRORS as error:
        if not out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False
    return True


def in_parts(call: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
    """Call a function on a batch, or on halves of it if they alone fit into memory; join the results.

    Raises:
        RuntimeError: not even one item fits; or another error of memory, as it was raised.
    """
    if len(batch) == 1:
        return call(batch)
    found: list[Tensor] = []
    if fits(lambda: found.append(call(batch))):
        return found[0]
    return torch.cat([in_parts(call, part) for part in batch.split(-(-len(batch) // 2))])
