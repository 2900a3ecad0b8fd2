"""Graphs of two copies: linked intervals, divided rows, bounds against joint ones, and branch and bound."""

import copy
import math
import time
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.bound_propagation.native.test_joint import exports_once, tuned  # noqa: F401
from tests.verifiers.bound_propagation.pairs import Tiny, copied, network, truth
from tests.zoo import BY_NAME, mlp
from verifiers.bound_propagation.box_proofs import by_neurons
from verifiers.bound_propagation.half_spaces import HalfSpaces
from verifiers.bound_propagation.joint import JointEngine, with_difference
from verifiers.bound_propagation.native.alpha import optimized
from verifiers.bound_propagation.native.bounds import common
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.coupling import divide, linked
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.relation import Property, Relation
from verifiers.geometry.balls import Balls
from verifiers.graph.graph import Triple
from verifiers.graph.operators import Interval
from verifiers.graph.rows import Rows, one_hot

TRIPLE = Triple(1, 2, 3, relu=True)
#: Steps of alpha-CROWN, and the goal: none, none needed, and some.
GOALS = ((0, math.inf), (3, -math.inf), (3, math.inf))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Intervals


def test_linked_intervals_hold_every_point_and_no_more() -> None:
    t, d = (random(200, 4, seed=i) for i in (0, 1))
    d = d * 10.0 ** -(torch.arange(200) % 8)[:, None]
    s = t + d
    boxes = [
        Interval(v - random(200, 1, seed=i).abs(), v + random(200, 1, seed=i + 9).abs())
        for i, v in enumerate((t, s, d))
    ]
    found = linked(*boxes, common)
    for name, value, before, after in zip("tsd", (t, s, d), boxes, found, strict=True):
        assert bool(((after.low <= value) & (value <= after.high)).all()), f"{name} lost a point"
        assert bool(((after.low >= before.low) & (after.high <= before.high)).all()), f"{name} grew"
    low = torch.maximum(boxes[2].low, boxes[1].low - boxes[0].high)
    torch.testing.assert_close(found[2].low, low, rtol=0, atol=1e-13)
    for one, other in zip(found, linked(*found, common), strict=True):
        torch.testing.assert_close(one.low, other.low, rtol=0, atol=1e-13, msg="once was not enough")
        torch.testing.assert_close(one.high, other.high, rtol=0, atol=1e-13, msg="once was not enough")


def test_rounding_never_excludes_the_only_point() -> None:
    t, d = 1e8 * random(1000, seed=3), 1e-8 * random(1000, seed=4)
    s = t + d  # rounded: s - t is not d
    found = linked(*(Interval(v, v) for v in (t, s, s - t)), common)
    for value, box in zip((t, s, s - t), found, strict=True):
        assert bool(((box.low == value) & (box.high == value)).all()), "ends crossed"


# Rows


def pending_rows(windows: bool) -> dict[int, Rows]:
    """Rows of t, s and d: dense ones, or windows of one position of maps."""
    if not windows:
        return {i: Rows(random(6, 1, 5, seed=i)) for i in (1, 2, 3)}
    entries = torch.arange(6) * 7
    made = {i: one_hot((1, 2, 4, 6), entries, random(6, seed=i)) for i in (1, 2)}
    return {**made, 3: one_hot((1, 2, 4, 6), entries, random(6, seed=3))}


def total(pending: dict[int, Rows], values: dict[int, Tensor], samples: Tensor) -> Tensor:
    return sum((rows.dot(values[i], samples) for i, rows in pending.items()), torch.zeros(6, dtype=torch.float64))


@pytest.mark.parametrize("windows", [False, True], ids=["dense", "windows"])
def test_divided_rows_are_the_same_functions(windows: bool) -> None:
    shape = (1, 2, 4, 6) if windows else (1, 5)
    t, s = random(2, *shape, seed=5), random(2, *shape, seed=6)
    samples, values = torch.tensor([0, 0, 0, 1, 1, 1]), {1: t, 2: s, 3: s - t}
    for share in (None, torch.ones_like(t), (random(2, *shape, seed=7) > 0).double()):
        for without in ((), (1,), (3,), (1, 3), (1, 2)):
            pending = {i: rows for i, rows in pending_rows(windows).items() if i not in without}
            before = total(pending, values, samples)
            divide(pending, samples, TRIPLE, shape, share)
            torch.testing.assert_close(total(pending, values, samples), before, rtol=0, atol=1e-12)
            if share is None:
                assert 3 not in pending, "d keeps rows without a use"


