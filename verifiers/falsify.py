"""Attacks: projected gradient ascent inside a ball, and the PGD falsifier that stands beside every certificate.

An attack proves nothing about robustness. It gives counterexamples, an upper limit for every certified radius, and the
adversarial examples that training uses.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.certificate import Column, Columns, Guarantee, MethodInfo, Norm, Request, Status, margins

Objective = Callable[[Float[Tensor, "batch *shape"]], Float[Tensor, " batch"]]


def per_sample(values: Float[Tensor, " batch"], like: Float[Tensor, "batch *shape"]) -> Tensor:
    """Reshape one value per sample so that it broadcasts over the sample's pixels."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def norms(delta: Float[Tensor, "batch *shape"], norm: Norm) -> Float[Tensor, " batch"]:
    """Length of each sample's perturbation."""
    order = {Norm.LINF: float("inf"), Norm.L2: 2.0, Norm.L1: 1.0}[norm]
    return torch.linalg.vector_norm(delta.flatten(1), order, dim=1)


def project(
    delta: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm
) -> Float[Tensor, "batch *shape"]:
    """The nearest point of each sample's ball for linf and l2; for l1 the exact projection by sorting.

    Source of the l1 projection: Duchi et al., "Efficient projections onto the l1-ball", ICML 2008.
    """
    if norm is Norm.LINF:
        limit = per_sample(eps, delta)
        return torch.maximum(torch.minimum(delta, limit), -limit)
    length = norms(delta, norm)
    if norm is Norm.L2:
        return delta * per_sample((eps / length.clamp_min(1e-30)).clamp_max(1.0), delta)
    flat = delta.flatten(1)
    ordered, _ = flat.abs().sort(dim=1, descending=True)
    excess = (ordered.cumsum(1) - eps[:, None]) / torch.arange(1, flat.shape[1] + 1, device=flat.device)
    last = (ordered > excess).sum(1, keepdim=True).clamp_min(1) - 1
    threshold = excess.gather(1, last).clamp_min(0.0)
    inside = (length <= eps)[:, None]
    shrunk = flat.sign() * (flat.abs() - threshold).clamp_min(0.0)
    return torch.where(inside, flat, shrunk).reshape(delta.shape)


def steepest(gradient: Float[Tensor, "batch *shape"], norm: Norm) -> Float[Tensor, "batch *shape"]:
    """The direction of unit length in ``norm`` that raises the objective most (for l1, spread over the top 5 %)."""
    if norm is Norm.LINF:
        return gradient.sign()
    if norm is Norm.L2:
        return gradient / per_sample(norms(gradient, norm).clamp_min(1e-30), gradient)
    flat = gradient.flatten(1)
    count = max(1, flat.shape[1] // 20)
    top = flat.abs().topk(count, dim=1).indices
    return torch.zeros_like(flat).scatter(1, top, flat.gather(1, top).sign() / count).reshape(gradient.shape)


def random_start(
    x: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm, generator: torch.Generator
) -> Float[Tensor, "batch *shape"]:
    """A random perturbation in each ball; drawn on the CPU, so that every device starts at the same point."""
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) * 2 - 1
    if norm is Norm.LINF:
        return noise * per_sample(eps, x)
    return noise * per_sample(eps / norms(noise, norm).clamp_min(1e-30), x)


def keyed_start(
    x: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, " batch"],
    norm: Norm,
    seed: int,
    indices: Sequence[int],
    restart: int,
) -> Float[Tensor, "batch *shape"]:
    """``random_start`` that depends on the seed, each sample's index and the restart, not on the batch it is in."""
    rows = []
    for i, index in enumerate(indices):
        key = np.random.SeedSequence([seed, index, restart]).generate_state(1, np.uint64)[0]
        generator = torch.Generator().manual_seed(int(key >> np.uint64(1)))
        rows.append(random_start(x[i : i + 1], eps[i : i + 1], norm, generator))
    return torch.cat(rows)


def ascend(
    objective: Objective,
    x: Float[Tensor, "batch *shape"],
    *,
    eps: Float[Tensor, " batch"],
    norm: Norm,
    steps: int,
    start: Float[Tensor, "batch *shape"] | None = None,
    step_size: float | None = None,
) -> Float[Tensor, "batch *shape"]:
    """Maximise ``objective`` by projected gradient steps over ball and image box; the last iterate.

    Args:
        objective: one value per sample, to be raised.
        x: images in [0, 1].
        eps: radius per sample, pixel units.
        norm: norm of the ball.
        steps: number of gradient steps.
        start: perturbation to start from (zero when None).
        step_size: in pixel units as a share of eps; 2.5 / steps when None.

    Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", arXiv 1706.06083.
    """
    rate = per_sample(eps * (2.5 / steps if step_size is None else step_size), x)
    delta = torch.zeros_like(x) if start is None else project(start, eps, norm)
    adversarial = (x + delta).clamp(0.0, 1.0)
    for _ in range(steps):
        adversarial = adversarial.detach().requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(adversarial).sum(), adversarial)
        blocked = ((adversarial <= 0) & (gradient < 0)) | ((adversarial >= 1) & (gradient > 0))  # by the image box
        gradient = gradient.masked_fill(blocked, 0.0)
        delta = project(adversarial.detach() - x + rate * steepest(gradient, norm), eps, norm)
        adversarial = (x + delta).clamp(0.0, 1.0)
    return adversarial.detach()


