"""A domain on which every ReLU has its sign: the network is affine there, and its minimum a linear program."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


class Vertex(NamedTuple):
    """Where a linear program ends.

    Attributes:
        point: the image.
        multipliers: of the constraints, each at least 0 up to the solver's tolerance: a dual solution.
        violation: by how much the constraints exclude each other; 0 where a point of the box keeps all of them.
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
    """The least ``slope @ x + price t`` over the box with ``constraints @ x + offsets + t >= 0`` and t >= 0.

    With a price that is high enough t is 0, or the box holds no point that keeps the constraints. None where the solver
    fails. Nothing is claimed: what the multipliers prove has to be computed from them.
    """
    from scipy.optimize import linprog  # takes a second to import, and most networks never get here

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
