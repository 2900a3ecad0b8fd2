"""Margins of many classes: the least is that of all rows, whatever is not pushed back."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.certifying import answers, certify, prepared
from verifiers.bound_propagation import complete
from verifiers.bound_propagation.complete import Complete as CompleteCertifier
from verifiers.bound_propagation.complete import _open_margins
from verifiers.bound_propagation.engine import Planes
from verifiers.bound_propagation.engines import margins_of
from verifiers.bound_propagation.native import classes
from verifiers.bound_propagation.native.branch_and_bound import Outcome
from verifiers.bound_propagation.native.classes import MANY, closest_first, least_margins, others
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls, random_start
from verifiers.geometry.margins import margin_specification, margins, some_margins
from verifiers.methods.complete import Complete
from verifiers.runtime.certifier import Batch

CLASSES, SHAPE = 48, (6,)
X = torch.rand(4, *SHAPE, generator=torch.Generator().manual_seed(0))


class Scaled(nn.Module):
    """A network that ends in no matrix."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).tanh()


def network(*, scaled: bool = False, count: int = CLASSES) -> nn.Module:
    generator = torch.Generator().manual_seed(2)
    made = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, count))
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return (Scaled(made) if scaled else made).eval()


def engine_of(arithmetic: Arithmetic = Arithmetic.REAL, *, scaled: bool = False) -> Native:
    return Native(network(scaled=scaled), X, arithmetic=arithmetic)


def question(native: Native, eps: float, norm: Norm) -> tuple[Balls, Tensor]:
    with torch.no_grad():
        predicted = native.model(X.double()).argmax(1)
    return Balls.around(X.double(), eps, norm), predicted


@pytest.fixture(scope="module")
def engines() -> dict[Any, Native]:
    return {arithmetic: engine_of(arithmetic) for arithmetic in Arithmetic}


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.parametrize("eps", [1e-4, 0.01, 0.3])
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_the_least_is_that_of_all_rows(
    engines: dict[Any, Native], arithmetic: Arithmetic, eps: float, norm: Norm
) -> None:
    """The dense rows are the oracle; every other bound is one too, and none is above the oracle's."""
    native = engines[arithmetic]
    balls, predicted = question(native, eps, norm)
    rows = margin_specification(predicted, CLASSES, torch.float64)
    for method in ("ibp", "crown"):
        dense, found = native.ask(balls, rows, method), native.margins(balls, predicted, method)
        assert found.bound.shape == dense.bound.shape
        for one, other in zip(dense.least(), found.least(), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-12, msg=f"{method} at {eps} in {norm}")
        assert bool((found.bound <= dense.bound + 1e-9).all()), "a bound is better than that of its own row"


def test_few_rows_are_pushed_where_few_count(engines: dict[Any, Native], monkeypatch: pytest.MonkeyPatch) -> None:
    pairs: list[int] = []
    original = classes._pushed

    def counting(bounds: Any, predicted: Tensor, samples: Tensor, rivals: Tensor) -> Planes:
        pairs.append(len(samples))
        return original(bounds, predicted, samples, rivals)

    monkeypatch.setattr(classes, "_pushed", counting)
    native = engines[Arithmetic.REAL]
    native.margins(*question(native, 1e-4, Norm.LINF), "crown")
    assert 0 < sum(pairs) < len(X) * (CLASSES - 1) / 2, pairs


@pytest.mark.slow
def test_a_last_layer_that_is_no_matrix_has_its_rows_too() -> None:
    native = engine_of(scaled=True)
    balls, predicted = question(native, 0.01, Norm.LINF)
    dense = native.ask(balls, margin_specification(predicted, CLASSES, torch.float64), "crown")
    found = native.margins(balls, predicted, "crown")
    assert bool((found.least()[0] >= dense.least()[0] - 1e-9).all()), "looser than all rows"


