"""Rows: the coefficients of many linear functions of one node, each row for one sample.

A row's coefficients are dense or, on feature maps, a small window of the map around the neuron where the row started.
The work per row then does not grow with the image. One tensor holds all rows of a batch, whatever their sample: a
sample with few unstable neurons has few rows.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

Shape = tuple[int, ...]

#: Windows that cover at least this share of a map become dense: nothing is gathered for dense rows.
DENSE = 0.7


@dataclass(frozen=True)
class Window:
    """The positions of windows in their map: row r starts at ``start[r] * stride + offset``, possibly outside.

    ``clean`` means that coefficients outside the map are zero.
    """

    start: Int[Tensor, "rows 2"]
    stride: tuple[int, int]
    offset: tuple[int, int]
    clean: bool

    def origin(self) -> Int[Tensor, "rows 2"]:
        """Return the map position of each row's first coefficient."""
        return self.start * self.start.new_tensor(self.stride) + self.start.new_tensor(self.offset)


@dataclass(frozen=True)
class Rows:
    """The coefficients ``values`` of a node: ``(rows, *shape)``, or windows ``(rows, channels, height, width)``.

    ``each`` is the number of rows per sample if all samples have equally many, in order; else 0.
    """

    values: Float[Tensor, "rows *shape"]
    window: Window | None = None
    each: int = 0

    def take(self, values: Tensor) -> "Rows":
        """Return the same rows with other coefficients."""
        return Rows(values, self.window, self.each)

    def keep(self, chosen: Bool[Tensor, " rows"] | slice) -> "Rows":
        """Return the chosen rows."""
        window = self.window and replace(self.window, start=self.window.start[chosen])
        return Rows(self.values[chosen], window)

    def outside(self, clean: bool) -> "Rows":
        """Return the same rows, marked as having (or not having) only zeros outside the map."""
        return self if self.window is None else replace(self, window=replace(self.window, clean=clean))

    def masked(self, shape: Shape) -> "Rows":
        """Return the same rows with zeros outside the map."""
        if self.window is None or self.window.clean:
            return self
        origin, (height, width) = self.window.origin(), self.values.shape[-2:]
        y = origin[:, 0, None] + torch.arange(height, device=origin.device)
        x = origin[:, 1, None] + torch.arange(width, device=origin.device)
        inside = ((y >= 0) & (y < shape[-2]))[:, None, :, None] & ((x >= 0) & (x < shape[-1]))[:, None, None, :]
        return self.take(self.values * inside).outside(clean=True)

    def dense(self, shape: Shape) -> "Rows":
        """Return the same rows with a coefficient for every entry of the node."""
        if self.window is None:
            return self
        rows, channels, height, width = self.values.shape
        origin = self.window.origin()
        low, high = origin.amin(0).clamp_max(0), (origin + origin.new_tensor([height, width])).amax(0)
        margin = (-low).tolist()
        tall, wide = (max(int(high[i]), shape[i - 2]) + margin[i] for i in (0, 1))
        canvas = self.values.new_zeros((rows, tall, wide, channels))
        row = torch.arange(rows, device=origin.device)[:, None]
        line = origin[:, :1] + margin[0] + torch.arange(height, device=origin.device)
        lines = self.values.permute(0, 2, 3, 1).reshape(rows, height, width * channels)
        if not torch.is_grad_enabled():
            into = canvas.as_strided(
                (rows, tall, wide - width + 1, width * channels), (*canvas.stride()[:2], channels, 1)
            )
            into[row, line, origin[:, 1:] + margin[1]] = lines
        else:
            column = origin[:, 1:] + margin[1] + torch.arange(width, device=origin.device)
            canvas = canvas.index_put(
                (row[:, :, None], line[:, :, None], column[:, None, :]), self.values.permute(0, 2, 3, 1)
            )
        whole = canvas[:, margin[0] : margin[0] + shape[-2], margin[1] : margin[1] + shape[-1]].permute(0, 3, 1, 2)
        return Rows(whole.reshape(rows, *shape))

    def windowed(self, shape: Shape) -> "Rows":
        """Return dense rows if the windows are nearly as large as the map, else the rows unchanged."""
        if self.window is None or self.values.shape[-2:].numel() < DENSE * shape[-2] * shape[-1]:
            return self
        return self.dense(shape)

    def gather(self, maps: Float[Tensor, "batch *shape"], samples: Int[Tensor, " rows"]) -> Tensor:
        """Return the values of each row's own sample where the row has coefficients; zero outside the map."""
        if self.window is None:
            if len(maps) == 1:
                return maps
            if self.each:
                return maps[:, None].expand(-1, self.each, *maps.shape[1:]).flatten(0, 1)
            ordered = _channels_last(self.values)
            return _back(_ordered(maps, ordered)[samples], ordered)
        height, width = self.values.shape[-2:]
        origin = self.window.origin()
        low = (-origin.amin(0)).clamp_min(0).tolist()
        size = origin.new_tensor([height, width])
        high = (origin.amax(0) + size - origin.new_tensor(maps.shape[-2:])).clamp_min(0).tolist()
        if len(maps) > 1:  # only the maps of these rows' samples
            first, last = map(int, samples.aminmax())
            maps, samples = maps[first : last + 1], samples - first
        else:
            samples = samples * 0
        padded = F.pad(maps.reshape(len(maps), *maps.shape[-3:]), (low[1], high[1], low[0], high[0]))
        return _patches(padded, samples, origin + origin.new_tensor(low), height, width)

    def between(
        self,
        lower: Float[Tensor, "batch *shape"],
        turn: Float[Tensor, "batch *shape"],
        negative: Float[Tensor, "rows ..."],
        samples: Int[Tensor, " rows"],
    ) -> "Rows":
        """Multiply coefficients by ``lower``, and add ``turn`` times the negative ones."""
        if self.each and self.window is None:
            ordered = _channels_last(self.values)
            lower, turn = (_back(_ordered(part, ordered), ordered) for part in (lower, turn))
            values, below = (part.unflatten(0, (-1, self.each)) for part in (self.values, negative))
            return self.take(torch.addcmul(values * lower[:, None], below, turn[:, None]).flatten(0, 1))
        return self.take(torch.addcmul(self.values * self.gather(lower, samples), negative, self.gather(turn, samples)))

    def dot(self, maps: Float[Tensor, "batch *shape"], samples: Int[Tensor, " rows"]) -> Float[Tensor, " rows"]:
        """Return the inner product of each row with its own sample's map."""
        if self.window is not None:
            products = self.values * self.gather(maps, samples)
            return products.sum(tuple(range(1, products.ndim)))
        ordered = _channels_last(self.values)
        values, flat = _ordered(self.values, ordered).flatten(1), _ordered(maps, ordered).flatten(1)
        if len(maps) == 1:
            return values @ flat[0]
        if self.each == 1:
            return (values * flat).sum(1)
        if self.each:
            return torch.bmm(values.unflatten(0, (-1, self.each)), flat[:, :, None]).flatten()
        owners, counts = samples.unique_consecutive(return_counts=True)
        if len(owners) * 4 > len(samples):
            return (values * flat[samples]).sum(1)
        parts = zip(values.split(counts.tolist()), owners.tolist(), strict=True)
        return torch.cat([part @ flat[owner] for part, owner in parts])


