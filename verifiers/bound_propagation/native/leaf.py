"""Solve leaves: domains with a sign for every ReLU, where the network is affine and its minimum a linear program."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Vertex(NamedTuple):
    """The solution of a linear program.

    Attributes:
        point: the image.
        multipliers: a dual solution: the multipliers of the constraints, at least 0 up to the solver's tolerance.
        violation: the amount by which the constraints exclude each other; 0 if a point of the box satisfies them all.
    """

    point: Float[Tensor, " pixels"]
    multipliers: Float[Tensor, " constraints"]
    violation: float


def lowest(
    slope: Float[Tensor, " pixels"],
    constraints: Float[Tensor, "constraints pixels"],
    offsets: Float[Tensor, " constraints"],
    low: Float[Tensor, " pixels"],
    high: Float[Tensor, " pixels"],
    price: float,
) -> Vertex | None:
    """Minimise ``slope @ x + price t`` over the box with ``constraints @ x + offsets + t >= 0`` and t >= 0.

    With a sufficient price, t is 0 or no point of the box satisfies the constraints. None if the solver fails. The
    solution proves nothing by itself: the proof has to be computed from the multipliers.
    """
    from scipy.optimize import linprog  # the import takes a second, and most networks never need it

    columns = -np.column_stack([constraints.cpu().numpy(), np.ones(len(offsets))])
    bounds = [*zip(low.tolist(), high.tolist(), strict=True), (0.0, None)]
    solved = linprog(
        np.append(slope.cpu().numpy(), price), columns, offsets.cpu().numpy(), bounds=bounds, method="highs"
    )
    if solved.status != 0:
        return None
    point, multipliers = (
        torch.as_tensor(v, dtype=slope.dtype, device=slope.device) for v in (solved.x, -solved.ineqlin.marginals)
    )
    return Vertex(point[:-1], multipliers.clamp_min(0.0), float(solved.x[-1]))
