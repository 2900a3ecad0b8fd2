"""The radius search on synthetic bounds: near the largest radius, never above it, and never an unproved one."""

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verifiers.bound_propagation.certifier import _evaluation
from verifiers.bound_propagation.engine import Planes
from verifiers.bound_propagation.radius import Evaluation, RadiusSearch, SearchResult
from verifiers.runtime.deadline import TimeUp

Margin = Callable[[int, float], float]


class Recorder:
    """A bound that remembers every evaluation as (row, eps, margin)."""

    def __init__(self, margin: Margin) -> None:
        self.margin, self.calls, self.seen = margin, 0, []

    def __call__(self, rows: Tensor, eps: Tensor) -> Evaluation:
        self.calls += 1
        found = [self.margin(row, e) for row, e in zip(rows.tolist(), eps.tolist(), strict=True)]
        self.seen += list(zip(rows.tolist(), eps.tolist(), found, strict=True))
        return Evaluation(torch.tensor(found, dtype=torch.float64), torch.zeros(len(found), dtype=torch.float64))

    def proved(self, row: int) -> list[float]:
        """Radii at which the row had a positive, finite margin."""
        return [eps for r, eps, margin in self.seen if r == row and 0 < margin < math.inf]


def search(
    margin: Margin,
    clean: Sequence[float],
    *,
    eps: float = 0.1,
    limit: float = 1.0,
    tolerance: float = 0.005,
    max_steps: int = 40,
) -> tuple[Tensor, Tensor, Recorder]:
    recorder = Recorder(margin)
    start = torch.tensor(list(clean), dtype=torch.float64)
    radius, at_eps, *_ = RadiusSearch(eps, limit, tolerance, max_steps=max_steps)(recorder, start)
    return radius, at_eps, recorder


def assert_proved(radius: Tensor, recorder: Recorder) -> None:
    """Each radius is 0 or not above one whose own evaluation was positive."""
    for row, value in enumerate(radius.tolist()):
        assert value >= 0, f"row {row}: radius {value}"
        if value > 0:
            best = max(recorder.proved(row), default=0.0)
            assert value < best or value == 0, f"row {row}: {value} returned, {best} proved"


SHAPES: dict[str, Callable[[float, float], float]] = {
    "line": lambda zero, eps: 1 - eps / zero,
    "concave": lambda zero, eps: 1 - (eps / zero) ** 2,
    "steep": lambda zero, eps: 1 - (eps / zero) ** 12,
    "convex": lambda zero, eps: zero / eps - 1 if eps else math.inf,
    "cliff": lambda zero, eps: 1.0 if eps < zero else -1e6,
    "logarithm": lambda zero, eps: math.log(zero / eps) if eps else math.inf,
    "exponential": lambda zero, eps: 1 - math.expm1(min(60 * eps / zero, 600)) / math.expm1(60),
}


@pytest.mark.parametrize("tolerance", [0.05, 0.005, 0.0005])
@pytest.mark.parametrize("shape", SHAPES)
def test_known_zero_is_found_from_below(shape: str, tolerance: float) -> None:
    if shape == "cliff":  # interpolation is blind there, and the halvings among 40 evaluations reach this
        tolerance = max(tolerance, 0.01)
    zeros = [0.0011, 0.013, 0.0999, 0.1, 0.1001, 0.27, 0.9]
    radius, _, recorder = search(lambda r, e: SHAPES[shape](zeros[r], e), [1.0] * len(zeros), tolerance=tolerance)
    for zero, found in zip(zeros, radius.tolist(), strict=True):
        assert found <= zero, f"{shape}: radius {found} above the zero {zero}"
        slack = max(tolerance * zero, tolerance * 1e-3 * 0.1)
        assert found >= zero - 2 * slack, f"{shape}: radius {found} far below the zero {zero}"
    assert_proved(radius, recorder)


