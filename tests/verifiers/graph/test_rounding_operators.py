"""Every operator's error against float32 in many orders and forms; the exact values are rational or in float64."""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import verifiers.graph
from tests.verifiers.graph import float32
from tests.verifiers.graph.float32 import SUMS, Array, f32, point
from verifiers.graph.affine import Affine, Sum
from verifiers.graph.affine_difference import AffineDifference
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering import LOWERINGS
from verifiers.graph.lowering.statistics import Variance
from verifiers.graph.operators import Elementwise, Interval, Operator
from verifiers.graph.relaxations.normalization import Normalization
from verifiers.graph.relaxations.powers import Root
from verifiers.graph.relaxations.products import Product
from verifiers.graph.relaxations.relu_difference import ReluDifference
from verifiers.graph.relaxations.selection import Select
from verifiers.graph.relaxations.softmax import Softmax
from verifiers.graph.rounding import representable

#: The different ways in which a machine may compute an operator's value for one sample.
Ways = Iterator[tuple[str, Array]]
#: Float64 is off by this share of a bound at most, as bounds are at least 2^-24 of the terms.
FLOAT64 = 1 + 2.0**-20


def seeded(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Draw float32 numbers of both signs whose exponents differ."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(shape, generator=generator) * 2 ** (spread * torch.randn(shape, generator=generator))
    return draw.double()


def lowered(kind: str, shapes: Sequence[tuple[int, ...]], *args: Any, joined: bool = False, **kwargs: Any) -> Operator:
    """Lower an operator for inputs of these shapes and return the one that the graph gets."""
    builder = Builder(torch.zeros(1, dtype=torch.float64))
    refs = [Ref(i, shape) for i, shape in enumerate(shapes)]
    LOWERINGS[kind](builder, *([refs] if joined else refs), *args, **kwargs)
    made = builder.nodes[-1].operator
    assert made is not None
    return made


def drawn(shapes: Sequence[tuple[int, ...]], count: int = 24) -> Iterator[list[Tensor]]:
    """Draw inputs: ordinary, of mixed magnitudes, huge, subnormal, of one sign and nearly equal."""
    for i in range(count):
        ordinary = [seeded(*shape, seed=100 * i + j, spread=(0.0, 1.0, 8.0)[i % 3]) for j, shape in enumerate(shapes)]
        factor = (1.0, 1.0, 1e12, 1e-42, 1e-20, 1.0)[i % 6]
        values = [value * factor for value in ordinary]
        if i % 6 == 1:
            values = [value.abs() for value in values]
        if i % 6 == 5:
            values = [1000.0 + 1e-3 * value for value in values]
        yield [value.float().double() for value in values]


# The ways


def matrix(operator: Affine, shapes: Sequence[tuple[int, ...]]) -> tuple[Array, Array]:
    """The matrix and the constant of an affine operator; columns of all inputs side by side."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    parts = torch.eye(sum(sizes), dtype=torch.float64).split(sizes, 1)
    columns = operator.linear(*(part.reshape(-1, *shape) for part, shape in zip(parts, shapes, strict=True)))
    constant = operator.forward(*(torch.zeros(1, *shape, dtype=torch.float64) for shape in shapes))
    return columns.flatten(1).T.numpy(), constant.flatten().numpy()


def _joined(values: Sequence[Tensor]) -> Array:
    return np.concatenate([value.numpy().ravel() for value in values]).astype(f32)


def in_any_order(operator: Affine, values: Sequence[Tensor]) -> Ways:
    weight, constant = matrix(operator, [tuple(value.shape) for value in values])
    x, given = weight.astype(f32), constant.astype(f32)
    yield from float32.affine(x, _joined(values), given if given.any() else None)


def averaged(operator: Affine, values: Sequence[Tensor]) -> Ways:
    """Add the entries of each window in any order, then divide, or multiply with a rounded reciprocal."""
    weight, _ = matrix(operator, [tuple(value.shape) for value in values])
    x, weights = _joined(values), weight.max(1)
    for name, add in SUMS.items():
        total = add((weight != 0).astype(f32) * x)
        yield f"{name}, quotient", total / (1 / weights).round().astype(f32)
        yield f"{name}, product", total * weights.astype(f32)
    yield from float32.affine(weight.astype(f32), x, None)


def by_torch(function: Callable[..., Tensor]) -> Callable[[Operator, Sequence[Tensor]], Ways]:
    def ways(operator: Operator, values: Sequence[Tensor]) -> Ways:
        yield "torch", function(*(value.float() for value in values)).numpy().ravel()

    return ways


def _padded(x: Tensor) -> Tensor:
    return F.pad(x, (1, 1), value=0.1)


def quotients(constant: float) -> Callable[[Operator, Sequence[Tensor]], Ways]:
    def ways(operator: Operator, values: Sequence[Tensor]) -> Ways:
        yield "quotient", _joined(values) / f32(constant)
        yield "reciprocal", _joined(values) * (f32(1) / f32(constant))

    return ways


NORM = [seeded(4, seed=i).abs() + 0.1 if i == 3 else seeded(4, seed=i) * (1.0 + 30.0 * (i == 2)) for i in range(4)]


def batch_normalised(operator: Operator, values: Sequence[Tensor]) -> Ways:
    weight, bias, mean, var = (part.numpy().astype(f32)[:, None, None] for part in NORM)
    x = values[0][0].numpy().astype(f32)
    inverse = f32(1) / np.sqrt(var + f32(1e-5))
    alpha = inverse * weight
    yield "centred", ((x - mean) * inverse * weight + bias).ravel()
    yield "centred, scale first", ((x - mean) * alpha + bias).ravel()
    yield "affine", (x * alpha + (bias - mean * alpha)).ravel()
    given = tuple(map(torch.from_numpy, (mean.ravel(), var.ravel(), weight.ravel(), bias.ravel())))
    yield "torch", F.batch_norm(torch.from_numpy(x)[None], *given).numpy().ravel()


def _exp(x: Array, ulps: int = 0) -> Array:
    """Compute exp to a number of units in the last place."""
    return (np.exp(x.astype(np.float64)) * (1 + ulps * 2.0**-23)).astype(f32)


def softmaxed(operator: Operator, values: Sequence[Tensor]) -> Ways:
    x = values[0].numpy().astype(f32)
    for name, add in SUMS.items():
        for ulps in (0, 19):
            parts = _exp(x - x.max(-1, keepdims=True), 0)
            parts[..., ::2] = _exp((x - x.max(-1, keepdims=True))[..., ::2], ulps)
            total = add(parts.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], 1)
            yield f"{name}, {ulps} ulp", (parts / total).ravel()
            yield f"{name}, {ulps} ulp, reciprocal", (parts * (f32(1) / total)).ravel()
    yield "torch", values[0].float().softmax(-1).numpy().ravel()
    if isinstance(operator, Softmax) and operator.fused:
        yield "block by block", _online(x).ravel()


def log_summed(operator: Operator, values: Sequence[Tensor]) -> Ways:
    """Find the log of the sum of exp in any order, with exp off by up to 20 ulp and log off by 3."""
    x = values[0].numpy().astype(f32)
    top = x.max(-1, keepdims=True)
    for name, add in SUMS.items():
        for ulps in (0, 19, -19):
            total = add(_exp(x - top, ulps).reshape(-1, x.shape[-1])).reshape(top.shape)
            for last in (0, 3):
                yield f"{name}, {ulps} ulp", (top + _log(total, last)).ravel()
    yield "torch", values[0].float().logsumexp(-1).numpy().ravel()


def _log(x: Array, ulps: int = 0) -> Array:
    return (np.log(x.astype(np.float64)) * (1 + ulps * 2.0**-23)).astype(f32)


def _online(x: Array, block: int = 16) -> Array:
    """Softmax as fused attention computes it, with exponents in base 2."""
    log2e, top = f32(1.4426950408889634), np.full((*x.shape[:-1], 1), -np.inf, f32)
    total, parts = np.zeros_like(top), np.zeros_like(x)
    for start in range(0, x.shape[-1], block):
        chosen = slice(start, start + block)
        new = np.maximum(top, x[..., chosen].max(-1, keepdims=True))
        scale = np.exp2((top * log2e - new * log2e).astype(np.float64)).astype(f32)
        parts, total, top = parts * scale, total * scale, new
        parts[..., chosen] = np.exp2((x[..., chosen] * log2e - new * log2e).astype(np.float64)).astype(f32)
        total = total + parts[..., chosen].sum(-1, keepdims=True, dtype=f32)
    return parts / total


def normalised(operator: Operator, values: Sequence[Tensor]) -> Ways:
    assert isinstance(operator, Normalization)
    x, eps = values[0].numpy().astype(f32), f32(operator.eps)
    rows = x.reshape(-1, x.shape[-1])
    n = f32(x.shape[-1])
    moments: list[tuple[str, Array, Array]] = []
    for name, add in SUMS.items():
        mean = (add(rows) / n)[:, None]
        moments.append((f"two passes, {name}", mean, (add((rows - mean) * (rows - mean)) / n)[:, None]))
        square = (add(rows * rows) / n)[:, None] - mean * mean
        if operator.squares:
            moments.append((f"squares, {name}", mean, np.maximum(square, f32(0))))
    moments.append(("updates", *_welford(rows)))
    moments.append(("merges", *_chan(rows)))
    for name, mean, variance in moments:
        inverse = f32(1) / np.sqrt(variance + eps)
        yield f"{name}, centred", ((rows - mean) * inverse).ravel()
        yield f"{name}, affine", (rows * inverse + (-mean * inverse)).ravel()
    yield "torch", F.layer_norm(values[0].float(), (x.shape[-1],), eps=operator.eps).numpy().ravel()


def _welford(rows: Array) -> tuple[Array, Array]:
    mean, squares = np.zeros(len(rows), f32), np.zeros(len(rows), f32)
    for i, column in enumerate(rows.T):
        delta = column - mean
        mean = mean + delta / f32(i + 1)
        squares = squares + delta * (column - mean)
    return mean[:, None], (squares / f32(rows.shape[1]))[:, None]


def _chan(rows: Array) -> tuple[Array, Array]:
    parts = [(f32(1), column, np.zeros_like(column)) for column in rows.T]
    while len(parts) > 1:
        merged = []
        for (n, mean, squares), (m, other, more) in zip(parts[::2], parts[1::2], strict=False):
            delta, share = other - mean, m / (n + m)
            merged.append((n + m, mean + delta * share, squares + more + delta * delta * n * share))
        parts = merged + parts[len(parts) - len(parts) % 2 :]
    count, mean, squares = parts[0]
    return mean[:, None], (squares / count)[:, None]


def multiplied(operator: Operator, values: Sequence[Tensor]) -> Ways:
    a, b = (value.numpy().astype(f32) for value in values)
    yield "product", (a * b).ravel()


def matrices(scale: float | None) -> Callable[[Operator, Sequence[Tensor]], Ways]:
    """Multiply matrices; with a scale, times the scale before, and divided by it exactly afterwards."""

    def ways(operator: Operator, values: Sequence[Tensor]) -> Ways:
        a, b = (value.numpy().astype(f32) for value in values)
        root = f32(1 if scale is None else scale**0.5)
        whole = f32(1 if scale is None else scale)
        for left, right in ((a * root, b * root), (a * whole, b), (a, b * whole)):
            products = left[:, None, :] * right.T[None]
            for name, add in SUMS.items():
                value = add(products.reshape(-1, products.shape[-1])).astype(np.float64)
                yield name, value / (1.0 if scale is None else scale)

    return ways


def differences(operator: AffineDifference, t: Tensor, s: Tensor) -> Ways:
    """Compute the student's and the teacher's value in float32, and subtract them exactly."""
    ours, theirs = list(in_any_order(operator.ours, [s])), list(in_any_order(operator.theirs, [t]))
    for (name, s), (other, t) in zip(ours, reversed(theirs), strict=True):
        yield f"{name} less {other}", s.astype(np.float64) - t.astype(np.float64)


# The table


@dataclass(frozen=True)
class Row:
    """An operator, the shapes of its inputs, and the ways in which float32 computes it.

    Attributes:
        made: builds it.
        shapes: for one sample.
        ways: None if float32 computes what float64 does.
        kind: the lowering that it stands for, if not the name in the table.
        loose: the bound may be this many times the worst error that is found.
        inputs: draws inputs, if not as for all.
    """

    made: Callable[[], Operator]
    shapes: Sequence[tuple[int, ...]]
    ways: Callable[[Any, Sequence[Tensor]], Ways] | None
    kind: str = ""
    loose: float = 50.0
    inputs: Callable[[], Iterator[list[Tensor]]] | None = field(default=None)

    def draw(self) -> Iterator[list[Tensor]]:
        return drawn(self.shapes) if self.inputs is None else self.inputs()


MAPS, LINE = (1, 4, 5, 6), (1, 3, 8)
ZERO = torch.zeros(1, dtype=torch.float64)


def row(kind: str, *args: Any, shape: tuple[int, ...], ways: Any = in_any_order, **more: Any) -> Row:
    options = {name: more.pop(name) for name in ("loose", "inputs") if name in more}
    return Row(lambda: lowered(kind, [shape], *args, **more), [shape], ways, kind, **options)


def _nearly_constant() -> Iterator[list[Tensor]]:
    """Rows whose variance is near eps, or nothing but rounding."""
    for seed in range(24):
        yield [(1.0 + seeded(2, 9, seed=seed, spread=0.3) * 10.0 ** -(2 + seed % 6)).float().double()]


def _positive() -> Iterator[list[Tensor]]:
    """Numbers above 0 of many magnitudes."""
    for seed in range(12):
        yield [seeded(*LINE, seed=seed, spread=(0.0, 2.0, 6.0)[seed % 3]).abs().clamp_min(1e-6).float().double()]


def _deviating() -> Iterator[list[Tensor]]:
    """Rows and their squared deviations, around 0 and far from it."""
    for seed in range(24):
        x = ((0.0, 3.0, 300.0)[seed % 3] + seeded(2, 9, seed=seed, spread=0.5)).float().double()
        yield [(x - x.mean(1, keepdim=True)).square(), x]


def varied(operator: Operator, values: Sequence[Tensor]) -> Ways:
    """Find the variance in two passes in any order, and by updates."""
    rows = values[1].numpy().astype(f32)
    n = f32(rows.shape[1])
    for name, add in SUMS.items():
        mean = (add(rows) / n)[:, None]
        yield f"two passes, {name}", add((rows - mean) * (rows - mean)) / (n - f32(1))
    for name, (_, variance) in {"updates": _welford(rows), "merges": _chan(rows)}.items():
        yield name, variance[:, 0] * n / (n - f32(1))
    yield "torch", values[1].float().var(1).numpy()


def _masked_inputs() -> Iterator[list[Tensor]]:
    """Scores of attention, some of which a mask of large negative numbers removes."""
    for seed in range(12):
        scores = 3.0 * seeded(3, 40, seed=seed, spread=0.3)
        yield [(scores - 1e9 * (seeded(3, 40, seed=seed + 50) > (1.0, 0.0, -1.0)[seed % 3])).float().double()]


def _normal_inputs(size: float, shape: tuple[int, ...]) -> Callable[[], Iterator[list[Tensor]]]:
    def inputs() -> Iterator[list[Tensor]]:
        for seed in range(24):
            offset = (0.0, 3.0, 100.0)[seed % 3]
            yield [(size * (seeded(*shape, seed=seed, spread=0.5) + offset)).float().double()]

    return inputs


CONV = (seeded(6, 2, 3, 3), seeded(6, seed=1), 1, 1, 1, 2)
ROWS: dict[str, Row] = {
    "linear": row("linear", seeded(4, 9), seeded(4, seed=1), shape=(1, 9)),
    "linear of many": row("linear", seeded(3, 64), None, shape=(1, 64)),
    "linear with zeros": row("linear", seeded(4, 9) * (seeded(4, 9, seed=3) > 0), None, shape=(1, 9)),
    "conv2d": row("conv2d", *CONV, shape=MAPS),
    "conv1d": row("conv1d", seeded(4, 3, 3), seeded(4, seed=1), shape=LINE),
    "conv3d": row("conv3d", seeded(2, 1, 2, 2, 2), seeded(2, seed=1), shape=(1, 1, 3, 3, 3)),
    "conv_transpose1d": row("conv_transpose1d", seeded(3, 2, 3), seeded(2, seed=1), (2,), shape=LINE),
    "conv_transpose2d": row("conv_transpose2d", seeded(4, 2, 3, 3), seeded(2, seed=1), (2, 2), shape=MAPS),
    "conv_transpose3d": row("conv_transpose3d", seeded(1, 2, 2, 2, 2), None, shape=(1, 1, 2, 2, 3)),
    "avg_pool2d": row("avg_pool2d", 3, 2, shape=MAPS, ways=averaged),
    "avg_pool2d ceil": row("avg_pool2d", 3, 2, 0, True, shape=MAPS, ways=averaged),
    "avg_pool1d": row("avg_pool1d", 3, shape=LINE, ways=averaged),
    "adaptive_avg_pool2d": row("adaptive_avg_pool2d", (2, 4), shape=MAPS, ways=averaged),
    "adaptive_avg_pool1d": row("adaptive_avg_pool1d", (3,), shape=LINE, ways=averaged),
    "mean": row("mean", (2, 3), shape=MAPS, ways=averaged),
    "sum": row("sum", (3,), shape=MAPS),
    "upsample_bilinear2d": row(
        "upsample_bilinear2d",
        (7, 11),
        False,
        shape=MAPS,
        ways=by_torch(lambda x: F.interpolate(x, (7, 11), mode="bilinear")),
        loose=2000.0,
    ),
    "constant_pad_nd": row(
        "constant_pad_nd", (1, 1), 0.1, shape=LINE, ways=by_torch(lambda x: F.pad(x, (1, 1), value=0.1))
    ),
    "pad": row("pad", (1, 1), "constant", 0.1, shape=LINE, ways=by_torch(lambda x: F.pad(x, (1, 1), value=0.1))),
    "add": row("add", seeded(8, seed=5), shape=LINE),
    "add a number": row("add", 0.1, shape=LINE, ways=by_torch(lambda x: x + 0.1)),
    "add with alpha": row(
        "add",
        seeded(8, seed=5),
        shape=LINE,
        alpha=0.3,
        ways=by_torch(lambda x: x + seeded(8, seed=5).float() * f32(0.3)),
    ),
    "add, broadcast": row("add", seeded(2, 3, 8), shape=(1, 3, 8)),
    "sub": row("sub", seeded(8, seed=5), shape=LINE),
    "rsub": row("rsub", 0.7, shape=LINE, ways=by_torch(lambda x: 0.7 - x)),
    "add two": Row(lambda: lowered("add", [LINE, LINE]), [LINE, LINE], in_any_order, "add"),
    "sub two": Row(lambda: lowered("sub", [LINE, LINE]), [LINE, LINE], in_any_order, "sub"),
    "add two with alpha": Row(
        lambda: lowered("add", [LINE, LINE], alpha=0.3), [LINE, LINE], by_torch(lambda x, y: x + y * f32(0.3)), "add"
    ),
    "add three": Row(lambda: Sum([1, -1, 1]), [LINE] * 3, in_any_order, "add"),
    "mul": row("mul", seeded(8, seed=5), shape=LINE),
    "mul by a number": row("mul", 0.1, shape=LINE, ways=by_torch(lambda x: x * 0.1)),
    "mul, broadcast": row("mul", seeded(2, 3, 8), shape=(1, 3, 8)),
    "mul two": Row(lambda: lowered("mul", [LINE, LINE]), [LINE, LINE], multiplied, "mul"),
    "neg": row("neg", shape=LINE, ways=None),
    "div": row("div", 0.3, shape=LINE, ways=quotients(0.3)),
    "div by a tensor": row("div", seeded(8), shape=LINE, ways=by_torch(lambda x: x / seeded(8).float())),
    "matmul by constants": row("matmul", seeded(8, 5), shape=LINE),
    "matmul": Row(lambda: lowered("matmul", [(4, 7), (7, 3)]), [(4, 7), (7, 3)], matrices(None), "matmul"),
    "matmul of attention": Row(
        lambda: Product(torch.matmul, (4, 7), (7, 3), (4, 3), 0.17), [(4, 7), (7, 3)], matrices(0.17), "matmul"
    ),
    "batch_norm": row(
        "batch_norm", NORM[0], NORM[1], NORM[2], NORM[3], False, 0.1, 1e-5, shape=(1, 4, 2, 3), ways=batch_normalised
    ),
    "softmax": row("softmax", -1, shape=(1, 12), ways=softmaxed, inputs=_normal_inputs(2.0, (1, 12))),
    "softmax, steep": row(
        "softmax", -1, shape=(1, 12), ways=softmaxed, inputs=_normal_inputs(40.0, (1, 12)), loose=500.0
    ),
    "logsumexp": row("logsumexp", -1, True, shape=(1, 12), ways=log_summed, loose=200.0),
    "logsumexp, steep": row(
        "logsumexp", -1, True, shape=(1, 12), ways=log_summed, inputs=_normal_inputs(40.0, (1, 12)), loose=500.0
    ),
    "softmax of attention": Row(
        lambda: Softmax(-1, (3, 40), fused=True), [(3, 40)], softmaxed, "softmax", 500.0, _normal_inputs(2.0, (3, 40))
    ),
    "softmax of masked attention": Row(
        lambda: Softmax(-1, (3, 40), fused=True), [(3, 40)], softmaxed, "softmax", 1000.0, _masked_inputs
    ),
    "layer_norm": Row(
        lambda: Normalization(1e-5, (2, 16)), [(2, 16)], normalised, "layer_norm", 200.0, _normal_inputs(1.0, (2, 16))
    ),
    "group_norm": Row(
        lambda: Normalization(1e-5, (2, 16), squares=True),
        [(2, 16)],
        normalised,
        "group_norm",
        200.0,
        _normal_inputs(1.0, (2, 16)),
    ),
    "layer_norm, constant": Row(
        lambda: Normalization(1e-5, (2, 9)), [(2, 9)], normalised, "layer_norm", 200.0, _nearly_constant
    ),
    "layer_norm of two": Row(
        lambda: Normalization(1e-3, (5, 2)), [(5, 2)], normalised, "layer_norm", 200.0, _normal_inputs(0.1, (5, 2))
    ),
    "layer_norm, large eps": Row(
        lambda: Normalization(0.5, (2, 9)), [(2, 9)], normalised, "layer_norm", 200.0, _normal_inputs(1e-2, (2, 9))
    ),
    "max_pool2d": row("max_pool2d", 3, 2, 1, shape=MAPS, ways=None),
    "sign": row("sign", shape=LINE, ways=None),
    "gt": row("gt", 0.3, shape=LINE, ways=None),
    "where": Row(lambda: Select([LINE] * 3, LINE), [LINE] * 3, None, "where"),
    "cumsum": row("cumsum", 2, shape=LINE),
    "pow 3": row("pow", 3, shape=LINE, ways=by_torch(lambda x: x**3)),
    "pow 2.5": row("pow", 2.5, shape=LINE, ways=by_torch(lambda x: x**2.5), inputs=_positive),
    "pow 0.3": row("pow", 0.3, shape=LINE, ways=by_torch(lambda x: x**0.3), inputs=_positive),
    "root": Row(lambda: Elementwise(Root()), [LINE], by_torch(lambda x: x.clamp_min(0).sqrt()), "norm"),
    "var": Row(lambda: Variance([1], 1, (2, 9), ZERO, keepdim=False), [(2, 9)] * 2, varied, "var", 1e4, _deviating),
    **{
        name: row(name, *given, shape=MAPS, ways=by_torch(partial(F.interpolate, **how)), loose=1e5)
        for name, given, how in (
            ("_upsample_bilinear2d_aa", ([3, 7], False), {"size": (3, 7), "mode": "bilinear", "antialias": True}),
            ("_upsample_bicubic2d_aa", ([3, 7], False), {"size": (3, 7), "mode": "bicubic", "antialias": True}),
            ("upsample_bicubic2d", ([3, 7], False), {"size": (3, 7), "mode": "bicubic"}),
        )
    },
    "relu of both": Row(ReluDifference, [LINE] * 5, None, "relu"),
}
#: Lowerings that only move entries, give constants, or are made of others.
MOVES = (
    "view _unsafe_view reshape flatten unflatten unsqueeze squeeze permute transpose t numpy_T expand select slice "
    "narrow flip roll index index_select repeat reflection_pad2d replication_pad2d upsample_nearest2d pixel_shuffle "
    "pixel_unshuffle channel_shuffle im2col unfold diagonal movedim swapaxes "
    "tril triu split split_with_sizes chunk unbind cat stack clone contiguous alias detach "
    "lift_fresh_copy positive _assert_tensor_metadata to _to_copy dropout feature_dropout new_zeros new_ones new_full "
    "zeros_like ones_like full_like expand_as view_as reshape_as broadcast_to reflection_pad1d replication_pad1d "
    "upsample_nearest1d max min amax amin maximum minimum max_pool1d adaptive_max_pool1d adaptive_max_pool2d "
    "adaptive_max_pool3d logical_not bitwise_not masked_fill einsum glu instance_norm rms_norm linalg_vector_norm norm "
    "std std_mean var_mean clamp clamp_min log_softmax log_sigmoid"
).split()
SAME = {
    "add_": "add",
    "bmm": "matmul",
    "mm": "matmul",
    "addmm": "matmul",
    "_softmax": "softmax",
    "_log_softmax": "log_softmax",
    "ge": "gt",
    "lt": "gt",
    "le": "gt",
    "scaled_dot_product_attention": "softmax",
    "_native_batch_norm_legit_no_training": "batch_norm",
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.thin(3)
def test_float32_is_within_the_bound(name: str) -> None:
    """In every order, and the bound is not much larger than the worst that is found."""
    given = ROWS[name]
    operator, worst = given.made(), 0.0
    for values in given.draw():
        inputs = [point(value[None]) for value in values]
        exact = operator.forward(*(value[None] for value in values))
        error = operator.rounding(inputs, operator.interval(*inputs))
        if given.ways is None:
            assert error is None
            plain = operator.forward(*(value[None].float() for value in values))
            assert isinstance(operator, ReluDifference) or torch.equal(exact, plain.double())
            continue
        assert error is not None and error.shape == exact.shape
        if not error.isfinite().all():
            assert max(float(value.abs().max()) for value in values) > 1e9, "a bound of ordinary numbers is infinite"
            continue
        for how, found in given.ways(operator, values):
            distance = np.abs(found.astype(np.float64) - exact.numpy().ravel())
            bound = error.numpy().ravel() * FLOAT64
            assert (distance <= bound).all(), f"{how}: off by {distance.max():.3g} of {bound[distance.argmax()]:.3g}"
            worst = max(worst, float((distance / np.maximum(bound, 1e-300)).max()))
    if given.ways is not None:
        assert worst >= 1 / given.loose, f"the worst error is {worst:.3g} of the bound"


@pytest.mark.parametrize("spread", [0.1, 3.0, 60.0])
def test_log_softmax_is_within_the_bounds_of_its_parts(spread: float) -> None:
    """The largest entry, the log of the sum and x itself are taken from each other in any order."""
    builder, like = Builder(torch.zeros(1, dtype=torch.float64)), Ref(0, (1, 7))
    LOWERINGS["log_softmax"](builder, like, -1)
    inner, outer = (node.operator for node in builder.nodes[-2:])
    assert inner is not None and outer is not None
    for (value,) in _normal_inputs(spread, (1, 7))():
        box = point(value[None])
        between, exact = inner.interval(box), value.log_softmax(-1)
        off = inner.rounding([box], between)
        assert off is not None
        widened = Interval(between.low - off, between.high + off)
        last = outer.rounding([box, widened], outer.interval(box, widened))
        bound = float(FLOAT64) * (off + (0 if last is None else last))[0].numpy()
        x = value.numpy().astype(f32)
        top = x.max(-1, keepdims=True)
        for ulps in (0, 19):
            logarithm = _log(_exp(x - top, ulps).sum(-1, keepdims=True), 3)
            for found in ((x - top) - logarithm, x - (top + logarithm), value.float().log_softmax(-1).numpy()):
                assert (np.abs(found.astype(np.float64) - exact.numpy()) <= bound).all()


def test_a_difference_holds_the_errors_of_both_networks() -> None:
    ours, theirs = (lowered("linear", [(1, 6)], seeded(4, 6, seed=i), seeded(4, seed=9 - i)) for i in (1, 2))
    assert isinstance(ours, Affine) and isinstance(theirs, Affine)
    operator = AffineDifference(ours, theirs, [True], [(1, 6)], torch.zeros(1, 1, dtype=torch.float64), rounded=True)
    worst = 0.0
    for i in range(24):
        t = seeded(1, 6, seed=i).float().double()
        s = (t + 1e-3 * seeded(1, 6, seed=50 + i)).float().double()
        ends = [point(value[None]) for value in (t, s, s - t)]
        exact = ours.forward(s[None]) - theirs.forward(t[None])
        box = operator.interval(point(theirs.forward(t[None])), point(ours.forward(s[None])), *ends)
        assert float((box.center - exact).abs().max()) < 1e-12, "the difference is another function"
        for how, found in differences(operator, t, s):
            distance = np.abs(found.astype(np.float64) - exact.numpy().ravel())
            share = float((distance / box.half_width.numpy().ravel()).max())
            assert share <= 1, f"{how}: off by {share:.3g} times the bound"
            worst = max(worst, share)
    assert worst > 1e-3, f"the bound is {1 / worst:.3g} times the worst error"


@pytest.mark.parametrize("name", [name for name, given in ROWS.items() if given.ways is in_any_order])
@pytest.mark.thin(2)
def test_exact_values_are_rational_numbers(name: str) -> None:
    given = ROWS[name]
    operator = given.made()
    assert isinstance(operator, Affine)
    for i, values in enumerate(given.draw()):
        if i % 6 > 3:
            continue
        weight, constant = matrix(operator, given.shapes)
        assert representable(torch.from_numpy(constant)) or not constant.any()
        weight, constant = weight.astype(f32), constant.astype(f32)
        chosen = slice(0, 6)
        exact = float32.exactly(weight[chosen], _joined(values), constant[chosen])
        inputs = [point(value[None]) for value in values]
        error = operator.rounding(inputs, operator.interval(*inputs))
        assert error is not None
        bound = error.numpy().ravel()[chosen]
        for how, found in float32.affine(weight[chosen], _joined(values), constant[chosen]):
            pairs = zip(found, exact, bound, strict=True)
            off = [abs(float32.Fraction(float(f)) - e) > b for f, e, b in pairs if np.isfinite(b)]
            assert not any(off), f"{how}, inputs {i}"


@pytest.mark.parametrize("name", ["linear", "avg_pool2d", "sub two", "batch_norm", "layer_norm", "softmax", "matmul"])
@pytest.mark.thin(2)
def test_a_search_for_worse_inputs_stays_within_the_bound(name: str) -> None:
    """Climb from input to input towards a larger share of the bound."""
    given = ROWS[name]
    operator, generator = given.made(), np.random.default_rng(0)
    assert given.ways is not None

    def share(values: list[Tensor]) -> float:
        inputs = [point(value[None]) for value in values]
        exact = operator.forward(*(value[None] for value in values)).numpy().ravel()
        error = operator.rounding(inputs, operator.interval(*inputs))
        assert error is not None and given.ways is not None
        bound = np.maximum(error.numpy().ravel(), 1e-300)
        return max(
            float((np.abs(found.astype(np.float64) - exact) / bound).max()) for _, found in given.ways(operator, values)
        )

    values = next(given.draw())
    best = start = share(values)
    for _ in range(150):
        tried = []
        for value in values:
            change = generator.random(value.shape) < 0.3
            factor = np.where(change, 1 + generator.normal(size=value.shape) * 10.0 ** -generator.integers(0, 8), 1.0)
            tried.append((value * torch.from_numpy(factor)).float().double())
        if (found := share(tried)) > best:
            values, best = tried, found
    assert best <= FLOAT64, f"{best:.3g} of the bound"
    assert best >= start


def _operators() -> set[type]:
    """The classes of the graph's operators and activations that have a bound of their own or inherit one."""
    found = set()
    for module in pkgutil.walk_packages(verifiers.graph.__path__, "verifiers.graph."):
        for _, kind in inspect.getmembers(importlib.import_module(module.name), inspect.isclass):
            if kind.__module__ == module.name and hasattr(kind, "rounding") and not kind.__name__.startswith("_"):
                found.add(kind)
    return found


def test_every_operator_has_a_row() -> None:
    from tests.verifiers.graph.test_relaxations import CASES

    bases = {"Operator", "Affine", "Activation", "Curved", "SShape", "Elementwise"}
    made = [given.made() for given in ROWS.values()]
    made += [each.activation for each in made if isinstance(each, Elementwise)]
    rows = {type(each) for each in (*made, *(case.activation for case in CASES.values()))}
    moving = {"Reshape", "General"}  # MOVES
    related = {"Difference", "AffineDifference", "CappedExp"}  # no machine computes them
    others = {"SoftmaxOfSum"}  # test_softmax_parts
    others |= {"ComposedConvolution", "ComposedDense"}  # test_composed
    others |= {"ConvolutionInUnits", "DenseInUnits", "Grid", "ScaleInUnits", "StepDifference"}  # test_coded_difference
    others |= {"CodeSum", "IntegerConvolution", "IntegerDense", "Rescale", "Rounded", "Staircase"}  # test_integers
    missing = {kind.__name__ for kind in _operators() - rows} - bases - moving - related - others
    assert not missing, f"operators without a row in this file or test_relaxations: {missing}"


def test_every_lowering_has_a_row() -> None:
    known = {given.kind or name for name, given in ROWS.items()} | set(MOVES) | set(SAME)
    assert not set(SAME.values()) - known
    missing = []
    for kind in set(LOWERINGS) - known:
        if kind.startswith("certkd_int8::"):  # test_integers
            continue
        try:
            made = lowered(kind, [LINE])
        except TypeError:  # an argument is missing: not an activation
            made = None
        if not isinstance(made, Elementwise) and kind not in ("pow", "prelu", "clamp_max"):
            missing.append(kind)
    assert not missing, f"lowerings without a row: {missing}"


@pytest.mark.parametrize("kind", sorted(set(MOVES) & {"permute", "flip", "roll", "repeat", "reshape", "unsqueeze"}))
def test_moving_entries_is_exact(kind: str) -> None:
    arguments = {"permute": ((0, 2, 1),), "flip": ((1,),), "roll": ((1,), (2,)), "repeat": ((1, 2, 1),)}
    made = lowered(kind, [LINE], *arguments.get(kind, ((2, 12) if kind == "reshape" else 0,)))
    box = point(torch.rand(2, *LINE, dtype=torch.float64))
    assert made.rounding([box], made.interval(box)) is None
