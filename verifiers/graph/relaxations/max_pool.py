"""Relax max-pooling over windows of any size, stride, padding and dilation."""

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from verifiers.graph.operators import Interval, Pushed
from verifiers.graph.relaxations.lines import Alpha
from verifiers.graph.rows import Rows, Shape


class MaxPool:
    """y = max over the entries of a window; padding never wins.

    Below: y >= x_k for any k; k is the entry with the largest centre. Above, let k be the entry with the largest upper
    bound and M the largest upper bound of the others. Then y <= max(x_k, M), which is x_k if low_k >= M, and otherwise
    at most M + (x_k - low_k) (high_k - M) / (high_k - low_k), the chord of a convex function of x_k.
    """

    def __init__(
        self,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        ceil_mode: bool,
        before: Shape,
        after: Shape,
        like: Tensor,
    ) -> None:
        self.arguments = (kernel, stride, padding, dilation, ceil_mode)
        self.before, self.after = before, after
        self.index = _windows(*self.arguments[:4], before, after).to(like.device)
        self.real = self.index >= 0

    def forward(self, *values: Tensor) -> Tensor:
        maps = F.max_pool2d(values[0].flatten(0, -4), *self.arguments)
        return maps.reshape(len(values[0]), *self.after)

    def interval(self, *boxes: Interval) -> Interval:
        return Interval(self.forward(boxes[0].low), self.forward(boxes[0].high))

    def windowed(self, x: Tensor, padding: float = -float("inf")) -> Tensor:
        """Return the entries of each window, ``(batch, maps, outputs, kernel)``."""
        flat = x.reshape(len(x), -1, self.before[-2] * self.before[-1])
        return torch.where(self.real, flat[:, :, self.index.clamp_min(0)], padding)

    def inputs_to_tighten(self, boxes: Sequence[Interval]) -> list[Tensor]:
        low, high = (self.windowed(end) for end in boxes[0])
        rivals = high > low.amax(-1, keepdim=True)
        open_entries = (rivals & (rivals.sum(-1, keepdim=True) > 1)).flatten(2)
        found = torch.zeros(boxes[0].low.reshape(len(low), low.shape[1], -1).shape, device=low.device)
        target = self.index.clamp_min(0).flatten().expand(*found.shape[:2], -1)
        found.scatter_add_(2, target, open_entries.to(found.dtype))
        return [(found > 0).reshape(boxes[0].low.shape)]

    def rounding(self, boxes: Sequence[Interval], after: Interval) -> None:
        """Exact."""
        return None

    def relax(self, boxes: Sequence[Interval], alpha: Alpha | None = None) -> "_Chosen":
        low, high = (self.windowed(end) for end in boxes[0])
        below = (low + high).argmax(-1, keepdim=True)
        largest, above = high.max(-1, keepdim=True)
        ordered = high.topk(min(2, high.shape[-1]), -1).values
        second = ordered[..., 1:2] if high.shape[-1] > 1 else torch.full_like(largest, -float("inf"))
        own = low.gather(-1, above)
        decided = own >= second
        width = torch.where(decided, 1.0, largest - own)
        slope = torch.where(decided, 1.0, (largest - second) / width)
        offset = torch.where(decided, 0.0, second - slope * own)
        entries = self.index.expand(*low.shape)
        return _Chosen(
            self, *(t.squeeze(-1) for t in (entries.gather(-1, below), entries.gather(-1, above), slope, offset))
        )


class _Chosen:
    """For each window, one entry below and one above with its slope and offset."""

    def __init__(self, pool: MaxPool, below: Tensor, above: Tensor, slope: Tensor, offset: Tensor) -> None:
        self.pool, self.below, self.above, self.slope, self.offset = pool, below, above, slope, offset

    def push(self, rows: Rows, samples: Tensor) -> Pushed:
        dense = rows.dense(self.pool.after)
        values = dense.values.reshape(len(dense.values), *self.below.shape[1:])
        positive = values.clamp_min(0)
        negative = values - positive
        below, above, slope, offset = (
            t[samples].expand(values.shape) for t in (self.below, self.above, self.slope, self.offset)
        )
        result = values.new_zeros((*values.shape[:2], self.pool.before[-2] * self.pool.before[-1]))
        result = result.scatter_add(2, below, positive).scatter_add(2, above, negative * slope)
        constant = (negative * offset).flatten(1).sum(1)
        return Pushed([Rows(result.reshape(len(values), *self.pool.before))], constant)


def _windows(
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int],
    dilation: tuple[int, int],
    before: Shape,
    after: Shape,
) -> Int[Tensor, "outputs entries"]:
    """Compute the map position of each entry of each window; -1 for padding."""

    def positions(axis: int) -> Tensor:
        first = torch.arange(after[axis - 2]) * stride[axis] - padding[axis]
        at = first[:, None] + torch.arange(kernel[axis]) * dilation[axis]
        return torch.where((at >= 0) & (at < before[axis - 2]), at, -1)

    y, x = positions(0), positions(1)
    index = y[:, None, :, None] * before[-1] + x[None, :, None, :]
    inside = (y >= 0)[:, None, :, None] & (x >= 0)[None, :, None, :]
    return torch.where(inside, index, -1).reshape(len(y) * len(x), -1)