@pytest.mark.parametrize("shape", ["line", "concave", "convex", "logarithm"])
def test_a_smooth_bound_costs_few_evaluations(shape: str) -> None:
    zeros = [0.02, 0.06, 0.15, 0.4]
    _, _, recorder = search(lambda r, e: SHAPES[shape](zeros[r], e), [1.0] * 4)
    assert recorder.calls <= 14, f"{recorder.calls} rounds for a smooth bound"
    for row in range(4):
        evaluations = sum(1 for r, _, _ in recorder.seen if r == row)
        assert evaluations <= 14, f"row {row} was evaluated {evaluations} times"


def test_first_evaluation_is_at_eps_and_its_margin_is_returned() -> None:
    _, at_eps, recorder = search(lambda r, e: 1 - e / 0.2, [1.0, 0.0, 1.0])
    assert [seen[:2] for seen in recorder.seen[:2]] == [(0, 0.1), (2, 0.1)], "the first evaluation is not at eps"
    assert at_eps[0].item() == pytest.approx(0.5) and math.isnan(at_eps[1].item()), f"margins at eps: {at_eps}"


def test_rows_that_fail_on_the_clean_image_are_never_evaluated() -> None:
    radius, at_eps, recorder = search(lambda r, e: 1.0, [-1.0, 0.0, float("nan")])
    assert recorder.calls == 0 and radius.tolist() == [0.0] * 3, "a misclassified row was searched"
    assert bool(at_eps.isnan().all()), f"margins without an evaluation: {at_eps}"


@pytest.mark.parametrize("zero", [1e-5, 1e-9, 1e-30, 0.0])
def test_rows_that_fail_at_tiny_eps(zero: float) -> None:
    radius, _, recorder = search(lambda r, e: 1.0 if e <= zero else -1.0, [1.0])
    assert 0 <= radius.item() <= zero, f"radius {radius.item()} above {zero}"
    assert recorder.calls <= 40, "the search does not end"
    assert_proved(radius, recorder)


def test_nothing_is_searched_beyond_the_limit() -> None:
    radius, _, recorder = search(lambda r, e: 1.0, [1.0, 2.0], eps=0.3, limit=1.0)
    assert max(eps for _, eps, _ in recorder.seen) == 1.0, "the limit was passed or not reached"
    assert radius.tolist() == [math.nextafter(1.0, 0.0)] * 2, f"not the limit, rounded down: {radius}"
    assert recorder.calls <= 4, "three or four steps from 0.3 to the limit suffice"


def test_eps_beyond_the_limit_is_cut_to_it() -> None:
    radius, _, recorder = search(lambda r, e: 1.0, [1.0], eps=5.0, limit=1.0)
    assert recorder.seen == [(0, 1.0, 1.0)], f"evaluations {recorder.seen}"
    assert radius.item() == math.nextafter(1.0, 0.0)


def test_a_radius_is_rounded_down() -> None:
    radius, _, recorder = search(lambda r, e: 1 - e / 0.37, [1.0])
    assert radius.item() == math.nextafter(max(recorder.proved(0)), 0.0), "not the largest proved radius, rounded down"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf], ids=str)
def test_a_bound_that_is_not_finite_proves_nothing(wrong: float) -> None:
    everywhere, at_eps, _ = search(lambda r, e: wrong, [1.0])
    assert everywhere.item() == 0, f"radius {everywhere.item()} from bounds that are all {wrong}"
    assert not at_eps.item() > 0, f"the margin at eps is {at_eps.item()}, which says certified"
    above, _, recorder = search(lambda r, e: 1.0 if e < 0.15 else wrong, [1.0])
    assert 0.1 <= above.item() < 0.15, f"radius {above.item()} where bounds from 0.15 on are {wrong}"
    assert_proved(above, recorder)


def test_steps_are_limited() -> None:
    radius, _, recorder = search(lambda r, e: 1.0 if e < 0.05 else -1.0, [1.0], tolerance=1e-9, max_steps=3)
    assert recorder.calls == 3, f"{recorder.calls} evaluations"
    assert_proved(radius, recorder)


