"""Freed memory is kept for the next tensor."""

import subprocess
import sys

import pytest

#: mallinfo2 counts in its fourth entry the blocks that the C library mapped for one allocation.
MAPPED = """
import ctypes, sys
from verifiers.core.memory import reuse_memory

class Info(ctypes.Structure):
    _fields_ = [(str(number), ctypes.c_size_t) for number in range(10)]

if sys.argv[1] == "kept":
    reuse_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.mallinfo2.restype = Info
before = getattr(library.mallinfo2(), "3")
library.malloc(2**28)
print(getattr(library.mallinfo2(), "3") - before)
"""


def mapped(how: str) -> int:
    run = subprocess.run([sys.executable, "-c", MAPPED, how], capture_output=True, text=True, check=True)
    return int(run.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told")
def test_a_large_tensor_is_not_mapped_anew() -> None:
    assert (mapped("as usual"), mapped("kept")) == (1, 0)