def test_d_gets_the_part_in_which_coefficients_are_opposite() -> None:
    samples, share = torch.zeros(1, dtype=torch.int64), torch.tensor([[[1.0, 1, 1, 1, 1, 0]]]).double()
    pending = {
        1: Rows(torch.tensor([[[-2.0, 3, 1, -1, 0, -2]]]).double()),
        2: Rows(torch.tensor([[[5.0, -1, 1, -4, 2, 5]]]).double()),
    }
    divide(pending, samples, TRIPLE, (1, 6), share)
    assert pending[3].values.tolist() == [[[2, -1, 0, 0, 0, 0]]]
    assert pending[2].values.tolist() == [[[3, 0, 1, -4, 2, 5]]], "what is left of s"
    assert pending[1].values.tolist() == [[[0, 2, 1, -1, 0, -2]]], "what is left of t"


# Bounds


def pruned(teacher: nn.Module, share: float) -> nn.Module:
    student = copy.deepcopy(teacher).requires_grad_(False)
    for weight in (p for p in student.parameters() if p.ndim > 1):
        weight[weight.abs() <= weight.abs().flatten().quantile(share)] = 0.0
    return student


def wide_tailed(seed: int = 0) -> nn.Module:
    """A network of ReLUs whose activations neither grow nor die, like a trained one."""
    teacher, generator = mlp((5, 20, 20, 20, 20, 5)).eval().requires_grad_(False), torch.Generator().manual_seed(seed)
    for parameter in teacher.parameters():
        spread = (2 / parameter.shape[1]) ** 0.5 if parameter.ndim > 1 else 0.1
        parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return teacher


def differences(classes: int) -> Tensor:
    eye = torch.eye(classes, dtype=torch.float64)
    return torch.cat([torch.cat([eye, -eye], 1), torch.cat([-eye, eye], 1)])


def bounds(
    engine: Native | JointEngine, balls: Balls, rows: Tensor, method: str = "crown", iterations: int = 5
) -> Tensor:
    three = isinstance(engine, Native) and engine.graph.classes > rows.shape[1]
    padded = with_difference(rows) if three else rows
    return engine.ask(balls, padded.expand(len(balls), -1, -1), method, iterations=iterations).bound


def samples_of(balls: Balls, count: int = 100) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    for i in range(count):
        share = 2 * torch.rand(balls.x.shape, generator=generator, dtype=torch.float64) - 1
        yield (balls.x + balls.eps.reshape(-1, 1) * (share.sign() if i % 2 else share)).clamp(0.0, 1.0)


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return wide_tailed()


@pytest.mark.parametrize("share, better, tighter", [(0.05, 0.95, 2.0), (0.1, 0.95, 1.3), (0.3, 0.8, 1.0)])
def test_a_pruned_copy_is_bounded_better_than_jointly(
    teacher: nn.Module, share: float, better: float, tighter: float
) -> None:
    x, rows = torch.rand(12, 5, generator=torch.Generator().manual_seed(0)), differences(5)
    engine = JointEngine(pruned(teacher, share), teacher, x, Arithmetic.FLOAT32)
    assert engine.coupled is not None
    for eps in (0.03, 0.1):
        balls = Balls(x.double(), torch.full((12,), eps, dtype=torch.float64), Norm.LINF)
        joint, coupled = bounds(engine.joint, balls, rows), bounds(engine.coupled, balls, rows)
        won = float((coupled > joint).double().mean())
        assert won >= better, f"the coupled graph is better for {won:.0%} of the rows at {eps}"
        ratio = float((joint / coupled).median())
        assert ratio >= tighter, f"the coupled graph is {ratio:.2f} times as tight at {eps}"
        both = bounds(engine, balls, rows)
        assert bool((both >= torch.maximum(joint, coupled)).all()), "not the better of both"


@pytest.mark.slow
def test_the_joint_engine_is_never_looser_than_its_graphs_and_sound(teacher: nn.Module) -> None:
    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    engine = JointEngine(pruned(teacher, 0.1), teacher, x, Arithmetic.FLOAT32)
    assert engine.coupled is not None
    rows = torch.cat([differences(5), random(3, 10)])
    balls = Balls(x.double(), torch.full((2,), 0.1, dtype=torch.float64), Norm.LINF)
    crown = engine.ask(balls, rows.expand(2, -1, -1), "crown").bound
    alpha = engine.ask(balls, rows.expand(2, -1, -1), "alpha-crown", iterations=3).bound
    for method, found in (("crown", crown), ("alpha-crown", alpha)):
        for graph in engine.engines:
            looser = float((bounds(graph, balls, rows, method, 3) - found).max())
            assert looser <= 1e-12, f"{method} is looser than a graph by {looser:.3g}"
        for point in samples_of(balls, 40):
            for precision in (torch.float64, torch.float32):
                network = engine.model if precision == torch.float64 else engine.pair
                with torch.no_grad():
                    value = (rows @ network(point.to(precision)).double()[:, :, None])[:, :, 0]
                inside = point.to(precision).double()
                assert bool(((inside - balls.x).abs() <= 0.1 + 1e-7).all())
                broken = float((found - value).max())
                assert broken <= 1e-6, f"{method} is broken by {broken:.3g} in {precision}"
    assert bool((alpha >= crown - 1e-12).all()) and bool((alpha > crown + 1e-6).any()), "alpha changes nothing"


