"""Every answer of the method complete against the truth: enumeration, integer programs, grids and attacks."""

import itertools
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests import oracles
from tests.certifying import answers, certify
from tests.certifying import prepared as prepared_by
from tests.marks import MANY, only
from tests.zoo import ZOO, Kind, images, mlp, planted
from verifiers.bound_propagation import complete
from verifiers.bound_propagation.native import branch_and_bound, pace, places
from verifiers.bound_propagation.native.branch_and_bound import BranchAndBound
from verifiers.bound_propagation.native.cells import DomainBounds
from verifiers.bound_propagation.native.domains import Domains
from verifiers.bound_propagation.native.engine import Native
from verifiers.bound_propagation.native.leaf import lowest
from verifiers.core.errors import Contradiction
from verifiers.core.quantities import Epsilon, Norm
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls, norms
from verifiers.geometry.margins import margin_specification
from verifiers.methods.complete import Complete
from verifiers.results.reader import read_images
from verifiers.results.rows import MethodRows
from verifiers.results.summaries.complete import Stage

#: Margins nearer to zero than this lie within the rounding allowance: the method need not decide them.
NEAR = 1e-4


def network_of(sizes: tuple[int, ...], seed: int, activation: Callable[[], nn.Module] = nn.ReLU) -> nn.Sequential:
    """A perceptron whose bends lie inside the image box."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = mlp(sizes, activation)
        for layer in network:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=1.5 / layer.in_features**0.5)
                nn.init.normal_(layer.bias, std=0.5)
                layer.bias.data -= layer.weight.data.sum(1) / 2
    return network.eval()


def prepared(network: nn.Module, x: Tensor, norm: Norm = Norm.LINF, **options: Any) -> complete.Complete:
    method = Complete(**{"steps": 5, "restarts": 1, **options})
    certifier = prepared_by(method, network, x[:1].repeat(2, *[1] * (x.dim() - 1)), eps="0.1", norm=norm)
    assert isinstance(certifier, complete.Complete)
    return certifier


def answer(method: complete.Complete, x: Tensor, eps: float) -> dict[str, np.ndarray]:
    """The one row of an image."""
    columns = answers(method.at(Epsilon.parse(eps)), method.program.module, x)
    return {name: values[0] for name, values in columns.items()}


def least_margin(network: nn.Sequential, x: Tensor, eps: float, oracle: Callable[..., float]) -> float:
    """The smallest margin on the ball, exactly."""
    layers = oracles.layers_of(network)
    centre = x[0].double().numpy()
    predicted = int(oracles.forward(layers, centre).argmax())
    eye = np.eye(len(layers[-1][1]))
    others = (j for j in range(len(eye)) if j != predicted)
    return min(oracle(layers, centre, eps, eye[predicted] - eye[j]) for j in others)


def boundary(network: nn.Sequential, x: Tensor, oracle: Callable[..., float], halvings: int = 7) -> float | None:
    """About the radius at which the prediction can first change; None where it never does."""
    low, high = 0.0, 1.0
    if least_margin(network, x, high, oracle) > 0:
        return None
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if least_margin(network, x, middle, oracle) > 0 else (low, middle)
    return (low + high) / 2


def by_program(layers: oracles.Layers, x: np.ndarray, eps: float, row: np.ndarray) -> float:
    return oracles.program_minimum(layers, x, eps, row)


def by_enumeration(layers: oracles.Layers, x: np.ndarray, eps: float, row: np.ndarray) -> float:
    return oracles.exact_minimum(layers, x, eps, "linf", row)


def check_against(truth: float, row: dict[str, np.ndarray], where: str) -> bool:
    """No disagreement; whether the margin is far enough from zero to count."""
    status = Status(int(row["status"]))
    if truth < -NEAR:
        assert status is Status.FALSIFIED, f"{where}: {status.name}, the smallest margin is {truth:.3g}"
    elif truth > NEAR:
        assert status is Status.CERTIFIED, f"{where}: {status.name}, the smallest margin is {truth:.3g}"
        assert row["margin"] <= truth + 1e-9, f"{where}: claims a margin of {row['margin']}, it is {truth}"
    return abs(truth) > NEAR


def disagreements(
    architectures: tuple[tuple[int, ...], ...], points: int, oracle: Callable[..., float]
) -> tuple[int, set[int], set[int]]:
    """Instances on both sides of the decision boundary of random networks: how many, their answers and stages."""
    counted, statuses, stages = 0, set(), set()
    for seed, sizes in enumerate(architectures):
        network = network_of(sizes, seed)
        generator = torch.Generator().manual_seed(seed)
        method = prepared(network, torch.rand((1, sizes[0]), generator=generator))
        for point in range(points):
            x = torch.rand((1, sizes[0]), generator=generator)
            critical = boundary(network, x, oracle)
            for share in () if critical is None else (0.9, 0.99, 1.01, 1.1):
                eps = float(np.float32(critical * share))
                truth = least_margin(network, x, eps, oracle)
                row = answer(method, x, eps)
                counted += check_against(truth, row, f"{sizes}, seed {seed}, point {point}, eps {eps}")
                statuses.add(int(row["status"]))
                stages.add(int(row["stage"]))
    return counted, statuses, stages


SHALLOW = ((2, 7, 3), (3, 8, 2))
DEEP = ((2, 8, 8, 3), (3, 6, 6, 6, 2), (2, 10, 10, 4))


@pytest.mark.slow
def test_answers_are_those_of_enumeration() -> None:
    counted, statuses, _ = disagreements(((2, 4, 3),), 2, by_enumeration)
    assert counted >= 4 and {Status.CERTIFIED, Status.FALSIFIED} <= statuses


def test_the_two_oracles_agree() -> None:
    for seed, sizes in enumerate(((2, 5, 3), (3, 3, 3, 2))):
        network, x = network_of(sizes, seed), torch.full((1, sizes[0]), 0.45)
        one, other = (least_margin(network, x, 0.3, oracle) for oracle in (by_enumeration, by_program))
        assert one == pytest.approx(other, abs=1e-7)


@pytest.mark.parametrize(
    ("architectures", "deciding"),
    [
        (((3, 5, 5, 2),), {Stage.ALPHA_CROWN}),
        pytest.param(((3, 6, 6, 2),), {Stage.BRANCH_AND_BOUND}, marks=pytest.mark.slow),
        pytest.param(DEEP[:2], {Stage.ALPHA_CROWN, Stage.BRANCH_AND_BOUND}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_answers_are_those_of_integer_programs(
    architectures: tuple[tuple[int, ...], ...], deciding: set[Stage], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the attack and with few steps, so that the named stages have to decide."""
    monkeypatch.setattr(branch_and_bound, "STEPS", 2)
    monkeypatch.setattr(complete, "SCREENS", ())
    counted, statuses, stages = disagreements(architectures, 1, by_program)
    assert counted >= 4 and {Status.CERTIFIED, Status.FALSIFIED} <= statuses
    assert deciding <= stages


