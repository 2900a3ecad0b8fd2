"""Prove upper bounds of the spectral norms of affine operators: Lipschitz constants between Euclidean norms.

Each function computes an estimate, then verifies a bound near it, rounding included, and returns the bound. Everything
is in double precision. Bounds are dimensionless, and infinite if an entry is not finite.

Sources: S. M. Rump, Verification of positive definiteness, BIT 46 (2006) (a Cholesky factorisation that succeeds proves
a bound); H. Ehlich and K. Zeller, Schwankung von Polynomen zwischen Gitterpunkten, Math. Z. 86 (1964) (a trigonometric
polynomial between the points of a grid); I. Schur's test, || A ||_2^2 <= || A ||_1 || A ||_inf.
"""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Bool, Float, Inexact
from torch import Tensor
from torch.nn import functional as F

from verifiers.graph.affine import Affine, Convolution, Dense, Reshape, Scale, Sum
from verifiers.graph.rows import Shape

#: The unit of rounding.
UNIT = 2.0**-53
#: Covers a few roundings of a result, and of every entry of a matrix of at most ``ENTRIES`` entries.
ROUNDING = 1 + 1e-12
#: Factors on an estimate, tried in turn.
LADDER = (1 + 1e-6, 1 + 1e-5, 1 + 1e-4, 1 + 1e-3, 1.01, 1.1)
#: Up to this side the estimate is exact except for rounding; beyond it, power iteration is cheaper.
EXACT = 2048
#: Limits of operators that are written out as matrices: the smaller side, and the entries.
SIDE, ENTRIES = 2048, 2**23
#: Entries per chunk of work.
CHUNK = 2**22


def dense_norm(matrix: Float[Tensor, "*batch m n"]) -> Float[Tensor, "*batch"]:
    """Bound the spectral norms of matrices from above, usually by 1 + 1e-6 times the norm; 0 for zero and empty ones.

    Let n be the smaller side, m the larger one, u = 2^-53, t = tr A^T A, and tau slightly above an estimate of the
    norm. Let G be the computed Gram matrix and c = tau^2 - delta. If the Cholesky factorisation of c I - G succeeds,
    the norm is at most tau. Proof: || G - A^T A || <= (m + 4) u t up to higher orders; the diagonal of c I - G is
    rounded by at most 3 u tau^2; and a factorisation that succeeds is exact for a matrix that differs by at most
    (n + 5) u n tau^2 in norm. Together this is less than delta = 2 u (m + n + 10) max(n tau^2, t), whose factor 2
    covers the higher orders and its own rounding. (The constants are for complex numbers; real ones need m + n + 3.)
    Scaling by a power of two keeps squares from overflowing, and makes underflow negligible compared with delta. If no
    tau on the ladder is proved, the bound is the Frobenius norm, rounded up. Runs on the CPU, by LAPACK in the usual
    order of operations.
    """
    found = _norms(matrix.detach().to("cpu", torch.float64).reshape(math.prod(matrix.shape[:-2]), *matrix.shape[-2:]))
    return found.reshape(matrix.shape[:-2]).to(matrix.device)


