"""The seam of searches: runs in turn, starts keyed by sample, and points taken over."""

import pytest
import torch
from torch import Tensor

from tests.verifiers.geometry.attacks.subjects import perceptron, pictures, victims
from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.search import Aimed, Reached, Victims, at_rest, in_turn
from verifiers.geometry.balls import norms

every_norm = pytest.mark.parametrize("norm", list(Norm), ids=str)


class Fake:
    """A search that breaks the samples whose target is a given class, and remembers what it was given."""

    def __init__(self, breaks: int) -> None:
        self.breaks, self.given = breaks, list[tuple[list[int], list[int], bool]]()

    def run(self, some: Victims, target: Tensor, start: Tensor | None = None) -> Reached:
        self.given.append((list(some.indices), target.tolist(), start is not None))
        margin = torch.where(target == self.breaks, -1.0, 0.5)
        return Reached(some.balls.x, margin, torch.zeros_like(target, dtype=torch.bool))


def test_runs_meet_the_samples_that_the_ones_before_left() -> None:
    some = victims(perceptron(), pictures(3), indices=[7, 8, 9])
    search = Fake(breaks=2)
    targets = [torch.tensor([2, 1, 0]), torch.tensor([0, 1, 2]), torch.tensor([1, 2, 1])]
    reached = in_turn(some, [Aimed(search, targets[0]), Aimed(search, targets[1], 4), Aimed(search, targets[2])])
    assert search.given == [([7, 8, 9], [2, 1, 0], False), ([8, 9], [1, 2], True), ([8], [2], False)]
    assert reached.margin.tolist() == [-1.0] * 3 and len(reached.left) == 0


def test_no_run_begins_once_all_are_broken() -> None:
    some, search = victims(perceptron(), pictures(2)), Fake(breaks=0)
    in_turn(some, [Aimed(search, torch.zeros(2, dtype=torch.long))] * 3)
    assert len(search.given) == 1


def test_at_rest_are_the_images_with_their_margins() -> None:
    network, x = perceptron(), pictures(4)
    some = victims(network, x)
    rest = at_rest(some)
    top = network(x).topk(2, dim=1).values
    torch.testing.assert_close(rest.margin, top[:, 0] - top[:, 1])
    assert torch.equal(rest.point, x) and rest.left.tolist() == [0, 1, 2, 3]


def test_a_margin_that_is_no_number_leaves_its_sample_open() -> None:
    none = torch.zeros(2, dtype=torch.bool)
    reached = Reached(torch.zeros(2, 1), torch.tensor([torch.nan, -1.0]), none)
    assert reached.left.tolist() == [0]


@every_norm
def test_starts_are_keyed_by_sample_and_number(norm: Norm) -> None:
    class Starts(Fake):
        def run(self, some: Victims, target: Tensor, start: Tensor | None = None) -> Reached:
            assert start is not None
            self.starts = start
            return super().run(some, target, start)

    x = pictures(1).repeat(3, 1, 1, 1)
    some = victims(perceptron(), x, norm, indices=[4, 9, 4])
    target, rows = torch.zeros(3, dtype=torch.long), torch.arange(3)
    found = []
    for number in (1, 1, 2):
        search = Starts(breaks=9)
        Aimed(search, target, number)(some, rows)
        found.append(search.starts)
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2]), "runs share their starts"
    assert torch.equal(found[0][0], found[0][2]) and not torch.equal(found[0][0], found[0][1])
    length = norms(found[0], norm)
    inside = bool((length <= some.balls.eps * (1 + 1e-5)).all())
    assert inside != (norm is Norm.L1), "in l1 a start is far outside, so that its nearest point is sparse"
    if norm is Norm.L1:
        near = some.balls.nearest(x + found[0]) - x
        assert int((near[0] != 0).sum()) < x[0].numel()