def test_rows_are_searched_apart() -> None:
    zeros = [0.003, 0.7, 0.1]
    together, _, _ = search(lambda r, e: 1 - e / zeros[r], [1.0, 2.0, 0.5])
    for row, clean in enumerate([1.0, 2.0, 0.5]):
        alone, _, _ = search(lambda r, e, row=row: 1 - e / zeros[row], [clean])
        assert alone.item() == pytest.approx(together[row].item(), rel=0.01), f"row {row} depends on its neighbours"


#: Margins of any kind, by the digits of eps: no order, holes, numbers that are not numbers.
_MARGINS = st.lists(
    st.one_of(st.floats(-3, 3), st.sampled_from([math.nan, math.inf, -math.inf, 0.0, 1e-300, -1e300])),
    min_size=5,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(margins=_MARGINS, eps=st.floats(1e-6, 2.0), limit=st.floats(1e-3, 10.0), tolerance=st.floats(1e-4, 0.2))
def test_whatever_the_bound_answers_every_radius_was_proved(
    margins: list[float], eps: float, limit: float, tolerance: float
) -> None:
    radius, at_eps, recorder = search(
        lambda r, e: margins[hash((r, round(e, 12))) % len(margins)],
        [1.0, 0.3, 5.0],
        eps=eps,
        limit=limit,
        tolerance=tolerance,
    )
    assert_proved(radius, recorder)
    assert all(0 <= e <= limit for _, e, _ in recorder.seen), "evaluated outside [0, limit]"
    first = min(eps, limit)
    for row in range(3):
        assert not at_eps[row].item() > 0 or first in recorder.proved(row), f"row {row}: eps itself was not proved"


@settings(max_examples=60, deadline=None)
@given(zero=st.floats(1e-4, 0.99), power=st.floats(0.2, 8), clean=st.floats(0.01, 100), eps=st.floats(1e-3, 0.5))
def test_monotone_bounds_are_followed_to_their_zero(zero: float, power: float, clean: float, eps: float) -> None:
    radius, _, recorder = search(lambda r, e: clean * (1 - (e / zero) ** power), [clean], eps=eps)
    assert radius.item() <= zero, f"{radius.item()} above the zero {zero}"
    assert radius.item() >= zero * (1 - 0.02) - 2e-5 * eps, f"{radius.item()} far below the zero {zero}"
    assert_proved(radius, recorder)


# Radii that an evaluation proves beside its margin, and radii that are known


def planes_search(
    evaluate: Callable[[int, float], tuple[float, float]], clean: Sequence[float], **more: Any
) -> tuple[SearchResult, list[tuple[int, float, float, float]]]:
    """Search bounds that tell a margin and a free radius; every evaluation as (row, eps, margin, free radius)."""
    seen: list[tuple[int, float, float, float]] = []

    def bound(rows: Tensor, eps: Tensor) -> Evaluation:
        found = [evaluate(row, e) for row, e in zip(rows.tolist(), eps.tolist(), strict=True)]
        seen.extend((row, e, *pair) for row, e, pair in zip(rows.tolist(), eps.tolist(), found, strict=True))
        margin, radius = (torch.tensor(part, dtype=torch.float64) for part in zip(*found, strict=True))
        return Evaluation(margin, radius)

    start = torch.tensor(list(clean), dtype=torch.float64)
    settings = {"eps": 0.1, "limit": 1.0, "tolerance": 0.005, **more}
    known = settings.pop("known", None)
    return RadiusSearch(**settings)(bound, start, known), seen


def best_proved(seen: Sequence[tuple[int, float, float, float]], row: int) -> float:
    """The largest radius that evaluations proved, by definition."""
    best = 0.0
    for r, eps, margin, free in seen:
        if r == row:
            best = max(best, eps if 0 < margin < math.inf else 0.0, min(free, eps) if 0 < free < math.inf else 0.0)
    return best


def test_a_free_radius_is_a_certificate() -> None:
    found, seen = planes_search(lambda r, e: (-1.0, 0.03), [1.0], max_steps=1)
    assert seen == [(0, 0.1, -1.0, 0.03)], f"evaluations {seen}"
    assert found.radius.item() == math.nextafter(0.03, 0.0), f"{found.radius.item()} where 0.03 was proved"
    assert found.margin.item() == -1.0 and not found.finished.item(), "a free radius is no margin at eps"


def test_a_row_whose_bound_is_infinite_proves_no_free_radius() -> None:
    rows = torch.tensor([[0.5, math.inf], [0.5, 1.0]], dtype=torch.float64)
    planes = Planes(rows - 1.0, rows, torch.full_like(rows, 2.0), torch.zeros_like(rows))
    found = _evaluation(planes, torch.tensor([1.0, 1.0], dtype=torch.float64))
    assert bool(found.margin[0].isnan()) and bool(found.radius[0].isnan()), "infinity proves nothing"
    assert found.margin[1] == -0.5 and found.radius[1] == 0.25


def test_a_free_radius_beyond_the_evaluated_eps_is_not_believed() -> None:
    found, _ = planes_search(lambda r, e: (-1.0, 5.0), [1.0], max_steps=1)
    assert found.radius.item() <= 0.1, f"radius {found.radius.item()} from planes that hold up to 0.1"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, -0.5], ids=str)
