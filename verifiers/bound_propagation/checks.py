"""Check a new engine: its graph gives the network's logits, and no point breaks its bounds."""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verifiers.bound_propagation.engine import Engine
from verifiers.core.errors import Contradiction
from verifiers.core.quantities import Norm
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, per_sample, project, random_start, reachable, within_eps
from verifiers.graph.capture import precision_of
from verifiers.runtime.last_places import refuse_coarse
from verifiers.runtime.oom import fits


def check_forward(
    model: nn.Module, graph: Callable[[Tensor], Tensor], x: Float[Tensor, "batch *shape"], name: str
) -> None:
    """Check that a graph gives each image, alone, the logits that the network gives it in a batch.

    Raises:
        Contradiction: the logits differ; the message has the largest difference.
    """
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype).to(x.device)
    points = torch.cat([x, noise])
    with torch.no_grad():
        expected, found = model(points), torch.cat([graph(point) for point in points.split(1)])
    # The maximum of a tensor with a nan is nan, unlike that of a list.
    difference = float((found - expected).abs().max()) if found.shape == expected.shape else float("nan")
    scale = 1e-9 if x.dtype == torch.float64 else 1e-3
    if not difference <= scale * max(1.0, float(expected.abs().max())):
        raise Contradiction(f"{name}'s graph is another network: its logits differ by {difference:.3g}")


def check_sandwich(model: nn.Module, engine: Engine, balls: Balls, method: str, *, points: int = 32) -> None:
    """Attack bounds by corners, random points and PGD on every logit, from both sides.

    A bound that is nan claims nothing. Bounds of the deployed network are held by its own logits at these points too.

    Raises:
        Contradiction: a point breaks a bound; the message has the size of the break.
        Unsupported: it does by no more than rounding in float64 can make of weights that cancel.
    """
    x = balls.x
    with torch.no_grad():
        classes = model(x).shape[1]
    eye = torch.eye(classes, dtype=x.dtype, device=x.device).expand(len(x), classes, classes)
    both = torch.cat([eye, -eye], dim=1)
    bounds = engine.ask(balls, both, method).bound
    bounds = bounds.where(~bounds.isnan(), -float("inf"))  # proves nothing
    slack = 1e-9 * bounds.abs().where(bounds.abs() < float("inf"), 0.0).amax(1, keepdim=True).clamp_min(1.0)
    for attacked in _probes(model, balls, both, points):
        with torch.no_grad():
            logits = model(attacked)
        values = torch.cat([logits, -logits], dim=1)
        broken = (bounds - values - slack).amax()
        if not float(broken) <= 0:
            refuse_coarse(engine.name, float(broken), model, partial(_values, attacked))
            raise Contradiction(
                f"the {method} bound of engine {engine.name} is broken by a point inside the {balls.norm} ball "
                f"by {float(broken):.3g}"
            )
        if (deployed := getattr(engine, "deployed", None)) is not None:
            _check_deployed(deployed, engine.name, balls, attacked, bounds - slack)


def _check_deployed(deployed: nn.Module, name: str, balls: Balls, points: Tensor, bounds: Tensor) -> None:
    """Check bounds by the network in its own precision, at points that are moved as far inside as rounding needs.

    Raises:
        Contradiction: its logits break one.
    """
    x, eps, norm = balls.x, balls.eps, balls.norm
    share = x.new_tensor([reachable(float(radius), norm, x.float()) / max(float(radius), 1e-300) for radius in eps])
    near = (x + per_sample(share, x) * (points - x)).clamp(0.0, 1.0).float()
    inside = within_eps(x, near, eps, norm)
    with torch.no_grad():
        logits = deployed(near.to(precision_of(deployed, near))).double()
    excess = bounds - torch.cat([logits, -logits], dim=1)
    asked = inside[:, None] & (bounds > -float("inf"))
    if not float(excess.where(asked, -float("inf")).amax()) <= 0:
        raise Contradiction(
            f"the network in float32 breaks a bound of engine {name} by {float(excess.where(asked, 0.0).amax()):.3g}: "
            "it does something else than in float64"
        )


def _values(points: Tensor, model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(points)
        return found


def attack_bounds(
    engine: Engine, samples: Float[Tensor, "batch *shape"], eps: float, *, norm: Norm, method: str
) -> None:
    """Attack an engine's bounds at eps, and at a larger radius, because a search goes beyond eps.

    Samples that do not fit into memory together are tried one by one. If none fits at the larger radius, nothing is
    tried there.

    Raises:
        Contradiction: a point breaks a bound; the message has the size of the break.
        MemoryError: no sample fits into memory at eps.
    """

    def hold(scale: float, part: Tensor) -> None:
        check_sandwich(engine.model, engine, Balls.around(part.double(), scale * eps, norm), method)

    for scale in (1.0, 8.0):
        held = fits(partial(hold, scale, samples)) or any(
            [fits(partial(hold, scale, sample)) for sample in samples.split(1)]
        )
        if scale == 1 and not held:
            raise MemoryError(f"{engine.name}: not even one sample fits into memory")


def _probes(model: nn.Module, balls: Balls, both: Tensor, points: int) -> Iterator[Float[Tensor, "batch *shape"]]:
    x, eps, norm = balls.x, balls.eps, balls.norm
    generator = torch.Generator().manual_seed(0)
    for kind in range(points):
        delta = random_start(x, eps, norm, generator)
        if kind % 2:  # a corner of the box, or a point of the sphere
            delta = project(delta.sign() * 1e3, eps, norm) if norm is Norm.LINF else project(delta * 1e3, eps, norm)
        yield (x + delta).clamp(0.0, 1.0)
    for row in range(min(both.shape[1], 20)):
        yield ascend(lambda z, r=row: -(both[:, r] * model(z)).sum(1), Balls(x, eps, norm), steps=8)  # type: ignore[misc]
