"""Boxes of pairs split until bounds decide."""

import time

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.bound_propagation.boxes.nets import (
    CLASSES,
    INPUTS,
    boxes_of,
    chain,
    close,
    mlp,
    noisy,
    points_of,
    run,
)
from verifiers.bound_propagation import Ended, HalfSpaces, InputSplitting, JointEngine, split_pair
from verifiers.bound_propagation.boxes import splitting
from verifiers.bound_propagation.boxes.bounders import PairByMatrices, pair_bounder_of
from verifiers.bound_propagation.boxes.pair import Relations
from verifiers.bound_propagation.boxes.splitting import Parts, last_parts
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes

LATER = 900.0
BOX = (torch.full((1, INPUTS), -0.5).double(), torch.full((1, INPUTS), 0.5).double())


@pytest.fixture(scope="module")
def engine() -> JointEngine:
    teacher = mlp()
    return JointEngine(noisy(teacher, 0.05), teacher, torch.rand(2, INPUTS), Arithmetic.FLOAT32)


class Points:
    """Try points with the float64 pair; a point is a hit where a case holds."""

    def __init__(self, model: nn.Module, spaces: HalfSpaces) -> None:
        self.model, self.spaces, self.count = model, spaces, 0
        self.hit: Tensor | None = None

    def __call__(self, z: Tensor) -> Tensor:
        assert bool(((z >= BOX[0]) & (z <= BOX[1])).all()), "a point outside of the box"
        self.count += len(z)
        hits = (self.spaces.values(z, self.model(z)) <= 0).any(1)
        if hits.any():
            self.hit = z[hits][0]
        return hits


def split(engine: JointEngine, spaces: HalfSpaces, seconds: float = LATER) -> tuple[Ended, Points]:
    points = Points(engine.model, spaces)
    return split_pair(engine, spaces, Boxes.between(*BOX), deadline=time.monotonic() + seconds, tries=points), points


def largest(engine: JointEngine) -> float:
    """The largest difference of the outputs at many points."""
    y = engine.model(points_of(*BOX, count=20000).flatten(0, 1))
    return float((y[:, :CLASSES] - y[:, CLASSES:]).abs().max())


def test_a_tolerance_above_the_difference_is_proved_and_one_below_is_not(engine: JointEngine) -> None:
    most = largest(engine)
    end, points = split(engine, close(1.05 * most))
    assert end.proved and points.hit is None and end.parts > 1, end
    assert 0 < end.bound <= 0.05 * most + 1e-9, "the least bound is above the least value"
    end, points = split(engine, close(0.97 * most))
    assert not end.proved and points.hit is not None and not end.late and not end.reason


class Notched(nn.Module):
    """A network, plus a bump of height 1 and half-width 1/64 in its first output, hidden at one point."""

    def __init__(self, network: nn.Module, bump: nn.Module) -> None:
        super().__init__()
        self.network, self.bump = network, bump

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) + self.bump(x)


def notched_mlp(height: float, at: Tensor) -> tuple[nn.Module, nn.Module]:
    """Two copies of a chain of ReLUs; one has the bump, the other a bump of height 0."""
    plus = torch.cat([torch.eye(INPUTS), -torch.eye(INPUTS)])

    def build(height: float) -> nn.Sequential:
        first, second, third = nn.Linear(INPUTS, 2 * INPUTS), nn.Linear(2 * INPUTS, 1), nn.Linear(1, CLASSES)
        with torch.no_grad():
            first.weight.copy_(plus)
            first.bias.copy_(-plus @ at)
            second.weight.fill_(-64.0)
            second.bias.fill_(1.0)
            third.weight.zero_()
            third.weight[0] = height
            third.bias.zero_()
        return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third).eval()

    return build(height), build(0.0)


@pytest.mark.parametrize("seed", range(2))
def test_a_planted_difference_in_a_narrow_branch_is_never_proved(seed: int) -> None:
    at = (torch.rand(INPUTS, generator=torch.Generator().manual_seed(seed)) - 0.5) * 0.9
    engine = JointEngine(*notched_mlp(1.0, at), torch.rand(2, INPUTS), Arithmetic.FLOAT32)
    assert split(engine, close(1.01))[0].proved, "the bump is 1 high"
    end, points = split(engine, close(0.9))
    assert not end.proved and points.hit is not None
    assert float((points.hit - at).abs().sum()) < 0.1 / 64 + 1e-6, "a point away from the bump"


@pytest.mark.slow
def test_a_planted_difference_of_another_structure_is_never_proved() -> None:
    at = torch.tensor([0.1, -0.2, 0.3])
    student = Notched(mlp(), notched_mlp(1.0, at)[0]).eval()
    engine = JointEngine(student, mlp(), torch.rand(2, INPUTS), Arithmetic.FLOAT32)
    end, points = split(engine, close(0.5))
    assert not end.proved and points.hit is not None


def test_no_time_is_late(engine: JointEngine) -> None:
    end, points = split(engine, close(1e-4), seconds=-1.0)
    assert end.late and not end.proved and not end.parts and not points.count


