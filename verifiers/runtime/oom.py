"""Tell out-of-memory errors from other failures."""

from collections.abc import Callable

import torch

#: The errors that torch raises when memory runs out, on GPUs and CPUs; a RuntimeError can also be anything else.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


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
