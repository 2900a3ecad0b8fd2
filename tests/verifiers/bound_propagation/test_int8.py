"""Int8 networks as they run: bounds against full enumeration of codes, points, borders of codes, and pairs."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.verifiers.graph.int8_nets import Branches, Dense, boxes_of_codes, least_margin
from verifiers.bound_propagation.joint import JointEngine
from verifiers.bound_propagation.native.branch_and_bound import Outcome
from verifiers.bound_propagation.native.code_search import CodeSearch, codes_of
from verifiers.bound_propagation.native.engine import Native
from verifiers.certify.config import CertifyConfig
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.errors import InputError
from verifiers.core.quantities import Arithmetic, Norm, parse_arithmetic
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.graph import integers
from verifiers.graph.capture import capture
from verifiers.graph.program import Program
from verifiers.runtime.samples import Data

EPS = (1e-4, 0.01, 0.03, 0.1, 0.4)
METHODS = ("ibp", "crown", "alpha-crown")
SLOW = pytest.mark.slow


@pytest.fixture(scope="module")
def nets() -> list[tuple[Dense, Native, Tensor]]:
    """Networks of two pixels, with their engines and images."""
    found = []
    for seed in (0, 3, 6):
        network = Dense(seed=seed, scale=0.05, floats=bool(seed)).eval()
        x = torch.rand(3, 2, generator=torch.Generator().manual_seed(seed))
        found.append((network, Native(network, x, arithmetic=Arithmetic.INT8), x))
    return found


def bound_of(engine: Native, network: nn.Module, x: Tensor, eps: float, method: str) -> float:
    """The bound of the least margin of one image; the engine leaves out the last product with 0.01."""
    with torch.no_grad():
        predicted = network(x).argmax(1)
    rows = margin_specification(predicted, engine.graph.classes, torch.float64)
    planes = engine.ask(Balls.around(x.double(), eps, Norm.LINF), rows, method, iterations=4)
    return 0.01 * float(planes.bound.min())


@pytest.mark.parametrize("method", ["ibp", "crown", pytest.param("alpha-crown", marks=SLOW)])
@pytest.mark.parametrize("eps", EPS)
def test_no_bound_is_above_the_truth(method: str, eps: float, nets: list[tuple[Dense, Native, Tensor]]) -> None:
    """The truth is the least margin over all codes that the ball reaches, computed in integers."""
    for network, engine, images in nets:
        for x in images.split(1):
            bound, truth = bound_of(engine, network, x, eps, method), least_margin(network, x, eps)
            assert bound <= truth + 1e-9, f"{method} proves {bound} at {eps}, and {truth} is reached"


def test_bounds_are_exact_within_one_cell(nets: list[tuple[Dense, Native, Tensor]]) -> None:
    for network, engine, images in nets:
        x = (images[:1] * 16).round() / 16  # the middle of a cell
        truth = least_margin(network, x, 1e-3)
        assert len(list(boxes_of_codes(network, x, 1e-3))) == 1
        for method in METHODS:
            assert bound_of(engine, network, x, 1e-3, method) == pytest.approx(truth, rel=1e-5)


def test_rows_end_at_the_codes_of_the_image() -> None:
    """One layer of codes is bounded exactly, though lines of 16 pixels would each lose half a step."""

    class Single(Dense):
        def forward(self, x: Tensor) -> Tensor:
            return self.after_one(self.codes(x))

        def after_one(self, codes: Tensor) -> Tensor:
            return integers.linear(codes, self.first, None, False)

    network = Single(inputs=16, hidden=3).eval()
    x = torch.rand(2, 16, generator=torch.Generator().manual_seed(1))
    engine = Native(network, x, arithmetic=Arithmetic.INT8)
    eps = 0.05
    low, high = (network.codes((x + sign * eps).clamp(0, 1)) for sign in (-1, 1))
    predicted = network(x).argmax(1)
    rows = margin_specification(predicted, 3, torch.float64)
    weights = rows @ network.first.double()
    truth = (weights.clamp_min(0) * low[:, None].double() + weights.clamp_max(0) * high[:, None].double()).sum(2)
    found = engine.ask(Balls.around(x.double(), eps, Norm.LINF), rows, "crown").bound
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-9)


def points(x: Tensor, eps: float, count: int) -> Iterator[Tensor]:
    """Random points, corners and borders of codes in the ball."""
    generator = torch.Generator().manual_seed(5)
    for kind in range(count):
        delta = 2 * torch.rand(x.shape, generator=generator) - 1
        if kind % 3 == 1:
            delta = delta.sign()
        moved = (x + eps * delta).clamp(0, 1)
        if kind % 3 == 2:
            moved = (((moved * 32).round() + 0.5) / 32).clamp(x - eps, x + eps).clamp(0, 1)
        yield moved


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_no_point_breaks_a_bound_behind_sums_of_branches(method: str) -> None:
    network = Branches().eval()
    x = torch.rand(2, 1, 4, 4, generator=torch.Generator().manual_seed(2))
    program = Program(network)
    engine = Native(program, x, arithmetic=Arithmetic.INT8)
    rows = torch.cat([torch.eye(3), -torch.eye(3)]).double().expand(2, 6, 3)
    for eps in (0.01, 0.06):
        found = engine.ask(Balls.around(x.double(), eps, Norm.LINF), rows, method, iterations=3).bound
        for point in points(x, eps, 300):
            with torch.no_grad():
                logits = program.module(point).double()
            values = torch.cat([logits, -logits], 1)
            assert bool((values >= found - 1e-9).all()), f"{method} at {eps}: {float((found - values).max())} below"


@pytest.mark.slow
def test_the_better_method_is_never_worse(nets: list[tuple[Dense, Native, Tensor]]) -> None:
    for network, engine, images in nets:
        for x in images.split(1):
            ibp, crown, alpha = (bound_of(engine, network, x, 0.1, method) for method in METHODS)
            assert ibp <= crown + 1e-9 and crown <= alpha + 1e-9


class Border(nn.Module):
    """One pixel whose code decides the class, at a scale that float32 does not reach exactly."""

    int8 = True

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(scale))
        self.register_buffer("weight", torch.tensor([[2], [-2]], dtype=torch.int8))
        self.register_buffer("bias", torch.tensor([-3, 3], dtype=torch.int32))

    def forward(self, x: Tensor) -> Tensor:
        codes = integers.requantize(x, self.scale, True, 0.0, 255.0, 0.0)
        return integers.linear(codes, self.weight, self.bias, False)


@pytest.mark.parametrize("scale", [0.1, 0.3, 1 / 3, 0.0123])
def test_a_value_within_rounding_of_a_border_may_have_either_code(scale: float) -> None:
    """The class changes between the codes 1 and 2; float32 computes x / scale with an error, on some machine."""
    network = Border(scale).eval()
    border = 1.5 * float(torch.tensor(scale))
    x = torch.tensor([[border * (1 - 1e-3)], [border * (1 - 3e-8)], [border * (1 + 3e-8)], [border * (1 + 1e-3)]])
    engine = Native(network, x, arithmetic=Arithmetic.INT8)
    proved = [bound_of(engine, network, image, 1e-12, "crown") > 0 for image in x.split(1)]
    assert proved == [True, False, False, True]


@pytest.mark.slow
def test_a_planted_code_is_never_certified() -> None:
    """Exactly one cell of the image has another class; radii end before it, and the attack's own point is in it."""
    network = Border(0.1).eval()
    x, y = torch.tensor([[0.03], [0.11], [0.32]]), torch.tensor([1, 1, 0])
    found = certify(network, x, y, eps="0.3", methods=("pgd", "ibp", "crown", "alpha-crown"))
    truth = np.abs(x.numpy().ravel() - 0.15)
    for method in ("ibp", "crown", "alpha-crown"):
        radius = found[method]["radius"]
        assert (radius <= truth + 1e-7).all(), f"{method}: {radius} beyond {truth}"
        assert (radius >= 0.99 * truth).all(), f"{method} proves {radius} of {truth}"


