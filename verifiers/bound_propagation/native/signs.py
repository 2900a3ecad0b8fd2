"""Bound entries of which it matters only whether they are above a number: their rows stop as soon as it is known."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.backward import BackwardPass, BackwardRows


def until_signs(
    run: BackwardPass,
    start: int,
    samples: Int[Tensor, " rows"],
    entries: Int[Tensor, " rows"],
    turns: Float[Tensor, " rows"] | None = None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Bound entries of a node and their negations from below, where exact bounds matter only around zero.

    The rows of an entry and of its negation go back together. Both leave as soon as the intervals of their current
    nodes prove one of them positive; most do after a layer or two. nan where nothing was proved.

    Args:
        run: the backward pass.
        start: the node.
        samples: of the rows.
        entries: of the rows.
        turns: numbers that take the place of zero; nan if exact bounds matter everywhere.
    """
    found = run.balls.x.new_full((2, len(samples)), float("nan"))
    for chunk in run.blocks(start, len(samples)):
        zero = run.balls.x.new_zeros(len(chunk)) if turns is None else turns[chunk]
        found[:, chunk] = _block(run, start, samples[chunk], entries[chunk], zero)
    return found[0], found[1]


def _block(run: BackwardPass, start: int, samples: Tensor, entries: Tensor, turns: Tensor) -> Float[Tensor, "2 rows"]:
    left = torch.arange(len(samples), device=samples.device)
    found = run.balls.x.new_full((2, len(samples)), float("nan"))
    signs = torch.ones_like(found[0])
    twice, shape = (samples.repeat(2), entries.repeat(2)), run.graph.nodes[start].shape
    back = BackwardRows.at_entries(start, shape, *twice, torch.cat([signs, -signs]), run.noise)
    nearest = True  # its boxes repeat the interval of the start node
    for position in range(start, 0, -1):
        if run.at_codes(back):
            break
        if not run.step(back, position) or run.graph.affine_operator(position):
            continue
        if nearest:
            nearest = False
            continue
        bounds = run.over_boxes(back).reshape(2, -1)
        known = (bounds > torch.stack([turns, -turns])).any(0)
        found[:, left[known]] = bounds[:, known]
        left, turns = left[~known], turns[~known]
        if not len(left):
            return found
        back = back.keep(~known.repeat(2))
    found[:, left] = run.minimum(back, with_planes=False).bound.reshape(2, -1)
    return found


def nearest_end(
    ends: tuple[float, float], low: Float[Tensor, " rows"], high: Float[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Return the end of a range of codes that an interval holds; nan for both, or none."""
    first, last = ((low < end) & (high > end) for end in ends)
    turn = torch.where(first, ends[0], ends[1]).to(low)
    return turn.masked_fill(first == last, float("nan"))
