"""Project points onto planes within a box, each norm by one search for the length of the move."""

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.core.quantities import Norm


def onto_planes(
    points: Float[Tensor, "batch *shape"],
    slopes: Float[Tensor, "batch *shape"],
    values: Float[Tensor, " batch"],
    edges: tuple[Tensor, Tensor],
    norm: Norm,
) -> Float[Tensor, "batch *shape"]:
    """Return the shortest moves d with ``<slopes, d> = values`` that stay in the box, or as near as the box allows.

    Every pixel moves in the direction that helps, at most to the edge. In linf all move by one length t, in l2 in
    proportion to their slopes, in l1 those of steepest slope first.

    Args:
        points: inside the box.
        slopes, values: of the planes, relative to the points.
        edges: the corners of the box, which broadcast over the points.
        norm: the norm that measures moves.

    Source: Croce and Hein, arXiv 1907.02044, section 2.
    """
    low, high = edges
    upwards = slopes * values.sign().reshape(-1, *[1] * (slopes.dim() - 1))
    room = torch.where(upwards > 0, high - points, points - low).clamp_min(0.0).flatten(1)
    steep, goal = slopes.abs().flatten(1), values.abs()
    room = room.masked_fill(steep == 0, 0.0)
    if norm is Norm.LINF:
        moves = torch.minimum(_length(steep, room, goal)[:, None], room)
    elif norm is Norm.L2:
        ends = torch.where(steep > 0, room / steep.clamp_min(1e-30), 0.0)
        moves = torch.minimum(_length(steep**2, ends, goal)[:, None] * steep, room)
    else:
        moves = _greedy(steep, room, goal)
    return upwards.sign() * moves.reshape(points.shape)


def _length(
    weight: Float[Tensor, "batch pixels"], ends: Float[Tensor, "batch pixels"], goal: Float[Tensor, " batch"]
) -> Float[Tensor, " batch"]:
    """Find t with ``sum(weight * min(t, ends)) = goal``; the largest end if there is none."""
    ends, order = ends.sort(dim=1)
    weight = weight.gather(1, order)
    filled = (weight * ends).cumsum(1)
    free = weight.flip(1).cumsum(1).flip(1)  # weights of the pixels that are not at their ends before this one
    before = torch.cat([torch.zeros_like(filled[:, :1]), filled[:, :-1]], 1)
    rest = torch.cat([free[:, 1:], torch.zeros_like(free[:, :1])], 1)
    short = (filled + ends * rest < goal[:, None]).sum(1, keepdim=True)  # ends below t
    last = short.clamp_max(ends.shape[1] - 1)
    length = (goal[:, None] - before.gather(1, last)).clamp_min(0.0) / free.gather(1, last).clamp_min(1e-30)
    return torch.minimum(length, ends[:, -1:])[:, 0]


def _greedy(
    steep: Float[Tensor, "batch pixels"], room: Float[Tensor, "batch pixels"], goal: Float[Tensor, " batch"]
) -> Float[Tensor, "batch pixels"]:
    """Fill the room of the pixels of steepest slope until ``sum(steep * moves) = goal``."""
    order = steep.argsort(dim=1, descending=True)
    sorted_steep, sorted_room = steep.gather(1, order), room.gather(1, order)
    gain = sorted_steep * sorted_room
    left = goal[:, None] - (gain.cumsum(1) - gain)
    moves = torch.minimum(left.clamp_min(0.0) / sorted_steep.clamp_min(1e-30), sorted_room)
    return torch.zeros_like(moves).scatter(1, order, moves)
