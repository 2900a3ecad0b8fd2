"""What carries a teacher's certificate over to a student: the theorems on dense grids, and pairs made to mislead."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.certifying import certify
from tests.zoo import mlp
from verifiers.core.quantities import Norm
from verifiers.core.status import Status
from verifiers.geometry.balls import norms
from verifiers.geometry.margins import margin_specification
from verifiers.linearity.transfer import LossTerms, Terms, blockers, theorem_a, theorem_b, theorem_c1, theorem_c2
from verifiers.lipschitz.jacobians import jacobian
from verifiers.results.rows import Certificates
from verifiers.results.summaries.transfer import Blocker

DUAL = {Norm.LINF: 1.0, Norm.L2: 2.0, Norm.L1: math.inf}
LOG_2 = math.log(2.0)


def grid(x: Tensor, eps: float, norm: Norm, side: int = 61) -> Tensor:
    steps = torch.linspace(-1, 1, side, dtype=torch.float64)
    square = torch.cartesian_prod(steps, steps)
    return x + eps * square[norms(square, norm) <= 1]


class Seen:
    """A network on a grid around one image: everything the theorems need, with gamma read off the grid."""

    def __init__(self, model: nn.Module, x: Tensor, y: int, points: Tensor) -> None:
        with torch.no_grad():
            here, there = model(x[None])[0], model(points)
        gradients = jacobian(model, x[None])[0]
        others = [j for j in range(len(here)) if j != y]
        self.at_x, self.gradient = here[y] - here[others], gradients[y] - gradients[others]
        self.margins = there[:, [y]] - there[:, others]
        flat = self.at_x + (points - x) @ self.gradient.T
        self.minus, self.plus = (flat - self.margins).amax(0), (self.margins - flat).amax(0)
        self.loss_at_x = F.cross_entropy(here[None], torch.tensor([y]))
        self.losses = F.cross_entropy(there, torch.full((len(there),), y), reduction="none")
        shares = here.softmax(0)[others]
        self.loss_gradient = -(shares[:, None] * self.gradient).sum(0)
        linear = self.loss_at_x + (points - x) @ self.loss_gradient
        self.loss_minus, self.loss_plus = (linear - self.losses).max(), (self.losses - linear).max()


def random_pair(trial: int) -> tuple[nn.Module, nn.Module]:
    """A teacher of two hidden layers of 12, and a student close to it, or (every third time) an unrelated one of 9."""
    torch.manual_seed(trial)
    classes, activation = 2 + trial % 3, (nn.Tanh, nn.ReLU)[trial % 2]

    def drawn(width: int) -> nn.Sequential:
        model = mlp((2, width, width, classes), activation).double().eval().requires_grad_(False)
        for module in model:
            if isinstance(module, nn.Linear):
                scale = 1.0 if module.in_features == 2 else width**-0.5
                module.weight.copy_(scale * torch.randn(module.weight.shape, dtype=torch.float64))
                module.bias.copy_(0.3 * torch.randn(module.bias.shape, dtype=torch.float64))
        return model

    teacher = drawn(12)
    if trial % 3 == 0:
        return drawn(9), teacher
    student = mlp((2, 12, 12, classes), activation).double().eval().requires_grad_(False)
    for own, given in zip(student.parameters(), teacher.parameters(), strict=True):
        own.copy_(given + 0.05 * torch.randn(given.shape, dtype=torch.float64))
    return student, teacher


def terms_of(s: Seen, t: Seen, norm: Norm) -> tuple[Terms, LossTerms]:
    gap = torch.linalg.vector_norm(s.gradient - t.gradient, DUAL[norm], dim=1)
    margins = Terms(
        teacher=t.at_x[None],
        least=t.margins.amin(0)[None],
        deficit=(t.at_x - s.at_x).clamp_min(0)[None],
        gap=gap[None],
        steepness=torch.linalg.vector_norm(t.gradient, DUAL[norm], dim=1)[None],
        student_gamma=s.minus[None],
        teacher_gamma=t.plus[None],
    )
    losses = LossTerms(
        teacher=t.loss_at_x[None],
        worst=t.losses.max()[None],
        deficit=(s.loss_at_x - t.loss_at_x).clamp_min(0)[None],
        gap=torch.linalg.vector_norm(s.loss_gradient - t.loss_gradient, DUAL[norm])[None],
        steepness=torch.linalg.vector_norm(t.loss_gradient, DUAL[norm])[None],
        student_gamma=s.loss_plus[None],
        teacher_gamma=t.loss_minus[None],
    )
    return margins, losses


@pytest.mark.slow
def test_the_theorems_hold_for_random_pairs_with_gamma_from_a_grid() -> None:
    slack, passed = dict.fromkeys(("a", "b", "c1", "c2"), math.inf), 0
    for trial in range(150):
        student, teacher = random_pair(trial)
        x = torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(trial))
        y = int(teacher(x[None]).argmax())
        for norm in (Norm.LINF, Norm.L2):
            for eps in (0.02, 0.1, 0.4):
                points = grid(x, eps, norm)
                s, t = Seen(student, x, y, points), Seen(teacher, x, y, points)
                terms, losses = terms_of(s, t, norm)
                least = s.margins.amin(0)
                slack["a"] = min(slack["a"], float((least - theorem_a(terms, eps)[0]).min()))
                slack["b"] = min(slack["b"], float((least - theorem_b(terms, eps)[0]).min()))
                for name, bound in (("c1", theorem_c1(losses, eps)), ("c2", theorem_c2(losses, eps))):
                    slack[name] = min(slack[name], float(bound[0] - s.losses.max()))
                    if float(bound[0]) < LOG_2:
                        passed += 1
                        assert (s.margins > 0).all(), f"trial {trial}: certified and wrong"
    assert min(slack.values()) > -1e-12, slack
    assert max(slack.values()) < 1e-3, f"a bound that is never nearly tight is another one: {slack}"
    assert passed > 100


def test_leaving_a_term_out_breaks_a_theorem() -> None:
    """Each of the four terms of A is needed: without it some pair violates the inequality."""
    broken = dict.fromkeys(("deficit", "gap", "student_gamma", "teacher_gamma"), 0)
    for trial in range(120):
        student, teacher = random_pair(trial // 2)
        x = torch.rand(2, dtype=torch.float64, generator=torch.Generator().manual_seed(trial))
        y = int(teacher(x[None]).argmax())
        points = grid(x, 0.4, Norm.LINF)
        if trial % 2:  # the teacher's own linearisation
            slope = jacobian(teacher, x[None])[0]
            student = fixed(slope.tolist(), (teacher(x[None])[0] - slope @ x).tolist()).double()
        s, t = Seen(student, x, y, points), Seen(teacher, x, y, points)
        terms, _ = terms_of(s, t, Norm.LINF)
        for name in broken:
            without = terms._replace(**{name: torch.zeros_like(terms.gap)})
            broken[name] += int((s.margins.amin(0) < theorem_a(without, 0.4)[0] - 1e-9).any())
    assert all(broken.values()), broken


def fixed(weight: list[list[float]], bias: list[float]) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(len(weight[0]), len(bias))).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor(weight))
        model[1].bias.copy_(torch.tensor(bias))
    return model


def transfer(student: nn.Module, teacher: nn.Module, x: Tensor, y: int, eps: float, norm: str = "linf") -> Certificates:
    return certify(
        student, x, torch.full((len(x),), y), eps=eps, norm=norm, methods=["crown", "transfer"], teacher=teacher
    )


@pytest.mark.slow
def test_all_that_the_paper_trains_for_can_be_zero_and_the_student_not_robust() -> None:
    """Teacher logits (0, -m, -m), student (0, -m - v d, -m + v d), d = x - 1/2: value, KL, CE-gradient all agree."""
    m, v = 2.0, 50.0
    teacher = fixed([[0.0, 0.0]] * 3, [0.0, -m, -m])
    student = fixed([[0.0, 0.0], [-v, 0.0], [v, 0.0]], [0.0, -m + v / 2, -m - v / 2])
    x = torch.full((1, 2), 0.5, requires_grad=True)
    losses = [F.cross_entropy(model(x), torch.tensor([0])) for model in (student, teacher)]
    gradients = [torch.autograd.grad(loss, x, retain_graph=True)[0] for loss in losses]
    assert losses[0].item() == losses[1].item() == pytest.approx(math.log(1 + 2 * math.exp(-m)))
    assert (gradients[0] == gradients[1]).all() and torch.equal(student(x), teacher(x))

    true = m / v
    for eps, kept in ((0.9 * true, True), (1.1 * true, False)):
        found = transfer(student, teacher, x.detach(), 0, eps)
        rows = found["transfer"]
        assert rows["teacher"][0] == pytest.approx(m, abs=1e-3), "the teacher is constant"
        assert (rows["status"][0] == Status.CERTIFIED) == kept and (found["crown"]["certified"][0] == 1) == kept
    assert rows["blocker"][0] == Blocker.GRADIENT and rows["gradient_gap"][0] == pytest.approx(v)
    assert rows["deficit"][0] == 0 and rows["theorem_c1"][0] > LOG_2 and rows["theorem_c2"][0] > LOG_2


@pytest.mark.slow
def test_values_and_gradients_can_agree_while_the_student_bends() -> None:
    """m_s = m_t - K max(0, |x_0 - 1/2| - eta): nothing at the image tells, only the student's own linearity."""
    eta, steep = 0.05, 400.0
    teacher = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    with torch.no_grad():
        teacher[1].weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        teacher[1].bias.copy_(torch.tensor([-0.5 - eta, 0.5 - eta]))
        teacher[3].weight.zero_()
        teacher[3].bias.copy_(torch.tensor([1.0, 0.0]))
    student = nn.Sequential(nn.Flatten(), nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)).eval()
    student.load_state_dict(teacher.state_dict())
    with torch.no_grad():
        student[3].weight[0].fill_(-steep)
    x = torch.full((1, 2), 0.5)
    inside, outside = (transfer(student, teacher, x, 0, eps)["transfer"] for eps in (0.9 * eta, 1.2 * eta))
    assert inside["status"][0] == Status.CERTIFIED and outside["status"][0] == Status.NOT_CERTIFIED
    assert outside["deficit"][0] == outside["gradient_gap"][0] == 0
    assert outside["blocker"][0] == Blocker.STUDENT


