"""Use d = s - t in a graph of two networks: intersect intervals, and divide rows between d and the two."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.graph.graph import Triple
from verifiers.graph.operators import Interval
from verifiers.graph.rows import Rows, Shape, add

#: Intersects an interval of a node with another one that holds.
Meet = Callable[[Interval, Interval], Interval]


def linked(t: Interval, s: Interval, d: Interval, meet: Meet) -> tuple[Interval, Interval, Interval]:
    """Intersect each interval with what the other two imply; once is enough."""
    t = meet(t, _less(s, d))
    s = meet(s, _less(t, Interval(-d.high, -d.low)))
    return t, s, meet(d, _less(s, t))


def _less(one: Interval, other: Interval) -> Interval:
    """Subtract intervals, and move the ends outward by more than their rounding."""
    share = 4 * torch.finfo(one.low.dtype).eps
    low, high = one.low - other.high, one.high - other.low
    return Interval(low - share * (one.low.abs() + other.high.abs()), high + share * (one.high.abs() + other.low.abs()))


def divide(
    pending: dict[int, Rows],
    samples: Int[Tensor, " rows"],
    triple: Triple,
    shape: Shape,
    share: Float[Tensor, "batch *shape"] | None,
) -> None:
    """Divide rows a t + b s + c d anew: d gets the part in which t and s have opposite coefficients.

    Args:
        pending: the rows, by node; changed.
        samples: the sample of each row.
        triple: the nodes.
        shape: their shape.
        share: 1 where d is bounded better than t and s apart, else 0; None if nowhere.
    """
    if triple.d in pending:
        rows = pending.pop(triple.d)
        for i, part in ((triple.s, rows), (triple.t, rows.take(-rows.values))):
            pending[i] = add(pending[i], part, shape) if i in pending else part
    if share is None or triple.s not in pending or triple.t not in pending:
        return
    s, t = _aligned(pending[triple.s], pending[triple.t], shape)
    other = -t.values
    both = torch.minimum(s.values, other).clamp_min(0.0) + torch.maximum(s.values, other).clamp_max(0.0)
    both = both * s.gather(share, samples)
    pending[triple.s], pending[triple.t] = s.take(s.values - both), t.take(both - other)
    pending[triple.d] = s.take(both).outside(clean=True)


def _aligned(one: Rows, other: Rows, shape: Shape) -> tuple[Rows, Rows]:
    """Give two sets of coefficients of the same rows one layout."""
    a, b = one.window, other.window
    same = one.values.shape == other.values.shape
    if a is None or b is None:
        same = a is b
    else:
        same = same and (a.stride, a.offset) == (b.stride, b.offset)
        same = same and (a.start is b.start or torch.equal(a.start, b.start))
    return (one, other) if same else (one.dense(shape), other.dense(shape))
