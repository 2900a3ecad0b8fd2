"""Compute lengths, projections, steepest directions and random points in norm balls."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from verifiers.core.quantities import Norm


@dataclass(frozen=True)
class Balls:
    """A ball around each image, intersected with the image box [0, 1]^d.

    Raises:
        ValueError: eps is not one number per image.
    """

    x: Float[Tensor, "batch *shape"]
    eps: Float[Tensor, " batch"]
    norm: Norm

    def __post_init__(self) -> None:
        if self.eps.shape != self.x.shape[:1]:
            raise ValueError(f"one eps per image, got {tuple(self.eps.shape)} for {len(self.x)} images")

    @classmethod
    def around(cls, x: Float[Tensor, "batch *shape"], eps: float, norm: Norm) -> "Balls":
        """Build balls of one radius."""
        return cls(x, torch.full((len(x),), eps, dtype=torch.float64, device=x.device), norm)

    def __len__(self) -> int:
        return len(self.x)

    def take(self, chosen: Tensor | slice) -> "Balls":
        """Select some of the balls, by mask, position or slice."""
        return Balls(self.x[chosen], self.eps[chosen], self.norm)

    def split(self, size: int) -> list["Balls"]:
        """Split into parts of at most ``size`` balls."""
        parts = zip(self.x.split(size), self.eps.split(size), strict=True)
        return [Balls(x, eps, self.norm) for x, eps in parts]

    def to(self, dtype: torch.dtype) -> "Balls":
        """Convert images and radii."""
        return Balls(self.x.to(dtype), self.eps.to(dtype), self.norm)

    def box(self) -> tuple[Float[Tensor, "batch *shape"], Float[Tensor, "batch *shape"]]:
        """Compute the corners of each ball's bounding box, which for linf is the region itself."""
        radius = per_sample(self.eps, self.x)
        low, high = (self.x - radius).clamp_min(0.0), (self.x + radius).clamp_max(1.0)
        return torch.minimum(low, self.x), torch.maximum(high, self.x)

    def edges(self) -> tuple[Float[Tensor, "..."], Float[Tensor, "..."]]:
        """Return the corners of the image box."""
        return self.x.new_zeros(()), self.x.new_ones(())

    def inner(self) -> "Balls":
        """Shrink the balls so that rounding to the images' dtype moves no point outside."""
        radii = [reachable(float(radius), self.norm, self.x) for radius in self.eps]
        return Balls(self.x, self.x.new_tensor(radii), self.norm)

    def nearest(self, points: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Move each point into its ball and the image box: for linf and l1, to the nearest such point."""
        low, high = self.edges()
        if self.norm is Norm.LINF:
            least, most = self.box()
            return torch.maximum(torch.minimum(points, most), least).to(points.dtype)
        delta, radius = points - self.x, self.eps.to(points.dtype)
        if self.norm is Norm.L2:
            return (self.x + project(delta, radius, self.norm)).clamp(low, high)
        room = torch.where(delta > 0, high - self.x, self.x - low)
        return (self.x + _shrunk(delta.flatten(1), radius, room.flatten(1)).reshape(delta.shape)).clamp(low, high)

    def contain(self, points: Float[Tensor, "batch *shape"]) -> Bool[Tensor, " batch"]:
        """Return which points are within eps of their images, computed in float64, and in the image box."""
        low, high = self.edges()
        within = ((points >= low) & (points <= high)).flatten(1).all(1)
        return within & within_eps(self.x, points, self.eps, self.norm)

    def lowest(self, slopes: Float[Tensor, "points *shape"]) -> Float[Tensor, "points *shape"]:
        """Return the point of the only ball, before it is cut at the image box, where each linear function is least."""
        return self.x - per_sample(self.eps, self.x) * steepest(slopes, self.norm)

    def inside(self, points: Float[Tensor, "points *shape"]) -> Float[Tensor, "points *shape"]:
        """Move points into the only ball, so far that rounding them to float32 moves none outside."""
        inner = reachable(float(self.eps), self.norm, self.x.float())
        moved = project(points - self.x, self.eps.new_full((len(points),), inner), self.norm)
        return (self.x + moved).clamp(0.0, 1.0)


def per_sample(values: Shaped[Tensor, " batch"], like: Float[Tensor, "batch *shape"]) -> Tensor:
    """Reshape one value per sample so that it broadcasts over the sample's pixels."""
    return values.reshape(-1, *[1] * (like.dim() - 1))


def norms(delta: Float[Tensor, "batch *shape"], norm: Norm) -> Float[Tensor, " batch"]:
    """Compute the length of each sample's perturbation."""
    order = {Norm.LINF: float("inf"), Norm.L2: 2.0, Norm.L1: 1.0}[norm]
    return torch.linalg.vector_norm(delta.flatten(1), order, dim=1)


def project(
    delta: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm
) -> Float[Tensor, "batch *shape"]:
    """Project each sample's perturbation onto its ball."""
    if norm is Norm.LINF:
        limit = per_sample(eps, delta)
        return torch.maximum(torch.minimum(delta, limit), -limit)
    if norm is Norm.L2:
        length = norms(delta, norm)
        return delta * per_sample((eps / length.clamp_min(1e-30)).clamp_max(1.0), delta)
    return _shrunk(delta.flatten(1), eps).reshape(delta.shape)


def _shrunk(
    flat: Float[Tensor, "batch pixels"],
    eps: Float[Tensor, " batch"],
    room: Float[Tensor, "batch pixels"] | None = None,
) -> Float[Tensor, "batch pixels"]:
    """Find the nearest perturbation of l1 norm at most eps, none of whose entries is larger than its room.

    The entries of the answer are ``min(max(size - t, 0), room)``. Their sum is piecewise linear in t, with a kink at
    every size and at every size less its room.

    Source: Croce and Hein, arXiv 2103.01208, proposition 2.1.
    """
    size = flat.abs()
    most = size if room is None else torch.minimum(size, room)
    kinks = size if room is None else torch.cat([size, (size - room).clamp_min(0.0)], 1)
    kinks, order = kinks.sort(dim=1, descending=True)
    slope = torch.where(order < size.shape[1], 1.0, -1.0).to(size.dtype)
    slopes, sums = slope.cumsum(1), (slope * kinks).cumsum(1)
    last = ((sums - kinks * slopes) < eps[:, None]).sum(1, keepdim=True).clamp_min(1) - 1  # kinks above t
    threshold = ((sums - eps[:, None]) / slopes.clamp_min(1.0)).gather(1, last).clamp_min(0.0)
    shrunk = torch.minimum((size - threshold).clamp_min(0.0), most)
    shrunk = shrunk * (eps / shrunk.sum(1).clamp_min(1e-30)).clamp_max(1.0)[:, None]  # the sums above are rounded
    return flat.sign() * torch.where((most.sum(1) <= eps)[:, None], most, shrunk)


def within_eps(
    x: Float[Tensor, "batch *shape"],
    points: Float[Tensor, "batch *shape"],
    eps: float | Float[Tensor, " batch"],
    norm: Norm,
) -> Bool[Tensor, " batch"]:
    """Return which points are within eps of their images, computed in float64."""
    return norms(points.double() - x.double(), norm) <= eps


def noise_like(x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """Draw as many random images, always the same, on the CPU."""
    return torch.rand(x.shape, generator=torch.Generator().manual_seed(0)).to(x)


def finite(gradient: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
    """Return a gradient with 0 for entries that are no numbers, which would stop the search in all others."""
    return gradient.where(gradient.isfinite(), torch.zeros_like(gradient))


def steepest(
    gradient: Float[Tensor, "batch *shape"], norm: Norm, counts: Int[Tensor, " batch"] | None = None
) -> Float[Tensor, "batch *shape"]:
    """Return the unit direction in ``norm`` that raises the objective most.

    For l1 it is spread over the largest entries: ``counts`` of them, or 5 % when None.
    """
    if norm is Norm.LINF:
        return gradient.sign()
    if norm is Norm.L2:
        return gradient / per_sample(norms(gradient, norm).clamp_min(1e-30), gradient)
    flat = gradient.flatten(1)
    if counts is None:
        counts = torch.full((len(flat),), max(1, flat.shape[1] // 20), device=flat.device)
    top = flat.abs().topk(max(1, int(counts.max())) if len(counts) else 1, dim=1).indices
    chosen = torch.arange(top.shape[1], device=flat.device) < counts[:, None]
    signs = flat.gather(1, top).sign() * chosen / counts.clamp_min(1)[:, None]
    return torch.zeros_like(flat).scatter(1, top, signs.to(flat.dtype)).reshape(gradient.shape)


def random_start(
    x: Float[Tensor, "batch *shape"], eps: Float[Tensor, " batch"], norm: Norm, generator: torch.Generator
) -> Float[Tensor, "batch *shape"]:
    """Draw a random perturbation in each ball, on the CPU, so that every device starts at the same point."""
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype).to(x.device) * 2 - 1
    if norm is Norm.LINF:
        return noise * per_sample(eps, x)
    return noise * per_sample(eps / norms(noise, norm).clamp_min(1e-30), x)


def off_the_faces(x: Float[Tensor, "batch *shape"], eps: float) -> Float[Tensor, "batch *shape"]:
    """Move images into the interior of the image box, by far less than eps in every norm.

    At a black pixel a network may have a kink that the box only touches: ``relu(x)`` has slope 1 on all of the box, and
    torch gives slope 0 at the kink itself.
    """
    step = min(1e-9, 1e-3 * eps / max(1, x[:1].numel()))
    return x + 2 * step * (0.5 - x)


def keyed_start(
    x: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, " batch"],
    norm: Norm,
    seed: int,
    indices: Sequence[int],
    restart: int,
) -> Float[Tensor, "batch *shape"]:
    """Draw ``random_start`` keyed by the seed, each sample's index and the restart, independent of the batch."""
    rows = [
        random_start(x[i : i + 1], eps[i : i + 1], norm, keyed_generator(seed, index, restart))
        for i, index in enumerate(indices)
    ]
    return torch.cat(rows) if rows else torch.zeros_like(x)


def keyed_generator(*keys: int) -> torch.Generator:
    """Seed a generator on the CPU by whole numbers, such as the seed and a sample's index."""
    state = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def reachable(eps: float, norm: Norm, x: Float[Tensor, "batch *shape"]) -> float:
    """Return a radius just below eps, from which rounding x + delta to x's dtype moves no point outside eps."""
    step = torch.finfo(x.dtype).eps / 4  # half a unit in the last place of a pixel in [0.5, 1]
    pixels = x[0].numel()
    rounding = step * {Norm.LINF: 1.0, Norm.L2: pixels**0.5, Norm.L1: float(pixels)}[norm]
    return max(eps * (1 - 1e-6) - rounding, eps / 2)


#: The order of the dual norm, which measures linear functions on the ball.
DUAL = {Norm.LINF: 1.0, Norm.L2: 2.0, Norm.L1: float("inf")}