@pytest.mark.slow
def test_many_answers_near_the_boundary() -> None:
    architectures = itertools.islice(itertools.cycle((*SHALLOW, *DEEP)), MANY // 10)
    counted, statuses, _ = disagreements(tuple(architectures), 6, by_program)
    assert counted >= MANY and {Status.CERTIFIED, Status.FALSIFIED} <= statuses


# ----------------------------------------------------------------------------------------------- leaves and soundness


def valley() -> tuple[nn.Module, Tensor]:
    """The margin is |x_1 - x_2| + 0.05: on either side of the valley a line that falls below 0 beyond it."""
    network = mlp((2, 2, 2))
    first, last = (layer for layer in network if isinstance(layer, nn.Linear))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, -1.0], [-1.0, 1.0]]))
        first.bias.zero_()
        last.weight.copy_(torch.tensor([[1.0, 1.0], [0.0, 0.0]]))
        last.bias.copy_(torch.tensor([0.05, 0.0]))
    return network.eval(), torch.tensor([[0.55, 0.5]])


@pytest.mark.slow
def test_leaves_are_decided_by_their_linear_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With no gradient steps only the programs' duals can prove the valley's floor, and only their ends find a peak."""
    monkeypatch.setattr(branch_and_bound, "STEPS", 0)
    monkeypatch.setattr(complete, "SCREENS", ())
    solved: list[bool] = []

    def watched(*args: Any) -> Any:
        solved.append(True)
        return lowest(*args)

    monkeypatch.setattr(branch_and_bound, "lowest", watched)
    for (network, x), eps, status in (
        (valley(), 0.2, Status.CERTIFIED),
        (planted(3, reach=0.1)[:2], 0.101, Status.FALSIFIED),
    ):
        solved.clear()
        row = answer(prepared(network, x, iterations=1), x, eps)
        assert solved, "no leaf was reached"
        assert row["status"] == status and row["stage"] == Stage.BRANCH_AND_BOUND


@pytest.mark.parametrize("pixels", only((4,), (4, 16)))
@pytest.mark.parametrize("norm", only((Norm.LINF,), Norm), ids=str)
@pytest.mark.slow
def test_a_planted_counterexample_is_never_certified(pixels: int, norm: Norm) -> None:
    for seed in range(1 if norm is Norm.LINF else 2):
        network, x, hidden = planted(pixels, reach=0.1, seed=seed)
        distance = float(norms((hidden - x[0])[None].double(), norm))
        row = answer(
            prepared(network, x, norm, time_limit=1e6 if norm is Norm.LINF and pixels == 4 else 1.0), x, 1.01 * distance
        )
        assert row["status"] in (Status.FALSIFIED, Status.TIMEOUT, Status.NOT_CERTIFIED), f"seed {seed}: {row}"
        if norm is Norm.LINF and pixels == 4:
            assert row["status"] == Status.FALSIFIED, f"seed {seed}: the hidden point is missed"


HINGES: dict[str, Callable[[], nn.Module]] = {
    "leaky": lambda: nn.LeakyReLU(0.2),
    "steep": lambda: nn.LeakyReLU(2.5),
    "falling": lambda: nn.LeakyReLU(-0.7),
    "prelu": lambda: nn.PReLU(init=-0.3),
    "twice": nn.ReLU,
}


class Twice(nn.Module):
    """Two ReLUs read one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = network_of((2, 6, 3), 4)[1]
        self.one, self.other = network_of((6, 3), 5)[1], network_of((6, 3), 6)[1]

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x)
        return self.one(torch.relu(hidden)) - self.other(torch.relu(hidden))


