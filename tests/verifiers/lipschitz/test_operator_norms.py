"""Norms of operators: never below the true ones, close to them, exact where that is promised."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from verifiers.graph.affine import Affine, Convolution, Dense, General, Reshape, Scale, Sum
from verifiers.graph.batch_norm import BatchNorm
from verifiers.graph.graph import Builder, Ref
from verifiers.graph.lowering import LOWERINGS
from verifiers.lipschitz import operator_norms
from verifiers.lipschitz.operator_norms import (
    affine_norm,
    convolution_norm,
    dense_norm,
    materialize,
    max_pool_constant,
    power_iteration,
    schur_norm,
)

LIKE = torch.zeros((), dtype=torch.float64)


def draw(seed, *shape):
    return torch.from_numpy(np.random.RandomState(seed).standard_normal(shape))


def true_norm(matrix):
    return np.linalg.svd(matrix.numpy(), compute_uv=False)[..., 0]


def written_out(weight, size, stride=1, padding=0, dilation=1, groups=1):
    """The matrix of a convolution, by its values at one-hot images."""
    count = weight.shape[1] * groups * math.prod(size)
    units = torch.eye(count, dtype=torch.float64).reshape(count, -1, *size)
    return F.conv2d(units, weight, None, stride, padding, dilation, groups).flatten(1).T


def ill_conditioned():
    left, right = (torch.linalg.qr(draw(seed, 40, 40)).Q for seed in (1, 2))
    return left * torch.logspace(3, -13, 40, dtype=torch.float64) @ right


MATRICES = {
    "square": draw(0, 30, 30),
    "tall": draw(1, 90, 17),
    "wide": draw(2, 5, 200),
    "batch": draw(3, 4, 3, 20, 12),
    "row": draw(4, 1, 50),
    "column": draw(5, 50, 1),
    "number": draw(6, 1, 1),
    "rank one": draw(7, 60, 1) @ draw(8, 1, 70),
    "two equal values": torch.eye(25, dtype=torch.float64),
    "ill-conditioned": ill_conditioned(),
    "scales in a batch": draw(9, 3, 8, 8) * torch.tensor([1e-200, 1.0, 1e200], dtype=torch.float64)[:, None, None],
    "scales in a matrix": draw(10, 8, 8) * torch.logspace(-200, 100, 8, dtype=torch.float64),
}


@pytest.mark.parametrize("name", MATRICES)
def test_dense_norms_are_proven_and_close(name):
    matrix = MATRICES[name]
    truth, bound = true_norm(matrix), dense_norm(matrix).numpy()
    assert bound.shape == matrix.shape[:-2]
    assert (bound >= truth).all() and (bound <= 1.00001 * truth).all()
    np.testing.assert_allclose(dense_norm(matrix.mT).numpy(), bound, rtol=1e-5)


@pytest.mark.parametrize("scale", (1e200, 1e-200, 5e-324, 1e308, 1e-310))
def test_dense_norms_neither_overflow_nor_underflow(scale):
    matrix = draw(0, 6, 9).sign() * scale
    exact = true_norm(draw(0, 6, 9).sign())
    with np.errstate(over="ignore"):
        assert exact * scale * (1 - 1e-9) <= float(dense_norm(matrix)) <= max(1.00001 * exact * scale, 30 * 5e-324)


def test_dense_norms_of_zero_empty_and_broken_matrices():
    assert dense_norm(torch.zeros(2, 3, 4, dtype=torch.float64)).tolist() == [0, 0]
    for shape in ((0, 4), (4, 0), (0, 3, 4), (3, 0, 0)):
        assert dense_norm(LIKE.new_zeros(shape)).tolist() == torch.zeros(shape[:-2]).tolist()
    broken = draw(0, 4, 3, 3)
    broken[0, 0, 0], broken[2, 1, 1], broken[3, 2, 2] = math.nan, -math.inf, math.inf
    bound = dense_norm(broken)
    assert bound[[0, 2, 3]].tolist() == [math.inf] * 3
    assert bound[1] == dense_norm(broken[1])
    assert dense_norm(draw(0, 3, 3).float()).dtype == torch.float64


def test_an_estimate_that_is_too_low_is_not_believed(monkeypatch):
    matrix = draw(0, 40, 40)
    truth = float(true_norm(matrix))
    monkeypatch.setattr(operator_norms, "EXACT", 1)
    for error in (1e-7, 1e-3, 0.05, 0.5, 1.0):
        monkeypatch.setattr(operator_norms, "power_iteration", lambda a, e=error: LIKE.new_tensor([(1 - e) * truth]))
        assert truth <= float(operator_norms._norms(matrix[None] / 1.0)) <= float(matrix.norm()) * (1 + 1e-12)
    monkeypatch.setattr(operator_norms, "power_iteration", lambda a: LIKE.new_zeros(1))
    assert float(dense_norm(matrix)) == pytest.approx(float(matrix.norm()), rel=1e-12)


def test_the_allowance_for_rounding_decides():
    """With tau at the norm itself, to the last digit, nothing may be proven; a little above it must be."""
    for seed in range(20):
        matrix = draw(seed, 1, 30, 12)
        gram, truth = operator_norms._gram(matrix), torch.from_numpy(true_norm(matrix))
        assert not operator_norms._below(gram, 30, truth).any()
        assert not operator_norms._below(gram, 30, truth * (1 - 1e-15)).any()
        assert operator_norms._below(gram, 30, truth * (1 + 1e-11)).all()


def test_power_iteration_is_an_estimate_from_below():
    matrix = draw(0, 4, 12, 9)
    truth = torch.from_numpy(true_norm(matrix))
    few, many = power_iteration(matrix, 3), power_iteration(matrix, 500)
    assert (few < truth * (1 - 1e-6)).all()
    np.testing.assert_allclose(many, truth, rtol=1e-6)
    assert power_iteration(torch.zeros(3, 3, dtype=torch.float64)) == 0


#: (out, in per group, kernel, stride, padding, dilation, groups, image, greatest bound / truth)
CONVOLUTIONS = [
    (4, 3, (3, 3), (1, 1), (1, 1), (1, 1), 1, (16, 16), 1.1),
    (6, 2, (3, 3), (1, 1), (0, 0), (1, 1), 1, (12, 12), 1.15),
    (3, 5, (3, 3), (1, 1), (2, 2), (1, 1), 1, (9, 11), 1.15),
    (3, 2, (5, 5), (1, 1), (2, 2), (1, 1), 1, (14, 14), 1.15),
    (2, 2, (2, 4), (1, 1), (0, 1), (1, 1), 1, (13, 17), 1.15),
    (5, 3, (1, 1), (1, 1), (0, 0), (1, 1), 1, (4, 4), 1.00001),
    (5, 3, (1, 1), (2, 2), (0, 0), (1, 1), 1, (5, 5), 1.00001),
    (4, 1, (1, 7), (1, 1), (0, 3), (1, 1), 1, (3, 30), 1.1),
    (3, 2, (3, 3), (1, 1), (2, 2), (2, 2), 1, (14, 14), 1.25),
    (3, 2, (3, 3), (1, 1), (0, 3), (1, 3), 1, (12, 18), 1.25),
    (6, 3, (3, 3), (2, 2), (1, 1), (1, 1), 1, (16, 16), 1.35),
    (6, 3, (3, 3), (2, 1), (1, 1), (1, 1), 1, (15, 12), 1.35),
    (8, 1, (7, 7), (2, 2), (3, 3), (1, 1), 1, (18, 18), 1.35),
    (5, 2, (4, 4), (4, 4), (0, 0), (1, 1), 1, (16, 16), 1.00001),
    (5, 2, (2, 2), (3, 3), (0, 0), (1, 1), 1, (11, 11), 1.00001),
    (4, 2, (3, 3), (2, 2), (2, 2), (2, 2), 1, (16, 16), 1.35),
    (4, 2, (3, 2), (3, 2), (2, 0), (2, 3), 1, (20, 16), 1.35),
    (8, 2, (3, 3), (1, 1), (1, 1), (1, 1), 4, (12, 12), 1.15),
    (4, 1, (3, 3), (2, 2), (1, 1), (1, 1), 4, (16, 16), 1.35),
    (6, 2, (3, 3), (2, 1), (1, 2), (1, 2), 3, (10, 12), 1.35),
]


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.thin(3)
def test_convolution_norms_hold_for_every_image_and_are_close(case):
    out, channels, kernel, stride, padding, dilation, groups, size, loose = case
    for seed in range(2):
        weight = draw(seed, out, channels, *kernel)
        bound = convolution_norm(weight, stride, dilation, groups)
        smaller = tuple(max(side // 2, (k - 1) * d + 1) for side, k, d in zip(size, kernel, dilation, strict=True))
        for image in (size, smaller):
            truth = true_norm(written_out(weight, image, stride, padding, dilation, groups))
            assert bound >= truth
        assert bound <= loose * true_norm(written_out(weight, size, stride, padding, dilation, groups))


def test_smooth_kernels_are_bounded_on_large_images():
    """Positive kernels, whose norm the images approach: here there is no room for a bound that is a little too low."""
    for kernel, stride in (((3, 3), 1), ((3, 3), 2), ((4, 4), 3), ((5, 5), 1)):
        weight = draw(0, 1, 1, *kernel).abs()
        bound, truth = convolution_norm(weight, (stride,) * 2), true_norm(written_out(weight, (32, 32), stride, 2))
        assert truth <= bound <= 1.06 * truth


@pytest.mark.parametrize(("groups", "stride"), [(4, 1), (2, 1), (4, 2), (2, 2)])
def test_groups_count_once(groups, stride):
    """Norms below 1 in every group: their product is far below the truth."""
    weight = draw(groups, 8, 8 // groups, 3, 3) * 0.05
    parts = [convolution_norm(part, (stride,) * 2) for part in weight.chunk(groups)]
    truth = true_norm(written_out(weight, (12, 12), stride, 1, 1, groups))
    bound = convolution_norm(weight, (stride,) * 2, groups=groups)
    assert math.prod(parts) < 0.9 * truth <= truth <= bound <= 1.35 * truth
    assert bound == pytest.approx(max(parts), rel=1e-6)


def test_a_grid_alone_is_no_bound():
    """The maximum over the grid is below the norm on an image: only the correction makes it one."""
    beneath = 0
    for seed in range(10):
        weight = draw(seed, 2, 2, 3, 3)
        transform = np.fft.fft2(weight.numpy(), s=(5, 5)).transpose(2, 3, 0, 1)
        grid = np.linalg.svd(transform, compute_uv=False).max()
        truth = true_norm(written_out(weight, (14, 14), padding=2))
        bound = convolution_norm(weight, frequencies=5)
        assert truth <= bound
        assert bound == pytest.approx(grid / math.cos(math.pi * 2 / 5), rel=1e-5)
        beneath += grid < truth
    assert beneath > 0


def test_grids_are_made_fine_enough_and_finer_ones_are_closer():
    weight = draw(0, 2, 2, 5, 5)
    truth = true_norm(written_out(weight, (16, 16)))
    bounds = [convolution_norm(weight, frequencies=n) for n in (1, 9, 16, 64, 128)]
    assert bounds[0] == bounds[1]
    assert all(first > second >= truth for first, second in pairwise(bounds[1:]))
    assert convolution_norm(weight) == bounds[3]
    assert convolution_norm(draw(0, 1, 1, 16, 16)) >= true_norm(draw(0, 1, 1, 16, 16).flatten(1))


def test_convolution_norms_scale_and_survive_extremes():
    weight = draw(0, 3, 2, 3, 3)
    bound = convolution_norm(weight)
    for power in (2.0**600, 2.0**-600):
        assert convolution_norm(weight * power) == pytest.approx(bound * power, rel=1e-12)
    assert convolution_norm(weight * 0) == 0
    assert convolution_norm(weight[:0]) == 0
    for bad in (math.nan, math.inf):
        assert convolution_norm(torch.where(weight == weight.max(), bad, weight)) == math.inf
    mixed = torch.cat([weight, weight * 1e-250])
    assert convolution_norm(mixed, groups=2) == pytest.approx(bound, rel=1e-9)


def test_a_poor_first_guess_costs_time_only(monkeypatch):
    weight = draw(0, 4, 3, 3, 3)
    bound = convolution_norm(weight)
    monkeypatch.setattr(operator_norms, "power_iteration", lambda a, steps: -torch.linalg.svdvals(a)[..., 0])
    assert convolution_norm(weight) == pytest.approx(bound, rel=2e-6)
    monkeypatch.setattr(operator_norms, "CHUNK", 100)
    assert convolution_norm(weight) == pytest.approx(bound, rel=2e-6)


@pytest.mark.parametrize(
    ("kernel", "stride", "dilation", "expected"),
    [
        ((3, 3), (2, 2), (1, 1), 2.0),
        ((2, 2), (2, 2), (1, 1), 1.0),
        ((2, 2), (3, 3), (1, 1), 1.0),
        ((3, 3), (1, 1), (1, 1), 3.0),
        ((3, 2), (2, 2), (1, 1), math.sqrt(2)),
        ((3, 3), (2, 2), (2, 2), 3.0),
        ((3, 3), (2, 2), (3, 3), 2.0),
        ((4, 4), (6, 6), (4, 4), 2.0),
    ],
)
def test_max_pooling_constants_are_attained_and_never_exceeded(kernel, stride, dilation, expected):
    constant = max_pool_constant(kernel, stride, dilation)
    assert expected <= constant <= expected * (1 + 1e-15)

    def pool(images):
        return F.max_pool2d(images, kernel, stride, 0, dilation).flatten(1)

    pixels = torch.eye(28 * 28, dtype=torch.float64).reshape(-1, 1, 28, 28)  # alone above the others, each of them
    attained = (pool(pixels) - pool(0 * pixels)).norm(dim=1).max()
    assert float(attained) == pytest.approx(constant, rel=1e-12)
    first, second = draw(0, 200, 1, 28, 28), draw(1, 200, 1, 28, 28) * torch.logspace(-3, 0, 200)[:, None, None, None]
    ratios = (pool(first + second) - pool(first)).norm(dim=1) / second.flatten(1).norm(dim=1)
    assert float(ratios.max()) <= constant


class Chain:
    """A graph that grows by one lowered operator at a time."""

    def __init__(self, *shape):
        self.builder = Builder(LIKE.new_zeros(1, *shape))
        self.last = Ref(0, (1, *shape))

    def __call__(self, kind, *args, to=None, **kwargs):
        self.last = LOWERINGS[kind](self.builder, self.last if to is None else to, *args, **kwargs)
        self.last = self.last[0] if isinstance(self.last, list) else self.last
        return self.last

    @property
    def operators(self):
        """The operators, with the shapes of their inputs."""
        nodes = self.builder.nodes
        return [(node.operator, [nodes[i].shape for i in node.inputs]) for node in nodes[1:]]


def test_schur_is_exact_where_sums_are_equal():
    chain = Chain(4, 3, 3)
    chain("constant_pad_nd", (2, 2, 2, 2))
    chain("constant_pad_nd", (1, 1, 1, 1), 0.1)
    chain("pixel_shuffle", 2)
    chain("avg_pool2d", 2)
    chain("avg_pool2d", (3, 3))
    chain("mean", (2, 3))
    for (operator, shapes), truth in zip(chain.operators, (1, 1, 1, 1 / 2, 1 / 3, 1 / 3), strict=True):
        bound = schur_norm(operator, shapes)
        assert truth <= bound <= truth * (1 + 1e-12)
        assert true_norm(materialize(operator, shapes)) == pytest.approx(truth, rel=1e-12)
        assert truth <= affine_norm(operator, shapes) <= bound


#: Functions that only pick, copy, add and average, on maps (1, 3, 5, 5).
PICKS = {
    "permute": lambda x: x.permute(0, 2, 3, 1),
    "select": lambda x: x[:, 1],
    "slice": lambda x: x[:, :, 1:4:2],
    "flip": lambda x: x.flip(2),
    "roll": lambda x: x.roll(1, 3),
    "index": lambda x: x[:, torch.tensor([2, 0, 0, 2])],
    "expand": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "repeat": lambda x: x.repeat(1, 2, 1, 1),
    "mean": lambda x: x.mean((2, 3)),
    "sum": lambda x: x.sum(1),
    "padding": lambda x: F.pad(x, (1, 2, 0, -1), "constant", 1e6),
    "reflection": lambda x: F.pad(x, (1, 2, 1, 0), "reflect"),
    "replication": lambda x: F.pad(x, (1, 2, 1, 0), "replicate"),
    "circular": lambda x: F.pad(x, (1, 2, 1, 0), "circular"),
    "bilinear": lambda x: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "nearest": lambda x: F.interpolate(x, size=(7, 9)),
    "average with a part window": lambda x: F.avg_pool2d(x, 3, 2, 1, True, False),
    "average of sequences": lambda x: F.avg_pool1d(x.flatten(2), 4, 3),
    "adaptive": lambda x: F.adaptive_avg_pool2d(x, (3, 2)),
    "adaptive, of sequences": lambda x: F.adaptive_avg_pool1d(x.flatten(2), 7),
    "unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :4, :4], 2),
    "joined with a constant": lambda x: torch.cat([x, 1e6 + 0 * draw(6, 1, 2, 5, 5)], 1),
    "triangle": lambda x: x.tril() - 0 * x.triu(),
}


def mixture():
    """The other operators: with weights, constants and several inputs."""
    chain = Chain(3, 5, 5)
    chain("conv2d", draw(0, 4, 3, 3, 3), draw(1, 4) * 1e6, 2, 2)
    chain("conv2d", draw(2, 4, 2, 2, 2), None, 1, 2, 2, 2)
    chain("_native_batch_norm_legit_no_training", draw(3, 4), draw(4, 4), draw(5, 4), draw(6, 4).exp(), 0.1, 1e-5)
    first = chain("conv_transpose2d", draw(7, 4, 2, 3, 3), draw(8, 2), [2, 2])
    chain("sub", chain("select", 1, 0), to=first, alpha=3)
    second = chain("add", 1e6)
    chain("cat", to=[chain("rsub", second, to=second), draw(9, *second.shape), second])
    chain("flatten", 2)
    chain("matmul", draw(10, math.prod(second.shape[2:]), 7))
    chain("linear", draw(11, 5, 7), draw(12, 5))
    third = chain("conv1d", draw(13, 2, 2, 2))
    chain("add", third, to=chain("neg"))
    return chain.operators


@pytest.mark.parametrize("name", [*PICKS, "mixture"])
def test_operators_are_written_out_and_bounded(name, monkeypatch):
    if name == "mixture":
        operators = mixture()
        assert {type(operator) for operator, _ in operators} == {
            BatchNorm,
            Convolution,
            Dense,
            General,
            Reshape,
            Scale,
            Sum,
        }
    else:
        shape = (1, 3, 5, 5)
        after = tuple(PICKS[name](LIKE.new_zeros(shape)).shape)
        operators = [(General(PICKS[name], [shape], after, LIKE), [shape])]
    for operator, shapes in operators:
        assert isinstance(operator, Affine)
        for position, shape in enumerate(shapes):
            units = torch.eye(math.prod(shape), dtype=torch.float64).reshape(-1, *shape)
            inputs = [LIKE.new_zeros(len(units), *s) for s in shapes]
            constant = operator.forward(*inputs)
            inputs[position] = units
            expected = (operator.forward(*inputs) - constant).flatten(1).T
            with torch.no_grad():
                matrix = materialize(operator, shapes, position)
            np.testing.assert_allclose(matrix, expected, rtol=1e-12, atol=1e-9)
            truth, bound = true_norm(matrix), affine_norm(operator, shapes, position, LIKE)
            assert truth * (1 - 1e-14) <= bound <= truth * (1 + 1e-5)
            assert schur_norm(operator, shapes, position) >= truth * (1 - 1e-14)
            monkeypatch.setattr(operator_norms, "CHUNK", 3 * max(matrix.shape))
            assert torch.equal(materialize(operator, shapes, position), matrix)
            monkeypatch.setattr(operator_norms, "SIDE", 0)
            assert affine_norm(operator, shapes, position) >= truth * (1 - 1e-14)
            monkeypatch.undo()


def test_large_convolutions_are_bounded_by_frequencies():
    """ResNet-sized: too large to be written out."""
    weight = draw(0, 16, 16, 3, 3)
    operator = Convolution(weight, None, (1, 1), (1, 1), (1, 1), 1, (1, 16, 32, 32), (1, 16, 32, 32))
    bound = affine_norm(operator, [(1, 16, 32, 32)])
    assert bound == pytest.approx(convolution_norm(weight), rel=1e-12)
    x = draw(1, 1, 1, 16, 32, 32)
    for _ in range(30):
        x = operator.forward(x)
        x = F.conv_transpose2d(x[0], weight, padding=1)[None]
        x = x / x.norm()
    below = float(operator.forward(x).norm())
    assert 0.95 * bound < below <= bound


def test_norms_of_parts():
    scale = Scale(torch.tensor([0.5, -3.0, 2.0], dtype=torch.float64), draw(0, 3), (1, 3))
    assert affine_norm(scale, [(1, 3)]) == 3.0
    assert affine_norm(Reshape((1, 2, 3), (1, 6)), [(1, 2, 3)]) == 1.0
    assert [affine_norm(Sum([1, -1]), [(1, 3)] * 2, i) for i in (0, 1)] == [1.0, 1.0]
    weight = draw(1, 4, 6)
    truth = float(true_norm(weight))
    assert truth <= affine_norm(Dense(weight, None, (1, 9, 4)), [(1, 9, 6)]) <= truth * 1.00001
    mixed = General(lambda x, y: 2 * x - 5 * y + 1e8, [(3,), (3,)], (3,), LIKE, lambda x, y: 2 * x + 5 * y)
    for position, truth in enumerate((2, 5)):
        assert truth <= affine_norm(mixed, [(3,), (3,)], position) <= truth * (1 + 1e-12)
    drowned = General(lambda x: x.sum() + 1e17, [(9,)], (), LIKE)
    for bound in (affine_norm, schur_norm):
        assert 3 <= bound(drowned, [(9,)]) <= 3 * (1 + 1e-12)
    broken = Scale(torch.tensor([1.0, math.nan], dtype=torch.float64), None, (1, 2))
    assert affine_norm(broken, [(1, 2)]) == math.inf
    broken = Convolution(weight[:1, :1, None, None] * math.nan, None, (1, 1), (0, 0), (1, 1), 1, (1, 4, 4), (1, 4, 4))
    assert affine_norm(broken, [(1, 4, 4)]) == math.inf


def test_single_precision_is_refused():
    with pytest.raises(ValueError, match="double precision"):
        affine_norm(
            Convolution(draw(0, 1, 1, 1, 1), None, (1, 1), (0, 0), (1, 1), 1, (1, 4, 4), (1, 4, 4)),
            [(1, 4, 4)],
            like=torch.zeros(1),
        )
