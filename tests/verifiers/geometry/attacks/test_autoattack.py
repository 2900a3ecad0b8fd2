"""The four attacks in turn: which run on which sample, what they find, and that no sample depends on its batch."""

import pytest
import torch
from torch import Tensor, nn

from tests.verifiers.geometry.attacks.subjects import EPS, Slope, hidden, perceptron, pictures
from verifiers.core.quantities import Norm
from verifiers.geometry.attacks.autoattack import FAST, AutoAttack, Battered, Stage, probabilities
from verifiers.geometry.attacks.search import Victims
from verifiers.geometry.balls import norms
from verifiers.geometry.boxes import Boxes
from verifiers.geometry.margins import margins

every_norm = pytest.mark.parametrize("norm", list(Norm), ids=str)


def battered(network: nn.Module, x: Tensor, norm: Norm = Norm.LINF, eps: float = 0.0, **more: object) -> Battered:
    settings = {"steps": 12, "queries": 40, **more}
    with torch.no_grad():
        own = network(x).argmax(1)
    return AutoAttack(eps or EPS[norm], norm, **settings)(network, x, own, list(range(len(x))))  # type: ignore[arg-type]


@every_norm
def test_counterexamples_are_inside_and_change_the_class(norm: Norm) -> None:
    network, x = perceptron(), pictures()
    found = battered(network, x, norm).found
    assert found.broken.any() and not found.broken.all(), "the radius tests one case alone"
    point = found.point[found.broken]
    distance = norms(point.double() - x[found.broken].double(), norm)
    assert bool((distance <= EPS[norm]).all()) and bool(((point >= 0) & (point <= 1)).all())
    assert torch.equal(distance, found.distance[found.broken]), "another distance is claimed"
    with torch.no_grad():
        own = network(x).argmax(1)
        assert bool((margins(network(point), own[found.broken]) < 0).all())
    assert found.point[~found.broken].isnan().all() and found.distance[~found.broken].isnan().all()
    assert bool((found.margin[~found.broken] >= 0).all())


@every_norm
def test_each_attack_runs_on_what_the_ones_before_left(norm: Norm) -> None:
    done = battered(perceptron(), pictures(), norm)
    ran = torch.stack([done.outcomes[stage] for stage in Stage])
    broken = torch.zeros(8, dtype=torch.bool)
    for outcome in ran:
        assert torch.equal(outcome >= 0, ~broken), "an attack ran on a broken sample, or left one out"
        broken |= outcome == 1
    assert torch.equal(broken, done.found.broken)
    assert torch.equal(done.flat >= 0, done.outcomes[Stage.APGD_T] >= 0)


def test_every_attack_runs_on_every_sample_where_that_is_asked() -> None:
    done = battered(perceptron(), pictures(), each=True)
    outcomes = torch.stack([done.outcomes[stage] for stage in Stage])
    assert bool((outcomes >= 0).all()) and torch.equal((outcomes == 1).any(0), done.found.broken)
    assert bool((outcomes == 1).any(1).all()), "an attack finds nothing: it is not tested"


def test_only_the_named_attacks_run() -> None:
    done = battered(perceptron(), pictures(), stages=FAST)
    assert bool((done.outcomes[Stage.FAB_T] == -1).all()) and bool((done.outcomes[Stage.SQUARE] == -1).all())
    assert bool((done.outcomes[Stage.APGD_CE] >= 0).all())