@pytest.mark.parametrize("method", ["crown", "alpha-crown", "sdp-crown"])
def test_no_point_breaks_a_margin(engines: dict[Any, Native], method: str) -> None:
    """Sampled soundness of every margin, pushed back or not; what optimises is at least CROWN."""
    native, norm = engines[Arithmetic.REAL], Norm.L2
    balls, predicted = question(native, 0.05, norm)
    found = native.margins(balls, predicted, method, iterations=3)
    rows = margin_specification(predicted, CLASSES, torch.float64)
    generator = torch.Generator().manual_seed(3)
    for _ in range(50):
        point = (balls.x + random_start(balls.x, balls.eps, norm, generator)).clamp(0, 1)
        with torch.no_grad():
            values = (rows @ native.model(point)[:, :, None])[:, :, 0]
        assert bool((found.bound <= values + 1e-9).all()), f"{method}: a margin is below its bound"
    assert bool((found.least()[0] >= native.margins(balls, predicted, "crown").least()[0] - 1e-12).all())


def planes_of(bound: Tensor) -> Planes:
    return Planes(bound, bound, torch.zeros_like(bound), torch.zeros_like(bound))


def test_rivals_are_taken_in_the_order_of_their_bounds() -> None:
    """The oracle's true bounds are 10 above the coarse ones, but for one rival; rivals that cannot matter stay."""
    coarse = torch.arange(100.0).repeat(2, 1)
    coarse[1] += 50
    asked: list[tuple[int, int]] = []

    def push(samples: Tensor, rivals: Tensor) -> Planes:
        asked.extend(zip(samples.tolist(), rivals.tolist(), strict=True))
        return planes_of(coarse[samples, rivals] + 10)

    found = closest_first(planes_of(coarse), torch.tensor([99, 99]), push)
    assert others(found, torch.tensor([99, 99])).least()[0].tolist() == [10.0, 60.0]
    assert {rival for _, rival in asked} == set(range(classes.FIRST)) and len(asked) == 2 * classes.FIRST


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bound_that_is_no_number_proves_nothing(bad: float) -> None:
    coarse = torch.zeros(1, 40)

    def push(samples: Tensor, rivals: Tensor) -> Planes:
        return planes_of(torch.full((len(samples),), bad))

    found = others(closest_first(planes_of(coarse - torch.inf), torch.tensor([0]), push), torch.tensor([0]))
    assert not bool((found.least()[0] > 0).any())


def test_rows_of_chosen_margins() -> None:
    rows = some_margins(torch.tensor([2, 0]), torch.tensor([0, 1]), 3, torch.float64)
    assert rows.tolist() == [[-1, 0, 1], [1, -1, 0]]
    logits = torch.tensor([[1.0, 4.0, 2.0]], dtype=torch.float64)
    assert (rows @ logits[0]).tolist() == [1.0, -3.0] and float(margins(logits, torch.tensor([1]))) == 2.0


def test_few_classes_are_asked_as_before() -> None:
    native = Native(network(count=MANY), X)
    balls, predicted = question(native, 0.01, Norm.LINF)
    dense = native.ask(balls, margin_specification(predicted, MANY, torch.float64), "crown")
    assert torch.equal(native.margins(balls, predicted, "crown").bound, dense.bound)


