"""Minimise p d - 1/2 sum_i w_i (a_i d)^2 over an l2 ball that is cut at the image box, from below.

With A the rows a_i and Q = A^T diag(w) A, every multiplier m above the largest eigenvalue of Q gives the bound
min_d (p d + 1/2 d^T (m I - Q) d) - m/2 r^2, a convex problem without constraints. A face d_j >= low_j has a multiplier
n_j >= 0 that moves from p_j to the constant n_j low_j, and likewise for the other side.

Nothing that is returned depends on an iteration having converged. The convex problem is bounded at the point found:
its value is at least F(d) - |grad F(d)|^2 / (2 s), if m I - Q - s I is positive semidefinite. That is proved by a
Cholesky factorisation of a matrix moved by far more than its rounding (Rump, BIT 46, 2006): in float64, the Gram matrix
of k directions of n pixels and its factorisation are off by less than (n + 2 k + 10) 2^-52 times its trace.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

#: The Cholesky factorisation is of m (1 - MOVED) I - Q.
MOVED = 1e-6
#: Values are lowered by this share of their terms at least, for their rounding in float64; more for long sums.
SLACK = 1e-11
#: A multiplier that is too small grows by this factor.
GROWTH = 1.5
#: What was too small is forgotten at this rate, because the weights change.
FORGET = 0.98
#: Keeps divisions finite.
TINY = 1e-300


@dataclass(frozen=True)
class Directions:
    """The directions a_i of each sample, and its region.

    Attributes:
        rows: the directions; 0 where a sample has fewer.
        gram: their inner products.
        low, high: the image box, seen from the image.
        eps: the radii.
    """

    rows: Float[Tensor, "batch k pixels"]
    gram: Float[Tensor, "batch k k"]
    low: Float[Tensor, "batch pixels"]
    high: Float[Tensor, "batch pixels"]
    eps: Float[Tensor, " batch"]

    @classmethod
    def of(cls, rows: Tensor, low: Tensor, high: Tensor, eps: Tensor) -> "Directions":
        """Build them with their inner products."""
        return cls(rows, rows @ rows.mT, low, high, eps)

    def times(self, points: Float[Tensor, "batch rows pixels"]) -> Float[Tensor, "batch rows k"]:
        """Compute the inner products a_i d."""
        return points @ self.rows.mT

    def back(self, values: Float[Tensor, "batch rows k"]) -> Float[Tensor, "batch rows pixels"]:
        """Combine the directions."""
        return values @ self.rows


@dataclass
class State:
    """The last point and multiplier of each row, and the last multiplier that was too small.

    The next minimisation starts from them.
    """

    point: Float[Tensor, "batch rows pixels"]
    multiplier: Float[Tensor, "batch rows"]
    floor: Float[Tensor, "batch rows"]

    @classmethod
    def start(cls, slopes: Float[Tensor, "batch rows pixels"], eps: Float[Tensor, " batch"]) -> "State":
        """Start at the minimum of the linear part over the whole ball."""
        length = torch.linalg.vector_norm(slopes, dim=2)
        point = -slopes * (eps[:, None] / length.clamp_min(TINY))[:, :, None]
        return cls(point, length / eps[:, None].clamp_min(TINY), torch.zeros_like(length))


def minimum(
    slopes: Float[Tensor, "batch rows pixels"],
    weights: Float[Tensor, "batch rows k"],
    directions: Directions,
    state: State,
    rounds: int = 1,
) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, "batch rows"], Float[Tensor, "batch rows pixels"]]:
    """Bound each row's minimum from below; updates the state.

    Returns the bound, -inf where no multiplier was proved; the value c <= 0 at the centre of the function behind it;
    and the point that attains it but for the faces. That function is concave on every ray from the centre, so on the
    ball of a share s of the radius the row is at least (1 - s) c + s bound. The point gives the gradient of the bound:
    by the envelope theorem, it is the derivative by the slopes, and -1/2 (a_i d)^2 that by the weight w_i.
    """
    root = weights.sqrt()
    matrix = root[..., :, None] * directions.gram[:, None] * root[..., None, :]
    best, point = torch.full_like(state.multiplier, -torch.inf), state.point
    centre = torch.zeros_like(best)
    for _ in range(rounds):
        at_faces, extra = _faces(slopes, root, directions, state)
        m, state.floor = state.multiplier, FORGET * state.floor
        factor, failed = _factor(matrix, m)
        for _ in range(2):
            if not bool(failed.any()):
                break
            state.floor = torch.where(failed, torch.maximum(m, state.floor), state.floor)
            m = torch.where(failed, GROWTH * m + 1e-3 * torch.diagonal(matrix, dim1=-2, dim2=-1).amax(-1), m)
            factor, failed = _factor(matrix, m)
        system = _System(root, directions, factor, m)
        left = slopes - at_faces
        found = system.solve(left)
        value = system.bound(left, found) + extra
        usable = ~failed & value.isfinite()
        better = usable & (value > best)
        best, centre = torch.where(better, value, best), torch.where(better, extra, centre)
        moved = system.towards_radius(found)
        moved = torch.where(moved > state.floor, moved, torch.maximum(0.5 * (state.floor + m), moved))
        state.multiplier = torch.where(usable, moved, GROWTH * m)
        point = found.where(usable[..., None], point)
        state.point = torch.minimum(torch.maximum(point, directions.low[:, None]), directions.high[:, None])
    return best, centre, point


def _faces(
    slopes: Tensor, root: Tensor, directions: Directions, state: State
) -> tuple[Float[Tensor, "batch rows pixels"], Float[Tensor, "batch rows"]]:
    """Choose multipliers of the faces: what a projected gradient step from the last point leaves there.

    Returns the multipliers with their signs, and the constant that they add.
    """
    low, high, m = directions.low[:, None], directions.high[:, None], state.multiplier[..., None]
    pull = slopes - directions.back(root.square() * directions.times(state.point))
    step = -pull / m.clamp_min(TINY)
    left = pull + m * torch.minimum(torch.maximum(step, low), high)
    left = torch.where(step < low, left.clamp_min(0.0), torch.where(step > high, left.clamp_max(0.0), 0.0))
    return left, (left * torch.where(left > 0, low, high)).sum(-1)


def _factor(matrix: Tensor, m: Tensor) -> tuple[Float[Tensor, "batch rows k k"], Bool[Tensor, "batch rows"]]:
    """Factorise m (1 - MOVED) I - matrix; returns also which rows failed."""
    eye = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    factor, info = torch.linalg.cholesky_ex((m * (1 - MOVED))[..., None, None] * eye - matrix)
    return factor, (info != 0) | ~(m > 0)


@dataclass(frozen=True)
class _System:
    """m I - Q, with the factor of m (1 - MOVED) I - diag(root) A A^T diag(root)."""

    root: Tensor
    directions: Directions
    factor: Tensor
    m: Float[Tensor, "batch rows"]

    def solve(self, slopes: Tensor) -> Float[Tensor, "batch rows pixels"]:
        """Solve (m I - Q) d = -slopes through the small matrix, nearly: with m (1 - MOVED)."""
        inner = (self.root * self.directions.times(slopes))[..., None]
        inner = torch.cholesky_solve(inner, self.factor)[..., 0]
        return -(slopes + self.directions.back(self.root * inner)) / (self.m * (1 - MOVED))[..., None].clamp_min(TINY)

    def bound(self, slopes: Tensor, point: Tensor) -> Float[Tensor, "batch rows"]:
        """Bound the convex problem from below at a point near its minimum."""
        bent, half = self.root * self.directions.times(point), 0.5 * self.m
        gradient = slopes + self.m[..., None] * point - self.directions.back(self.root * bent)
        linear, square = slopes * point, self.directions.eps[:, None].square()
        up, down = half * point.square().sum(-1), 0.5 * bent.square().sum(-1) + half * square
        distance = gradient.square().sum(-1) / (self.m * MOVED).clamp_min(TINY)  # s is half of m MOVED
        slack = max(SLACK, 4 * bent.shape[-1] ** 0.5 * point.shape[-1] * 2.0**-53)
        return linear.sum(-1) + up - down - distance - slack * (linear.abs().sum(-1) + up + down)

    def towards_radius(self, point: Tensor) -> Float[Tensor, "batch rows"]:
        """Make a Newton step of the multiplier towards |d| = r."""
        length = torch.linalg.vector_norm(point, dim=-1)
        curve = -(point * self.solve(point)).sum(-1)
        step = (length / self.directions.eps[:, None].clamp_min(TINY) - 1) * length.square() / curve.clamp_min(TINY)
        moved = torch.maximum(torch.minimum(self.m + step, 4 * self.m), 0.5 * self.m)
        return torch.where(moved.isfinite(), moved, GROWTH * self.m)
