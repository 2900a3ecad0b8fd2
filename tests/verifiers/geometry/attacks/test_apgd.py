"""Auto-PGD: step rules against literal versions, points inside their regions, and what it finds."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.geometry.attacks.subjects import EPS, Slope, perceptron, pictures, victims
from verifiers.core.quantities import Norm
from verifiers.geometry.attack import has_slope
from verifiers.geometry.attacks import losses
from verifiers.geometry.attacks.apgd import Apgd, _intervals
from verifiers.geometry.attacks.fab import Fab
from verifiers.geometry.attacks.search import Reached, Victims, at_rest
from verifiers.geometry.balls import Balls, norms
from verifiers.geometry.boxes import Boxes

every_norm = pytest.mark.parametrize("norm", list(Norm), ids=str)


def started(some: Victims, seed: int = 0) -> Tensor:
    """A perturbation of each image, half as long as its ball allows."""
    noise = torch.rand(some.balls.x.shape, generator=torch.Generator().manual_seed(seed)) - 0.5
    return some.balls.nearest(some.balls.x + noise) - some.balls.x


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (100, [22, 19, 16, 13, 10, 7, 6, 6, 1]),
        (30, [6, 5, 4, 3, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]),
        (1, [1]),
        (3, [1] * 3),
    ],
)
def test_checks_come_as_often_as_the_paper_says(steps: int, expected: list[int]) -> None:
    assert list(_intervals(steps, Norm.LINF)) == expected and sum(expected) == steps
    assert set(_intervals(100, Norm.L1)) == {4} and sum(_intervals(100, Norm.L1)) == 100


def literal(some: Victims, row: int, loss: losses.Loss, start: Tensor, steps: int) -> tuple[float, float]:
    """Auto-PGD in linf on one sample, as the paper's algorithm 1 states it: the largest loss and the least margin."""
    x, own = some.balls.x[row : row + 1], some.own[row : row + 1]
    eps = some.balls.inner().eps[row]

    def into(z: Tensor) -> Tensor:
        return torch.maximum(torch.minimum(z, x + eps), x - eps).clamp(0, 1)

    def at(z: Tensor) -> tuple[float, Tensor, float]:
        z = z.clone().requires_grad_(True)
        value = loss(some.model(z), own, own)
        (slope,) = torch.autograd.grad(value.sum(), z)
        slope = torch.where((z <= 0) & (slope < 0) | (z >= 1) & (slope > 0), 0.0, slope)
        return float(value.detach()), slope, -float(losses.margin(some.model(z).detach(), own, own))

    z = before = best = into(x + start[row : row + 1])
    value, slope, least = at(z)
    highest = checked = value
    rate, rises, halved, best_slope, taken = 2 * eps, 0, True, slope, 0
    for interval in _intervals(steps, Norm.LINF):
        for _ in range(interval):
            new = into(z + rate * slope.sign())
            new = into(z + 0.75 * (new - z) + 0.25 * (z - before)) if taken else new
            before, z, last, taken = z, new, value, taken + 1
            value, slope, margin = at(z)
            rises, least = rises + (value > last), min(least, margin)
            if value > highest:
                best, highest, best_slope = z, value, slope
        stuck = not halved and checked >= highest
        halved = rises <= 0.75 * interval or stuck
        if halved:
            rate, z, before, value, slope = rate / 2, best, best, highest, best_slope
        rises, checked = 0, highest
    return highest, least


@pytest.mark.parametrize("loss", [losses.cross_entropy, losses.margin])
def test_steps_are_those_of_a_literal_version(loss: losses.Loss) -> None:
    network, x = perceptron().double(), pictures(4).double()
    some = victims(network, x, eps=0.05)
    start = started(some).double()
    found = Apgd(loss, 40, stops=False).run(some, some.own, start)
    for row in range(4):
        _, least = literal(some, row, loss, start, 40)
        assert float(found.margin[row]) == pytest.approx(least, rel=1e-6), f"sample {row} took other steps"


@every_norm
@pytest.mark.parametrize("begin", [None, started], ids=["image", "random"])
def test_points_are_inside_and_have_the_margin_they_claim(
    norm: Norm, begin: Callable[[Victims], Tensor] | None
) -> None:
    network, x = perceptron(), pictures()
    some = victims(network, x, norm)
    found = Apgd(losses.margin, 20, stops=False).run(some, some.own, None if begin is None else begin(some))
    assert bool(some.balls.contain(found.point).all()), "a point outside the ball or the image box"
    exact = norms(found.point.double() - x.double(), norm)
    assert bool((exact <= EPS[norm]).all()) and bool(((found.point >= 0) & (found.point <= 1)).all())
    with torch.no_grad():
        margin = -losses.margin(network(found.point), some.own, some.own)
    torch.testing.assert_close(found.margin, margin, rtol=1e-5, atol=1e-6)
    assert bool((found.margin <= at_rest(some).margin + 1e-6).all() if begin is None else True), "worse than the image"


@every_norm
def test_the_best_point_of_a_linear_function_is_reached(norm: Norm) -> None:
    """The optimum is known: a corner in linf, and the exact projection's optimum elsewhere."""
    weight = torch.tensor([1.0, -2.0, 0.5, 3.0])
    x = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    some = victims(Slope(weight, 10.0), x, norm, 0.2)
    found = Apgd(losses.margin, 60, stops=False).run(some, some.own)
    gain = 0.2 * float(torch.linalg.vector_norm(weight, {Norm.LINF: 1, Norm.L2: 2, Norm.L1: torch.inf}[norm]))
    assert float(found.margin) == pytest.approx(-2 * (float(x @ weight) - 10.0 + gain), rel=2e-3)