# Complete verification


@pytest.mark.slow
@pytest.mark.parametrize("eps", [0.03, 0.1, 0.4])
def test_complete_verification_agrees_with_full_enumeration(
    eps: float, nets: list[tuple[Dense, Native, Tensor]]
) -> None:
    """Certified if no codes of the ball have another class, and a counterexample of the network itself if some have."""
    seen = set()
    for network, _, images in nets[:2]:
        y = network(images).argmax(1)
        settings = {"time_limit": 20, "iterations": 2, "steps": 1, "restarts": 1}
        found = certify(network, images, y, eps=str(eps), methods=("complete",), **settings)["complete"]
        for row, x in enumerate(images.split(1)):
            truth, status = least_margin(network, x, eps), found["status"][row]
            assert status == (Status.CERTIFIED if truth > 0 else Status.FALSIFIED), f"{truth} at {eps}: {status}"
            seen.add(status)
            if status == Status.FALSIFIED:
                assert 0 < found["distance"][row] <= eps
    assert seen


def search(network: nn.Module, x: Tensor, eps: float, broken: bool = False) -> tuple[CodeSearch, Outcome]:
    """The search alone, without an attack before it."""
    engine = Native(network, torch.cat([x, x]), arithmetic=Arithmetic.INT8)
    bounds = engine.bounds(Balls.around(x.double(), eps, Norm.LINF))
    bounds.propagate(refine=True)
    rows = margin_specification(network(x).argmax(1), engine.graph.classes, torch.float64)
    position = codes_of(engine.graph)
    assert position is not None
    predicted = network(x).argmax(1)

    def breaks(points: Tensor) -> Tensor:
        return (network(points.float()).argmax(1) != predicted) & broken

    made = CodeSearch(bounds, rows, position, time.monotonic() + 60, breaks)
    return made, made.run()


