"""Properties decided, against mixed-integer programs and by hand."""

import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.properties.milp import box, inequality, least
from verifiers.graph.program import Program
from verifiers.properties import solver as solving
from verifiers.properties.property import Case, Inequality, Property
from verifiers.properties.solver import Answer, Descent, Solver, Verdict
from verifiers.properties.witnesses import holds

INPUTS, OUTPUTS = 3, 3
#: Values of a case as near to 0 as this may be decided either way.
NEAR = 1e-4


def relus(seed: int, inputs: int = INPUTS, outputs: int = OUTPUTS, width: int = 6) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = [nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)]
    return nn.Sequential(*layers).eval()


def solve(network: nn.Module, cases: list[Case], seconds: float = 900.0, **settings: object) -> Answer:
    inputs = len(cases[0].box.low)
    with torch.no_grad():
        outputs = network(torch.zeros(1, inputs)).shape[1]
    solver = Solver(
        Program(network, entire=True), (inputs,), **{"descent": Descent(steps=10, restarts=3, queries=8), **settings}
    )  # type: ignore[arg-type]
    return solver(Property(inputs, outputs, tuple(cases)), time.monotonic() + seconds)


def drawn(seed: int) -> tuple[nn.Sequential, list[Case]]:
    """A network and up to three cases of up to three inequalities each, some about inputs, in boxes anywhere."""
    rng, network = np.random.default_rng(seed), relus(seed)
    boxes, cases = [], []
    for _ in range(rng.integers(1, 3)):
        center, half = rng.normal(size=INPUTS), rng.uniform(0, 1, INPUTS)
        boxes.append(box(list(center - half), list(center + half)))
    for _ in range(rng.integers(1, 4)):
        made = []
        for _ in range(rng.integers(1, 4)):
            outputs = {i: float(rng.integers(-2, 3)) / 4 for i in range(OUTPUTS)}
            inputs = {0: float(rng.integers(-1, 2)) / 8} if rng.random() < 0.3 else {}
            made.append(inequality(outputs, float(rng.normal(scale=0.2)), inputs))
        cases.append(Case(boxes[rng.integers(len(boxes))], tuple(made)))
    return network, cases


def check_against_programs(seed: int, **settings: object) -> str:
    network, cases = drawn(seed)
    expected = min(least(network, case) for case in cases)
    answer = solve(network, cases, **settings)
    if abs(expected) > NEAR:
        assert answer.verdict == ("sat" if expected < 0 else "unsat"), f"seed {seed}: {answer}, least value {expected}"
    if answer.witness is not None:
        check_witness(network, cases, answer)
    return answer.verdict


def check_witness(network: nn.Module, cases: list[Case], answer: Answer) -> None:
    """The point is in a box, rounds to the image, and satisfies the case exactly with the network's own outputs."""
    witness = answer.witness
    assert witness is not None
    inside = [
        case
        for case in cases
        if all(a <= x <= b for a, x, b in zip(case.box.low, witness.point, case.box.high, strict=True))
    ]
    image = np.array([np.float32(float(x)) for x in witness.point])
    assert np.array_equal(image, witness.image.reshape(-1))
    with torch.no_grad():
        outputs = network(torch.from_numpy(image)[None])[0].numpy()
    assert np.array_equal(outputs, witness.outputs) and holds(inside, witness.point, outputs)


@pytest.mark.parametrize("seed", range(6))
def test_boxes_are_split_as_programs_say(seed: int) -> None:
    check_against_programs(seed)


@pytest.mark.parametrize("seed", range(6, 12))
def test_neurons_are_split_as_programs_say(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "FEW_INPUTS", 0)
    check_against_programs(seed)


@pytest.mark.slow
def test_many_properties_are_decided_as_programs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [check_against_programs(seed) for seed in range(100, 118)]
    monkeypatch.setattr(solving, "FEW_INPUTS", 0)
    verdicts += [check_against_programs(seed) for seed in range(130, 148)]
    assert min(verdicts.count("sat"), verdicts.count("unsat")) > 3, "both answers are met"


def test_many_boxes_are_bounded_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solving, "MANY", 0)
    assert {check_against_programs(seed) for seed in range(200, 204)} <= {"sat", "unsat"}


