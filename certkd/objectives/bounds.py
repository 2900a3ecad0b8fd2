"""Differentiable bounds of margins over boxes, for certified training; by auto-LiRPA on the network's own weights."""

import copy
import warnings
from typing import Any, Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.errors import InputError

BoundMethod = Literal["ibp", "crown-ibp"]
Box = tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]
_METHODS = {"ibp": "IBP", "crown-ibp": "CROWN-IBP"}


def ball(x: Float[Tensor, "batch *shape"], eps: float) -> Box:
    """The linf ball of eps around images, within the image box."""
    return (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)


def lower_margins(
    model: nn.Module,
    box: Box,
    y: Int[Tensor, " batch"],
    method: BoundMethod,
    *,
    sign: int = 1,
    minus: nn.Module | None = None,
) -> Float[Tensor, "batch classes"]:
    """Lower bounds of sign (f_y - f_j) over a box for every class j (0 at y), differentiable in the parameters.

    With ``minus`` f is the difference of both networks, bounded as one graph: what is equal in both cancels where
    bounds are linear. Batch normalisation is bounded with its running statistics. These bounds train and certify
    nothing: they are in the network's own precision and unguarded.

    Raises:
        InputError: auto-LiRPA is missing, or cannot bound this network.
    """
    lower, upper = (side.detach() for side in box)
    try:
        graph = _graph(model, minus, lower)
        eye = torch.eye(graph.final_shape[-1], dtype=lower.dtype, device=lower.device)
        rows = sign * (eye[y].unsqueeze(1) - eye[None])
        lirpa = compat.load()
        within = lirpa.PerturbationLpNorm(norm=float("inf"), x_L=lower, x_U=upper)
        bounded = lirpa.BoundedTensor((lower + upper) / 2, within)
        with torch.autocast(lower.device.type, enabled=False):
            return graph.compute_bounds(x=(bounded,), C=rows, method=_METHODS[method], bound_upper=False)[0]
    except compat.AutoLirpaMissing as missing:
        raise InputError(f"certified training needs auto-LiRPA: {missing}") from None
    except (NotImplementedError, AssertionError, AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())[:160] or type(error).__name__
        raise InputError(f"auto-LiRPA cannot bound this network while it trains ({method}): {why}") from None


def robust_cross_entropy(margins: Float[Tensor, "batch classes"]) -> Float[Tensor, ""]:
    """Cross-entropy of the worst logits that lower bounds of the margins allow: an upper bound of it over the box."""
    return torch.logsumexp(-margins, dim=1).mean()


def deficits(
    student: nn.Module, teacher: nn.Module, box: Box, y: Int[Tensor, " batch"], method: BoundMethod
) -> Float[Tensor, "batch classes"]:
    """Upper bounds over a box of (t_y - t_j) - (s_y - s_j) for every class j, differentiable in the student's
    parameters.

    CROWN-IBP bounds both networks in one graph, where linear parts of the two cancel; intervals have no linear parts,
    so IBP bounds each network alone, its last layer merged with the difference of the two classes.
    """
    if method == "crown-ibp":
        return -lower_margins(student, box, y, method, minus=teacher)
    with torch.no_grad():
        theirs = lower_margins(teacher, box, y, method, sign=-1)
    return -(theirs + lower_margins(student, box, y, method))


class _Difference(nn.Module):
    """s(x) - t(x)."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def forward(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        return self.student(x) - self.teacher(x)


#: The graph of each network less another one (less itself: alone), for as long as both live.
_GRAPHS: WeakKeyDictionary[nn.Module, WeakKeyDictionary[nn.Module, Any]] = WeakKeyDictionary()


def _graph(model: nn.Module, minus: nn.Module | None, x: Tensor) -> Any:
    """auto-LiRPA's graph; it shares the parameters of ``model``, and its buffers are brought up to date."""
    known, other = _GRAPHS.setdefault(model, WeakKeyDictionary()), model if minus is None else minus
    prefix = "" if minus is None else "student."
    if other not in known:
        known[other] = _build(model, minus, prefix, x)
    buffers = dict(known[other].named_buffers())
    with torch.no_grad():
        for name, value in model.named_buffers():
            if prefix + name in buffers:
                buffers[prefix + name].copy_(value)
    return known[other]


def _build(model: nn.Module, minus: nn.Module | None, prefix: str, x: Tensor) -> Any:
    """A graph of copies, whose nodes then get the model's own parameters: building writes to those that it is given."""
    network = copy.deepcopy(model if minus is None else _Difference(model, minus)).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph = compat.load().BoundedModule(network, x[:1], bound_opts={"conv_mode": "patches"})
    graph.train()  # where auto-LiRPA gives each parameter a gradient
    own = {prefix + name: parameter for name, parameter in model.named_parameters()}
    for node in graph.modules():
        if type(node).__name__ == "BoundBatchNormalization":
            node.training = False
        elif type(node).__name__ == "BoundParams":
            node.param = own.get(node.ori_name, node.param)
            node.training = node.ori_name in own and own[node.ori_name].requires_grad
    return graph
