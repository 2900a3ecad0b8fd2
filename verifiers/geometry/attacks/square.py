"""Square attack: random search over squares, which needs no gradient."""

import math
import time
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.search import Reached, Victims
from verifiers.geometry.balls import Balls, keyed_generator, norms, per_sample
from verifiers.geometry.margins import margins
from verifiers.runtime.deadline import check

#: The first squares' share of the image, and the shares of 10,000 queries after which it is halved.
SHARE, HALVED = 0.8, (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)
#: The number of queries that the schedule above fits; others stretch it.
SCHEDULED = 5000
#: Queries whose random numbers are drawn together.
BLOCK = 100
#: Keeps the draws apart from those of other attacks.
KEY = 7


@dataclass(frozen=True)
class Square:
    """The Square attack on the margin; a run drops a sample once its class changes.

    Attributes:
        queries: proposals for each sample.
        number: of the run, which keys its random numbers.
        deadline: on ``time.monotonic``; no query begins after it.

    Images have the axes channel, height and width. Where there are fewer axes, they are the last ones.

    Source: Andriushchenko et al., arXiv 1912.00049.
    """

    queries: int = 5000
    number: int = 0
    deadline: float = math.inf

    def __call__(self, victims: Victims, rows: Int[Tensor, " some"]) -> Reached:
        """Run on samples that are some of all; only they themselves matter."""
        return self.run(victims)

    def run(self, victims: Victims) -> Reached:
        """Search from stripes (linf) or a grid of tiles, drawn by sample."""
        balls, rows = victims.balls.inner(), torch.arange(len(victims), device=victims.own.device)
        draws = _Draws(victims, self.number, 5 + _planar(balls.x).shape[1])
        z = self._first(balls, draws)
        now = _margin(victims, z, victims.own)
        point, margin = z.clone(), now.clone()
        for query in range(self.queries):
            check()
            if time.monotonic() > self.deadline:
                break
            lost = now < 0
            if bool(lost.any()):
                point[rows[lost]], margin[rows[lost]] = z[lost], now[lost]
                z, now, rows, balls = z[~lost], now[~lost], rows[~lost], balls.take(~lost)
            if not len(rows):
                return Reached(point, margin, torch.zeros_like(margin, dtype=torch.bool))
            new = self._proposed(balls, z, query, draws.of(rows, query))
            there = _margin(victims, new, victims.own[rows])
            better = there < now
            z, now = torch.where(per_sample(better, z), new, z), torch.where(better, there, now)
        point[rows], margin[rows] = z, now
        return Reached(point, margin, torch.zeros_like(margin, dtype=torch.bool))

    def _first(self, balls: Balls, draws: "_Draws") -> Tensor:
        x = _planar(balls.x)
        channels, height, width = x.shape[1:]
        if balls.norm is Norm.LINF:
            signs = draws.first(channels * width).reshape(-1, channels, 1, width)
            return balls.nearest((x + signs * per_sample(balls.eps.to(x.dtype), x)).reshape(balls.x.shape))
        side = max(1, min(height, width) // 5)
        high, wide = height // side, width // side
        signs = draws.first(channels * high * wide).reshape(-1, channels, high, wide)
        tile = _halves(side, side, balls.norm).to(x)
        tiles = torch.einsum("bchw,ij->bchiwj", signs, tile).reshape(-1, channels, high * side, wide * side)
        delta = torch.zeros_like(x)
        delta[:, :, : high * side, : wide * side] = tiles
        return _filled(balls, delta)

    def _proposed(self, balls: Balls, z: Tensor, query: int, drawn: Float[Tensor, "batch numbers"]) -> Tensor:
        x, now = _planar(balls.x), _planar(z)
        side = self._side(query, x.shape[2] * x.shape[3], balls.norm)
        size = _window(side, x.shape[2], x.shape[3])
        signs = _signs(drawn[:, 5 : 5 + x.shape[1]])[:, :, None, None]
        if balls.norm is Norm.LINF:
            square = _mask(drawn[:, :2], size, x)
            moved = x + signs * per_sample(balls.eps.to(x.dtype), x)
            return balls.nearest(torch.where(square, moved, now).reshape(z.shape))
        return _filled(balls, _exchanged(balls, now - x, size, signs, drawn))

    def _side(self, query: int, pixels: int, norm: Norm) -> int:
        scaled = query * SCHEDULED // self.queries
        share = SHARE / 2 ** sum(scaled > step for step in HALVED)
        side = max(round(math.sqrt(share * pixels)), 1)
        return side if norm is Norm.LINF else max(side, 3) | 1


def _margin(victims: Victims, z: Tensor, own: Tensor) -> Tensor:
    with torch.no_grad():
        return margins(victims.model(z), own)


def _planar(x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch channels height width"]:
    """View images as channels of planes."""
    shape = (1, 1, 1, *x.shape[1:])
    return x.reshape(len(x), math.prod(shape[:-2]), *shape[-2:])


def _window(side: int, height: int, width: int) -> tuple[int, int]:
    """Return the height and width of a square; in a plane that is too low or too narrow, of a rectangle like it."""
    low = min(height, max(1, round(side * side / min(side, width))))
    return low, min(width, max(1, round(side * side / low)))


def _signs(numbers: Tensor) -> Tensor:
    return torch.where(numbers < 0.5, -1.0, 1.0).to(numbers.dtype)


def _corner(numbers: Float[Tensor, " batch"], room: int) -> Int[Tensor, " batch"]:
    """Place windows whose first row or column is at most at ``room``."""
    return (numbers * (room + 1)).long().clamp_max(room)


def _mask(numbers: Float[Tensor, "batch two"], size: tuple[int, int], x: Tensor) -> Tensor:
    """Mark a window in each plane."""
    marks = []
    for number, length, extent in zip(numbers.unbind(1), size, x.shape[2:], strict=True):
        first = _corner(number, extent - length)[:, None]
        place = torch.arange(extent, device=x.device)
        marks.append((place >= first) & (place < first + length))
    return (marks[0][:, :, None] & marks[1][:, None, :])[:, None]


def _rectangles(height: int, width: int, norm: Norm) -> Float[Tensor, "{height} {width}"]:
    """Build a bump of concentric squares, whose heights fall with the second power of size, in l1 with the fourth."""
    power = 2 if norm is Norm.L2 else 4
    rows, columns = ((torch.arange(n, dtype=torch.float64) - n // 2).abs() for n in (height, width))
    ring = torch.maximum(rows[:, None], columns[None]).long()
    sizes = torch.arange(max(height, width) // 2 + 1, dtype=torch.float64)
    return (1 / (sizes + 1) ** power).flip(0).cumsum(0).flip(0)[ring]


def _halves(height: int, width: int, norm: Norm) -> Float[Tensor, "{height} {width}"]:
    """Build a bump above and its negative below, of norm 1."""
    upper = height // 2
    parts = [sign * _rectangles(n, width, norm) for sign, n in ((1, upper), (-1, height - upper)) if n]
    bump = torch.cat([part / _size(part, norm) for part in parts])
    return bump / _size(bump, norm)


def _size(plane: Tensor, norm: Norm) -> Tensor:
    return torch.linalg.vector_norm(plane, 2 if norm is Norm.L2 else 1, dim=(-2, -1), keepdim=True).clamp_min(1e-12)


def _filled(balls: Balls, delta: Float[Tensor, "batch channels height width"]) -> Tensor:
    """Bring perturbations into their regions: scaled to the length eps in l2, as near as possible in l1."""
    flat = delta.reshape(balls.x.shape)
    if balls.norm is Norm.L2:
        flat = flat * per_sample(balls.eps.to(flat.dtype) / norms(flat, Norm.L2).clamp_min(1e-12), flat)
    return balls.nearest(balls.x + flat)


def _exchanged(balls: Balls, delta: Tensor, size: tuple[int, int], signs: Tensor, drawn: Tensor) -> Tensor:
    """Move the length of a second window to a first one, on which a new bump is added; the second is cleared."""
    norm, channels = balls.norm, delta.shape[1]
    first, second = (_mask(drawn[:, place : place + 2], size, delta) for place in (0, 2))
    power = 2 if norm is Norm.L2 else 1
    total = per_sample(norms(delta.flatten(1), norm) ** power, delta)
    budget = per_sample(balls.eps.to(delta.dtype) ** power, delta)
    both = ((delta.abs() ** power) * (first | second)).sum((2, 3), keepdim=True)
    length = (budget - total).clamp_min(0.0) / channels + both
    length = length.sqrt() if norm is Norm.L2 else length * channels
    upright, lying = _halves(*size, norm), _halves(size[1], size[0], norm).T
    bump = torch.where(drawn[:, 4, None, None] < 0.5, upright.to(delta), lying.to(delta))[:, None] * signs
    old = _cut(delta, drawn[:, :2], size)
    new = bump + old / _size(old, norm)
    return _pasted(delta * ~second, new / _size(new, norm) * length, drawn[:, :2], size)


def _places(delta: Tensor, numbers: Tensor, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Index the pixels of a window in each image."""
    rows, columns = (
        _corner(number, extent - length)[:, None] + torch.arange(length, device=delta.device)
        for number, length, extent in zip(numbers.unbind(1), size, delta.shape[2:], strict=True)
    )
    images = torch.arange(len(delta), device=delta.device)[:, None, None, None]
    channels = torch.arange(delta.shape[1], device=delta.device)[None, :, None, None]
    return images, channels, rows[:, None, :, None], columns[:, None, None, :]


def _cut(delta: Tensor, numbers: Tensor, size: tuple[int, int]) -> Tensor:
    return delta[_places(delta, numbers, size)]


def _pasted(delta: Tensor, window: Tensor, numbers: Tensor, size: tuple[int, int]) -> Tensor:
    return delta.index_put(_places(delta, numbers, size), window)


class _Draws:
    """The random numbers of a run, keyed by seed, sample and query, so that no sample depends on its batch."""

    def __init__(self, victims: Victims, restart: int, numbers: int) -> None:
        self._victims, self._restart, self._numbers = victims, restart, numbers
        self._block, self._drawn = -1, victims.balls.x.new_zeros(0)

    def first(self, numbers: int) -> Tensor:
        """Draw signs for the first points."""
        return _signs(torch.cat([self._draw(i, 0, (1, numbers)) for i in range(len(self._victims))]))

    def of(self, rows: Int[Tensor, " some"], query: int) -> Float[Tensor, "some numbers"]:
        """Draw the numbers in [0, 1) of one query of some samples."""
        block, place = divmod(query, BLOCK)
        if block != self._block:
            self._block = block
            drawn = {i: self._draw(i, block + 1, (BLOCK, self._numbers)) for i in rows.tolist()}
            self._drawn = torch.zeros(len(self._victims), BLOCK, self._numbers).to(self._victims.balls.x)
            for i, numbers in drawn.items():
                self._drawn[i] = numbers
        return self._drawn[rows, place]

    def _draw(self, i: int, block: int, shape: tuple[int, int]) -> Tensor:
        victims = self._victims
        generator = keyed_generator(victims.seed, victims.indices[i], self._restart, KEY, block)
        x = victims.balls.x
        return torch.rand(shape, generator=generator, dtype=x.dtype).to(x.device)
