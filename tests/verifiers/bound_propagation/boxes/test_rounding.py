"""Rows in float32 lose at least what their own rounding adds: against the same rows in float64."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.verifiers.bound_propagation.boxes.nets import CLASSES, INPUTS, boxes_of
from verifiers.bound_propagation.boxes.chains import Chain, chain_of
from verifiers.bound_propagation.boxes.network import Boxed, Line, Turned, least, open_signs, signs_of, up
from verifiers.bound_propagation.boxes.pair import BoxedPair, Coupled
from verifiers.graph.affine import Dense
from verifiers.graph.graph import Graph, Node
from verifiers.graph.operators import Elementwise, Interval
from verifiers.graph.relaxations.piecewise import Relu

WIDTHS = (INPUTS, 40, 40, 40, CLASSES)
#: Weights that are alike, that differ in size by 10^6, and pairs that nearly cancel.
KINDS = ("plain", "scales", "cancelling")


def drawn(kind: str, seed: int, change: float = 0.0) -> Chain:
    """A chain of dense layers with float32 weights; ``change`` is the share of noise on them."""
    g, noise = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed + 1)
    nodes = [Node(None, (), (1, INPUTS), "", "image")]
    for before, after in pairwise(WIDTHS):
        weight, bias = torch.randn(after, before, generator=g) / before**0.5, torch.randn(after, generator=g) / 4
        if kind == "scales":
            weight *= 10 ** (3 * torch.rand(weight.shape, generator=g) - 2)
        if kind == "cancelling" and before == 40:
            weight[:, 1::2] = -weight[:, ::2] * (1 + 1e-6 * torch.randn(after, before // 2, generator=g))
            weight *= 1e3
        weight = weight * (1 + change * torch.randn(weight.shape, generator=noise))
        nodes.append(Node(Dense(weight.double(), bias.double(), (1, after)), (len(nodes) - 1,), (1, after), "", ""))
        nodes.append(Node(Elementwise(Relu()), (len(nodes) - 1,), (1, after), "", ""))
    chain = chain_of(Graph(nodes[:-1], torch.zeros(1, INPUTS, dtype=torch.float64)))
    assert chain is not None
    return chain


def rows_of(outputs: int) -> Tensor:
    return torch.randn(5, outputs, generator=torch.Generator().manual_seed(5), dtype=torch.float64)


def box_of(width: float) -> Interval:
    return Interval(*boxes_of(6, width))


def doubled(lines: Turned) -> Turned:
    return Turned(lines.all.double())


def affine(net: Boxed, layer: int, rows: Tensor, constant: Tensor) -> tuple[Tensor, Tensor]:
    """Push rows in float64, and charge only the network's own rounding."""
    here = net.chain.layers[layer]
    return rows @ here.weight, constant + rows @ here.bias - rows.abs() @ net.noise[layer]


def alone(net: Boxed, rows: Tensor) -> tuple[Tensor, Tensor]:
    """A network's rows pushed to the inputs in float64, by the lines of the float32 ones."""
    rows, constant = rows[:, None].repeat(1, len(net.box.low), 1), torch.zeros(len(rows), len(net.box.low)).double()
    for layer in range(len(net.chain.layers) - 1, -1, -1):
        rows, constant = affine(net, layer, rows, constant)
        if layer:
            constant = constant + doubled(net.lines[layer - 1]).apply(rows)
    return rows, constant


def together(pair: BoxedPair, rows: Tensor) -> Tensor:
    """The bounds of a pair's rows in float64, by the coupled lines of the float32 ones."""
    boxes = len(pair.box.low)
    p, q = (part[:, None].repeat(1, boxes, 1) for part in rows.chunk(2, 1))
    constant = torch.zeros(len(rows), boxes).double()
    for layer in range(len(pair.chains[0].layers) - 1, -1, -1):
        p, constant = affine(pair.student, layer, p, constant)
        q, constant = affine(pair.teacher, layer, q, constant)
        if layer:
            lines = pair.lines[layer - 1]
            constant = constant + Coupled(lines.all.double(), lines.largest).apply(p, q)
    return least(p + q, constant, pair.box)


def none(chains: int, boxes: int) -> Tensor:
    return torch.zeros(boxes, chains * sum(WIDTHS[1:-1]), dtype=torch.int8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1.0, 0.05])
def test_rows_of_one_network(kind: str, width: float) -> None:
    for seed in range(4):
        box = box_of(width)
        net = Boxed(drawn(kind, seed), box, none(1, len(box.low)), rounded=True)
        net.run()
        rows = rows_of(CLASSES)
        found, exact = (least(*each, box) for each in (net.values(rows), alone(net, rows)))
        assert bool((found <= exact).all()), f"above itself in float64 by {(found - exact).max():.3g}"
        if kind != "cancelling":
            assert bool((found >= exact - 1e-3 * exact.abs().clamp_min(1.0)).all()), "far below itself in float64"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", [1.0, 0.05])
def test_rows_of_a_pair(kind: str, width: float) -> None:
    for seed in range(4):
        box, chains = box_of(width), (drawn(kind, seed, 1e-3), drawn(kind, seed))
        pair = BoxedPair(chains, box, none(2, len(box.low)), rounded=True)
        pair.run()
        rows = rows_of(2 * CLASSES)
        rows[:3, CLASSES:] = -rows[:3, :CLASSES]  # a difference
        by_both, by_each = (least(*each, box) for each in pair.values(rows))
        exact = together(pair, rows)
        assert bool((by_both <= exact).all()), f"above itself in float64 by {(by_both - exact).max():.3g}"
        nets = pair.student, pair.teacher
        parts = [alone(net, part.contiguous()) for net, part in zip(nets, rows.chunk(2, 1), strict=True)]
        exact = least(*(one + other for one, other in zip(*parts, strict=True)), box)
        assert bool((by_each <= exact).all()), f"above itself in float64 by {(by_each - exact).max():.3g}"


