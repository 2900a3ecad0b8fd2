"""Lipschitz constants of chains of matrices with slopes in [0, 1] between them: ECLipsE-Fast and LipSDP-Neuron.

Both rest on one statement about a chain W_1, ..., W_L+1. For slopes in that range, a change of h_k and the change of
z_k that causes it satisfy dh (dz - dh) >= 0 entry by entry. Weighted by 2/t > 0 and summed,

    K^2 |dx|^2 - |V dh_L|^2 >= K^2 (dx, dh_1, ..., dh_L)' (Q - P / K^2) (dx, dh_1, ..., dh_L) >= 0

if Q >= P / K^2. Here V is rows of logits times W_L+1, P is V'V on the last block and zero elsewhere, and Q is block
tridiagonal: its diagonal is I, 2 diag(1/t_1), ..., 2 diag(1/t_L), and the blocks below it are -diag(1/t_k) W_k. So for
any multipliers t with Q > 0, the norm of V R is a Lipschitz constant of the rows, R R' being the last block of Q^-1.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from verifiers.core.errors import Unsupported

#: Subtracted from the unit diagonal of the scaled Q before its factorisation. It covers all rounding and costs about
#: 1e-6 of a constant per layer.
SHIFT = 1e-6
#: The most hidden units and classes for LipSDP; the most units and rows for which each row has its own multipliers.
UNITS, CLASSES, ROW_BY_ROW, ROWS = 1024, 100, 256, 64
#: Entries of the matrices of one batch of pairs, at most.
ENTRIES = 2**18
#: Power p of tr(M^p)^(1/p), which replaces the largest eigenvalue in the objective of several rows.
SHARPNESS = 100
#: Share of Q's diagonal that the optimiser subtracts, so that it ends where the factorisation succeeds.
FLOOR = 2e-6
#: The gap at which each pair starts from shared multipliers: roughly the middle of those with Q > 0.
COARSE = 1.0
#: Newton steps for each weight of the barrier, and halvings of one step.
STEPS, HALVINGS = 12, 12
#: Replaces zeros in divisors and in logarithms.
TINY = 1e-100


def eclipse_fast(
    chain: Sequence[Float[Tensor, "_ _"]], rows: Float[Tensor, "items r classes"]
) -> Float[Tensor, " items"]:
    """Compute Lipschitz constants of ``rows[i] @ logits`` for a chain with slopes in [0, 1], in one factorisation.

    Each layer has one multiplier, t_k = the largest eigenvalue of S_k. D_k - S_k/4 then has eigenvalues from t_k/4 to
    t_k/2: nothing is ill-conditioned. Rounding stays below 1e-9 of a constant, which ``INFLATION`` covers.
    Source: Xu and Sivaranjani, arXiv 2404.04375; here for slopes in [0, 1] and rows of logits.
    """
    _, root = _by_layers(chain, lambda gram: torch.ones_like(gram[0]))
    reach = root @ (rows @ chain[-1]).mT
    if not bool(reach.isfinite().all()):
        return rows.new_full((len(rows),), float("inf"))
    return torch.linalg.matrix_norm(reach, 2)


def _by_layers(
    chain: Sequence[Tensor], profile: Callable[[Tensor], Tensor]
) -> tuple[Float[Tensor, " units"], Float[Tensor, "last last"]]:
    """Choose multipliers layer by layer, and return them with R', where R R' is the last block of Q's inverse.

    With S_k = W_k R R' W_k' and D = diag(t_k)/2, the next R R' is D (D - S_k/4)^-1 D. ``profile`` maps S_k to t_k up to
    scale. The scale sets the largest eigenvalue of t^(-1/2) S_k t^(-1/2) to 1; anything below 2 is allowed.
    """
    root = torch.eye(chain[0].shape[1], dtype=chain[0].dtype, device=chain[0].device)
    multipliers = []
    for weight in chain[:-1]:
        reach = root @ weight.T
        gram = reach.T @ reach
        if not bool(gram.isfinite().all()):
            return torch.full_like(root[0], float("nan")), torch.full((len(chain[-1].T),) * 2, float("nan")).to(root)
        shape = profile(gram).clamp_min(TINY)
        scaled = gram / (shape[:, None] * shape).sqrt()
        t = torch.linalg.eigvalsh(scaled)[-1].clamp_min(TINY) * shape
        factor = torch.linalg.cholesky_ex(torch.diag(t / 2) - gram / 4)[0]  # eigenvalues of at least t/4
        root = torch.linalg.solve_triangular(factor, torch.diag(t / 2), upper=False)
        multipliers.append(t)
    return torch.cat(multipliers) if multipliers else chain[0].new_zeros(0), root


# LipSDP-Neuron


class Matrix(NamedTuple):
    """Q with the image eliminated, as a function of the multipliers, scaled to a unit diagonal.

    Let q = sqrt(t). Eliminating the image leaves 2/t_1 - (W_1 W_1')/(t_1 t_1') as the first block. Entry (a, b) of the
    whole is 1 if a = b, else 0, less ``below[a, b] q_b / (2 q_a)``; on the first block, less
    ``below[a, b] / (2 q_a q_b)``. The part above the diagonal mirrors the one below, and outside the first block it is
    not stored.
    """

    below: Float[Tensor, "units units"]
    first: int
    last: int
    pixels: int

    @classmethod
    def of(cls, chain: Sequence[Tensor]) -> "Matrix":
        sizes = [len(weight) for weight in chain[:-1]]
        below = chain[0].new_zeros(sum(sizes), sum(sizes))
        below[: sizes[0], : sizes[0]] = chain[0] @ chain[0].T
        column = 0
        for weight in chain[1:-1]:
            row = column + weight.shape[1]
            below[row : row + len(weight), column:row] = weight
            column = row
        return cls(below, sizes[0], sizes[-1], chain[0].shape[1])

    def scaled(self, root: Float[Tensor, "items units"], shift: float) -> Float[Tensor, "items units units"]:
        """Compute the matrix less shift on the diagonal; only the part on and below the diagonal."""
        columns = root.clone()
        columns[:, : self.first] = 1 / root[:, : self.first]
        found = self.below * columns[:, None, :] / root[:, :, None]
        if len(self.below) > self.first:
            corner = found[:, self.first :, : self.first]
            found[:, self.first :, : self.first] = corner * root[:, None, : self.first].square()
        return (1 - shift) * torch.eye(len(self.below), dtype=root.dtype, device=root.device) - found / 2


def certified(
    chain: Sequence[Float[Tensor, "_ _"]],
    multipliers: Float[Tensor, "items units"],
    rows: Float[Tensor, "items rows r classes"],
    shift: float = SHIFT,
) -> Float[Tensor, "items rows"]:
    """Compute the constants that multipliers prove, by one factorisation of Q; inf if Q is not shown to be positive.

    This is a proof for any multipliers that an optimiser returns. Q is scaled to n ones on the diagonal. The computed
    Cholesky factor C of Q - shift I has C C' within (n + 1) u n of it. The triangular solve for the rows adds 2 u n^2,
    and the entries add (pixels + 8) u n: together less than 4 u (n + pixels + 3) n, which the shift exceeds. So
    C C' <= Q, and |C^-1 V'| is a constant of Q. (Rump, BIT 46 (2006) 433-452; u = 2^-53.)
    """
    matrix, units = Matrix.of(chain), multipliers.shape[1]
    if shift == SHIFT and 4 * 2.0**-53 * (units + matrix.pixels + 3) * units > SHIFT:
        raise Unsupported(f"lipschitz: rounding for {units} units exceeds what LipSDP allows for")
    root = multipliers.sqrt()
    factor, failed = torch.linalg.cholesky_ex(matrix.scaled(root, shift))
    right = ((rows @ chain[-1]) * (root[:, None, None, -matrix.last :] / 2**0.5)).flatten(1, 2)
    corner = factor[:, -matrix.last :, -matrix.last :]  # the rows are zero before it, and so is their solution
    solved = torch.linalg.solve_triangular(corner, right.mT, upper=False).mT.reshape(*rows.shape[:3], -1)
    norms = torch.linalg.vector_norm(solved, dim=(2, 3)) if rows.shape[2] == 1 else torch.linalg.matrix_norm(solved, 2)
    return torch.where((failed == 0)[:, None] & norms.isfinite(), norms, float("inf"))


def lipsdp(
    chain: Sequence[Float[Tensor, "_ _"]], rows: Float[Tensor, "items r classes"], gap: float = 1e-3
) -> Float[Tensor, " items"]:
    """Compute Lipschitz constants of ``rows[i] @ logits`` for a chain with slopes in [0, 1], by LipSDP-Neuron.

    First the multipliers are optimised for the mean of log K over the rows. Then, for at most ``ROWS`` rows of networks
    of at most ``ROW_BY_ROW`` units, they are optimised for each row separately, to within ``gap`` of the smallest K^2.
    No constant is above that of ECLipsE-Fast. Soundness depends on ``certified`` alone.
    Source: Fazlyab et al., arXiv 1906.04893.

    Raises:
        Unsupported: more hidden units than ``UNITS``, or classes than ``CLASSES``.
    """
    units = sum(len(weight) for weight in chain[:-1])
    if units > UNITS:
        raise Unsupported(f"lipschitz: LipSDP takes up to {UNITS} hidden units, and the network has {units}")
    if rows.shape[2] > CLASSES:
        raise Unsupported(f"lipschitz: LipSDP is tried for up to {CLASSES} classes, not for {rows.shape[2]}")
    found = eclipse_fast(chain, rows)
    if not units or not len(rows) or not bool(found.isfinite().all()):
        return found
    start, alone = _by_layers(chain, lambda gram: gram.diagonal().sqrt())[0], units <= ROW_BY_ROW and len(rows) <= ROWS
    shared = _optimized(chain, start[None], rows[None], 1.0, COARSE if alone and len(rows) > 1 else gap)
    found = torch.minimum(found, certified(chain, shared, rows[None])[0])
    if not alone or len(rows) == 1:
        return found
    size = max(1, ENTRIES // (units + min(chain[0].shape)) ** 2)
    parts = []
    for part in rows[:, None].split(size):
        own = _optimized(chain, shared.expand(len(part), -1), part, COARSE, gap)
        parts.append(certified(chain, own, part)[:, 0])
    return torch.minimum(found, torch.cat(parts))


class _Program(NamedTuple):
    """The objective of the optimiser: the mean of log K^2 over the rows, as a function of weights T = 1/t.

    Q = (1 - FLOOR) I on the image + sum_i T_i (e_i c_i' + c_i e_i'), where the c_i are the columns of ``slopes``. K^2
    is the norm of rows M rows' with M = V Q^-1 V'. The image may have fewer dimensions than the real one.
    """

    slopes: Float[Tensor, "entries units"]
    last: Float[Tensor, "classes last"]
    rows: Float[Tensor, "items rows r classes"]

    @classmethod
    def of(cls, chain: Sequence[Tensor], rows: Tensor) -> "_Program":
        first = chain[0]
        if first.shape[1] > first.shape[0]:  # the same W_1 W_1'
            first = torch.linalg.qr(first.T, mode="r")[1].T
        weights = [first, *chain[1:-1]]
        sizes = [first.shape[1], *(len(weight) for weight in weights)]
        slopes = first.new_zeros(sum(sizes), sum(sizes[1:]))
        slopes[sizes[0] :] = (1 - FLOOR) * torch.eye(sum(sizes[1:]), dtype=first.dtype, device=first.device)
        row = column = 0
        for weight in weights:
            slopes[row : row + weight.shape[1], column : column + len(weight)] -= weight.T
            row, column = row + weight.shape[1], column + len(weight)
        return cls(slopes, chain[-1], rows)

    @property
    def image(self) -> int:
        """The position of the first unit."""
        return self.slopes.shape[0] - self.slopes.shape[1]

    def barrier(self, weights: Tensor, tau: float) -> tuple[Tensor, Tensor, Tensor]:
        """Compute mean log K^2 less tau log det Q (inf if Q is not positive), Q's factor, and the gradient by M."""
        part = self.slopes * weights[:, None, :]
        matrix = torch.cat([part.new_zeros(len(part), part.shape[1], self.image), part], 2)
        matrix = matrix + matrix.mT
        matrix.diagonal(dim1=1, dim2=2)[:, : self.image] += 1 - FLOOR
        factor, failed = torch.linalg.cholesky_ex(matrix)
        corner = factor[:, -self.last.shape[1] :, -self.last.shape[1] :]
        half = torch.linalg.solve_triangular(corner, self.last.T.expand(len(part), -1, -1), upper=False)
        value, gradient = _mean_log(self.rows, (half.mT @ half).nan_to_num(0.0, 0.0, 0.0))
        value = value - 2 * tau * factor.diagonal(dim1=1, dim2=2).log().sum(1)
        return torch.where((failed == 0) & value.isfinite(), value, float("inf")), factor, gradient

    def newton(self, factor: Tensor, gradient: Tensor, tau: float) -> tuple[Tensor, Tensor]:
        """Compute a step of the weights and the objective's slope along it; log K^2 is treated as linear in M."""
        image, c = self.image, self.slopes
        inverse = torch.cholesky_inverse(factor)
        through = inverse @ c
        mixed, units, both = through[:, image:], inverse[:, image:, image:], c.T @ through
        sizes, axes = torch.linalg.eigh(gradient.nan_to_num(0.0, 0.0, 0.0))
        y = inverse[:, :, -self.last.shape[1] :] @ (self.last.T @ (axes * sizes.clamp_min(0).sqrt()[:, None]))
        at_c, at_e = c.T @ y, y[:, image:]
        slope = -2 * (at_c * at_e).sum(2) - 2 * tau * mixed.diagonal(dim1=1, dim2=2)
        cross = (at_c @ at_e.mT) * mixed
        curvature = (at_c @ at_c.mT) * units + cross + cross.mT + (at_e @ at_e.mT) * both
        curvature = 2 * curvature + 2 * tau * (mixed * mixed.mT + units * both)
        scale = curvature.diagonal(dim1=1, dim2=2).rsqrt()
        scaled = curvature * scale[:, :, None] * scale[:, None, :]
        scaled.diagonal(dim1=1, dim2=2).add_(1e-10)
        step = torch.cholesky_solve((slope * scale)[:, :, None], torch.linalg.cholesky_ex(scaled)[0])
        step = -scale * step[:, :, 0]
        return step, (slope * step).sum(1)