def search_of(
    network: nn.Module, x: Tensor, eps: float, proved: list[float] | None = None, **more: Any
) -> BranchAndBound:
    engine = Native(network, x.repeat(2, 1))
    with torch.no_grad():
        predicted = network(x).argmax(1)
        bounds = engine.bounds(Balls.around(x.double(), eps, Norm.LINF))
        bounds.propagate(refine=True)
        rows = margin_specification(predicted, engine.graph.classes, torch.float64)
        known = bounds.by_rows(rows).bound[0] if proved is None else torch.tensor(proved).double()
    settings = {"deadline": float("inf"), "broken": lambda z: torch.zeros(len(z)).bool(), **more}
    return BranchAndBound(bounds, rows, known, 0.1, **settings)


@pytest.mark.parametrize("known", [float("nan"), float("inf"), -float("inf")])
def test_bounds_that_are_not_numbers_prove_nothing(known: float) -> None:
    network, x = network_of((3, 6, 3), 0), torch.full((1, 3), 0.5)
    end = search_of(network, x, 0.3, [known, 1.0], deadline=0.0).run()
    assert not end.finished and not end.bound > 0.1


def test_what_is_given_up_is_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The margin is at least 0.15, two equal sigmoids cancel in it: split at 0 alone, their lines leave a gap."""
    monkeypatch.setattr(places, "SHARES", ())
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 3), nn.Sigmoid(), nn.Linear(3, 2)).eval()
    first, second, last = network[0], network[2], network[4]
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]))
        first.bias.copy_(torch.tensor([0.0, 0.0, -0.5]))
        second.weight.copy_(torch.diag(torch.tensor([8.0, 8.0, 1.0])))
        second.bias.copy_(torch.tensor([-4.0, -4.0, 0.0]))
        last.weight.copy_(torch.tensor([[1.0, -1.0, 1.0], [0.0, 0.0, 0.0]]))
        last.bias.copy_(torch.tensor([-0.35, 0.0]))
    search = search_of(network, torch.tensor([[0.5, 0.5]]), 0.4)
    search.goal = 0.14
    end = search.run()
    assert end.domains >= 3, "nothing was split"
    assert not end.finished and end.bound < 0.14, f"proves {end.bound}, beyond what its lines allow"


def test_a_ball_cannot_be_empty() -> None:
    """Intervals that exclude each other are a mistake, and no proof."""
    search = search_of(network_of((3, 6, 3), 0), torch.full((1, 3), 0.5), 0.3, [-1.0, -1.0])
    high = search.root.intervals[1].high
    search.root.intervals[1] = type(search.root.intervals[1])(high + 1, high + 2)
    with pytest.raises(Contradiction, match="empty"):
        search.run()


def test_too_many_parts_end_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branch_and_bound, "WAITING", 0)
    end = search_of(network_of((3, 6, 6, 3), 1), torch.full((1, 3), 0.5), 0.5, [-9.0, -9.0]).run()
    assert end.full and not end.finished


def test_parts_that_would_end_late_keep_the_bound_of_their_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """The deadline comes while the first split is chosen."""
    search = search_of(network_of((3, 6, 6, 3), 1), torch.full((1, 3), 0.5), 0.5, [-9.0, -9.0])
    split, late = search._split, []

    def slow(domains: Domains) -> Domains:
        halves = split(domains)
        late.append(halves.bound.min())
        return halves

    monkeypatch.setattr(search, "_split", slow)
    monkeypatch.setattr(search, "_late", lambda steps=0: bool(late))
    end = search.run()
    assert end.late and not end.finished and end.domains == 2, "one domain a row, and no half"
    assert end.bound == float(late[0]) > -9.0


@pytest.mark.parametrize("name", only(("twice",), HINGES))
@pytest.mark.slow
def test_other_hinges_against_a_fine_grid(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(complete, "SCREENS", ())
    monkeypatch.setattr(branch_and_bound, "STEPS", 3)
    network = Twice().eval() if name == "twice" else network_of((2, 6, 5, 3), 3, HINGES[name])
    method, generator, seen = prepared(network, torch.rand(1, 2)), torch.Generator().manual_seed(1), set()
    steps = torch.linspace(-1, 1, 201)
    grid = torch.cartesian_prod(steps, steps)
    for _ in range(3):
        x = torch.rand((1, 2), generator=generator)
        for eps in (0.05, 0.3):
            row = answer(method, x, eps)
            with torch.no_grad():
                logits = network((x + eps * grid).clamp(0, 1)).double()
                predicted = int(network(x).argmax())
            others = logits.clone()
            others[:, predicted] = -float("inf")
            least = float((logits[:, predicted] - others.amax(1)).min())
            assert row["status"] in (Status.CERTIFIED, Status.FALSIFIED), f"undecided: {row}"
            assert (row["status"] == Status.CERTIFIED) == (least > 0) or abs(least) < 5e-3, f"eps {eps}: {least}, {row}"
            seen.add(int(row["status"]))
    assert seen == {Status.CERTIFIED, Status.FALSIFIED}


@pytest.mark.slow
def test_an_l2_ball_is_followed_before_anything_is_split(monkeypatch: pytest.MonkeyPatch) -> None:
    """At a radius that only sdp-crown proves, the stage of alpha-CROWN certifies; without it, parts are needed."""
    network, x = network_of((3, 12, 12, 2), 3), images((3,), 6)
    with torch.no_grad():
        labels = network(x).argmax(1)
    followed, crown = (
        certify(
            network, x, labels, eps="1/10", norm="l2", methods=(method,), options={"iterations": 20, "tolerance": 0.02}
        )[method]["radius"]
        for method in ("sdp-crown", "alpha-crown")
    )
    i = int((followed / crown).argmax())
    assert followed[i] > 1.02 * crown[i], "nothing is gained here"
    eps = (float(followed[i]) + float(crown[i])) / 2
    one = {"eps": f"{eps:.6f}", "norm": "l2", "methods": ("complete",), "options": {"time_limit": 60.0}}
    (row,) = certify(network, x[i : i + 1], labels[i : i + 1], **one)["complete"]["stage"]
    assert row == Stage.ALPHA_CROWN
    monkeypatch.setattr(complete.sdp, "followed_ball", lambda bounds, rows, *_, **__: bounds.by_rows(rows))
    (row,) = certify(network, x[i : i + 1], labels[i : i + 1], **one)["complete"]["stage"]
    assert row in (Stage.ALPHA_CROWN, Stage.BRANCH_AND_BOUND)


BALLS = [(kind, norm) for kind in ZOO for norm in Norm]
QUICK = [("mlp", Norm.L2), ("residual", Norm.L1), ("max pool", Norm.LINF)]


@pytest.mark.parametrize(
    ("kind", "norm"),
    [
        pytest.param(*b, marks=[] if (b[0].name, b[1]) in QUICK else pytest.mark.slow, id=f"{b[0].name}-{b[1]}")
        for b in BALLS
    ],
)
@pytest.mark.thin(3)
def test_no_certificate_is_broken_by_points_of_the_ball(kind: Kind, norm: Norm) -> None:
    """On any network that the engine takes, whatever branch and bound can make of it."""
    network, x = kind.network(), kind.images(3)
    for scale in (0.05, 0.2):
        eps = scale * {Norm.LINF: 1.0, Norm.L2: 2.0, Norm.L1: 4.0}[norm]
        with torch.no_grad():
            labels = network(x).argmax(1)
        options = {"time_limit": 0.3, "steps": 4, "restarts": 1, "iterations": 3}
        rows = certify(network, x, labels, eps=eps, norm=norm, methods=("complete",), options=options)["complete"]
        assert set(rows["status"]) <= {Status.CERTIFIED, Status.FALSIFIED, Status.NOT_CERTIFIED, Status.TIMEOUT}
        for i in np.flatnonzero(rows["status"] == Status.CERTIFIED):
            with torch.no_grad():
                points = inside(x[i], eps, norm)
                assert (network(points).argmax(1) == labels[i]).all(), f"{kind.name}, {norm}, eps {eps}: broken"


def inside(x: Tensor, eps: float, norm: Norm, count: int = 3000) -> Tensor:
    """Points on the surface of the ball, cut to the image box."""
    generator = torch.Generator().manual_seed(0)
    delta = torch.randn((count, *x.shape), generator=generator)
    if norm is Norm.LINF:
        return (x + eps * delta.sign()).clamp(0, 1)
    flat = delta.flatten(1) / norms(delta, norm)[:, None] * eps
    return (x + flat.reshape(delta.shape)).clamp(0, 1)


# --------------------------------------------------------------------------------------------- cascade, limits, files


def trained_like() -> tuple[nn.Sequential, Tensor, Tensor]:
    network = network_of((5, 10, 10, 3), 5)
    x = images((5,), 16, seed=2)
    with torch.no_grad():
        return network, x, network(x).argmax(1)


def run(out: Path | None = None, reporter: Reporter | None = None, **asked: Any) -> MethodRows:
    network, x, labels = trained_like()
    asked = {"eps": "0.08", "methods": ("complete",), "options": {"steps": 3, "restarts": 1}, **asked}
    return certify(network, x, labels, **asked, out=out, reporter=reporter, batch_size=5)["complete"]


@cache
def whole() -> MethodRows:
    return run()


@pytest.mark.slow
def test_every_sample_is_decided_by_the_first_stage_that_can() -> None:
    rows = whole()
    status, stage = rows["status"], rows["stage"]
    assert set(status) == {Status.CERTIFIED, Status.FALSIFIED}, "some sample of a small ReLU network is undecided"
    assert set(stage) == set(Stage), "some stage decides nothing here"
    assert (status[stage == Stage.ATTACK] == Status.FALSIFIED).all()
    assert (status[np.isin(stage, (Stage.IBP, Stage.CROWN, Stage.ALPHA_CROWN))] == Status.CERTIFIED).all()
    for one in Stage:
        spent = rows[one.column] > 0
        assert (spent == (stage >= one)).all(), f"{one.title} works on samples that have left"
    total = sum(rows[one.column] for one in Stage)
    np.testing.assert_allclose(rows["seconds"], total)
    assert (rows["radius"] == np.where(status == Status.CERTIFIED, 0.08, 0.0)).all()
    split = rows["domains"] > 0
    assert (stage[split] == Stage.BRANCH_AND_BOUND).all() and split.any()
    assert (status[~split & (stage == Stage.BRANCH_AND_BOUND)] == Status.FALSIFIED).all(), "found before any split"
    assert (rows["margin"][status == Status.CERTIFIED] > 0).all() and (
        rows["margin"][status == Status.FALSIFIED] < 0
    ).all()


class Stop(Exception):
    pass


@pytest.mark.slow
def test_an_interrupted_run_gives_the_same_answers(tmp_path: Path) -> None:
    class Impatient(Reporter):
        left = 7

        def advance(self, rows: int) -> None:
            self.left -= rows
            if self.left <= 0:
                raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "rows.h5", Impatient())
    resumed = run(tmp_path / "rows.h5")
    for column in ("status", "stage", "radius", "domains"):
        np.testing.assert_array_equal(whole()[column], resumed[column], err_msg=column)
    np.testing.assert_allclose(whole()["margin"], resumed["margin"], rtol=1e-9)
    check_counterexamples(tmp_path / "rows.h5", resumed)


def check_counterexamples(path: Path, rows: MethodRows) -> None:
    """All that are stored hold, those of the attack and those of branch and bound."""
    network, x, labels = trained_like()
    found = np.flatnonzero(rows["status"] == Status.FALSIFIED)
    assert {Stage.ATTACK, Stage.BRANCH_AND_BOUND} <= set(rows["stage"][found])
    stored = torch.from_numpy(read_images(path, "complete", "counterexample", found))
    with torch.no_grad():
        assert (network(stored).argmax(1) != labels[found]).all()
    distance = norms(stored.double() - x[found].double(), Norm.LINF).numpy()
    assert (distance <= 0.08).all() and stored.min() >= 0 and stored.max() <= 1
    np.testing.assert_allclose(distance, rows["distance"][found])


class Clock:
    """A clock that advances with each look at it."""

    def __init__(self, step: float) -> None:
        self.now, self.step = 0.0, step

    def monotonic(self) -> float:
        self.now += self.step
        return self.now

    perf_counter = monotonic


def test_no_sample_takes_longer_than_its_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing starts after the limit: a look at the clock here is a second, and few follow the last one in time."""
    network, x = network_of((6, 40, 40, 3), 5), images((6,), 6, seed=2)[[0, 3]]
    monkeypatch.setattr(branch_and_bound, "STEPS", 3)
    monkeypatch.setattr(complete, "SCREENS", ())
    clock = Clock(1.0)
    for module in (complete, pace, complete.alpha):
        monkeypatch.setattr(module, "time", clock)
    limit, late = 20.0, 0
    method = prepared(network, x, time_limit=limit, iterations=2)
    for i in range(len(x)):
        row = answer(method, x[i : i + 1], 0.15)
        assert row["seconds"] <= limit + 8, f"sample {i} took {row['seconds']} of {limit}"
        late += row["status"] == Status.TIMEOUT
        assert row["status"] != Status.TIMEOUT or row["seconds"] >= limit - 4, "given up long before the next step ends"
    assert late, "no sample met its limit"


