"""Bound entries whose sign alone matters: their rows stop as soon as it is known."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.native.backward import BackwardPass, BackwardRows


def until_signs(
    run: BackwardPass, start: int, samples: Int[Tensor, " rows"], entries: Int[Tensor, " rows"]
) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
    """Bound entries of a node and their negations from below, where exact bounds matter only around zero.

    The rows of an entry and of its negation go back together. Both leave as soon as the intervals of their current
    nodes prove one of them positive; most do after a layer or two. nan where nothing was proved.
    """
    found = run.balls.x.new_full((2, len(samples)), float("nan"))
    for chunk in run.blocks(start, len(samples)):
        found[:, chunk] = _block(run, start, samples[chunk], entries[chunk])
    return found[0], found[1]


def _block(run: BackwardPass, start: int, samples: Tensor, entries: Tensor) -> Float[Tensor, "2 rows"]:
    left = torch.arange(len(samples), device=samples.device)
    found = run.balls.x.new_full((2, len(samples)), float("nan"))
    signs = torch.ones_like(found[0])
    twice, shape = (samples.repeat(2), entries.repeat(2)), run.graph.nodes[start].shape
    back = BackwardRows.at_entries(start, shape, *twice, torch.cat([signs, -signs]), run.noise)
    nearest = True  # its boxes repeat the interval of the start node
    for position in range(start, 0, -1):
        if not run.step(back, position) or run.graph.affine_operator(position):
            continue
        if nearest:
            nearest = False
            continue
        bounds = run.over_boxes(back).reshape(2, -1)
        known = (bounds > 0).any(0)
        found[:, left[known]] = bounds[:, known]
        left = left[~known]
        if not len(left):
            return found
        back = back.keep(~known.repeat(2))
    found[:, left] = run.minimum(back, with_planes=False).bound.reshape(2, -1)
    return found