def reachable(eps: float, norm: Norm, x: Float[Tensor, "batch *shape"]) -> float:
    """A little less than eps: rounding x + delta to x's dtype moves no point of this ball out of the one of eps."""
    step = torch.finfo(x.dtype).eps / 4  # half a unit in the last place of a pixel in [0.5, 1]
    pixels = x[0].numel()
    rounding = step * {Norm.LINF: 1.0, Norm.L2: pixels**0.5, Norm.L1: float(pixels)}[norm]
    return max(eps * (1 - 1e-6) - rounding, eps / 2)


@dataclass
class Pgd:
    """PGD against the predicted class: margin loss and cross-entropy in turn, random starts keyed by sample index."""

    model: nn.Module
    request: Request
    batch_size: int = 256
    notes: Mapping[str, str] = field(default_factory=dict)

    def __call__(
        self, x: Float[Tensor, "batch *shape"], predicted: Int[Tensor, " batch"], indices: Int[Tensor, " batch"]
    ) -> Columns:
        best, worst_margin = self._attack(x, predicted, indices)
        found = worst_margin < 0
        nearest = torch.full(x.shape[:1], float("nan"), dtype=torch.float64, device=x.device)
        if bool(found.any()):
            best[found] = self._shorten(x[found], best[found], predicted[found])
            nearest[found] = norms(best[found].double() - x[found].double(), self.request.norm)
            with torch.no_grad():
                worst_margin[found] = margins(self.model(best[found]), predicted[found])
        best[~found] = float("nan")
        status = torch.where(found, Status.FALSIFIED.value, Status.NOT_CERTIFIED.value)
        return {
            "status": status.cpu().numpy().astype("uint8"),
            "radius": np.zeros(len(x)),
            "margin": worst_margin.double().cpu().numpy(),
            "distance": nearest.cpu().numpy(),
            "counterexample": best.float().cpu().numpy(),
        }

    def _attack(self, x: Tensor, predicted: Tensor, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The point of smallest margin over all restarts and both losses."""
        reach = reachable(self.request.eps.value, self.request.norm, x)
        eps = torch.full(x.shape[:1], reach, dtype=x.dtype, device=x.device)
        with torch.no_grad():
            best, worst_margin = x.clone(), margins(self.model(x), predicted)
        losses: tuple[Objective, ...] = (
            lambda z: -margins(self.model(z), predicted),
            lambda z: nn.functional.cross_entropy(self.model(z), predicted, reduction="none"),
        )
        for restart in range(int(self.request.options["restarts"])):
            start = (
                keyed_start(x, eps, self.request.norm, self.request.seed, indices.tolist(), restart)
                if restart
                else None
            )
            adversarial = ascend(
                losses[restart % 2],
                x,
                eps=eps,
                norm=self.request.norm,
                steps=int(self.request.options["steps"]),
                start=start,
            )
            with torch.no_grad():
                margin = margins(self.model(adversarial), predicted)
            better = (margin < worst_margin) & self._inside(x, adversarial)
            best[better], worst_margin[better] = adversarial[better], margin[better]
        return best, worst_margin

    def _inside(self, x: Tensor, point: Tensor) -> Tensor:
        return norms(point.double() - x.double(), self.request.norm) <= self.request.eps.value

    def _shorten(self, x: Tensor, adversarial: Tensor, predicted: Tensor, steps: int = 12) -> Tensor:
        """The counterexample nearest to x on the segment between them, by bisection; each end is evaluated."""
        low, high = torch.zeros(len(x), device=x.device), torch.ones(len(x), device=x.device)
        nearest = adversarial.clone()
        for _ in range(steps):
            middle = (low + high) / 2
            point = (x + per_sample(middle.to(x.dtype), x) * (adversarial - x)).clamp(0.0, 1.0)
            with torch.no_grad():
                fooled = (margins(self.model(point), predicted) < 0) & self._inside(x, point)
            nearest[fooled] = point[fooled]
            high, low = torch.where(fooled, middle, high), torch.where(fooled, low, middle)
        return nearest


def _prepare(model: nn.Module, samples: Tensor, request: Request) -> Pgd:
    return Pgd(model, request)


PGD = MethodInfo(
    name="pgd",
    guarantee=Guarantee.ESTIMATE,
    norms=(Norm.LINF, Norm.L2, Norm.L1),
    claim="no counterexample found by projected gradient descent at eps, or one is stored",
    paper="Madry et al., arXiv 1706.06083; margin loss: Carlini and Wagner, arXiv 1608.04644",
    cost="2 x steps x restarts forward passes",
    prepare=_prepare,
    columns=(
        Column("distance", "float64", "pixels", "length of the shortest counterexample found; nan when none"),
        Column("counterexample", "float32", "pixels", "the misclassified image, inside the ball", axes=("image",)),
    ),
    options={"steps": 30, "restarts": 4},
)