def test_alpha_takes_no_step_above_the_goal(teacher: nn.Module) -> None:
    x = torch.rand(2, 5, generator=torch.Generator().manual_seed(0))
    engine = JointEngine(pruned(teacher, 0.1), teacher, x).coupled
    assert engine is not None
    balls = Balls(x.double(), torch.full((2,), 0.1, dtype=torch.float64), Norm.LINF)
    rows = with_difference(differences(5)).expand(2, -1, -1)
    crown, still, moved = (optimized(engine.bounds(balls), rows, n, goal=goal).bound for n, goal in GOALS)
    assert torch.equal(crown, still), "steps are taken although every bound is above the goal"
    assert bool((moved > crown).any()), "no step is taken"


@pytest.mark.parametrize("norm, eps", [(Norm.L2, 0.3), (Norm.L1, 0.5)])
def test_other_norms(teacher: nn.Module, norm: Norm, eps: float) -> None:
    x, rows = torch.rand(6, 5, generator=torch.Generator().manual_seed(0)), differences(5)
    engine = JointEngine(pruned(teacher, 0.05), teacher, x)
    assert engine.coupled is not None
    balls = Balls(x.double(), torch.full((6,), eps, dtype=torch.float64), norm)
    joint, coupled = bounds(engine.joint, balls, rows), bounds(engine.coupled, balls, rows)
    assert float((coupled > joint).double().mean()) > 0.9


@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_intervals_of_copies_know_their_difference(teacher: nn.Module, method: str) -> None:
    x, rows = torch.rand(4, 5, generator=torch.Generator().manual_seed(0)), differences(5)
    engine = JointEngine(tuned(teacher, 1e-3), teacher, x)
    assert engine.coupled is not None
    balls = Balls(x.double(), torch.full((4,), 0.1, dtype=torch.float64), Norm.LINF)
    joint, coupled = bounds(engine.joint, balls, rows, method), bounds(engine.coupled, balls, rows, method)
    assert bool((coupled >= joint / 10).all()), "the difference is no tighter than two intervals"
    direct = engine.coupled.ask(balls, torch.cat([0 * rows, rows[:, :5]], 1).expand(4, -1, -1), method).bound
    torch.testing.assert_close(coupled, direct, rtol=1e-9, atol=1e-12, msg="S - T is not D")


def test_every_interval_of_every_node_holds(teacher: nn.Module) -> None:
    """Of float32 values too: each network's own, and their exact differences."""
    x = torch.rand(3, 5, generator=torch.Generator().manual_seed(0))
    for student in (pruned(teacher, 0.1), teacher):
        engine = JointEngine(student, teacher, x, Arithmetic.FLOAT32)
        assert engine.coupled is not None
        graph, balls = engine.coupled.graph, Balls(x.double(), torch.full((3,), 0.05, dtype=torch.float64), Norm.LINF)
        found = engine.coupled.bounds(balls)
        found.propagate(refine=True)
        outputs = graph.nodes[-1].inputs
        for point in samples_of(balls, 40):
            for i, value in enumerate(graph.values(point)):
                low, high = found.intervals[i]
                assert bool(((low <= value + 1e-12) & (value <= high + 1e-12)).all()), f"node {i} leaves its interval"
            with torch.no_grad():
                machine = [net(point.float()).double()[:, None] for net in (student, teacher)]
            for i, value in zip(outputs, (*machine, machine[0] - machine[1]), strict=True):
                low, high = found.intervals[i]
                wrong = torch.maximum(low - value, value - high).amax()
                assert float(wrong) <= 1e-6, f"the float32 value of output node {i} is outside by {float(wrong):.3g}"