class Sum(nn.Module):
    """(x0 + x1, x0 - x1), exact in float32 for short numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([x[:, 0] + x[:, 1], x[:, 0] - x[:, 1]], 1)


UNIT = box([0.0, 0.0], [1.0, 1.0])


@pytest.mark.parametrize(
    ("inequalities", "verdict"),
    [
        pytest.param([inequality({0: -1}, 2)], "sat", id="closed at the only corner"),
        pytest.param([inequality({0: -1}, 2, strict=True)], "unknown", id="open at the only corner"),
        pytest.param([inequality({0: -1}, 2.001)], "unsat", id="beyond the corner"),
        pytest.param([inequality({0: 1}, -0.5), inequality({1: -1}, 0.25)], "sat", id="both"),
        pytest.param([inequality({0: 1}, -0.5), inequality({1: -1}, 0.75)], "unsat", id="not both"),
        pytest.param([inequality({0: -1}, 0.25, {0: 1, 1: 1})], "unsat", id="y0 is x0 + x1"),
        pytest.param([inequality({0: 1}, -0.25, {0: -1, 1: -0.5})], "sat", id="y0 - x0 - x1 / 2 <= 1 / 4"),
        pytest.param([inequality({}, -0.25, {0: 1})], "sat", id="about an input alone"),
        pytest.param([], "sat", id="no condition"),
    ],
)
@pytest.mark.thin(2)
def test_by_hand(inequalities: list, verdict: str) -> None:
    cases = [Case(UNIT, tuple(inequalities))]
    answer = solve(Sum(), cases)
    assert answer.verdict == verdict, answer
    assert bool(answer.reason) == (verdict == "unknown")
    if answer.witness is not None:
        check_witness(Sum(), cases, answer)


def test_a_point_that_no_float32_number_is() -> None:
    """0.1 is no float32 number: the network gets its rounding, and the witness states 0.1 itself."""
    tenth = (Fraction(1, 10), Fraction(1, 10))
    cases = [Case(solving_box(tenth), (inequality({0: -1}, 0.2),))]
    answer = solve(Sum(), cases)
    assert answer.verdict == Verdict.SAT and answer.witness is not None and tuple(answer.witness.point) == tenth
    above = [Case(cases[0].box, (inequality({0: -1}, 0.2001),))]
    assert solve(Sum(), above).verdict == Verdict.UNSAT


def solving_box(ends: tuple[Fraction, ...]) -> object:
    from verifiers.properties.property import Box

    return Box(ends, ends)


@pytest.mark.slow
def test_a_point_of_one_implementation_alone_is_unknown() -> None:
    case = [Case(UNIT, (inequality({0: 1}, -0.5),))]
    answer = solve(Sum(), case, reference=lambda image: np.array([5.0, 5.0], np.float32))
    assert answer.verdict == Verdict.UNKNOWN and "by certkd and not by onnxruntime" in answer.reason
    other = [Case(UNIT, (inequality({0: -1}, 2, strict=True),))]
    answer = solve(Sum(), other, reference=lambda image: np.array([5.0, 5.0], np.float32))
    assert answer.verdict == Verdict.UNKNOWN and "by onnxruntime and not by certkd" in answer.reason


def test_outputs_that_are_not_numbers_satisfy_nothing() -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1, keepdim=True) * torch.inf

    answer = solve(Broken(), [Case(UNIT, (inequality({0: -1}, 0.5),))])
    assert answer.verdict == Verdict.UNKNOWN and answer.reason


def test_no_time_is_a_timeout() -> None:
    assert solve(Sum(), [Case(UNIT, (inequality({0: -1}, 3),))], seconds=-1.0).verdict == Verdict.TIMEOUT


def test_no_case_is_unsatisfiable() -> None:
    answer = Solver(Program(Sum(), entire=True), (2,))(Property(2, 2, ()), time.monotonic() + 9)
    assert answer.verdict == Verdict.UNSAT


@pytest.mark.slow
def test_splitting_stops_at_the_deadline() -> None:
    """A property that touches the unsafe set everywhere cannot be decided; the answer comes in time."""
    case = Case(box([0.0, 0.0, 0.0], [1.0, 1.0, 1.0]), (inequality({0: 1}, 0, strict=True),))

    class Zero(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (x.sum(1, keepdim=True).relu() * (-x.sum(1, keepdim=True)).relu()).relu()

    assert solve(Zero(), [case], seconds=3.0).verdict in (Verdict.TIMEOUT, Verdict.UNKNOWN)


@pytest.mark.parametrize(
    ("last", "case", "verdict"),
    [
        (nn.Softmax(1), inequality({0: -1}, 0.9), "unsat"),  # y0 - y1 = 2 x1, so it is at most 1 / (1 + exp(-2)) = 0.88
        (nn.Softmax(1), inequality({0: -1}, 0.875), "sat"),
        (nn.Softmax(1), inequality({0: 1}, 0), "unsat"),
        (nn.Softmax(1), inequality({0: 1, 1: 1}, -0.5), "unsat"),
    ],
)
def test_properties_are_about_the_outputs_with_the_last_layer(last: nn.Module, case: Inequality, verdict: str) -> None:
    answer = solve(nn.Sequential(Sum(), last).eval(), [Case(UNIT, (case,))])
    assert answer.verdict == verdict, answer


@pytest.mark.parametrize(
    ("last", "below", "above"),
    [(nn.Identity(), -0.1, -0.01), (nn.Sigmoid(), 0.4, 0.49), (nn.Tanh(), -0.1, -0.01)],
)
def test_a_single_output_is_itself(last: nn.Module, below: float, above: float) -> None:
    """y = last(x0 + x1) is at least last(0) on the unit box."""
    linear = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.fill_(-0.0625)  # the least value is last(-0.0625)
    network = nn.Sequential(linear, last).eval()
    assert solve(network, [Case(UNIT, (inequality({0: 1}, -below),))]).verdict == Verdict.UNSAT
    assert solve(network, [Case(UNIT, (inequality({0: 1}, -above),))]).verdict == Verdict.SAT


def test_a_program_without_its_last_layer_is_refused() -> None:
    with pytest.raises(ValueError, match="entire network"):
        Solver(Program(Sum()), (2,))(Property(2, 2, ()), time.monotonic() + 9)


def test_the_random_search_has_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes before neurons are split, and not where the box is."""
    shares: list[float] = []
    begun = time.monotonic()
    monkeypatch.setattr(Descent, "hunt", lambda self, search, spaces, deadline: shares.append(deadline - begun))
    monkeypatch.setattr(Descent, "first", lambda self, search, spaces: None)
    monkeypatch.setattr(Descent, "__call__", lambda self, search, spaces, deadline: None)
    monkeypatch.setattr(Solver, "_left", lambda self, engine, search, spaces: torch.arange(1))  # nothing is refuted
    case = Case(box([-1.0] * INPUTS, [1.0] * INPUTS), (inequality({0: 1, 1: 1, 2: 1}, -0.4),))
    solve(relus(1), [case], 1000.0)
    assert not shares
    monkeypatch.setattr(solving, "FEW_INPUTS", 0)
    solve(relus(1), [case], 1000.0)
    assert len(shares) == 1 and 90 < shares[0] < 190, "a tenth of what is left"
