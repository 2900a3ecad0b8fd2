"""The hunt before branch and bound: what gradients miss, deadlines, and independence of the batch."""

import time

import pytest
import torch

from tests.verifiers.geometry.attacks.subjects import EPS, hidden, perceptron, pictures, victims
from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.hunt import Hunt
from verifiers.geometry.attacks.losses import margin
from verifiers.geometry.attacks.square import Square

every_norm = pytest.mark.parametrize("norm", list(Norm), ids=str)


def test_what_hides_its_gradient_is_found() -> None:
    some = victims(hidden(), torch.full((2, 1, 2, 5), 0.4), eps=0.2)
    assert bool((Hunt(queries=200, steps=5).run(some).margin < 0).all())


@every_norm
def test_points_are_inside_and_have_the_margin_they_claim(norm: Norm) -> None:
    network, x = perceptron(), pictures(3)
    some = victims(network, x, norm)
    found = Hunt(starts=2, queries=20, steps=10).run(some)
    assert bool(some.balls.contain(found.point).all()), "outside the ball or the image box"
    with torch.no_grad():
        again = -margin(network(found.point), some.own, some.own)
    torch.testing.assert_close(found.margin, again, rtol=1e-5, atol=1e-6)


def test_small_steps_only_ever_help() -> None:
    some = victims(perceptron(seed=4), pictures(4), eps=EPS[Norm.LINF] / 2)
    alone = Hunt(starts=1, queries=30, steps=1).run(some).margin
    helped = Hunt(starts=1, queries=30, steps=30).run(some).margin
    kept = alone >= 0
    assert bool((helped[kept] <= alone[kept] + 1e-6).all()) and bool((helped[kept] < alone[kept]).any())


def test_a_sample_does_not_depend_on_its_batch() -> None:
    network, x = perceptron().double(), pictures(3).double()
    whole = victims(network, x, eps=0.05, indices=[5, 0, 9])
    together = Hunt(starts=2, queries=15, steps=8).run(whole)
    for row in range(3):
        alone = Hunt(starts=2, queries=15, steps=8).run(whole.take(torch.tensor([row])))
        torch.testing.assert_close(alone.margin, together.margin[row : row + 1], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("late", [True, False])
def test_no_query_begins_after_the_deadline(late: bool) -> None:
    some = victims(perceptron(), pictures(2), eps=1e-4)
    calls = []
    some.model.register_forward_hook(lambda *_: calls.append(1))
    Square(7, deadline=time.monotonic() + (-1 if late else 1e6)).run(some)
    assert len(calls) == (1 if late else 8), "one call for the first points, and one a query"