def test_a_free_radius_that_is_no_length_is_ignored(wrong: float) -> None:
    nothing, _ = planes_search(lambda r, e: (-1.0, wrong), [1.0])
    assert nothing.radius.item() == 0, f"radius {nothing.radius.item()} from free radii of {wrong}"
    line, _ = planes_search(lambda r, e: (1 - e / 0.37, wrong), [1.0])
    plain, _ = planes_search(lambda r, e: (1 - e / 0.37, 0.0), [1.0])
    assert line.radius.item() == plain.radius.item(), f"a free radius of {wrong} changes what the margins prove"


def test_free_radii_save_evaluations() -> None:
    """The planes of a ball whose margin is a little negative prove almost the whole radius."""
    zeros = [0.02, 0.06, 0.15, 0.4]
    counts = []
    for free in (True, False):
        found, seen = planes_search(
            lambda r, e, free=free: (1 - (e / zeros[r]) ** 2, zeros[r] ** 2 / e * 0.99 if free else 0.0), [1.0] * 4
        )
        counts.append(len(seen))
        for zero, radius in zip(zeros, found.radius.tolist(), strict=True):
            assert 0.98 * zero < radius <= zero, f"radius {radius} for {zero}"
    assert counts[0] <= counts[1], f"{counts[0]} evaluations with free radii, {counts[1]} without"


@settings(max_examples=80, deadline=None)
@given(
    margins=_MARGINS,
    free=_MARGINS,
    known=st.one_of(st.none(), st.floats(0, 1)),
    eps=st.floats(1e-6, 2.0),
    steps=st.integers(1, 40),
)
def test_whatever_is_answered_radii_are_the_best_that_was_proved(
    margins: list[float], free: list[float], known: float | None, eps: float, steps: int
) -> None:
    def answer(row: int, trial: float) -> tuple[float, float]:
        key = hash((row, round(trial, 12)))
        return margins[key % len(margins)], free[key % len(free)]

    radii = None if known is None else torch.full((3,), known, dtype=torch.float64)
    found, seen = planes_search(answer, [1.0, 0.3, -1.0], eps=eps, known=radii, max_steps=steps)
    for row, radius in enumerate(found.radius.tolist()[:2]):
        best = best_proved(seen, row)
        assert radius <= max(best, known or 0.0), f"{radius} returned, {best} proved and {known} known"
        assert radius >= max(math.nextafter(best, 0.0), known or 0.0), (
            f"{radius} returned, {best} proved, {known} known"
        )
    assert found.radius[2].item() == 0, "a row that fails on the clean image has a radius"