@pytest.mark.slow
def test_a_network_of_many_classes_is_certified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Radii and margins are those of all rows; complete decides every sample as it does with all rows."""
    made = network()
    with torch.no_grad():
        labels = made(X).argmax(1)
    given = {"eps": "0.002", "methods": ("crown", "complete"), "time_limit": 20.0}
    found = certify(made, X, labels, **given)
    monkeypatch.setattr("verifiers.bound_propagation.native.engine.MANY", CLASSES)
    monkeypatch.setattr("verifiers.bound_propagation.complete.MANY", CLASSES)
    dense = certify(made, X, labels, **given)
    for name in ("margin", "rounding"):
        torch.testing.assert_close(
            *(torch.from_numpy(rows["crown"][name]) for rows in (found, dense)), rtol=1e-6, atol=0
        )
    torch.testing.assert_close(
        *(torch.from_numpy(rows["crown"]["radius"]) for rows in (found, dense)), rtol=0.02, atol=1e-6
    )
    assert found["complete"]["status"].tolist() == dense["complete"]["status"].tolist()


def test_bounds_must_be_propagated_once(engines: dict[Any, Native]) -> None:
    """Margins use the intervals that are there; they propagate nothing by themselves."""
    native = engines[Arithmetic.REAL]
    balls, predicted = question(native, 0.01, Norm.LINF)
    bounds = native.bounds(balls)
    with torch.no_grad():
        bounds.propagate(refine=False)
        before = [interval.low.clone() for interval in bounds.intervals]
        least_margins(bounds, predicted)
    assert all(torch.equal(one, other.low) for one, other in zip(before, bounds.intervals, strict=True))


def test_complete_optimises_the_rows_that_are_open(engines: dict[Any, Native]) -> None:
    """Rows that CROWN does not prove, and the least bound of the others; at least the closest rival stays."""
    native = engines[Arithmetic.REAL]
    for eps in (1e-5, 0.02):
        balls, predicted = question(native, eps, Norm.LINF)
        one = Batch(balls.x[:1].float(), predicted[:1], torch.tensor([0]), CLASSES, lambda: torch.ones(1))
        rows, others_least = _open_margins(native.bounds(balls.take(slice(0, 1))), one)
        dense = native.ask(
            balls.take(slice(0, 1)), margin_specification(predicted[:1], CLASSES, torch.float64), "crown"
        ).bound[0]
        wanted = max(1, int((dense <= 0).sum()))
        assert rows.shape[1] >= wanted and rows.shape[0] == 1, "an open margin was left out"
        assert bool((rows.sum(2) == 0).all()) and bool((rows[0, :, predicted[0]] == 1).all())
        assert others_least > 0 and others_least >= float(dense.amin()) - 1e-9
        if eps == 1e-5:
            assert rows.shape[1] == 1 and int(rows[0, 0].argmin()) == closest(dense, int(predicted[0]))


@dataclass
class Ended:
    """A search that has ended."""

    outcome: Outcome

    def run(self) -> Outcome:
        return self.outcome


def test_a_stored_margin_is_below_that_of_every_class(monkeypatch: pytest.MonkeyPatch) -> None:
    """Branch and bound sees the open classes alone; the others, proved before, may have a smaller bound."""
    made, x = network(), X[:1]
    method = prepared(Complete(steps=1, restarts=1), made, X, eps="0.02")
    assert isinstance(method, CompleteCertifier)
    with torch.no_grad():
        predicted = made(x).argmax(1)
    rows = some_margins(predicted, torch.tensor([int(predicted) == 0]).long(), CLASSES, torch.float64)[None]
    monkeypatch.setattr(complete, "_open_margins", lambda bounds, one: (rows, 0.25))
    monkeypatch.setattr(complete, "SCREENS", ())
    monkeypatch.setattr(complete.alpha, "optimized", lambda *given: planes_of(torch.full((1, 1), -1.0).double()))
    monkeypatch.setattr(CompleteCertifier, "_hunted", lambda *given: None)
    for proved, margin in ((7.0, 0.25), (0.125, 0.125)):
        end = Outcome(proved, 3, None, finished=True)
        search = Ended(end)
        monkeypatch.setattr(complete, "BranchAndBound", lambda *given, search=search, **settings: search)
        row = answers(method, made, x)
        assert row["status"].tolist() == [Status.CERTIFIED] and row["margin"].tolist() == [margin]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_class_whose_bound_is_no_number_stays_open(
    bad: float, engines: dict[Any, Native], monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = torch.full((1, CLASSES), 2.0, dtype=torch.float64)
    bound[0, 7] = bad
    monkeypatch.setattr(complete, "least_margins", lambda *given: planes_of(bound.clone()))
    balls = Balls.around(X[:1].double(), 0.01, Norm.LINF)
    one = Batch(X[:1], torch.tensor([3]), torch.tensor([0]), CLASSES, lambda: torch.ones(1))
    rows, least = _open_margins(engines[Arithmetic.REAL].bounds(balls), one)
    assert rows.shape[1] == 1 and rows[0, 0].nonzero().flatten().tolist() == [3, 7] and least == 2.0


def closest(bound: Tensor, own: int) -> int:
    """The class of the smallest bound among the rows of ``margin_specification``."""
    row = int(bound.argmin())
    return row if row < own else row + 1


def test_another_engine_is_asked_for_all_rows() -> None:
    class Other:
        name, batch_size, model = "other", 1, network()

        def ask(self, balls: Balls, rows: Tensor, method: str, **more: Any) -> Planes:
            assert torch.equal(rows, margin_specification(torch.tensor([1]), 40, torch.float64)) and method == "crown"
            return planes_of(rows.sum(2))

    balls = Balls.around(X[:1].double(), 0.1, Norm.LINF)
    assert margins_of(Other(), balls, (torch.tensor([1]), 40), "crown").bound.tolist() == [[0.0] * 39]
