"""Properties of pairs, decided by the engines of both networks: against mixed-integer programs and by hand."""

import copy
import time

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.properties.milp import box, inequality, least_of_pair
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes
from verifiers.graph.program import PairProgram, Program
from verifiers.properties.engines import Joint, Single, bounding_of
from verifiers.properties.property import Case, Property
from verifiers.properties.solver import Answer, Descent, Solver
from verifiers.properties.spaces import half_spaces

SAMPLES = torch.rand(2, 2, generator=torch.Generator().manual_seed(0))


def relus(seed: int, outputs: int = 2) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, outputs)).eval()


def copied(network: nn.Sequential, noise: float = 0.01) -> nn.Sequential:
    made = copy.deepcopy(network)
    with torch.no_grad():
        for weight in made.parameters():
            weight.add_(noise * torch.randn(weight.shape, generator=torch.Generator().manual_seed(9)))
    return made


def pair_of(one: nn.Module, other: nn.Module) -> PairProgram:
    return PairProgram(Program(one, entire=True), Program(other, entire=True))


def solve(one: nn.Module, other: nn.Module, cases: list[Case], outputs: int = 4) -> Answer:
    solver = Solver(pair_of(one, other), (2,), descent=Descent(steps=10, restarts=3, queries=8))
    return solver(Property(2, outputs, tuple(cases)), time.monotonic() + 900)


def apart(threshold: float) -> list[Case]:
    """The first outputs differ by at least a threshold."""
    unit = box([0.0, 0.0], [1.0, 1.0])
    rows = ({0: -1.0, 2: 1.0}, {0: 1.0, 2: -1.0})
    return [Case(unit, (inequality(row, threshold),)) for row in rows]


def largest_difference(one: nn.Sequential, other: nn.Sequential) -> float:
    """The largest difference of the first outputs on the unit square, exactly; the biases of the outputs are equal."""
    given = [[m.detach().numpy() for m in (n[0].weight, n[0].bias, n[2].weight)] for n in (one, other)]
    return max(-least_of_pair(*given, (0.0, 1.0), row) for row in ({0: -1.0, 2: 1.0}, {0: 1.0, 2: -1.0}))


@pytest.mark.parametrize("few", [12, 0], ids=["boxes", "neurons"])
@pytest.mark.parametrize("seed", range(3))
def test_copies_are_apart_as_programs_say(seed: int, few: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.properties.solver.FEW_INPUTS", few)
    one = relus(seed)
    other = copied(one, 0.05)
    with torch.no_grad():
        one[2].bias.zero_()
        other[2].bias.zero_()
    exact = largest_difference(one, other)
    for share, answer in ((0.98, "sat"), (1.02, "unsat")):
        found = solve(one, other, apart(exact * share))
        assert found.verdict == answer, f"{found} at {share} of {exact}"
        if found.witness is not None:
            image = torch.from_numpy(found.witness.image)[None]
            with torch.no_grad():
                difference = float((one(image) - other(image))[0, 0].abs())
            assert difference >= exact * share and np.array_equal(
                found.witness.outputs, torch.cat([one(image), other(image)], 1)[0].detach().numpy()
            )


class Spiked(nn.Module):
    """A network, and a narrow spike that a few random points miss."""

    def __init__(self, network: nn.Module, height: float) -> None:
        super().__init__()
        self.network, self.height = network, height

    def forward(self, x: Tensor) -> Tensor:
        near = torch.relu(0.001 - (x[:, :1] - 0.7123).abs())
        return self.network(x) + 1000.0 * self.height * near


def test_a_planted_difference_is_never_proved_away() -> None:
    one = relus(1)
    found = solve(one, Spiked(one, 0.5), apart(0.4))
    assert found.verdict == "sat", found
    assert solve(one, Spiked(one, 0.5), apart(0.51)).verdict == "unsat"


def test_networks_with_other_numbers_of_outputs_share_one_graph() -> None:
    one, other = relus(2), relus(3, outputs=3)
    program = pair_of(one, other)
    assert isinstance(bounding_of(program, SAMPLES, Arithmetic.FLOAT32), Single)
    unit = box([0.0, 0.0], [1.0, 1.0])
    points = torch.rand(2000, 2, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        most = float((one(points)[:, 1] - other(points)[:, 2]).max())
    for threshold, answer in ((most - 0.01, "sat"), (most + 0.1, "unsat")):
        case = Case(unit, (inequality({1: -1.0, 4: 1.0}, threshold),))
        assert solve(one, other, [case], outputs=5).verdict == answer


@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_bounds_of_copies_hold_and_count_their_difference(arithmetic: Arithmetic) -> None:
    """Bounds from sampled points; one graph of both networks alone is looser."""
    one = relus(4)
    other = copied(one)
    bounding = bounding_of(pair_of(one, other), SAMPLES, arithmetic)
    assert isinstance(bounding, Joint) and bounding.engine.copies
    assert bounding.engine.joint.arithmetic is arithmetic
    low, high = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    spaces = half_spaces(apart(1.0), 2, 4)
    bound = bounding.values(Boxes.between(low, high), spaces)[0]
    points = torch.rand(4000, 2, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        outputs = torch.cat([one(points), other(points)], 1)
    assert bool((spaces.values(points, outputs).amin(0) >= bound).all()), "a point breaks a bound"
    alone = Single(bounding.engine.joint).values(Boxes.between(low, high), spaces)[0]
    assert bool((bound > alone).all()) and float((1 - bound).max()) < 0.5 * float((1 - alone).max())


def test_engines_are_built_once() -> None:
    program = pair_of(relus(5), relus(5))
    one, again = (bounding_of(program, SAMPLES, Arithmetic.FLOAT32) for _ in range(2))
    assert isinstance(one, Joint) and isinstance(again, Joint) and one.engine is again.engine
    assert program.entire and not PairProgram(Program(relus(5)), Program(relus(5), entire=True)).entire