@pytest.mark.slow
def test_a_search_halves_codes_until_the_least_bound_is_the_truth(nets: list[tuple[Dense, Native, Tensor]]) -> None:
    for network, _, images in nets[:2]:
        for x in images.split(1):
            truth = least_margin(network, x, 0.2)
            _, end = search(network, x, 0.2)
            assert end.finished == (truth > 0) and not end.late and not end.full
            assert 0.01 * end.bound <= truth + 1e-6, f"{0.01 * end.bound} is proved, and {truth} is reached"
            if truth <= 0:
                assert 0.01 * end.bound == pytest.approx(truth, abs=1e-3)
                _, end = search(network, x, 0.2, broken=True)
                assert end.point is not None and int(network(end.point.float()).argmax()) != int(network(x).argmax())


def test_images_have_the_codes_that_they_are_made_for(nets: list[tuple[Dense, Native, Tensor]]) -> None:
    network, _, images = nets[0]
    made, _ = search(network, images[:1], 0.2)
    box = made.root.intervals[made.position]
    codes = torch.cat([box.low + 1, box.high - 1, ((box.low + box.high) / 2).floor()])
    points = made.images(codes)
    torch.testing.assert_close(network.codes(points.float()).double(), codes.flatten(1), rtol=0, atol=0)
    assert bool(((points - images[:1].double()).abs() <= 0.2 + 1e-12).all())


def test_only_codes_that_all_else_depends_on_are_searched() -> None:
    class Beside(Dense):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + x.flatten(1)

    plain = nn.Sequential(nn.Flatten(), nn.Linear(2, 2)).eval()
    x = torch.rand(1, 2)
    assert codes_of(capture(Dense().eval(), x)) == 2
    assert codes_of(capture(Beside().eval(), x)) is None and codes_of(capture(plain, x)) is None


# The certificate


@pytest.fixture(scope="module")
def answered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dense, Tensor, Tensor, Path]:
    """A file about an int8 network."""
    network = Dense(inputs=4, hidden=6, seed=3, scale=0.05).eval()
    x = torch.rand(4, 4, generator=torch.Generator().manual_seed(3))
    y = network(x).argmax(1)
    path = tmp_path_factory.mktemp("int8") / "int8.h5"
    certify(network, x, y, eps="0.02", methods=("pgd", "ibp", "crown"), out=path)
    return network, x, y, path


def test_the_certificate_states_its_arithmetic(answered: tuple[Dense, Tensor, Tensor, Path]) -> None:
    network, x, y, path = answered
    again = certify(network, x, y, eps="0.02", methods=("pgd", "ibp", "crown"), out=path)
    assert again.attributes["arithmetic"] == "int8" == again["crown"].attributes["arithmetic"]
    assert set(again["crown"]["status"]) <= {Status.CERTIFIED, Status.NOT_CERTIFIED}
    assert (again["crown"]["radius"] > 0).any()
    assert parse_arithmetic("int8").label == "int8 (as in the file)" and "codes" in Arithmetic.INT8.meaning
    assert Arithmetic.INT8.deployed and not Arithmetic.REAL.deployed


@pytest.mark.slow
def test_radii_hold_in_the_network_itself(answered: tuple[Dense, Tensor, Tensor, Path]) -> None:
    network, x, y, path = answered
    found = certify(network, x, y, eps="0.02", methods=("pgd", "ibp", "crown"), out=path)
    for method in ("ibp", "crown"):
        radius = torch.from_numpy(found[method]["radius"]).float()
        generator = torch.Generator().manual_seed(0)
        delta = 2 * torch.rand(2500, *x.shape, generator=generator) - 1
        delta[::2] = delta[::2].sign()
        moved = (x + (1 - 1e-6) * radius[:, None] * delta).clamp(0, 1)
        with torch.no_grad():
            chosen = network(moved.flatten(0, 1)).argmax(1).reshape(2500, -1)
        assert bool((chosen == y).all()), f"{method}: a point inside a radius has another class"


@pytest.mark.slow
def test_verify_understands_it(answered: tuple[Dense, Tensor, Tensor, Path]) -> None:
    network, x, y, path = answered
    audit = verify(network, str(path), Data(x, y), VerifyConfig(sample=4, time_limit=20))
    assert audit.holds, audit.contradictions
    assert {finding.method for finding in audit.findings} >= {"pgd", "ibp", "crown"}