@pytest.mark.slow
def test_a_copy_of_the_teacher_keeps_its_certificate_through_the_joint_graph() -> None:
    torch.manual_seed(0)
    teacher, x = mlp((6, 20, 3)).eval(), torch.rand(12, 6)
    y = teacher(x).argmax(1)
    question = {"eps": 0.02, "methods": ["crown", "transfer"], "teacher": teacher}
    rows = certify(teacher, x, y, arithmetic="real", **question)["transfer"]
    held = rows["teacher"] > 0
    assert held.any() and (rows["status"][held] == Status.CERTIFIED).all()
    np.testing.assert_allclose(rows["joint"], rows["teacher"], atol=1e-6)
    np.testing.assert_allclose(rows["direct"], rows["teacher"], atol=1e-6)
    assert (rows["gradient_gap"] == 0).all() and (rows["deficit"] == 0).all()
    rounded = certify(teacher, x, y, **question)["transfer"]
    assert (rounded["joint"] < rows["joint"]).all(), "both copies may round, each in its own way"
    np.testing.assert_allclose(rounded["joint"], rounded["teacher"], atol=1e-5)
    assert (rows["shortfall"] >= -1e-9).all(), "gamma of the student is bounded from above, the teacher's from below"


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_certified_terms_bound_what_a_grid_sees(norm: str) -> None:
    """The stored values against a grid: lower bounds of the student's margin, upper bounds of its cross-entropy."""
    checked = 0
    for trial in range(3):
        student, teacher = random_pair(trial)
        x = 0.3 + 0.4 * torch.rand(3, 2, generator=torch.Generator().manual_seed(trial))
        y = student.float()(x).argmax(1)
        found = certify(student, x, y, eps=0.1, norm=norm, methods=["crown", "transfer"], teacher=teacher.float())
        rows, seen = found["transfer"], []
        for k in range(3):
            points = grid(x[k].double(), 0.1, Norm(norm))
            s, t = (Seen(model.double(), x[k].double(), int(y[k]), points) for model in (student, teacher))
            seen.append(float(s.margins.min()))
            for name in ("direct", "theorem_a", "theorem_b", "joint", "margin"):
                assert rows[name][k] <= seen[-1], name
            for name in ("theorem_c1", "theorem_c2"):
                assert rows[name][k] >= float(s.losses.max()), name
            terms, _ = terms_of(s, t, Norm(norm))
            assert rows["gamma_student"][k] >= float(s.minus.max()) - 1e-9
            assert rows["gamma_teacher"][k] >= float(t.plus.max()) - 1e-9
            assert rows["gradient_gap"][k] == pytest.approx(float(terms.gap.max()), rel=1e-5)
            assert rows["shortfall"][k] >= float((terms.deficit + 0.1 * terms.gap + s.minus - t.minus).max()) - 1e-6
            checked += rows["status"][k] == Status.CERTIFIED
        assert all(
            margin > 0 for margin, status in zip(seen, rows["status"], strict=True) if status == Status.CERTIFIED
        )
    assert checked > 1


