"""FAB: boundaries it meets, points inside their regions, and independence of the batch."""

import pytest
import torch
from torch import Tensor

from tests.verifiers.geometry.attacks.subjects import EPS, Slope, perceptron, pictures, victims
from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.fab import Fab
from verifiers.geometry.attacks.losses import margin, ranked
from verifiers.geometry.attacks.search import Victims

every_norm = pytest.mark.parametrize("norm", list(Norm), ids=str)
DUAL = {Norm.LINF: 1, Norm.L2: 2, Norm.L1: torch.inf}


def runner_up(some: Victims) -> Tensor:
    return ranked(some.logits(), some.own, 1)[:, 0]


@every_norm
@pytest.mark.parametrize("factor", [0.98, 1.05])
def test_the_boundary_of_a_linear_network_is_met_where_it_is(norm: Norm, factor: float) -> None:
    """FAB steps 5 % beyond the boundary and comes back, so it finds what is a little farther than the boundary."""
    weight, x = torch.tensor([1.0, -2.0, 0.5, 3.0]), torch.full((1, 4), 0.5)
    exact = 0.3 / float(torch.linalg.vector_norm(weight, DUAL[norm]))
    some = victims(Slope(weight, float(x @ weight) + 0.3), x, norm, exact * factor)
    found = Fab(40).run(some, runner_up(some))
    assert bool(found.margin < 0) == (factor > 1), f"boundary at {exact}, ball of {factor} times that"


@every_norm
@pytest.mark.parametrize("random", [False, True], ids=["image", "random"])
def test_points_are_inside_and_change_the_class(norm: Norm, random: bool) -> None:
    network, x = perceptron(), pictures()
    some = victims(network, x, norm, 2 * EPS[norm])
    start = 0.05 * torch.rand(x.shape, generator=torch.Generator().manual_seed(0)) if random else None
    found = Fab(25).run(some, runner_up(some), start)
    hit = found.margin < 0
    assert hit.any() and not hit.all(), "the radius tests one case alone"
    assert bool(some.balls.contain(found.point)[hit].all()), "a counterexample outside its region"
    with torch.no_grad():
        again = -margin(network(found.point), some.own, some.own)
    assert bool((again[hit] < 0).all()) and bool(found.margin[~hit].isinf().all())
    assert torch.equal(found.point[~hit], x[~hit]), "a sample without a counterexample has a point"


@every_norm
def test_a_sample_does_not_depend_on_its_batch(norm: Norm) -> None:
    network, x = perceptron().double(), pictures(6).double()
    whole = victims(network, x, norm, 2 * EPS[norm])
    together = Fab(15).run(whole, runner_up(whole))
    for row in range(6):
        one = whole.take(torch.tensor([row]))
        alone = Fab(15).run(one, runner_up(one))
        torch.testing.assert_close(alone.margin, together.margin[row : row + 1], rtol=1e-6, atol=1e-9)


def test_a_flat_network_is_reported_and_left_alone() -> None:
    some = victims(Slope(torch.zeros(3), 1.0), torch.rand(2, 3), eps=0.1)
    found = Fab(3).run(some, runner_up(some))
    assert found.flat.all() and bool(found.margin.isinf().all()) and bool(found.point.isfinite().all())


def test_a_broken_sample_is_dropped() -> None:
    x = torch.tensor([[0.5, 0.49], [0.1, 0.1]])
    some = victims(Slope(torch.tensor([1.0, 1.0]), 1.0), x, eps=0.1)
    calls = []
    some.model.register_forward_hook(lambda _, given, __: calls.append(len(given[0])))
    found = Fab(4).run(some, runner_up(some))
    assert (found.margin < 0).tolist() == [True, False] and calls[-1] == 1, f"batches of {calls}"
