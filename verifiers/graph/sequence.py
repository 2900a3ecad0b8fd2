"""Translate a plain sequence of layers into torch.export's graph, without importing torch's compiler.

Importing ``torch.export`` costs more than the whole certification of a small network. A sequence of known layers has
no Python code of its own that could branch, so its graph follows from the layers: the same nodes, in the same order.
Anything else (a custom ``forward``, a hook, a parametrisation, a subclass) is left to torch.export.
"""

from collections.abc import Callable
from pathlib import Path
from types import BuiltinFunctionType, MethodDescriptorType
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules import module as hooks

from verifiers.graph.exported import Exported

aten = torch.ops.aten
#: Appends a layer with input ``x`` to a graph; its weights are given by name.
Writer = Callable[[nn.Module, fx.Graph, fx.Node, dict[str, fx.Node]], fx.Node]


def _linear(layer: nn.Module, graph: fx.Graph, x: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    bias = [weights["bias"]] if "bias" in weights else []
    return graph.call_function(aten.linear.default, (x, weights["weight"], *bias))


def _conv2d(layer: nn.Module, graph: fx.Graph, x: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    assert isinstance(layer, nn.Conv2d)
    stride, padding, dilation = (list(side) for side in (layer.stride, layer.padding, layer.dilation))
    given = (x, weights["weight"], weights.get("bias"), stride, padding, dilation, layer.groups)
    return graph.call_function(aten.conv2d.default, given)  # type: ignore[arg-type]


def _relu(layer: nn.Module, graph: fx.Graph, x: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    return graph.call_function(aten.relu.default, (x,))


def _flatten(layer: nn.Module, graph: fx.Graph, x: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    assert isinstance(layer, nn.Flatten)
    return graph.call_function(aten.flatten.using_ints, (x, layer.start_dim, layer.end_dim))


def _identity(layer: nn.Module, graph: fx.Graph, x: fx.Node, weights: dict[str, fx.Node]) -> fx.Node:
    return x


#: The known layers, by their exact type.
LAYERS: dict[type[nn.Module], Writer] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.ReLU: _relu,
    nn.Flatten: _flatten,
    nn.Identity: _identity,
}


def written(model: nn.Module) -> Exported | None:
    """Translate a network; None if it is not a sequence of known layers."""
    layers = _flat(model, "")
    if layers is None or not _untouched():
        return None
    graph, state, names = fx.Graph(), {}, {}
    inputs: dict[str, dict[str, fx.Node]] = {}
    for path, layer in layers:
        tensors = {**dict(layer.named_parameters()), **dict(layer.named_buffers())}
        inputs[path] = {}
        for name, tensor in tensors.items():
            full = f"{path}.{name}".lstrip(".")
            inputs[path][name] = graph.placeholder(f"p_{full}".replace(".", "_"))
            names[inputs[path][name].name], state[full] = full, tensor.detach()
    x = image = graph.placeholder("x")
    for path, layer in layers:
        before = x
        x = LAYERS[type(layer)](layer, graph, x, inputs[path])
        if x is not before:
            x.meta["nn_module_stack"] = {path: (path, type(layer))}
    graph.output((x,))
    return Exported(list(graph.nodes), names, {}, frozenset({image.name}), state)


def _flat(model: nn.Module, path: str) -> list[tuple[str, nn.Module]] | None:
    """Return the layers in order, with their paths; None if one of them is not known."""
    if not _plain(model):
        return None
    if type(model) in LAYERS:
        strange = isinstance(model, nn.Conv2d) and (model.padding_mode != "zeros" or isinstance(model.padding, str))
        return None if strange else [(path, model)]
    if any(
        getattr(type(model), name) is not getattr(nn.Sequential, name) for name in ("forward", "__iter__", "__call__")
    ):
        return None
    parts = [_flat(child, f"{path}.{name}".lstrip(".")) for name, child in model.named_children()]
    if None in parts or len(parts) < len(model._modules):  # a module that occurs twice
        return None
    return [layer for part in parts if part is not None for layer in part]


def _plain(model: nn.Module) -> bool:
    """Return whether nothing but the type's own ``forward`` runs."""
    tensors = [*model.parameters(recurse=False), *model.buffers(recurse=False)]
    usual = all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in tensors)
    return usual and not hooked(model) and not hooked_everywhere() and not _overridden(model)


def hooked(model: nn.Module) -> bool:
    """Return whether a module has hooks of its own, or a ``forward`` that its class has not."""
    return bool(model._forward_hooks or model._forward_pre_hooks) or "forward" in vars(model)


def hooked_everywhere() -> bool:
    """Return whether hooks of all modules are registered."""
    return bool(hooks._global_forward_hooks or hooks._global_forward_pre_hooks)


def _overridden(model: nn.Module) -> bool:
    """Return whether a known layer's weights are computed, or its methods are replaced at run time."""
    return hasattr(model, "parametrizations") or any(
        name in vars(model) for name in ("_conv_forward", "_call_impl", "__call__")
    )


#: What the known layers call, in Python and in C.
_METHODS = ("forward", "__call__", "__iter__", "_call_impl", "_wrapped_call_impl", "_conv_forward")
_HOME = str(Path(torch.__file__).parent)


def _untouched() -> bool:
    """Return whether torch's layers and functions are its own: others may replace them, or put a mode around them."""
    layers = (*(layer for layer in LAYERS if layer.__module__.startswith("torch.")), nn.Sequential)
    python: list[Any] = [getattr(layer, name) for layer in layers for name in _METHODS if hasattr(layer, name)]
    builtin: list[Any] = [F.linear, F.conv2d, torch.conv2d, torch.relu, torch.relu_, torch.Tensor.flatten]
    return (
        all(str(getattr(_code(each), "co_filename", "")).startswith(_HOME) for each in (*python, F.relu))
        and all(isinstance(each, BuiltinFunctionType | MethodDescriptorType) for each in builtin)
        and not torch._C._len_torch_function_stack()
    )


def _code(function: Any) -> Any:
    return getattr(function, "__code__", None)
