"""Lack of memory, told from other failures."""

from collections.abc import Callable

import torch

#: What torch raises for it, on GPUs and CPUs; RuntimeErrors can be anything else.
MEMORY_ERRORS = (torch.OutOfMemoryError, MemoryError, RuntimeError)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that there was not enough memory."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def fits(call: Callable[[], object]) -> bool:
    """Call it; False when it ran out of memory. Whatever else it raises is raised."""
    try:
        call()
    except MEMORY_ERRORS as error:
        if not out_of_memory(error):
            raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return False
    return True