def test_no_step_starts_that_would_end_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time passes with the parts that are bounded, and the rounds grow."""
    clock, limit, cell = Clock(0.0), 20.0, DomainBounds.cell

    def slow(over: DomainBounds, domains: Any, cells: Any) -> Any:
        clock.now += 0.01 * len(domains)
        return cell(over, domains, cells)

    monkeypatch.setattr(pace, "time", clock)
    monkeypatch.setattr(DomainBounds, "cell", slow)
    end = search_of(network_of((6, 20, 20, 3), 1), images((6,), 6, seed=2)[2:3], 0.1, deadline=limit).run()
    assert end.late and 0.5 * limit <= clock.now <= 1.02 * limit, f"ends after {clock.now} of {limit}"


def test_alpha_crown_leaves_time_to_branch_and_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    network, x = network_of((6, 40, 40, 3), 2), images((6,), 6, seed=2)[1:2]
    clock = Clock(1.0)
    for module in (complete, pace, complete.alpha):
        monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(complete, "SCREENS", ())
    row = answer(prepared(network, x, time_limit=40.0, iterations=1000), x, 0.1)
    assert 5 <= row["alpha_crown_seconds"] <= 14 and row["stage"] == Stage.BRANCH_AND_BOUND


@pytest.mark.slow
def test_trying_both_halves_saves_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    for candidates in (1, 16):
        monkeypatch.setattr(branch_and_bound, "CANDIDATES", candidates)
        counts.append(search_of(network_of((6, 20, 20, 3), 2), images((6,), 6, seed=2)[:1], 0.1).run().domains)
    assert counts[1] < 0.9 * counts[0], f"splits {counts[1]} parts, and {counts[0]} without trying"


@pytest.mark.slow
def test_auto_lirpa_screens_as_well() -> None:
    pytest.importorskip("auto_LiRPA")
    np.testing.assert_array_equal(run(engine="auto-lirpa")["status"], whole()["status"])