@pytest.mark.parametrize("name", ["residual", "max pool", "tanh"])
def test_other_operators_keep_the_difference_small(name: str) -> None:
    kind = BY_NAME[name]
    teacher = kind.network(1)
    x = kind.images(2)
    engine = JointEngine(tuned(teacher, 1e-3), teacher, x)
    assert engine.coupled is not None
    balls = Balls(x.double(), torch.full((2,), 0.05, dtype=torch.float64), Norm.LINF)
    rows = differences(engine.coupled.graph.classes // 3)
    joint, coupled = bounds(engine.joint, balls, rows), bounds(engine.coupled, balls, rows)
    assert float((coupled >= joint - 1e-12).double().mean()) >= 0.9, f"{name}: looser than the joint graph"


# Branch and bound


def refuted(engine: Native, rows: Tensor, tolerance: float, balls: Balls) -> tuple[bool, bool]:
    """Whether every |S - T| is below the tolerance: proved, and whether a point shows that one is not."""
    spaces = HalfSpaces(rows, None, rows.new_full((len(rows),), tolerance), torch.arange(len(rows)))
    hit = []

    def tries(points: Tensor) -> Tensor:
        bad = (spaces.values(points, engine.model(points)) <= 0).any(1)
        hit.append(bool(bad.any()))
        return bad

    end = by_neurons(engine, spaces, balls, iterations=5, deadline=time.monotonic() + 900, tries=tries)
    assert end.proved or any(hit), f"neither proved nor refuted: {end}"
    return end.proved, any(hit)


def exact_pairs() -> Iterator[Tiny]:
    import numpy as np

    for seed in range(3):
        rng = np.random.default_rng(seed)
        net = network(rng, 2, [5, 4])
        x = torch.from_numpy(rng.random((1, 2))).float()
        yield Tiny(copied(rng, net, 0.05, 0.1 * (seed % 2)), net, x, 0.3)


@pytest.mark.parametrize("way", ["three outputs", pytest.param("two outputs", marks=pytest.mark.slow)])
def test_branch_and_bound_of_the_coupled_graph_is_exact(way: str) -> None:
    for pair in exact_pairs():
        largest = truth(pair, Relation(Property.CLOSE, 1.0)) + 1.0  # the largest |S - T|
        engine = JointEngine(pair.student.eval(), pair.teacher.eval(), pair.x.repeat(2, 1)).coupled
        assert engine is not None
        eye = torch.eye(3, dtype=torch.float64)
        rows = torch.cat([0 * eye, 0 * eye, eye], 1) if way == "three outputs" else torch.cat([eye, -eye, 0 * eye], 1)
        rows = torch.cat([rows, -rows])
        balls = Balls(pair.x.double(), torch.tensor([pair.eps], dtype=torch.float64), Norm.LINF)
        for tolerance, holds in ((1.02 * largest + 1e-6, True), (0.98 * largest, False)):
            assert refuted(engine, rows, tolerance, balls) == (holds, not holds), f"{tolerance} against {largest}"


def test_the_same_neuron_of_both_networks_is_split_at_once(teacher: nn.Module) -> None:
    x = torch.rand(1, 5, generator=torch.Generator().manual_seed(0))
    engine = JointEngine(pruned(teacher, 0.1), teacher, x.repeat(2, 1), Arithmetic.FLOAT32).coupled
    assert engine is not None
    root = engine.bounds(Balls(x.double(), torch.tensor([0.1], dtype=torch.float64), Norm.LINF))
    with torch.no_grad():
        root.propagate(refine=True)
    rows, open_ = with_difference(differences(5)[:1])[None], torch.full((1,), -math.inf, dtype=torch.float64)
    search = BranchAndBound(root, rows, open_, 0.0, deadline=math.inf, broken=lambda z: torch.zeros(len(z)).bool())
    splits, partners, whole = search.over.splits, search.partners, search._whole()
    neurons = [
        (node, entry) for (_, node), each in zip(splits.readers, splits.entries, strict=True) for entry in each.tolist()
    ]
    paired = (partners >= 0).nonzero().flatten()
    assert len(paired) > len(partners) / 2 and torch.equal(partners[partners[paired]], paired)
    seen = set()
    for own in paired.tolist():
        other = int(partners[own])
        assert neurons[own][0] != neurons[other][0] and neurons[own][1] == neurons[other][1], "not the same neuron"
        parts = search._paired(whole.halves(torch.tensor([own])), torch.tensor([other, other]))
        for sign in (1, -1):
            signs = sorted(parts.signs[parts.signs[:, own] == sign, other].tolist())
            assert signs in ([0], [-1, 1]), "the parts do not cover the half"
            seen.add(len(signs))
    assert seen == {1, 2}, "some partners' signs follow from the split, others do not"
