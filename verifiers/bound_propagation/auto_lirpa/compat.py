"""auto-LiRPA 0.3 on current numpy and torch.

The newest release on the package index was written for torch < 1.13 and does not import with numpy 2 or torch 2. Four
points are missing; each is supplied only where it is missing, so that a newer release runs untouched:

1. ``numpy.lib.arraysetops.isin`` (gone in numpy 2),
2. ``torch.onnx.utils._optimize_graph`` and ``torch.onnx.symbolic_helper._set_opset_version`` (moved in torch 2),
3. item access on ``torch._C.Node``,
4. ``remove_duplicate`` in ``BoundedModule._named_members`` (passed by ``nn.Module`` since torch 2).

The first two are visible only while auto-LiRPA is being imported: torch and numpy stay as they are for other code.
"""

import importlib
import importlib.metadata
import logging
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import numpy as np
import torch

INSTALL = (
    "bound propagation needs auto-LiRPA: install it with 'uv sync', or with pip: "
    "'pip install --no-deps auto-LiRPA==0.3' (its metadata pins an old torch; certkd runs it on the current one)"
)


class AutoLirpaMissing(ImportError):
    """auto-LiRPA is not installed; the message says how to install it."""


def version() -> str | None:
    """The installed auto-LiRPA release, or None."""
    try:
        return importlib.metadata.version("auto-LiRPA")
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def load() -> types.ModuleType:
    """Import auto-LiRPA, made to run here.

    Raises:
        AutoLirpaMissing: it is not installed.
    """
    if version() is None and importlib.util.find_spec("auto_LiRPA") is None:
        raise AutoLirpaMissing(INSTALL)
    _add_node_items()
    with _numpy_arraysetops(), _onnx_functions(), _quiet_import():
        auto_lirpa = importlib.import_module("auto_LiRPA")
    _accept_remove_duplicate(auto_lirpa.BoundedModule)
    return auto_lirpa


@contextmanager
def _numpy_arraysetops() -> Iterator[None]:
    name = "numpy.lib.arraysetops"
    if name in sys.modules or importlib.util.find_spec(name) is not None:
        yield
        return
    module = types.ModuleType(name)
    module.isin = np.isin  # type: ignore[attr-defined]
    sys.modules[name] = module
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _onnx_functions() -> Iterator[None]:
    import torch.onnx.symbolic_helper
    import torch.onnx.utils

    added: list[tuple[types.ModuleType, str]] = []

    def supply(module: types.ModuleType, name: str, find: Callable[[], Any]) -> None:
        if not hasattr(module, name):
            setattr(module, name, find())
            added.append((module, name))

    supply(torch.onnx.utils, "_optimize_graph", lambda: _exporter("utils")._optimize_graph)
    supply(torch.onnx.symbolic_helper, "_set_opset_version", lambda: _set_opset_version)
    try:
        yield
    finally:
        for module, name in added:
            delattr(module, name)


@contextmanager
def _quiet_import() -> Iterator[None]:
    """No deprecation notes of its old TorchScript code, no note that there is no CUDA compiler; filters as before."""
    noisy = [logging.getLogger("auto_LiRPA"), logging.getLogger("torch.utils.cpp_extension")]
    levels = [logger.level for logger in noisy]
    with warnings.catch_warnings(record=True):  # recorded, because auto-LiRPA sets filters of its own on the way
        for logger in noisy:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(noisy, levels, strict=True):
                logger.setLevel(level)


def _exporter(name: str) -> types.ModuleType:
    """A module of torch's TorchScript exporter, wherever this torch keeps it."""
    for parent in ("torch.onnx._internal.torchscript_exporter", "torch.onnx"):
        try:
            return importlib.import_module(f"{parent}.{name}")
        except ModuleNotFoundError:
            continue
    raise ImportError(f"torch {torch.__version__} has no TorchScript exporter module {name!r}")


def _set_opset_version(opset: int) -> None:
    _exporter("_globals").GLOBALS.export_onnx_opset_version = opset


def _add_node_items() -> None:
    if not hasattr(torch._C.Node, "__getitem__"):
        torch._C.Node.__getitem__ = lambda node, key: getattr(node, node.kindOf(key))(key)  # type: ignore[method-assign]


def _accept_remove_duplicate(bounded_module: type) -> None:
    import inspect

    original = bounded_module._named_members  # type: ignore[attr-defined]
    if "remove_duplicate" in inspect.signature(original).parameters:
        return

    def named_members(  # the old signature already removes duplicates
        self: Any, get_members_fn: Any, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Any:
        return original(self, get_members_fn, prefix, recurse)

    bounded_module._named_members = named_members  # type: ignore[attr-defined]
