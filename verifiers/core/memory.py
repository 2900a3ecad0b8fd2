"""How this process holds memory; without torch, so that a command can set it first."""

import ctypes
import sys


def reuse_memory() -> None:
    """Let the C library keep up to 1 GiB of freed memory for this process; for programs, not for libraries.

    Otherwise large tensors are mapped anew each time, and their first use costs more than the arithmetic. Does nothing
    if the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(option, 2**30)