def test_rounds_shrink_towards_the_deadline(engine: JointEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that moves one second per box: no round ends after the deadline, and it is nearly reached."""
    spaces, now = close(1e-4), [0.0]
    inner = pair_bounder_of(engine, spaces)

    class Slow:
        size, neurons = 64, inner.neurons

        def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> object:
            now[0] += len(low)
            return inner(low, high, signs)[0], None

    monkeypatch.setattr(splitting.time, "monotonic", lambda: now[0])
    end = InputSplitting(Slow(), spaces, deadline=200.5, tries=lambda z: torch.zeros(len(z)).bool()).run(  # type: ignore[arg-type]
        Boxes.between(*BOX)
    )
    assert end.late and now[0] == end.parts == 200


def test_a_round_that_ends_long_after_the_deadline_is_the_last(
    engine: JointEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first box takes a second, the next ones a hundred: the time that is left is then below zero."""
    spaces, now = close(1e-4), [0.0]
    inner = pair_bounder_of(engine, spaces)

    class Slower:
        size, neurons = 64, inner.neurons

        def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> object:
            now[0] += 100 if now[0] else 1
            return inner(low, high, signs)[0], None

    monkeypatch.setattr(splitting.time, "monotonic", lambda: now[0])
    end = InputSplitting(Slower(), spaces, deadline=20.0, tries=lambda z: torch.zeros(len(z)).bool()).run(  # type: ignore[arg-type]
        Boxes.between(*BOX)
    )
    assert end.late and not end.proved and now[0] == 101


def test_several_boxes_are_parts_of_one_question(engine: JointEngine) -> None:
    low, high = boxes_of(5, 0.3)
    spaces = close(1.5 * largest(engine))
    inside = Boxes.between(low.clamp(-0.5, 0.5), high.clamp(-0.5, 0.5))
    points = Points(engine.model, spaces)
    assert split_pair(engine, spaces, inside, deadline=time.monotonic() + LATER, tries=points).proved


def test_parts_without_a_side_that_can_be_halved_are_a_reason(engine: JointEngine) -> None:
    point = Boxes.between(BOX[0], BOX[0])
    end = split_pair(
        engine, close(0.0), point, deadline=time.monotonic() + LATER, tries=lambda z: torch.zeros(len(z)).bool()
    )
    assert not end.proved and "too small" in end.reason


def decided(pair: PairByMatrices, tolerance: float) -> tuple[Ended, bool]:
    """Decide whether two chains with 2 inputs are close on the unit box."""
    spaces, hits = pair.spaces, []

    def tries(z: Tensor) -> Tensor:
        y = torch.cat([run(chain, z) for chain in pair.chains], 1)
        found = (spaces.values(z, y) <= 0).any(1)
        hits.append(bool(found.any()))
        return found

    box = Boxes.between(torch.zeros(1, 2).double(), torch.ones(1, 2).double())
    return InputSplitting(pair, spaces, deadline=time.monotonic() + LATER, tries=tries).run(box), any(hits)


@pytest.mark.parametrize("relations", list(Relations))
@pytest.mark.parametrize("rounded", [True, False])
def test_pairs_of_two_inputs_are_decided_as_a_grid_says(relations: Relations, rounded: bool) -> None:
    """Tolerances just above the largest difference of a fine grid are proved, those just below are refuted."""
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 301).double()] * 2)
    for seed, change in ((0, 0.02), (1, 0.3), (2, 1.5)):
        chains = chain((2, 6, 6, CLASSES), seed, change), chain((2, 6, 6, CLASSES), seed)
        most = float((run(chains[0], grid) - run(chains[1], grid)).abs().max())
        for share, proved in ((1.03, True), (0.98, False)):
            pair = PairByMatrices(chains, close(share * most), rounded=rounded, relations=relations)
            end, hit = decided(pair, share * most)
            assert end.proved is proved and hit is not proved, f"seed {seed}, {share} of {most:.3g}: {end}"


@pytest.mark.parametrize("levels", [1, 2, 6])
def test_the_answer_does_not_depend_on_how_often_functions_are_renewed(
    levels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(splitting, "LEVELS", levels)
    monkeypatch.setattr(splitting, "SHARE", 0.0)
    chains = chain((2, 6, 6, CLASSES), 5, 0.1), chain((2, 6, 6, CLASSES), 5)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 301).double()] * 2)
    most = float((run(chains[0], grid) - run(chains[1], grid)).abs().max())
    for share in (1.02, 0.98):
        end, hit = decided(PairByMatrices(chains, close(share * most), rounded=True), share * most)
        assert (end.proved, hit) == (share > 1, share < 1), f"{levels} levels: {end}"


def test_the_last_parts_are_taken_first() -> None:
    def parts(*lows: float) -> Parts:
        low = torch.tensor(lows)[:, None].double()
        return Parts(low, low + 1, torch.ones(len(lows), 1).bool(), torch.zeros(len(lows), 2, dtype=torch.int8))

    waiting = [parts(0, 1, 2), parts(3), parts(4, 5)]
    taken = last_parts(waiting, 4)
    assert taken.low.flatten().tolist() == [4, 5, 3, 2]
    assert [each.low.flatten().tolist() for each in waiting] == [[0, 1]]
    assert last_parts(waiting, 9).low.flatten().tolist() == [0, 1] and not waiting


def test_the_side_that_matters_most_is_halved() -> None:
    """Only x1 reaches the outputs: the long side x0 is never cut."""
    chains = chain((2, 4, CLASSES), 3, 0.5), chain((2, 4, CLASSES), 3)
    for each in chains:
        each.layers[0].weight[:, 0] = 0.0
    low, high = torch.zeros(1, 2).double(), torch.tensor([[100.0, 1.0]]).double()
    seen = []
    inner = PairByMatrices(chains, close(1e-3), rounded=False)

    class Watched:
        size, neurons = 8, inner.neurons

        def __call__(self, low: Tensor, high: Tensor, signs: Tensor) -> object:
            seen.append(high - low)
            return inner(low, high, signs)

    deadline = time.monotonic() + LATER
    splitting_ = InputSplitting(
        Watched(), close(1e-3), deadline=deadline, tries=lambda z: len(seen) * torch.ones(len(z)) > 3
    )  # type: ignore[arg-type]
    splitting_.run(Boxes.between(low, high))
    widths = torch.cat(seen)
    assert bool((widths[:, 0] == 100).all()) and float(widths[:, 1].min()) < 1
