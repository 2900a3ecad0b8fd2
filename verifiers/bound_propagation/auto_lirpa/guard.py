"""What auto-LiRPA may be trusted with, and the checks made when a network's graph is built.

auto-LiRPA 0.3 silently gives wrong bounds on some ordinary layers (padded average pooling, square root, reciprocal,
average pooling that does not count its padding). So layers and operators are allowed by a list of those that stood up
to attack for linf and l2 balls, with their attributes, and everything else is refused by name. Because a list can be
wrong too, every graph is held against the network (same logits) and its bounds against points of the ball.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.bound_propagation.engine import Engine
from verifiers.certificate import Contradiction, Norm, Unsupported
from verifiers.falsify import ascend, project, random_start

Check = Callable[[nn.Module], str | None]


def _pair(value: int | tuple[int, ...]) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, tuple) else (value, value)


def _always(module: nn.Module) -> str | None:
    return None


def _convolution(module: nn.Module) -> str | None:
    assert isinstance(module, nn.Conv2d)
    if module.padding_mode != "zeros":
        return f"padding_mode={module.padding_mode!r}"
    if isinstance(module.padding, str):
        return f"padding={module.padding!r}" if module.padding != "valid" else None
    return f"dilation={module.dilation}" if _pair(module.dilation) != (1, 1) else None


def _leaky(module: nn.Module) -> str | None:
    assert isinstance(module, nn.LeakyReLU)
    return _slope(module.negative_slope)


def _slope(slope: float) -> str | None:
    """Its interval bounds need a slope that does not fall, its relaxation a convex function."""
    return None if 0 <= slope <= 1 else f"negative_slope={slope} outside [0, 1]"


def _pooling(module: nn.Module) -> str | None:
    assert isinstance(module, nn.AvgPool2d | nn.MaxPool2d)
    kernel, stride = _pair(module.kernel_size), _pair(module.stride or module.kernel_size)
    if kernel != stride:
        return f"overlapping windows (kernel {kernel}, stride {stride})"
    if kernel[0] != kernel[1]:
        return f"windows that are not square {kernel}"
    if _pair(module.padding) != (0, 0):
        return f"padding={module.padding}"
    if getattr(module, "divisor_override", None):
        return "divisor_override"
    if _pair(getattr(module, "dilation", 1)) != (1, 1):
        return f"dilation={module.dilation}"
    return "ceil_mode=True" if module.ceil_mode else None


def _adaptive(module: nn.Module) -> str | None:
    assert isinstance(module, nn.AdaptiveAvgPool2d)
    return None if _pair(module.output_size) == (1, 1) else f"output_size={module.output_size}"  # type: ignore[arg-type]


def _batch_norm(module: nn.Module) -> str | None:
    assert isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)
    if not module.track_running_stats:
        return "batch statistics in eval mode"
    return None if module.affine else "affine=False"


#: Leaf modules with their own check of attributes; a string says what is refused.
MODULES: dict[type[nn.Module], Check] = {
    nn.Linear: _always,
    nn.Conv2d: _convolution,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.ReLU: _always,
    nn.LeakyReLU: _leaky,
    nn.Sigmoid: _always,
    nn.Tanh: _always,
    nn.SiLU: _always,
    nn.AvgPool2d: _pooling,
    nn.MaxPool2d: _pooling,
    nn.AdaptiveAvgPool2d: _adaptive,
    nn.Flatten: _always,
    nn.Identity: _always,
}

#: Graph operators that may depend on the input. Constant parts of a graph are evaluated, not bounded: any will do.
OPERATORS = frozenset(
    f"Bound{name}"
    for name in (
        "Input Conv Linear BatchNormalization Relu LeakyRelu Sigmoid Tanh Add Sub Mul Abs Exp Flatten Reshape "
        "Transpose Unsqueeze Squeeze Concat Identity AveragePool GlobalAveragePool MaxPool ReduceMean Shape"
    ).split()
)


def check_modules(model: nn.Module) -> None:
    """Refuse a network with a leaf module that is not on the list, naming its path.

    A module with parameters of its own besides its children is checked through the graph's operators only.

    Raises:
        Unsupported: with the path, the type and the attribute.
    """
    for path, module in model.named_modules():
        if next(module.children(), None) is not None:
            continue
        check = MODULES.get(type(module))
        known_type = type(module).__module__.startswith("torch.nn")
        if check is None and not known_type:
            continue  # the author's own module: its operators show in the graph
        reason = check(module) if check is not None else "not among the layers it bounds soundly"
        if reason is not None:
            where = path or "the network itself"
            raise Unsupported(f"auto-LiRPA: layer {where!r} ({type(module).__name__}): {reason}")


def check_operators(nodes: Iterator[tuple[str, Any]]) -> None:
    """Refuse a graph with an operator that is not on the list and depends on the input.

    Functional calls (``F.avg_pool2d`` instead of a module) are seen only here, so attributes are checked again.

    Raises:
        Unsupported: with the operator's name.
    """
    for name, node in nodes:
        if not getattr(node, "perturbed", False):
            continue
        kind = type(node).__name__
        reason = None if kind in OPERATORS else "not among the operators it bounds soundly"
        if kind in ("BoundAveragePool", "BoundMaxPool"):
            reason = _pooling_operator(node)
        elif kind == "BoundDiv":
            reason = "a divisor that depends on the input" if node.inputs[1].perturbed else None
        elif kind == "BoundLeakyRelu":
            reason = _slope(node.alpha)
        elif kind == "BoundConv" and tuple(node.dilation) != (1, 1):
            reason = f"dilation={tuple(node.dilation)}"
        if reason is not None:
            raise Unsupported(f"auto-LiRPA: operator {kind.removeprefix('Bound')} at {name!r}: {reason}")


def _pooling_operator(node: Any) -> str | None:
    kernel, stride, padding = (tuple(getattr(node, name)) for name in ("kernel_size", "stride", "padding"))
    if kernel != stride or any(padding) or kernel[0] != kernel[1]:
        return f"kernel {kernel}, stride {stride}, padding {padding}: only square, disjoint, unpadded windows are sound"
    height, width = node.input_shape[-2:]
    if height % kernel[0] or width % kernel[1]:
        return f"windows {kernel} do not divide the {height}x{width} input"
    return None


def check_forward(
    model: nn.Module, graph: Callable[[Tensor], Tensor], x: Float[Tensor, "batch *shape"], scale: float = 1e-9
) -> None:
    """The graph is the network: same logits on the samples and on noise.

    Raises:
        Contradiction: with the largest difference.
    """
    points = torch.cat([x, torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)])
    with torch.no_grad():
        expected = model(points)
        # The maximum of a tensor is nan where one value is, unlike that of a list.
        difference = float((torch.cat([graph(point[None]) for point in points]) - expected).abs().max())
    if not difference <= scale * max(1.0, float(expected.abs().max())):
        raise Contradiction(f"auto-LiRPA's graph is another network: its logits differ by {difference:.3g}")


def check_sandwich(
    model: nn.Module,
    engine: Engine,
    x: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, " batch"],
    *,
    norm: Norm,
    method: str,
    points: int = 32,
) -> None:
    """No point of the ball breaks a bound: corners, random points and an attack on every logit, from both sides.

    Raises:
        Contradiction: with the size of the break.
    """
    with torch.no_grad():
        classes = model(x).shape[1]
    eye = torch.eye(classes, dtype=x.dtype, device=x.device).expand(len(x), classes, classes)
    both = torch.cat([eye, -eye], dim=1)
    bounds = engine.lower_bounds(x, eps, both, norm=norm, method=method)
    slack = 1e-9 * bounds.abs().amax(1, keepdim=True).clamp_min(1.0)
    for attacked in _probes(model, x, eps, both, norm, points):
        with torch.no_grad():
            logits = model(attacked)
        values = torch.cat([logits, -logits], dim=1)
        broken = (bounds - values - slack).amax()
        if not float(broken) <= 0:
            raise Contradiction(
                f"auto-LiRPA's {method} bound is broken by a point inside the {norm} ball by {float(broken):.3g}"
            )


def _probes(
    model: nn.Module, x: Tensor, eps: Tensor, both: Tensor, norm: Norm, points: int
) -> Iterator[Float[Tensor, "batch *shape"]]:
    generator = torch.Generator().manual_seed(0)
    for kind in range(points):
        delta = random_start(x, eps, norm, generator)
        if kind % 2:  # a corner of the box, or a point of the sphere
            delta = project(delta.sign() * 1e3, eps, norm) if norm is Norm.LINF else project(delta * 1e3, eps, norm)
        yield (x + delta).clamp(0.0, 1.0)
    for row in range(min(both.shape[1], 20)):
        yield ascend(lambda z, r=row: -(both[:, r] * model(z)).sum(1), x, eps=eps, norm=norm, steps=8)  # type: ignore[misc]