def test_nothing_carries_over_from_a_teacher_without_a_certificate() -> None:
    """The student's own bounds may hold through the formulas; there is still no certificate of the teacher's."""
    student, teacher = fixed([[0.0, 0.0]] * 2, [3.0, 0.0]), fixed([[0.0, 0.0]] * 2, [-0.5, 0.0])
    rows = transfer(student, teacher, torch.full((2, 2), 0.5), 0, 0.1)["transfer"]
    assert (rows["direct"] > 0).all() and (rows["joint"] > 0).all() and (rows["teacher"] < 0).all()
    assert (rows["status"] == Status.NOT_CERTIFIED).all() and (rows["radius"] == 0).all()


def test_the_blocker_is_the_largest_term_of_the_worst_class() -> None:
    def terms(deficit: float, gap: float, student: float, teacher: float, least: float = 1.0) -> Terms:
        values = {"deficit": deficit, "gap": gap, "student_gamma": student, "teacher_gamma": teacher, "least": least}
        one = {name: torch.tensor([[0.0, value]]) for name, value in values.items()}
        one["least"] = torch.tensor([[5.0, least]])
        return Terms(teacher=torch.ones(1, 2), steepness=torch.ones(1, 2), **one)

    expected = {
        Blocker.DEFICIT: terms(3, 10, 1, 1),
        Blocker.GRADIENT: terms(1, 40, 1, 1),
        Blocker.STUDENT: terms(1, 10, 4, 1),
        Blocker.REFERENCE: terms(1, 10, 1, 4),
        Blocker.TEACHER: terms(9, 9, 9, 9, least=-1.0),
    }
    for blocker, case in expected.items():
        assert int(blockers(case, 0.1)) == blocker


@pytest.mark.slow
def test_many_classes_leave_the_shortfall_open_and_nothing_else() -> None:
    torch.manual_seed(0)
    student, teacher, x = mlp((4, 8, 30)).eval(), mlp((4, 8, 30)).eval(), torch.rand(2, 4)
    rows = certify(student, x, student(x).argmax(1), eps=0.01, methods=["transfer"], teacher=teacher)["transfer"]
    assert np.isnan(rows["shortfall"]).all() and np.isfinite(rows["theorem_a"]).all()
    assert margin_specification(torch.tensor([0]), 30, torch.float64).shape[1] == 29