def _mean_log(rows: Tensor, matrix: Float[Tensor, "items classes classes"]) -> tuple[Tensor, Tensor]:
    """Compute the mean over rows of log || rows M rows' ||, smoothed if r > 1, and its gradient."""
    power = 1 if rows.shape[2] == 1 else SHARPNESS
    values, axes = torch.linalg.eigh(rows @ matrix[:, None] @ rows.mT)
    values = values.clamp_min(TINY)
    top = values[:, :, -1:]
    share = (values / top) ** (power - 1) * (values > TINY)  # zero rows stay as they are
    total = (share * values / top).sum(2, keepdim=True).clamp_min(TINY)
    turned = axes.mT @ rows * (share / total / top / rows.shape[1]).sqrt()[..., None]
    turned = turned.flatten(1, 2)
    return (top.log() + total.log() / power).mean((1, 2)), turned.mT @ turned


def _optimized(
    chain: Sequence[Tensor], start: Float[Tensor, "items units"], rows: Tensor, first: float, gap: float
) -> Float[Tensor, "items units"]:
    """Find multipliers near the smallest mean of log K^2, by an interior-point method from multipliers with Q > 0.

    K^2 is convex in 1/t where Q > 0, so a single row has one minimum. A barrier of weight tau ends at most tau times
    the size of Q above it; tau falls until that product, which starts at ``first``, is ``gap``.
    """
    program, weights = _Program.of(chain, rows), 1 / start
    size, share = len(program.slopes), first
    while True:
        tau = max(share, gap) / size
        for _ in range(STEPS):
            value, factor, gradient = program.barrier(weights, tau)
            step, fall = program.newton(factor, gradient, tau)
            weights = _line_search(program, weights, step, value, fall, tau)
            if not bool((fall < -0.5 * tau).any()):
                break
        if share <= gap:
            return 1 / weights
        share /= 10


def _line_search(
    program: _Program, weights: Tensor, step: Tensor, value: Tensor, fall: Tensor, tau: float
) -> Float[Tensor, "items units"]:
    """Apply to each item the first of the step, its half, ... that lowers the objective enough, if any."""
    length, done = torch.ones_like(value), ~(fall < 0)
    for _ in range(HALVINGS):
        if bool(done.all()):
            break
        tried = torch.where(done[:, None], weights, weights + length[:, None] * step)
        better = (program.barrier(tried, tau)[0] <= value + 0.1 * length * fall) & ~done
        weights = torch.where(better[:, None], tried, weights)
        done |= better
        length = length / 2
    return weights