def test_known_radii_are_never_lowered_and_raise_the_result() -> None:
    known = torch.tensor([0.3, 0.05, 0.0, 0.2, 0.25], dtype=torch.float64)
    zeros = [0.1, 0.1, 0.1, 0.2, 0.9]
    found, seen = planes_search(lambda r, e: (1 - e / zeros[r], 0.0), [1.0] * 5, eps=0.15, known=known)
    for row, (radius, zero) in enumerate(zip(found.radius.tolist(), zeros, strict=True)):
        assert radius >= known[row].item(), f"row {row}: {radius} below the known {known[row].item()}"
        assert radius >= 0.98 * zero, f"row {row}: {radius} far below {zero}"
        assert radius <= max(zero, known[row].item()), f"row {row}: {radius} was never proved"
        assert next(eps for r, eps, *_ in seen if r == row) == 0.15, "the first evaluation is not at eps"
    below = [eps for r, eps, *_ in seen if r == 4][1:]
    assert min(below) > 0.25, f"evaluated within the known radius: {below}"


def test_a_known_radius_holds_where_time_is_up_at_once() -> None:
    known = torch.tensor([0.3, 0.0], dtype=torch.float64)

    def late(row: int, eps: float) -> tuple[float, float]:
        raise TimeUp

    found, _ = planes_search(late, [1.0, 1.0], known=known)
    assert found.radius.tolist() == [0.3, 0.0] and found.finished.tolist() == [False, False]
    assert bool(found.margin.isnan().all()), "a margin that nothing bounded"


def test_a_known_radius_counts_for_a_row_that_leaves_at_once() -> None:
    known = torch.tensor([0.5], dtype=torch.float64)
    found, seen = planes_search(lambda r, e: (-1e-9, e * (1 - 1e-9)), [1.0], known=known, max_steps=3)
    assert len(seen) == 1 and found.radius.item() == 0.5, f"{found.radius.item()} with 0.5 known"


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0], ids=str)
def test_a_known_radius_that_is_no_length_is_ignored(wrong: float) -> None:
    known = torch.tensor([wrong, 0.2], dtype=torch.float64)
    found, _ = planes_search(lambda r, e: (1 - e / 0.13, 0.0), [1.0, 1.0], known=known)
    assert 0.12 < found.radius[0].item() <= 0.13 and found.radius[1].item() == 0.2, f"radii {found.radius.tolist()}"


def test_the_limit_of_time_returns_what_was_proved(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("verifiers.runtime.deadline.time", SimpleNamespace(monotonic=lambda: now[0]))

    def slow(row: int, eps: float) -> tuple[float, float]:
        now[0] += 2.0
        return 1 - eps / 0.73, 0.0

    found, seen = planes_search(slow, [1.0, -1.0], tolerance=1e-9, seconds=1.0)
    assert len(seen) == 1, f"{len(seen)} evaluations within a limit that one of them exceeds"
    assert found.radius[0].item() == math.nextafter(0.1, 0.0), "eps itself was proved"
    assert found.finished.tolist() == [False, True], f"finished: {found.finished.tolist()}"
    assert found.margin[0].item() == pytest.approx(1 - 0.1 / 0.73), "the margin at eps is known"
    whole, _ = planes_search(lambda r, e: (1 - e / 0.73, 0.0), [1.0], seconds=60.0)
    assert whole.finished.all(), "a search that ended by itself is called unfinished"


@pytest.mark.parametrize("power", [0.5, 1.0, 1.7, 3.0])
def test_a_power_law_costs_at_most_eight_evaluations_and_six_in_the_mean(power: float) -> None:
    zeros = [0.02, 0.05, 0.09, 0.11, 0.17, 0.35, 0.8]
    found, seen = planes_search(lambda r, e: (2 - 2 * (e / zeros[r]) ** power, 0.0), [2.0] * len(zeros))
    counts = [sum(1 for r, *_ in seen if r == row) for row in range(len(zeros))]
    assert max(counts) <= 8 and sum(counts) / len(counts) <= 6, f"evaluations {counts}"
    for zero, radius in zip(zeros, found.radius.tolist(), strict=True):
        assert 0.99 * zero <= radius <= zero, f"radius {radius} for {zero}"
