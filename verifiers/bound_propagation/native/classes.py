"""Bound the margins of many classes: rows start from differences of the last layer's, the closest rivals first.

The margin of class j is a row of the last layer, W[y] - W[j], so nothing of the size of classes times classes is built.
The intervals before the last layer bound every margin at once. Rows are pushed back for the smallest of these bounds
first, until no other is below the least margin: the least is then what it would be if all rows were pushed.
"""

from collections.abc import Callable
from dataclasses import fields

import torch
from jaxtyping import Float, Int
from torch import Tensor

from verifiers.bound_propagation.engine import Planes, better
from verifiers.bound_propagation.native.backward import BackwardRows
from verifiers.bound_propagation.native.bounds import Bounds
from verifiers.geometry.margins import some_margins
from verifiers.graph.affine import Dense
from verifiers.graph.rows import Rows, shape_size

#: More classes than this are bounded by their closest rivals.
MANY = 32
#: Rivals of a sample that are pushed back first, and the most values of one block of differences of rows.
FIRST, BLOCK = 16, 2**22

#: Bounds chosen margins of samples: (samples, classes) -> planes, one per pair.
Push = Callable[[Int[Tensor, " pairs"], Int[Tensor, " pairs"]], Planes]


def least_margins(bounds: Bounds, predicted: Int[Tensor, " batch"], *, push: bool = True) -> Planes:
    """Bound the margins f_y - f_j over each ball, those by rows that the least margin needs; planes (batch, classes).

    Args:
        bounds: with the intervals of all nodes.
        predicted: y of each sample; its own column is nan.
        push: False bounds all margins by intervals alone.
    """
    low, rounding = _by_intervals(bounds, predicted)
    planes = Planes(low, low, torch.zeros_like(low), rounding)
    return closest_first(planes, predicted, lambda *pairs: _pushed(bounds, predicted, *pairs)) if push else planes


def closest_first(planes: Planes, predicted: Int[Tensor, " batch"], push: Push) -> Planes:
    """Improve bounds of margins, the smallest first, until no other is below the least of a sample."""
    classes = planes.bound.shape[1]
    own = torch.arange(classes, device=predicted.device) == predicted[:, None]
    known = planes.bound.nan_to_num(-torch.inf, torch.inf, -torch.inf).masked_fill(own, torch.inf)
    next_bounds, order = known.sort(1)
    least, done, size = torch.full_like(known[:, 0], torch.inf), 0, FIRST
    while done < classes - 1:
        going = (next_bounds[:, done] < least).nonzero()[:, 0]
        if not len(going):
            break
        rivals = order[going, done : min(done + size, classes - 1)]
        samples = going[:, None].expand(rivals.shape)
        found = push(samples.flatten(), rivals.flatten())
        planes = _improved(planes, samples.flatten(), rivals.flatten(), found)
        newest = planes.bound[samples, rivals]
        newest = newest.where(newest < torch.inf, -torch.inf).amin(1)  # nan and inf prove nothing
        least[going] = torch.minimum(least[going], newest)
        done, size = done + rivals.shape[1], 2 * size
    return planes


def others(planes: Planes, predicted: Int[Tensor, " batch"]) -> Planes:
    """Leave out the predicted classes: planes (batch, classes - 1), in the order of ``margin_specification``."""
    classes = planes.bound.shape[1]
    kept = torch.arange(classes, device=predicted.device) != predicted[:, None]
    parts = (getattr(planes, each.name)[kept].reshape(len(predicted), classes - 1) for each in fields(Planes))
    return Planes(*parts)


def _improved(planes: Planes, samples: Tensor, rivals: Tensor, found: Planes) -> Planes:
    """Replace the planes of some margins where the new ones are better."""
    old = Planes(*(getattr(planes, each.name)[samples, rivals] for each in fields(Planes)))
    new = better(found, old)
    return Planes(
        *(getattr(planes, each.name).index_put((samples, rivals), getattr(new, each.name)) for each in fields(Planes))
    )


def _last(bounds: Bounds) -> Dense | None:
    """Return the last operator if it is a matrix on one vector of logits."""
    graph = bounds.graph
    operator, size = graph.nodes[graph.output].operator, shape_size(graph.nodes[graph.output].shape)
    return operator if isinstance(operator, Dense) and len(operator.weight) == size else None


def _errors(bounds: Bounds) -> Float[Tensor, "batch classes"]:
    """The rounding of every logit, inf where values may overflow."""
    batch, shape = len(bounds.balls), bounds.graph.nodes[bounds.graph.output].shape
    zero = bounds.balls.x.new_zeros((batch, shape_size(shape)))
    if bounds.noise is None:
        return zero
    error = bounds.noise.errors.get(bounds.graph.output)
    found = zero if error is None else error.expand(batch, *shape).flatten(1)
    return found.masked_fill(bounds.noise.overflow[:, None], torch.inf)


def _by_intervals(
    bounds: Bounds, predicted: Int[Tensor, " batch"]
) -> tuple[Float[Tensor, "batch classes"], Float[Tensor, "batch classes"]]:
    """Bound all margins by the intervals before the last layer, and return how much of that is rounding."""
    rows, last, errors = torch.arange(len(predicted), device=predicted.device), _last(bounds), _errors(bounds)
    if last is None:
        logits = bounds.intervals[bounds.graph.output]
        low, high = logits.low.flatten(1), logits.high.flatten(1)
        return low[rows, predicted][:, None] - high, errors + errors[rows, predicted][:, None]
    box = bounds.intervals[bounds.graph.nodes[bounds.graph.output].inputs[0]]
    low, high = box.low.flatten(1), box.high.flatten(1)
    found = []
    for classes in torch.arange(len(last.weight), device=low.device).split(max(1, BLOCK // low.numel())):
        rises = last.weight[predicted][:, None] - last.weight[classes]
        found.append((rises.clamp_min(0) @ low[:, :, None] + rises.clamp_max(0) @ high[:, :, None])[:, :, 0])
    bound = torch.cat(found, 1)
    if last.bias is not None:
        bound = bound + (last.bias[predicted][:, None] - last.bias)
    rounding = errors + errors[rows, predicted][:, None]
    return bound - rounding, rounding


def _pushed(
    bounds: Bounds, predicted: Int[Tensor, " batch"], samples: Int[Tensor, " pairs"], rivals: Int[Tensor, " pairs"]
) -> Planes:
    """Push margins back to the image, block by block."""
    graph, last, errors = bounds.graph, _last(bounds), _errors(bounds)
    found = []
    for block in bounds.blocks(graph.output, len(samples)):
        here, own, other = samples[block], predicted[samples[block]], rivals[block]
        ids = torch.arange(len(here), device=here.device)
        if last is None:
            rows = some_margins(own, other, errors.shape[1], errors.dtype)
            rows = rows.reshape(len(here), *graph.nodes[graph.output].shape)
            found.append(bounds.push(graph.output, Rows(rows), here, ids))
            continue
        start = graph.nodes[graph.output].inputs[0]
        values = (last.weight[own] - last.weight[other]).reshape(len(here), *graph.nodes[start].shape)
        back = BackwardRows.begin(start, Rows(values), here, bounds.noise)
        if last.bias is not None:
            back.constant = back.constant + (last.bias[own] - last.bias[other])
        if bounds.noise is not None:
            lost = errors[here, own] + errors[here, other]
            back.lose(lost.where(lost < torch.inf, 0.0))  # an overflow is already in the constant
        found.append(bounds.finish(back, start, ids=ids))
    return Planes(*(torch.cat([getattr(part, each.name) for part in found]) for each in fields(Planes)))