@pytest.mark.parametrize(
    ("network", "arithmetic", "told"),
    [
        (Dense(), "real", "arithmetic real: a network computes in int8: its rounding is part of it"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 2)), "int8", "arithmetic int8: no network here computes in int8"),
    ],
)
def test_another_arithmetic_is_refused(network: nn.Module, arithmetic: str, told: str) -> None:
    with pytest.raises(InputError) as caught:
        certify(network.eval(), torch.rand(2, 2), torch.zeros(2).long(), eps="0.1", arithmetic=arithmetic)
    assert str(caught.value).startswith(told)
    assert CertifyConfig(eps="0.1", arithmetic="int8").arithmetic is Arithmetic.INT8


@pytest.mark.slow
def test_external_engines_say_that_they_do_not_support_codes() -> None:
    network = Dense().eval()
    x = torch.rand(2, 2)
    found = certify(network, x, network(x).argmax(1), eps="0.02", methods=("crown",), engine="auto-lirpa")
    assert set(found["crown"]["status"]) == {Status.UNSUPPORTED}
    assert "auto-LiRPA has no operators for the codes of int8 networks" in str(found["crown"].attributes["reason"])


@pytest.mark.slow
@pytest.mark.parametrize("method", ["smoothing", "pgd"])
def test_forwards_and_gradients_suffice_for(method: str) -> None:
    network = Dense(inputs=4, scale=0.05).eval()
    x = torch.rand(2, 4, generator=torch.Generator().manual_seed(4))
    settings = {"n": 200, "n0": 20, "sigma": 0.05} if method == "smoothing" else {"steps": 5, "restarts": 1}
    norm = "l2" if method == "smoothing" else "linf"
    found = certify(network, x, network(x).argmax(1), eps="0.2", norm=norm, methods=(method,), **settings)
    assert not set(found[method]["status"]) & {Status.UNSUPPORTED, Status.ERROR}


# Pairs


class Original(nn.Module):
    """The float network of ``Dense``: the same weights without rounding."""

    def __init__(self, copy: Dense) -> None:
        super().__init__()
        self.first = nn.Parameter(copy.first.float() * copy.scale[:, None] / copy.step)
        self.bias = nn.Parameter(copy.bias.float() * copy.scale)
        self.second = nn.Parameter(copy.second.float())

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.relu(nn.functional.linear(x.flatten(1), self.first, self.bias))
        return nn.functional.linear(hidden, self.second) * 0.01


@pytest.mark.slow
def test_a_pair_is_bounded_at_least_as_well_as_each_network() -> None:
    """Float original and int8 copy: no joint row is below the difference of the rows of each, and none is unsound."""
    copy = Dense(inputs=6, hidden=8, classes=3, seed=9, scale=0.01, step=1 / 64).eval()
    original = Original(copy).eval()
    x = torch.rand(3, 6, generator=torch.Generator().manual_seed(6))
    pair = JointEngine(copy, original, x, Arithmetic.INT8)
    engines = [Native(Program(network), x, arithmetic=Arithmetic.INT8) for network in (copy, original)]
    eye = torch.eye(3).double().expand(3, 3, 3)
    for eps in (0.005, 0.03):
        balls = Balls.around(x.double(), eps, Norm.LINF)
        together = pair.ask(balls, torch.cat([eye, -eye], 2), "crown").bound
        apart = engines[0].ask(balls, eye, "crown").bound + engines[1].ask(balls, -eye, "crown").bound
        assert bool((together >= apart - 1e-9).all()), f"at {eps} the pair loses {float((apart - together).max())}"
        assert float((together - apart).mean()) > 0
        for point in points(x, eps, 200):
            with torch.no_grad():
                ours, theirs = pair.pair(point).double().chunk(2, 1)
            assert bool((ours - theirs >= together - 1e-6).all())


class Cooled(nn.Module):
    """A network whose logits are divided by a temperature in the end."""

    def __init__(self, network: nn.Module, factor: float) -> None:
        super().__init__()
        self.network, self.factor = network, factor

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x) * self.factor


@pytest.mark.parametrize("kind", ["close", "not-worse"])
def test_a_last_factor_counts_where_logits_are_compared(kind: str) -> None:
    """The student is the teacher times 0.1: neither close to it nor as sure, though its classes are the teacher's."""
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).eval()
    teacher[1].weight.data, teacher[1].bias.data = torch.arange(12.0).reshape(3, 4), torch.zeros(3)
    x, y = torch.full((3, 1, 2, 2), 0.5), torch.zeros(3, dtype=torch.long)
    options = {"property": kind, "tolerance": 0.02, "time_limit": 20}
    for factor, expected in ((0.1, Status.FALSIFIED), (1.0, Status.CERTIFIED)):
        student = Cooled(teacher, factor).eval()
        rows = certify(student, x, y, eps="0.001", methods=("match",), options=options, teacher=teacher)["match"]
        assert [Status(one) for one in rows["status"]] == [expected] * 3
