"""Run auto-LiRPA 0.3 on current numpy and torch.

The newest release on the package index was written for torch < 1.13 and does not import with numpy 2 or torch 2. Five
things are missing. Each is supplied only if it is missing, so that a newer release runs unchanged:

1. ``numpy.lib.arraysetops.isin`` (gone in numpy 2),
2. ``torch.onnx.utils._optimize_graph`` and ``torch.onnx.symbolic_helper._set_opset_version`` (moved in torch 2),
3. item access on ``torch._C.Node``,
4. ``remove_duplicate`` in ``BoundedModule._named_members`` (passed by ``nn.Module`` since torch 2),
5. the subgradient 1 of ``torch.clamp`` at its bounds (0 since torch 2.14). alpha-CROWN starts its slopes at exactly 0
   or 1 and clamps them to [0, 1]: with the new subgradient none of them ever moves. Newer releases need this too.

auto-LiRPA translates operators by opset 12. torch registers the changes of each opset when that opset's module is
imported, which any export in the process does. ``load`` imports them, so that a network's graph is the same before and
after an export.

The first two are visible only while auto-LiRPA is being imported, and the fifth only in its modules that clamp slopes.
Other code sees torch and numpy unchanged.

Some names differ between releases; ``bounds_argument`` and ``set_iterations`` find the name in use.
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
    """Return the installed auto-LiRPA release, or None."""
    try:
        return importlib.metadata.version("auto-LiRPA")
    except importlib.metadata.PackageNotFoundError:
        return None


@cache
def load() -> types.ModuleType:
    """Import auto-LiRPA with the fixes above.

    Raises:
        AutoLirpaMissing: it is not installed.
    """
    if version() is None and importlib.util.find_spec("auto_LiRPA") is None:
        raise AutoLirpaMissing(INSTALL)
    _add_node_items()
    for opset in (11, 12):
        _exporter(f"symbolic_opset{opset}")
    with _numpy_arraysetops(), _onnx_functions(), _quiet_import():
        auto_lirpa = importlib.import_module("auto_LiRPA")
    _accept_remove_duplicate(auto_lirpa.BoundedModule)
    if not _slopes_move():
        _restore_clamp_gradient()
    return auto_lirpa


def bounds_argument(bounded_module: Any) -> str:
    """Return the name of ``compute_bounds``'s argument for the bounds of intermediate layers."""
    import inspect

    known = inspect.signature(bounded_module.compute_bounds).parameters
    return next((name for name in ("intermediate_layer_bounds", "interm_bounds") if name in known), "interm_bounds")


def set_iterations(bounded_module: Any, iterations: int) -> None:
    """Set alpha-CROWN's steps, without early stopping, which prints and depends on the other samples of a batch."""
    options = bounded_module.bound_opts["optimize_bound_args"]
    options["ob_iteration" if "ob_iteration" in options and "iteration" not in options else "iteration"] = iterations
    options["early_stop_patience"] = iterations + 1


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
    """Suppress deprecation notes and the note about a missing CUDA compiler, and restore the filters afterwards."""
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
    """Import a module of torch's TorchScript exporter from its place in this release of torch."""
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


def _slopes_move() -> bool:
    """Return whether clamp passes on the gradient at its bounds."""
    with torch.enable_grad():
        point = torch.tensor([0.0, 1.0], requires_grad=True)
        (slope,) = torch.autograd.grad(torch.clamp(point, min=0.0, max=1.0).sum(), point)
    return bool((slope == 1).all())


class _Clamp(torch.autograd.Function):
    """torch.clamp with a gradient wherever the value is unchanged."""

    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, low: Any, high: Any) -> torch.Tensor:
        value = torch.clamp(tensor, low, high)
        ctx.save_for_backward(value == tensor)
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (unchanged,) = ctx.saved_tensors
        return gradients[0] * unchanged, None, None


class _TorchOfSlopes(types.ModuleType):
    """torch, except for clamp's gradient at its bounds."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    @staticmethod
    def clamp(input: torch.Tensor, min: Any = None, max: Any = None, **rest: Any) -> torch.Tensor:  # torch's own names
        if rest or isinstance(min, torch.Tensor) or isinstance(max, torch.Tensor):
            return torch.clamp(input, min, max, **rest)
        return _Clamp.apply(input, min, max)


#: Modules of auto-LiRPA that clamp slopes between the parameter and the bound: up to 0.3, and since 0.4.
_CLAMP_SLOPES = ("auto_LiRPA.operators.activation", "auto_LiRPA.operators.relu")


def _restore_clamp_gradient() -> None:
    for name in _CLAMP_SLOPES:
        module = sys.modules.get(name)
        if module is not None and getattr(module, "torch", None) is torch:
            module.torch = _TorchOfSlopes("torch")  # type: ignore[attr-defined]
