"""Bound margins differentiably by auto-LiRPA, to check the native bounds of certified training."""

import copy
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa import compat, guard
from verifiers.bound_propagation.auto_lirpa.adapter import FAILURES, LIRPA_NAMES, quiet, without_dropout
from verifiers.bound_propagation.checks import check_forward
from verifiers.bound_propagation.native.training import BoundMethod, Box
from verifiers.core.errors import Contradiction, InputError, Unsupported, one_line
from verifiers.runtime.oom import pass_on_memory


def lower_margins(
    model: nn.Module,
    box: Box,
    y: Int[Tensor, " batch"],
    method: BoundMethod,
    *,
    sign: int = 1,
    minus: nn.Module | None = None,
) -> Float[Tensor, "batch classes"]:
    """Bound margins as ``native.training.lower_margins``, for the layers that auto-LiRPA bounds soundly.

    Raises:
        InputError: auto-LiRPA is missing, or cannot bound this network.
    """
    lower, upper = (side.detach() for side in box)
    try:
        with quiet(lower.dtype), torch.autocast(lower.device.type, enabled=False):
            graph = _graph(getattr(model, "_orig_mod", model), minus, lower)  # a compiled network is unwrapped
            eye = torch.eye(graph.final_shape[-1], dtype=lower.dtype, device=lower.device)
            rows = sign * (eye[y].unsqueeze(1) - eye[None])
            given = (_within(lower, upper),)
            return graph.compute_bounds(x=given, C=rows, method=LIRPA_NAMES[method], bound_upper=False)[0]
    except compat.AutoLirpaMissing as missing:
        raise InputError(f"certified training needs auto-LiRPA: {missing}") from None
    except (Unsupported, Contradiction, *FAILURES) as error:
        pass_on_memory(error)
        why = one_line(error).removeprefix("auto-LiRPA: ") or type(error).__name__
        raise InputError(
            f"auto-LiRPA cannot bound this network while it trains ({method}): {why}; "
            "change the network or take an objective without bounds"
        ) from None


def _within(lower: Tensor, upper: Tensor) -> Tensor:
    """Convert a box to auto-LiRPA's form."""
    lirpa = compat.load()
    return lirpa.BoundedTensor((lower + upper) / 2, lirpa.PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper))


class _Difference(nn.Module):
    """Compute s(x) - t(x)."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        return self.student(x) - self.teacher(x)


#: The dtype and device, and the graph, of each network less another one, kept while both are alive.
_GRAPHS: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, Any]] = WeakKeyDictionary()
#: Stands for the other network when a network is bounded alone.
_NOTHING = nn.Identity()


def _graph(model: nn.Module, minus: nn.Module | None, x: Tensor) -> Any:
    """Return auto-LiRPA's graph with the current weights and statistics of both networks."""
    known = _GRAPHS.setdefault(model, WeakKeyDictionary())
    other = _NOTHING if minus is None else minus
    place, graph = known.get(other, (None, None))
    if place != (x.dtype, x.device):
        graph = _build(model if minus is None else _Difference(model, minus), x[:2])
        known[other] = (x.dtype, x.device), graph
    _follow(graph, {"": model} if minus is None else {"student.": model, "teacher.": minus})
    return graph


def _build(network: nn.Module, x: Tensor) -> Any:
    """Build the graph of a copy, because building writes to the given network.

    Raises:
        Unsupported: a layer or an operator is not known to have sound bounds; the message names it.
        Contradiction: the graph is not the network, whose operations depend on its input.
    """
    network = without_dropout(copy.deepcopy(network)).eval()
    guard.check_modules(network)
    graph = compat.load().BoundedModule(network, x[:1], bound_opts={"conv_mode": "patches"})
    graph.eval()
    graph(_within(x[:1], x[:1]))  # finds what depends on the input
    guard.check_operators(iter(graph._modules.items()))
    check_forward(network, graph, x, "auto-LiRPA")
    _check_batches(network, graph, torch.cat([x, 1 - x])[:2])
    return graph


def _check_batches(network: nn.Module, graph: Any, pair: Float[Tensor, "2 *shape"]) -> None:
    """Check that the graph, traced with one image, accepts two.

    Raises:
        Unsupported: the graph has a fixed batch size.
    """
    try:
        with torch.no_grad():
            expected, found = network(pair), graph(pair)
        same = found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
    except FAILURES as error:
        pass_on_memory(error)
        same = False
    if not same:
        raise Unsupported("its graph has a fixed batch size: write x.flatten(1) for x.view(x.size(0), -1)")


def _follow(graph: Any, parts: dict[str, nn.Module]) -> None:
    """Give the nodes the current weights and buffers: the first network's own parameters, and constants for the rest.

    auto-LiRPA sets ``requires_grad`` of each parameter to its node's ``training``; a frozen parameter is wrapped, so
    that it does not change.
    """
    first = next(iter(parts))
    named = {
        prefix + name: value
        for prefix, part in parts.items()
        for values in (part.named_parameters(remove_duplicate=False), part.named_buffers(remove_duplicate=False))
        for name, value in values
    }
    for node in graph.modules():
        kind, name = type(node).__name__, getattr(node, "ori_name", None)
        if name not in named:
            continue
        if kind == "BoundParams":
            node.training = named[name].requires_grad and name.startswith(first)
            node.param = named[name] if node.training else nn.Parameter(named[name].detach(), requires_grad=False)
        elif kind == "BoundBuffers":  # a copy, because a forward pass in train mode writes to the buffer
            node.buffer = named[name].detach().clone()