def _channels_last(values: Tensor) -> bool:
    """Return whether maps (rows, n, channels, height, width) store the channels of a position contiguously."""
    return values.ndim == 5 and values.shape[2] > 1 and values.stride(2) == 1


def _ordered(values: Tensor, channels_last: bool) -> Tensor:
    """Order the axes as they are in memory."""
    return values.permute(0, 1, 3, 4, 2).contiguous() if channels_last else values


def _back(values: Tensor, channels_last: bool) -> Tensor:
    return values.permute(0, 1, 4, 2, 3) if channels_last else values


def _patches(
    maps: Float[Tensor, "batch channels height width"],
    samples: Int[Tensor, " rows"],
    origin: Int[Tensor, "rows 2"],
    height: int,
    width: int,
) -> Float[Tensor, "rows channels {height} {width}"]:
    """Cut patches from maps, channels last in memory, so that one line of a patch is contiguous."""
    last = maps.permute(0, 2, 3, 1).contiguous()
    batch, tall, wide, channels = last.shape
    lines = last.as_strided((batch, tall, wide - width + 1, width * channels), (*last.stride()[:2], channels, 1))
    y = origin[:, :1] + torch.arange(height, device=maps.device)
    found = lines[samples[:, None], y, origin[:, 1:]]
    return found.view(len(samples), height, width, channels).permute(0, 3, 1, 2)


def add(one: Rows, other: Rows, shape: Shape) -> Rows:
    """Add two sets of coefficients of the same rows and node."""
    if one.window is None or other.window is None or one.window.stride != other.window.stride:
        return Rows(one.dense(shape).values + other.dense(shape).values, each=one.each)
    first = [min(a, b) for a, b in zip(one.window.offset, other.window.offset, strict=True)]
    last = [
        max(one.window.offset[i] + one.values.shape[i + 2], other.window.offset[i] + other.values.shape[i + 2])
        for i in (0, 1)
    ]
    clean = one.window.clean and other.window.clean
    window = replace(one.window, offset=(first[0], first[1]), clean=clean)
    return Rows(_grown(one, first, last) + _grown(other, first, last), window).windowed(shape)


def _grown(rows: Rows, first: list[int], last: list[int]) -> Tensor:
    assert rows.window is not None
    (top, left), (height, width) = rows.window.offset, rows.values.shape[-2:]
    before = (top - first[0], left - first[1])
    after = (last[0] - top - height, last[1] - left - width)
    return F.pad(rows.values, (before[1], after[1], before[0], after[0])) if any(before + after) else rows.values


def one_hot(shape: Shape, entries: Int[Tensor, " rows"], signs: Float[Tensor, " rows"]) -> Rows:
    """Make rows ``sign * node[entry]``; on feature maps ``(1, channels, height, width)``, windows of one position."""
    rows = torch.arange(len(entries), device=entries.device)
    if len(shape) == 4 and shape[0] == 1 and shape[2] * shape[3] > 1:
        _, channels, height, width = shape
        values = signs.new_zeros((len(entries), channels, 1, 1))
        values[rows, entries // (height * width), 0, 0] = signs
        start = torch.stack([entries // width % height, entries % width], 1)
        return Rows(values, Window(start, (1, 1), (0, 0), clean=True))
    flat = signs.new_zeros((len(entries), shape_size(shape)))
    flat[rows, entries] = signs
    return Rows(flat.reshape(len(entries), *shape))


def shape_size(shape: Shape) -> int:
    """Return the number of entries of a node."""
    return int(torch.Size(shape).numel())