def power_iteration(matrix: Inexact[Tensor, "*batch m n"], steps: int = 50) -> Float[Tensor, "*batch"]:
    """ESTIMATE the spectral norms, from below up to rounding. Estimates never feed a certificate; they serve as
    starting points and for comparison."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(*matrix.shape[:-2], matrix.shape[-1], 1, generator=generator, dtype=torch.float64)
    vector = _unit(start.to(matrix))
    for _ in range(steps):
        vector = _unit(matrix.mH @ (matrix @ vector))
    return torch.linalg.vector_norm(matrix @ vector, dim=(-2, -1))


def convolution_norm(
    weight: Float[Tensor, "out in height width"],
    stride: tuple[int, int] = (1, 1),
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
    frequencies: int | None = None,
) -> float:
    """Bound the spectral norm of a convolution from above, for any zero padding and images of any size.

    Such a convolution is part of the one on the infinite grid. There, a stride s sorts the pixels into s^2 channels (a
    dilated kernel is written out with its zeros) and becomes 1. With stride 1, dilation d makes d separate copies of
    the undilated convolution. Groups are blocks on the diagonal, so the largest of their norms counts. The remaining
    norm is the supremum over frequencies w of || K(w) ||, where K is the kernel's Fourier transform. For any v,
    || K(w) v ||^2 is a trigonometric polynomial of degree k - 1 per axis of a kernel of side k. Its supremum is at most
    its maximum on a grid of N > 2 (k - 1) points per axis, divided by cos(pi (k - 1) / N) for each axis (Ehlich and
    Zeller). A real kernel needs half of the grid.

    Args:
        weight: entries in torch's layout.
        stride: stride per axis.
        dilation: dilation per axis.
        groups: number of groups of channels.
        frequencies: N; by default 32, or 64 for a side of 5 or more, and always more than 2 (k - 1).
    """
    if weight.numel() == 0:
        return 0.0
    scale, kernel = _scaled(weight.detach().to("cpu", torch.float64)[None])
    if not bool(torch.isfinite(scale)):
        return math.inf
    folded = _unstrided(_unstrided(kernel[0], 2, stride[0], dilation[0]), 3, stride[1], dilation[1])
    grouped = folded.unflatten(0, (groups, -1))
    sides = grouped.shape[-2:]
    points = [_points(side, frequencies) for side in sides]
    least = math.prod(math.cos(math.pi * (side - 1) / count) for side, count in zip(sides, points, strict=True))
    return float(scale) * _grid_maximum(grouped, points) / math.sqrt(least) * ROUNDING


def max_pool_constant(kernel: tuple[int, int], stride: tuple[int, int], dilation: tuple[int, int] = (1, 1)) -> float:
    """Compute the Lipschitz constant of max-pooling: the root of the largest number of windows that share a pixel.

    Proof: | max a - max b | <= max | a - b | in each window, and its square is at most the sum of the window's squares.
    The constant is attained: a pixel above all others moves all of its windows. Per axis, the windows that contain a
    pixel are the taps u with u d in one class modulo the stride: ceil(k / s) without dilation. Rounded up.
    """
    count = math.prod(
        max(sum(tap * d % s == rest for tap in range(k)) for rest in range(s))
        for k, s, d in zip(kernel, stride, dilation, strict=True)
    )
    root = math.isqrt(count)
    return float(root) if root * root == count else math.nextafter(math.sqrt(count), math.inf)


def schur_norm(operator: Affine, shapes: Sequence[Shape], position: int = 0, like: Tensor | None = None) -> float:
    """Compute the bound sqrt(|| A ||_1 || A ||_inf) of the linear part of an affine operator, rounded up.

    Applying |A| and its transpose to ones gives the sums of magnitudes by row and by column. The bound is exact if all
    nonzero rows have the same sum, and all nonzero columns too: pooling without overlap, the mean over a map, padding.

    Args:
        operator: the operator.
        shapes: the shapes of its inputs, for one sample.
        position: the position of A's input among the operator's inputs; the others are zero.
        like: a double-precision tensor on the operator's device; None means the CPU.
    """
    part = _part(operator.half_width, shapes, position, like)
    zeros = _zeros(shapes[position], like)
    ones = torch.ones_like(zeros)
    rows = part(ones)
    columns = torch.func.vjp(part, zeros)[1](torch.ones_like(rows))[0]
    if rows.numel() == 0 or columns.numel() == 0:
        return 0.0
    terms = rows.numel() + columns.numel() + 16
    return _finite(math.sqrt(float(rows.max())) * math.sqrt(float(columns.max())) * (1 + 2 * terms * UNIT))


def affine_norm(operator: Affine, shapes: Sequence[Shape], position: int = 0, like: Tensor | None = None) -> float:
    """Bound the spectral norm of the linear part of an affine operator from above, by the best bound that applies:
    ``dense_norm`` of its matrix (if small), ``convolution_norm`` or ``schur_norm``; arguments as for ``schur_norm``.

    The operator belongs to a graph captured in double precision; entries that it computes, such as those of a mean,
    may be off by a few roundings.
    """
    match operator:
        case Reshape() | Sum():
            return 1.0
        case Scale():
            return _finite(float(operator.scale.abs().max())) if operator.scale.numel() else 0.0
        case Dense():
            return float(dense_norm(operator.weight))
    bounds = [schur_norm(operator, shapes, position, like)]
    before, after = math.prod(shapes[position]), operator.forward(*(_zeros(shape, like) for shape in shapes)).numel()
    if min(before, after) <= SIDE and before * after <= ENTRIES:
        bounds.append(float(dense_norm(materialize(operator, shapes, position, like))) * ROUNDING)
    elif isinstance(operator, Convolution):
        bounds.append(convolution_norm(operator.weight, operator.stride, operator.dilation, operator.groups))
    return min(bounds)


def materialize(
    operator: Affine, shapes: Sequence[Shape], position: int = 0, like: Tensor | None = None
) -> Float[Tensor, "out in"]:
    """Write out the linear part of an affine operator as a matrix, with entries in the order of the flattened tensors;
    arguments as for ``schur_norm``. It is computed by rows or by columns, whichever are fewer."""
    part, zeros = _part(operator.linear, shapes, position, like), _zeros(shapes[position], like)
    after = part(zeros).shape[1:]
    forwards = zeros.numel() <= after.numel()
    size, side = zeros[0].shape if forwards else after, min(zeros.numel(), after.numel())
    lines = [zeros.new_zeros(0, max(zeros.numel(), after.numel()))]
    for some in torch.arange(side, device=zeros.device).split(max(1, CHUNK // max(1, lines[0].shape[1]))):
        units = F.one_hot(some, side).to(zeros).reshape(len(some), *size)
        points = zeros.new_zeros(len(some), *zeros.shape[1:])
        found = part(units) if forwards else torch.func.vjp(part, points)[1](units)[0]
        lines.append(found.detach().flatten(1))
    return torch.cat(lines).T if forwards else torch.cat(lines)


def _finite(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _zeros(shape: Shape, like: Tensor | None) -> Tensor:
    if like is not None and like.dtype != torch.float64:
        raise ValueError(f"norms are computed in double precision, got {like.dtype}")
    return torch.zeros(1, *shape, dtype=torch.float64) if like is None else like.new_zeros(1, *shape)


def _part(
    function: Callable[..., Tensor], shapes: Sequence[Shape], position: int, like: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """Make a function of one input from a function of several; the others are zero."""
    rest = [_zeros(shape, like) for shape in shapes]

    def part(value: Tensor) -> Tensor:
        count = len(value)
        return function(*(value if i == position else x.expand(count, *x.shape[1:]) for i, x in enumerate(rest)))

    return part


def _unit(vector: Tensor) -> Tensor:
    return vector / torch.linalg.vector_norm(vector, dim=-2, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)


def _scaled(matrices: Tensor) -> tuple[Tensor, Tensor]:
    """Divide each tensor of a batch by a power of two, so that real and imaginary parts are below 2. Return the powers
    and the tensors. A tensor that is not finite becomes zeros, and its power infinity."""
    parts = torch.view_as_real(matrices) if matrices.is_complex() else matrices
    size = parts.abs().flatten(1).amax(1)
    known, zero = torch.isfinite(size), size == 0
    power = torch.where(known & ~zero, size / (2 * torch.frexp(size).mantissa), 1.0)
    scaled = torch.where(known.reshape(-1, *(1,) * (parts.ndim - 1)), parts, 0.0)
    scaled = scaled / power.reshape(-1, *(1,) * (parts.ndim - 1))
    return torch.where(known, power, math.inf), torch.view_as_complex(scaled) if matrices.is_complex() else scaled


def _norms(matrices: Inexact[Tensor, "batch m n"]) -> Float[Tensor, " batch"]:
    """Compute ``dense_norm`` for real or complex matrices."""
    norms = torch.zeros(len(matrices), dtype=torch.float64)
    if matrices.numel() == 0:
        return norms
    power, scaled = _scaled(matrices)
    gram, (small, large) = _gram(scaled), sorted(matrices.shape[-2:])
    estimate = torch.linalg.eigvalsh(gram)[:, -1].clamp_min(0).sqrt() if small <= EXACT else power_iteration(scaled)
    trace = gram.diagonal(dim1=-2, dim2=-1).real.sum(-1)
    norms = trace.sqrt() * (1 + 2 * UNIT * (small + large + 16))
    left = torch.arange(len(matrices))
    for factor in LADDER:
        tau = factor * estimate[left]
        proven = _below(gram[left], large, tau)
        norms[left[proven]] = norms[left[proven]].minimum(tau[proven])
        left = left[~proven]
        if len(left) == 0:
            break
    found = torch.where(norms > 0, torch.nextafter(norms * power, norms.new_tensor(math.inf)), 0.0)
    return torch.where(torch.isfinite(power), found, math.inf)


def _gram(matrices: Inexact[Tensor, "batch m n"]) -> Inexact[Tensor, "batch k k"]:
    """Compute the Gram matrices of the smaller side."""
    tall = matrices.shape[-2] >= matrices.shape[-1]
    gram = matrices.mH @ matrices if tall else matrices @ matrices.mH
    return (gram + gram.mH) / 2


def _below(gram: Inexact[Tensor, "batch n n"], large: int, tau: Float[Tensor, " batch"]) -> Bool[Tensor, " batch"]:
    """Try to prove that the norms of matrices of larger side ``large`` are at most tau; see ``dense_norm``."""
    side, diagonal = gram.shape[-1], gram.diagonal(dim1=-2, dim2=-1).real
    delta = 2 * UNIT * (large + side + 10) * torch.maximum(side * tau**2, diagonal.sum(-1))
    shifted = -gram
    shifted.diagonal(dim1=-2, dim2=-1).copy_((tau**2 - delta)[:, None] - diagonal)
    return torch.linalg.cholesky_ex(shifted).info == 0


def _unstrided(weight: Tensor, axis: int, stride: int, dilation: int) -> Tensor:
    """Build the kernel of the same norm on the infinite grid without stride and dilation on this axis."""
    if stride == 1:
        return weight
    taps = torch.arange(weight.shape[axis]) * dilation
    count = int(taps[-1]) // stride + 1
    spread = weight.new_zeros(*weight.shape[:axis], count * stride, *weight.shape[axis + 1 :])
    spread = spread.index_copy(axis, taps, weight)
    return spread.unflatten(axis, (count, stride)).movedim(axis + 1, 1).flatten(1, 2)


def _points(side: int, frequencies: int | None) -> int:
    """Choose the number of grid points on an axis of a kernel."""
    if side == 1:
        return 1
    if frequencies is not None:
        return max(frequencies, 2 * side - 1)
    return max(64 if side >= 5 else 32, 8 * (side - 1))


def _grid_maximum(kernel: Float[Tensor, "groups out in height width"], points: Sequence[int]) -> float:
    """Bound the norms of a kernel's Fourier transform on a grid of frequencies from above.

    One bound is proved for all frequencies: the norm where power iteration finds the largest one, or a higher one where
    that proof fails. The transform is a sum over the kernel's t entries. Angles are off by at most 20 u; with the sum's
    rounding, an entry is off by at most (t + 40) u times the sum of magnitudes, up to higher orders.
    """
    flat = kernel.flatten(-2)
    place = torch.cartesian_prod(*(torch.arange(side) for side in kernel.shape[-2:]))
    grid = torch.cartesian_prod(torch.arange(points[0]), torch.arange(points[1] // 2 + 1))

    def transform(frequencies: Tensor) -> Tensor:
        turns = place[:, :1] * frequencies[:, 0] * points[1] + place[:, 1:] * frequencies[:, 1] * points[0]
        angles = 2 * math.pi * (turns % math.prod(points)).double() / math.prod(points)
        real, imaginary = ((flat @ wave).movedim(-1, 0) for wave in (angles.cos(), -angles.sin()))
        return torch.complex(real, imaginary).flatten(0, 1)

    chunks = grid.split(max(1, CHUNK // max(flat.numel() // flat.shape[-1], flat.shape[-1])))
    estimates = torch.cat([power_iteration(transform(chunk), 6) for chunk in chunks])
    groups, best = len(kernel), int(estimates.argmax())
    bound = float(_norms(transform(grid[best // groups, None])[best % groups, None]))
    for chunk in chunks:
        matrices = transform(chunk)
        proven = _below(_gram(matrices), max(matrices.shape[-2:]), flat.new_tensor(bound).expand(len(matrices)))
        if not bool(proven.all()):
            bound = max(bound, float(_norms(matrices[~proven]).max()))
    rounding = flat.abs().sum(-1).square().sum((-2, -1)).sqrt().max()
    return bound + 2 * UNIT * (flat.shape[-1] + 40) * float(rounding)