def test_charges_do_not_grow_as_boxes_shrink() -> None:
    """Parts of boxes take the charges of the whole: theirs would be smaller."""
    box = box_of(0.5)
    small = Interval(box.low, box.low + (box.high - box.low) / 3)
    for kind in KINDS:
        chains = drawn(kind, 0, 1e-3), drawn(kind, 0)
        pairs = [BoxedPair(chains, each, none(2, len(box.low)), rounded=True) for each in (box, small)]
        for pair in pairs:
            pair.run()
        for net, other in zip(*[(pair.student, pair.teacher) for pair in pairs], strict=True):
            for whole, part in zip(net.charges, other.charges, strict=True):
                assert bool((part.double <= whole.double * (1 + 1e-9)).all()) and part.tiny <= whole.tiny


def test_exact_networks_are_bounded_in_float64_without_charges() -> None:
    box = box_of(0.3)
    net = Boxed(drawn("plain", 1), box, none(1, len(box.low)), rounded=False)
    net.run()
    assert all(not bool(charge.double.any()) and not charge.tiny for charge in net.charges)
    assert net.lines[0].low.dtype == torch.float64
    found, exact = (least(*each, box) for each in (net.values(rows_of(CLASSES)), alone(net, rows_of(CLASSES))))
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lines_enclose_relu_as_stored(dtype: torch.dtype) -> None:
    g = torch.Generator().manual_seed(0)
    ends = torch.randn(2, 500, 4, generator=g, dtype=torch.float64) * 10 ** (8 * torch.rand(1, 500, 4, generator=g) - 4)
    interval = Interval(ends.amin(0), ends.amax(0))
    line, lines = Line.above(interval, dtype), Turned.of(interval, dtype)
    assert line.slope.dtype == lines.turn.dtype == dtype
    for share in torch.linspace(0, 1, 9, dtype=torch.float64):
        x = interval.low + share * (interval.high - interval.low)
        tiny = 1e-15 * interval.high.abs().maximum(interval.low.abs())
        assert bool((line.slope.double() * x + line.offset.double() >= x.relu() - tiny).all()), "ReLU is above the line"
        assert bool((lines.low.double() * x <= x.relu()).all()), "ReLU is below the lower line"
        upper = (lines.low + lines.turn).double() * x + lines.offset.double()
        assert bool((upper >= x.relu() - tiny).all()), "ReLU is above the upper line"
    stable = ~open_signs(interval)
    assert bool((lines.turn[stable] == 0).all()) and bool((lines.offset[stable] == 0).all()), "stable neurons are exact"


def test_rounding_up() -> None:
    value = torch.tensor([0.0, 0.1, -0.1, 1.0, 1e-50, -1e-50, 1e300], dtype=torch.float64)
    found = up(value).double()
    assert bool((found >= value).all()) and found[0] == 0 and found[3] == 1 and found[6] == torch.inf
    assert float((found - value)[1:3].max()) < 1e-8


def test_signs_are_those_that_intervals_settle() -> None:
    ends = torch.tensor([[[-2.0, 0.0, 1.0, -1.0, 0.0, -1.0]], [[-1.0, 1.0, 2.0, 1.0, 0.0, 0.0]]]).double()
    low, high = ends
    assert signs_of([Interval(low, high)]).tolist() == [[-1, 1, 1, 0, 1, -1]]
    assert open_signs(Interval(low, high)).tolist() == [[False, False, False, True, False, False]]


def test_coupled_lines_are_below_the_rows_of_two_relus() -> None:
    """p relu(s) + q relu(t) is at least what the pushed rows give, at points with d = s - t in its interval."""
    g = torch.Generator().manual_seed(1)
    center, half = torch.randn(2, 400, 1, generator=g).double(), torch.rand(2, 400, 1, generator=g).double()
    s, t = (Interval(c - h, c + h) for c, h in zip(center, half, strict=True))
    d = Interval((s.low - t.high) * 0.6, (s.high - t.low) * 0.6)
    place = torch.rand(2, 300, 400, 1, generator=g).double()
    values = [x.low + (x.high - x.low) * at for x, at in zip((s, t), place, strict=True)]
    apart = values[0] - values[1]
    inside = (apart >= d.low) & (apart <= d.high)
    lines = Coupled.of(s, t, d, Turned.of(s, torch.float64), Turned.of(t, torch.float64))
    for p, q in ((1.0, -1.0), (-1.0, 1.0), (1.0, -0.7), (-0.7, 1.0), (1.0, 1.0), (-1.0, -0.5), (0.0, 1.0)):
        rows = [torch.full((1, 400, 1), each, dtype=torch.float64) for each in (p, q)]
        constant = lines.apply(*rows)
        bound = sum(row * value for row, value in zip(rows, values, strict=True)) + constant[..., None]
        gap = p * values[0].relu() + q * values[1].relu() - bound
        assert float(gap.where(inside, torch.inf).min()) >= -1e-12, f"a plane is above {p} relu(s) + {q} relu(t)"
        assert bool(inside.any()), "no point to try"