@every_norm
@pytest.mark.parametrize("each", [True, False])
def test_a_sample_does_not_depend_on_its_batch(norm: Norm, each: bool) -> None:
    network, x = perceptron().double(), pictures(4).double()
    with torch.no_grad():
        own = network(x).argmax(1)
    attack = AutoAttack(EPS[norm], norm, steps=4, queries=8, targets=2, each=each)
    indices = [40, 3, 17, 8]
    whole = attack(network, x, own, indices)
    for row in range(4):
        alone = attack(network, x[row : row + 1], own[row : row + 1], indices[row : row + 1])
        torch.testing.assert_close(alone.found.margin, whole.found.margin[row : row + 1], rtol=1e-6, atol=1e-9)
        for stage in Stage:
            assert alone.outcomes[stage][0] == whole.outcomes[stage][row], f"{stage} of sample {row}"


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_are_no_trouble(classes: int) -> None:
    done = battered(perceptron(classes), pictures(), eps=0.5, each=True)
    for stage in (Stage.APGD_CE, Stage.APGD_T, Stage.FAB_T):
        assert (done.outcomes[stage] == 1).any(), f"{stage} finds nothing at {classes} classes"
    assert bool((done.outcomes[Stage.SQUARE] >= 0).all())


def test_starts_of_different_runs_differ() -> None:
    network, x = perceptron(), pictures(2)
    attack = AutoAttack(0.1, Norm.LINF, restarts=2, targets=2)
    with torch.no_grad():
        own = network(x).argmax(1)
    some = Victims(network, attack_balls(x), own, [0, 1])
    numbers = [run.number for stage in Stage for run in attack._runs(stage, some)]
    assert numbers == [0, 1, 100_000, 100_001, 200_000, 200_001, None, 100_001, None, 200_001, 0, 1]


def attack_balls(x: Tensor) -> Boxes:
    return Boxes.between((x - 0.1).clamp(0, 1), (x + 0.1).clamp(0, 1))


def test_l1_has_more_starts_and_fewer_targets() -> None:
    network, x = perceptron(classes=9), pictures(1)
    some = Victims(network, attack_balls(x), torch.tensor([0]), [0])
    count = {norm: [len(list(AutoAttack(0.1, norm)._runs(stage, some))) for stage in Stage] for norm in Norm}
    assert count == {Norm.LINF: [1, 8, 8, 1], Norm.L2: [1, 8, 8, 1], Norm.L1: [5, 5, 8, 1]}


def test_any_box_may_take_the_place_of_a_ball() -> None:
    low, high = torch.tensor([[-2.0, 3.0], [0.0, 0.0]]), torch.tensor([[-1.0, 9.0], [0.0, 4.0]])
    some = Victims(Slope(torch.tensor([-1.0, 1.0]), 10.4), Boxes.between(low, high), torch.tensor([0, 0]), [0, 1])
    done = AutoAttack(1.0, Norm.LINF, steps=15, queries=60, each=True).within(some)
    assert done.found.broken.tolist() == [True, False], "the corner (-2, 9) reaches 11, the other box 4"
    assert bool(some.balls.contain(torch.where(done.found.point.isnan(), some.balls.x, done.found.point)).all())
    assert [int(done.outcomes[stage][0]) for stage in Stage] == [1, 1, 1, 1]


def test_square_alone_breaks_what_hides_its_gradients() -> None:
    done = battered(hidden(), torch.full((2, 1, 2, 5), 0.4), eps=0.2, queries=400)
    assert [done.outcomes[stage].tolist() for stage in Stage] == [[0, 0], [0, 0], [0, 0], [1, 1]]
    assert done.flat.tolist() == [1, 1]


def test_progress_names_each_attack() -> None:
    network, x, told = perceptron(), pictures(), []
    with torch.no_grad():
        own = network(x).argmax(1)
    attack = AutoAttack(0.1, Norm.LINF, steps=5, queries=5)
    attack(network, x, own, list(range(8)), lambda settled, text: told.append((settled, text)))
    assert [text for _, text in told] == [str(stage) for stage in Stage]
    assert told[0][0] == 0 and [settled for settled, _ in told] == sorted(settled for settled, _ in told)


def test_probabilities_are_told_from_logits() -> None:
    network, x = perceptron(), pictures(2)
    assert probabilities(nn.Sequential(network, nn.Softmax(1)), x) and not probabilities(network, x)
    assert not probabilities(nn.Sequential(network, nn.Sigmoid()), x), "they do not sum to 1"
