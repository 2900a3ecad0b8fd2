"""The radius search as methods ask for it."""

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.bound_propagation.radius import MarginBound, Search, largest_certified
from verifiers.core.columns import Columns
from verifiers.core.status import Status
from verifiers.geometry.balls import whole_box
from verifiers.methods.base import Request, stored


def search_as_asked(
    bound: MarginBound,
    clean: Float[Tensor, " batch"],
    x: Float[Tensor, "batch *shape"],
    request: Request,
    known: Float[Tensor, " batch"] | None = None,
    spent: float = 0.0,
) -> Search:
    """The radius search with a request's eps, norm, tolerance and what is left of its time limit."""
    return largest_certified(
        bound,
        clean,
        eps=request.eps.value,
        limit=whole_box(request.norm, x[0].numel()),
        tolerance=float(request.options["tolerance"]),
        known=known,
        seconds=seconds_for(x, request) - spent,
    )


def seconds_for(x: Float[Tensor, "batch *shape"], request: Request) -> float:
    """The time that a batch has together."""
    return float(request.options["time_limit"]) * len(x)


def columns_of(found: Search, eps: float) -> Columns:
    """Status, radius and margin; the stored radius is rounded down, but eps was proved as it stands and says so."""
    radius = torch.where(found.margin > 0, found.radius.clamp_min(eps), found.radius)
    nothing = torch.where(found.finished, Status.NOT_CERTIFIED.value, Status.TIMEOUT.value)
    status = torch.where(radius > 0, Status.CERTIFIED.value, nothing)
    return stored(status, {"radius": radius, "margin": found.margin})