@every_norm
def test_black_and_white_pixels_do_not_stop_the_search(norm: Norm) -> None:
    """The steepest pixels are at the edge that they would cross; the others have to do."""
    weight = torch.tensor([-5.0, 4.0, 1.0, 1.0])
    x = torch.tensor([[0.0, 1.0, 0.5, 0.5]])
    some = victims(Slope(weight, 5.15), x, norm, {Norm.LINF: 0.1, Norm.L2: 0.15, Norm.L1: 0.2}[norm])
    found = Apgd(losses.margin, 40).run(some, some.own)
    assert float(found.margin) < 0, "the counterexample on the last two pixels was missed"


@every_norm
@pytest.mark.parametrize("stops", [True, False])
def test_a_sample_does_not_depend_on_its_batch(norm: Norm, stops: bool) -> None:
    network, x = perceptron().double(), pictures(6).double()
    whole = victims(network, x, norm)
    start = started(whole).double()
    search = Apgd(losses.cross_entropy, 15, stops=stops)
    together = search.run(whole, whole.own, start)
    for row in range(6):
        one = whole.take(torch.tensor([row]))
        alone = search.run(one, one.own, start[row : row + 1])
        torch.testing.assert_close(alone.margin, together.margin[row : row + 1], rtol=1e-6, atol=1e-9)


def test_a_run_that_stops_drops_broken_samples_and_keeps_the_others() -> None:
    weight = torch.tensor([1.0, 1.0])
    x = torch.tensor([[0.5, 0.4], [0.2, 0.2], [0.5, 0.45]])
    some = victims(Slope(weight, 1.0), x, eps=0.2)
    calls = []
    some.model.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    found = Apgd(losses.margin, 20).run(some, some.own)
    assert (found.margin < 0).tolist() == [True, False, True]
    assert calls[0] == 3 and calls[-1] == 1, f"broken samples stay in the batch: {calls}"
    assert float(found.margin[1]) == pytest.approx(-2 * (0.8 - 1.0), rel=1e-4), "the other sample was not followed"


def test_any_box_may_take_the_place_of_a_ball() -> None:
    low, high = torch.tensor([[-2.0, 3.0], [0.0, 0.0]]), torch.tensor([[-1.0, 9.0], [0.0, 4.0]])
    boxes = Boxes.between(low, high)
    some = Victims(Slope(torch.tensor([-1.0, 1.0]), 10.4), boxes, torch.tensor([0, 0]), [0, 1])
    found = Apgd(losses.margin, 30).run(some, some.own)
    assert bool(boxes.contain(found.point).all()), "outside its box"
    assert (found.margin < 0).tolist() == [True, False], "the corner (-2, 9) reaches 11"


def test_a_flat_loss_is_reported() -> None:
    some = victims(Slope(torch.zeros(2), 1.0), torch.rand(3, 2), eps=0.1)
    assert Apgd(losses.margin, 3).run(some, some.own).flat.all()
    slope = victims(Slope(torch.tensor([1.0, 0.0]), 1.0), torch.rand(3, 2), eps=0.1)
    assert not Apgd(losses.margin, 3).run(slope, slope.own).flat.any()


def test_a_target_is_reached_and_not_the_nearest_class() -> None:
    network, x = perceptron(seed=3), pictures(6)
    some = victims(network, x, eps=0.4)
    target = losses.ranked(some.logits(), some.own, 4)[:, 2]
    found = Apgd(losses.targeted_ratio, 40, stops=False).run(some, target)
    with torch.no_grad():
        before, after = (losses.targeted_margin(network(z), some.own, target) for z in (x, found.point))
    assert bool((after >= before).all()) and bool((after > 0).any()), "the target did not come nearer"


def test_no_samples_are_no_trouble() -> None:
    some = victims(perceptron(), pictures(2)).take(torch.zeros(0, dtype=torch.long))
    found = Apgd(losses.margin, 3).run(some, some.own)
    assert len(found.margin) == 0


def test_a_point_outside_its_region_is_never_taken_over() -> None:
    balls = Balls.around(torch.full((2, 2), 0.5), 0.1, Norm.LINF)
    none = torch.zeros(2, dtype=torch.bool)
    here = Reached(balls.x, torch.tensor([1.0, 1.0]), none)
    there = Reached(torch.tensor([[0.55, 0.5], [0.61, 0.5]]), torch.tensor([-1.0, -1.0]), none)
    found = here.improved(torch.tensor([0, 1]), there, balls)
    assert found.margin.tolist() == [-1.0, 1.0] and torch.equal(found.point[1], balls.x[1])


class Rooted(nn.Module):
    """A linear score and the root of a flat part of the image, whose gradient is not a number there."""

    def __init__(self, inner: Slope) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        gap = (flat[:, 0] - flat[:, 1]).square().sqrt()
        return self.inner(x) + 0 * gap[:, None]


@every_norm
def test_a_gradient_that_is_no_number_in_some_pixels_stops_no_attack(norm: Norm) -> None:
    x, weight = torch.full((2, 1, 3, 4), 0.5), torch.linspace(-1.0, 2.0, 12)
    weight[:2] = 0.0
    network = Rooted(Slope(weight, float(weight.sum()) / 2 + 0.05))
    some = victims(network, x, norm)
    for attack in (Apgd(losses.margin, steps=20), Fab(steps=10)):
        assert bool((attack.run(some, 1 - some.own).margin < 0).all()), f"{type(attack).__name__} did not move"
    assert has_slope(network, x)
    assert not has_slope(Rooted(Slope(0 * weight, 0.0)), x), "no entry of the gradient is a number but 0"
