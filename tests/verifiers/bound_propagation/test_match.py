"""Relations of two networks are proved, or refuted by a point; exact programs know the truth about tiny pairs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.certificate_files import write_file
from tests.marks import MANY, only
from tests.verifiers.bound_propagation.pairs import RELATIONS, Tiny, broken, copied, matched, network, tiny, truth
from verifiers.core.errors import InputError
from verifiers.core.quantities import Arithmetic
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.results.summaries.match import Stage

NAMES = [f"{relation.kind}-{relation.threshold:g}" for relation in RELATIONS]
#: Violations nearer to 0 than this are ties in float32.
TIE = 1e-5


def check(pair: Tiny, relation: Relation) -> Status:
    """Decide a relation and compare with the exact truth."""
    worst, columns = truth(pair, relation), matched(pair, relation)
    status = Status(int(columns["status"][0]))
    if status is Status.CERTIFIED:
        same = columns["stage"][0] == Stage.IDENTITY  # then the truth is 0, up to what HiGHS tolerates
        assert worst <= (TIE if same else TIE / 10), f"proved, and a point violates it by {worst}"
        assert same or columns["margin"][0] > 0
        assert np.isnan(columns["counterexample"]).all()
    elif status is Status.FALSIFIED:
        violation = broken(pair, relation, columns["counterexample"][0])
        assert violation > 0, "refuted by a point that does not break it"
        assert columns["violation"][0] == pytest.approx(violation, rel=1e-6)
        assert columns["violation"][0] <= worst + TIE * max(1.0, abs(worst)), "broken by more than possible"
    else:
        assert abs(worst) < TIE * 10, f"left open as {status.name}, and the largest violation is {worst}"
    return status


@pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)
def test_tiny_pairs_are_decided_as_exact_programs_decide_them(relation: Relation) -> None:
    found = {check(tiny(seed), relation) for seed in (9, 10)}
    assert found <= {Status.CERTIFIED, Status.FALSIFIED}, f"left open: {found}"


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 100 + MANY // 2))
def test_many_tiny_pairs_are_decided_as_exact_programs_decide_them(seed: int) -> None:
    """500 pairs before a release."""
    pair = tiny(seed)
    for relation in RELATIONS:
        check(pair, relation)


def narrow(width: float, height: float) -> tuple[nn.Sequential, nn.Sequential]:
    """A teacher, and a student that differs on a narrow ridge of the first input around 0.6 alone."""
    teacher = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    student = nn.Sequential(nn.Linear(2, 5), nn.ReLU(), nn.Linear(5, 3))
    edges = torch.tensor([0.6 - width, 0.6, 0.6 + width])
    with torch.no_grad():
        for net in (teacher, student):
            net[0].weight.copy_(torch.tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0], [1.0, 1.0]]))
            net[0].bias.copy_(torch.cat([-edges, torch.zeros(2)]))
            net[2].weight.zero_()
            net[2].bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
            net[2].weight[1, 3] = 0.2
        ridge = torch.tensor([1.0, -2.0, 1.0]) * height / width
        student[2].weight[1, :3] = ridge
    return student, teacher


@pytest.mark.parametrize("width", [0.01, 1e-3, 1e-5])
@pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)
def test_a_planted_disagreement_is_never_proved(relation: Relation, width: float) -> None:
    """The ridge is 1.4 high, far from the image and too narrow for an attack to meet by chance."""
    student, teacher = narrow(width, 1.4)
    pair = Tiny(student, teacher, torch.tensor([[0.5, 0.5]]), 0.3)
    columns = matched(pair, relation, time_limit=5.0)
    status = Status(int(columns["status"][0]))
    assert status is not Status.CERTIFIED, "a disagreement inside the ball is proved away"
    if status is Status.FALSIFIED:
        assert broken(pair, relation, columns["counterexample"][0]) > 0


@pytest.mark.parametrize("relation", RELATIONS, ids=NAMES)
def test_a_ridge_outside_of_the_ball_does_not_matter(relation: Relation) -> None:
    student, teacher = narrow(0.01, 1.4)
    pair = Tiny(student, teacher, torch.tensor([[0.3, 0.5]]), 0.25)
    columns = matched(pair, relation)
    equal = relation == Relation(Property.NOT_WORSE)  # the margins are equal: a tie, which rounding leaves open
    expected = Status.NOT_CERTIFIED if equal else Status.CERTIFIED
    assert Status(int(columns["status"][0])) is expected


def test_the_image_itself_refutes() -> None:
    rng = np.random.default_rng(0)
    teacher = network(rng, 2, [4])
    student = copied(rng, teacher, 0.0, 0.0)
    x = torch.tensor([[0.5, 0.5]])
    with torch.no_grad():
        best = int(teacher(x).argmax())
        student[-1].bias[(best + 1) % 3] += 10.0
    columns = matched(Tiny(student, teacher, x, 0.01), Relation())
    assert columns["status"][0] == Status.FALSIFIED and columns["stage"][0] == Stage.IMAGE
    assert np.array_equal(columns["counterexample"][0], x[0].numpy()) and columns["distance"][0] == 0
    assert (columns["student_class"][0], columns["teacher_class"][0]) == ((best + 1) % 3, best)


@pytest.mark.parametrize("seed", only([5], [5, 7, 13]))
@pytest.mark.parametrize("arithmetic", list(Arithmetic))
def test_least_tolerances_bracket_the_truth(arithmetic: Arithmetic, seed: int) -> None:
    """The least tolerance proved is at least the largest violation at tolerance 0, and not far above it."""
    pair = tiny(seed)
    for relation in (Relation(Property.CLOSE, 0.05), Relation(Property.NOT_WORSE, 0.05)):
        worst = truth(pair, relation) + relation.tolerance
        least = matched(pair, relation, arithmetic, bisect=True)["least"][0]
        assert least >= worst - 1e-6, f"proved {least}, and {worst} happens"
        assert least <= 1.05 * max(worst, 0.0) + 0.01, f"{least} is far above {worst}"


def test_a_point_of_another_file_is_tried(tmp_path: Path) -> None:
    """The ridge is too narrow for the attack; the file has its top, for this sample alone."""
    student, teacher = narrow(1e-5, 1.4)
    pair = Tiny(student, teacher, torch.tensor([[0.5, 0.5]]), 0.3)
    rows = {"status": np.full(1, Status.FALSIFIED, "uint8"), "distance": np.array([0.1]), "margin": np.array([-1.0])}
    for index, tried in ((0, True), (1, False)):
        columns = {**rows, "index": np.array([index]), "counterexample": np.array([[0.6, 0.5]], "f4")}
        path = tmp_path / f"{index}.h5"
        write_file(path, {"pgd": columns}, eps="0.3", shape=(2,))
        found = matched(pair, Relation(), time_limit=0.1, points=(str(path),))
        assert (found["stage"][0] == Stage.ATTACK) == tried
        assert (found["status"][0] == Status.FALSIFIED) or not tried


def test_points_of_other_images_are_refused(tmp_path: Path) -> None:
    rows = {"status": np.full(1, Status.FALSIFIED, "uint8"), "distance": np.array([0.1])}
    write_file(tmp_path / "a.h5", {"pgd": {**rows, "counterexample": np.zeros((1, 1, 2, 2), "f4")}}, eps="0.3")
    with pytest.raises(InputError, match=r"counterexamples have shape \(1, 2, 2\), the images \(3,\)"):
        matched(tiny(0), Relation(Property.CLOSE, 1e3), points=(str(tmp_path / "a.h5"),))


def test_an_unsure_teacher_is_no_disagreement() -> None:
    """With delta above every margin of the teacher, no point is a disagreement."""
    pair = tiny(0)
    with torch.no_grad():
        points = torch.rand(500, pair.x.shape[1])
        top = pair.teacher(points).topk(2, 1).values
    columns = matched(pair, Relation(delta=20 * float((top[:, 0] - top[:, 1]).max())))
    assert columns["status"][0] == Status.CERTIFIED


@pytest.mark.parametrize(
    "relation",
    [
        *(Relation(Property.CLOSE, 0.5), Relation(Property.NOT_WORSE, 0.2)),
        *(Relation(), Relation(delta=0.1), Relation(Property.TRANSFER)),
    ],
    ids=str,
)
def test_a_margin_covers_the_cases_that_need_no_search(relation: Relation) -> None:
    """The margin of a proof is at most minus the largest violation, whichever case is nearest to failing."""
    for seed in (3, 8, 11, 14):
        pair = tiny(seed)
        columns = matched(pair, relation)
        if columns["status"][0] == Status.CERTIFIED:
            assert columns["margin"][0] <= -truth(pair, relation) + TIE, f"seed {seed}"
