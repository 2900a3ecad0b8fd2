"""Name the code that a process runs, so that workers of other versions can be refused."""

import hashlib
import importlib.util
import platform
from functools import cache
from pathlib import Path

import numpy as np
import torch

PACKAGES = ("verifiers", "certkd")


@cache
def code_of() -> str:
    """Name the versions of Python and of what computes, and the hash of the source of both packages."""
    versions = f"torch {torch.__version__}, NumPy {np.__version__}"
    return f"Python {platform.python_version()}, {versions}, certkd {_source()[:8]}"


def _source() -> str:
    """Compute the SHA-256 of all source files by their places."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        for root in map(Path, (spec.submodule_search_locations or ()) if spec else ()):
            for file in sorted(root.rglob("*.py")):
                digest.update(f"{package}/{file.relative_to(root).as_posix()}|".encode() + file.read_bytes())
    return digest.hexdigest()
