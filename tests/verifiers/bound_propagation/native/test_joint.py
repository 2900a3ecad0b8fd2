"""Bounds of a student and a teacher together, tried by points, attacks and planted counterexamples."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import only
from tests.zoo import BY_NAME, mlp, planted
from verifiers.bound_propagation.engine import SDP_CROWN
from verifiers.bound_propagation.joint import JointEngine, PairBounds, with_difference
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.errors import InputError, Unsupported
from verifiers.core.quantities import Arithmetic, Epsilon, Norm
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, project, random_start
from verifiers.geometry.margins import margin_specification, margins
from verifiers.graph import capture as graph
from verifiers.graph.program import Pair
from verifiers.methods.joint import Joint
from verifiers.results.rows import Certificates
from verifiers.runtime.fingerprint import structure_sha256, weights_sha256

RADII = {Norm.LINF: (0.01, 0.08, 0.4), Norm.L2: (0.05, 0.4, 2.0), Norm.L1: (0.1, 1.0, 5.0)}
Networks = tuple[nn.Module, nn.Module]


_EXPORTED: dict[tuple[Any, ...], Any] = {}
_export = graph._export


def exported(model: nn.Module, x: Tensor, *given: Any) -> Any:
    """torch.export takes most of the time of these tests; networks of one text and one state are exported once."""
    if "Fn()" in repr(model):  # a function does not show
        return _export(model, x, *given)
    key = (structure_sha256(model), weights_sha256(model), x.shape)
    if key not in _EXPORTED:
        _EXPORTED[key] = _export(model, x, *given)
    return _EXPORTED[key]


@pytest.fixture(autouse=True)
def exports_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graph, "_export", exported)


def tuned(network: nn.Module, size: float = 0.05, seed: int = 7) -> nn.Module:
    """A copy with noise on every parameter."""
    edited = copy.deepcopy(network).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    for parameter in edited.parameters():
        parameter += size * parameter.abs().mean() * torch.randn(parameter.shape, generator=generator)
    return edited


def copies(name: str, size: float = 0.05) -> Networks:
    teacher = BY_NAME[name].network(1)
    return tuned(teacher, size), teacher


def strangers(student: str, teacher: str) -> Networks:
    return BY_NAME[student].network(2), BY_NAME[teacher].network(1)


PAIRS: dict[str, tuple[str, Callable[[], Networks]]] = {
    "copies, mlp": ("mlp", lambda: copies("mlp", 0.2)),
    "copies, residual": ("residual", lambda: copies("residual")),
    "copies, max pool": ("max pool", lambda: copies("max pool")),
    "copies, silu": ("silu", lambda: copies("silu")),
    "mlp and tanh": ("mlp", lambda: strangers("mlp", "tanh")),
    "grouped and average pool": ("cnn", lambda: strangers("grouped cnn", "average pool")),
}


def tried(pair: nn.Module, x: Tensor, eps: Tensor, norm: Norm, goals: list[Any]) -> Iterator[Tensor]:
    """Logits of both networks at random points, corners, and where attacks on the goals end."""
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for kind in range(40):
            delta = random_start(x, eps, norm, generator)
            if kind % 2:
                delta = project(delta.sign() * 1e3 if norm is Norm.LINF else delta * 1e3, eps, norm)
            yield pair((x + delta).clamp(0.0, 1.0))
    for goal in goals:
        for sign in (1.0, -1.0):
            point = ascend(lambda z, g=goal, s=sign: s * g(pair(z)), Balls(x, eps, norm), steps=6)  # type: ignore[misc]
            with torch.no_grad():
                yield pair(point)


def both(logits: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """The student's and the teacher's margin."""
    student, teacher = logits.chunk(2, 1)
    return margins(student, predicted), margins(teacher, predicted)


def assert_holds(found: PairBounds, pair: nn.Module, x: Tensor, eps: Tensor, predicted: Tensor, norm: Norm) -> None:
    def student(logits: Tensor) -> Tensor:
        return both(logits, predicted)[0]

    def teacher(logits: Tensor) -> Tensor:
        return both(logits, predicted)[1]

    goals = [lambda z: student(z) - teacher(z), student, teacher]
    for logits in tried(pair, x, eps, norm, goals):
        s, t = both(logits, predicted)
        for name, value, bound in (
            ("gap", (s - t).abs(), found.gap),
            ("deficit", t - s, found.deficit),
            ("agreement", -torch.minimum(s, t), -found.agreement),
        ):
            broken = float((value - bound).max())
            assert broken <= 1e-9, f"{name} in {norm} at {eps.tolist()} is broken by {broken:.3g}"
    assert bool((found.radius <= eps).all()), "a radius above eps"
    inside = found.radius.clamp_min(0.0) * (1 - 1e-12)
    for logits in tried(pair, x, inside, norm, goals):
        s, t = both(logits, predicted)
        lost = (found.radius > 0) & (torch.minimum(s, t) < -1e-9)
        assert not bool(lost.any()), f"a prediction changes within the free radius {found.radius[lost].tolist()}"


def classes_of(networks: Networks, x: Tensor) -> tuple[nn.Module, Tensor]:
    pair = Pair(*networks).double().eval()
    with torch.no_grad():
        return pair, pair(x).chunk(2, 1)[0].argmax(1)


@pytest.mark.parametrize("name", only(("copies, residual", "mlp and tanh"), PAIRS))
def test_no_point_breaks_a_bound(name: str) -> None:
    kind, build = PAIRS[name]
    networks, x = build(), BY_NAME[kind].images(4).double()
    engine = JointEngine(*networks, x.float())
    assert engine.copies == name.startswith("copies"), f"copies: {engine.copies}"
    pair, predicted = classes_of(networks, x)
    for norm in Norm:
        eps = torch.tensor([*RADII[norm], RADII[norm][0] / 10], dtype=torch.float64)
        for method in ("crown", SDP_CROWN) if norm is Norm.L2 and kind == "mlp" else ("crown",):
            found = engine.pair_bounds(Balls(x, eps, norm), predicted, method=method)
            assert_holds(found, pair, x, eps, predicted, norm)


def test_samples_are_bounded_as_they_are_alone() -> None:
    networks, x = copies("mlp"), BY_NAME["mlp"].images(4).double()
    engine = JointEngine(*networks, x.float())
    _, predicted = classes_of(networks, x)
    eps = torch.tensor([0.01, 0.3, 0.05, 0.1]).double()
    whole = engine.pair_bounds(Balls(x, eps, Norm.LINF), predicted)
    for i in range(4):
        at = slice(i, i + 1)
        alone = engine.pair_bounds(Balls(x, eps, Norm.LINF).take(at), predicted[at])
        for field, one, other in zip(PairBounds._fields, whole, alone, strict=True):
            assert float(one[i]) == pytest.approx(float(other[0]), rel=1e-9, abs=1e-12), f"{field} of sample {i}"


@pytest.mark.parametrize("name", only(("copies, residual", "mlp and tanh"), PAIRS))
def test_rounding_makes_every_bound_slightly_more_careful(name: str) -> None:
    kind, build = PAIRS[name]
    networks, x = build(), BY_NAME[kind].images(4).double()
    _, predicted = classes_of(networks, x)
    eps = torch.full((4,), 0.01, dtype=torch.float64)
    exact, rounded = (
        JointEngine(*networks, x.float(), arithmetic).pair_bounds(Balls(x, eps, Norm.LINF), predicted)
        for arithmetic in (Arithmetic.REAL, Arithmetic.FLOAT32)
    )
    assert not exact.rounding.any() and bool((rounded.rounding > 1e-8).all()), "rounding is not counted"
    assert bool((rounded.gap > exact.gap).all()) and bool((rounded.deficit > exact.deficit).all())
    assert bool((rounded.agreement < exact.agreement).all()) and bool((rounded.radius <= exact.radius).all())
    assert float((rounded.gap - exact.gap).max()) < 1e-3, "rounding is far from small"


@pytest.mark.parametrize("name", ["mlp and tanh", "grouped and average pool"])
def test_never_looser_than_two_separate_bounds(name: str) -> None:
    kind, build = PAIRS[name]
    networks, x = build(), BY_NAME[kind].images(4)
    joint, alone = JointEngine(*networks, x), [Native(network, x) for network in networks]
    with torch.no_grad():
        logits = networks[0](x)
    rows = margin_specification(logits.argmax(1), logits.shape[1], torch.float64)
    for norm in Norm:
        for eps in RADII[norm][1:2]:
            radius = torch.full((4,), eps, dtype=torch.float64)
            for sign in (1, -1):
                together = joint.ask(Balls(x, radius, norm), sign * torch.cat([rows, -rows], 2), "crown").bound
                parts = [
                    engine.ask(Balls(x, radius, norm), s * sign * rows, "crown").bound
                    for engine, s in zip(alone, (1, -1), strict=True)
                ]
                looser = float((sum(parts) - together).max())
                assert looser <= 1e-6, f"looser by {looser:.3g} at {eps} in {norm}"


def test_a_graph_that_gives_no_number_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    networks, x = copies("mlp"), BY_NAME["mlp"].images(2)
    engine = JointEngine(*networks, x)
    rows = torch.eye(6, dtype=torch.float64).expand(2, -1, -1)
    eps = torch.full((2,), 0.1, dtype=torch.float64)

    def asked() -> Tensor:
        return engine.ask(Balls(x, eps, Norm.LINF), rows, "crown").bound

    assert engine.coupled is not None
    balls = Balls(x, eps, Norm.LINF)
    joint = engine.joint.ask(balls, rows, "crown"), engine.joint
    coupled = engine.coupled.ask(balls, with_difference(rows), "crown"), engine.coupled
    for (_, broken), (other, _) in ((joint, coupled), (coupled, joint)):
        nothing = type(other)(*[torch.full_like(other.bound, torch.nan)] * 4)
        with monkeypatch.context() as patch:
            patch.setattr(broken, "ask", lambda *args, n=nothing, **more: n)
            assert torch.equal(asked(), other.bound), "one graph is nan, and the bound is not the other's"


def test_a_student_beside_itself() -> None:
    network, x = BY_NAME["mlp"].network(), BY_NAME["mlp"].images(3)
    engine = JointEngine(network, network, x)
    predicted = network(x).argmax(1)
    eps = torch.tensor([0.01, 0.1, 1.0]).double()
    found = engine.pair_bounds(Balls(x.double(), eps, Norm.LINF), predicted)
    assert float(found.gap.abs().max()) < 1e-12, f"a network differs from itself by {found.gap.tolist()}"
    rows = margin_specification(predicted, 3, torch.float64)
    alone = Native(network, x).ask(Balls(x, eps, Norm.LINF), rows, "crown").bound
    assert bool((found.agreement >= alone.amin(1) - 1e-9).all()), "agreement is worse than the network's own bound"


# The method


IMAGES = torch.rand(8, 6, generator=torch.Generator().manual_seed(1))


def run(student: nn.Module, teacher: nn.Module | None, **more: Any) -> Certificates:
    x = more.pop("x", IMAGES)
    with torch.no_grad():
        labels = more.pop("labels", student(x).argmax(1))
    return certify(student, x, labels, **{"eps": "0.02", "methods": ("joint",), "teacher": teacher, **more})


@pytest.mark.parametrize("norm", list(Norm))
@pytest.mark.thin(2)
def test_certified_radii_and_gaps_withstand_attacks(norm: Norm) -> None:
    student, teacher = copies("mlp", 0.3)
    eps = RADII[norm][0]
    rows = run(student, teacher, norm=norm, eps=eps).methods["joint"].columns
    assert rows["certified"].sum() > 0 and (rows["radius"] > 0).any(), "nothing to try"
    pair, x = Pair(student, teacher).double(), IMAGES.double()
    predicted, asked = torch.from_numpy(rows["predicted"]), rows["status"] != Status.MISCLASSIFIED
    assert asked.all() and np.isfinite(rows["gap"]).all() and np.isfinite(rows["deficit"]).all(), "gaps are missing"
    assert (rows["gap"] >= rows["deficit"]).all() and (rows["gap"] >= 0).all(), "a gap below the deficit"
    radius = torch.from_numpy(rows["radius"])
    zero = torch.zeros_like(radius)
    found = PairBounds(*(torch.from_numpy(rows[name]) for name in ("gap", "deficit", "margin")), zero, zero)
    assert_holds(found, pair, x, torch.full_like(radius, eps), predicted, norm)
    goals = [lambda z, i=i: both(z, predicted)[i] for i in (0, 1)]
    for logits in tried(pair, x, radius, norm, goals):
        s, t = both(logits, predicted)
        assert not bool(((torch.minimum(s, t) <= 0) & (radius > 0)).any()), f"a certified radius in {norm} is broken"


@pytest.mark.slow
def test_radii_that_follow_the_l2_ball() -> None:
    """They are not smaller than CROWN's, and neither are the margins at eps."""
    student, teacher = copies("mlp", 0.2)
    x = BY_NAME["mlp"].images(3)
    with torch.no_grad():
        labels = student(x).argmax(1)
    crown, followed = (
        certify(student, x, labels, eps="1/50", norm="l2", methods=(method,), teacher=teacher)["joint"]
        for method in (Joint(tolerance=0.05), Joint(tolerance=0.05, bound=SDP_CROWN))
    )
    assert (followed["radius"] >= crown["radius"] * 0.95).all()
    assert (followed["gap"] <= crown["gap"] + 1e-9).all() and (followed["margin"] >= crown["margin"] - 1e-9).all()


def test_only_l2_balls_are_followed() -> None:
    with pytest.raises(InputError, match=r"^method joint: bound 'sdp-crown' follows l2 balls, and the norm is linf"):
        Joint(bound=SDP_CROWN).check(Question(Epsilon.parse("1/50"), Norm.LINF))
    Joint(bound=SDP_CROWN).check(Question(Epsilon.parse("1/50"), Norm.L2))


def test_columns_of_rows_that_are_not_asked_are_blank() -> None:
    student, teacher = copies("mlp")
    labels = student(IMAGES).argmax(1)
    labels[:3] = (labels[:3] + 1) % 3
    rows = run(student, teacher, labels=labels).methods["joint"].columns
    assert (rows["status"][:3] == Status.MISCLASSIFIED).all() and (rows["status"][3:] != Status.MISCLASSIFIED).all()
    for name in ("gap", "deficit"):
        assert np.isnan(rows[name][:3]).all() and np.isfinite(rows[name][3:]).all(), f"{name}: {rows[name]}"


def test_a_teacher_that_predicts_otherwise_gives_no_radius() -> None:
    student, teacher = strangers("mlp", "tanh")
    rows = run(student, teacher).methods["joint"].columns
    other = (student(IMAGES).argmax(1) != teacher(IMAGES).argmax(1)).numpy()
    assert other.any() and not other.all(), "no disagreement to look at"
    assert (rows["status"][other] == Status.NOT_CERTIFIED).all() and (rows["radius"][other] == 0).all()
    assert (rows["margin"][other] < 0).all(), "a positive bound where the teacher predicts otherwise"
    assert np.isfinite(rows["gap"][other]).all(), "the gap is known all the same"


def reason_of(found: Certificates) -> str:
    method = found.methods["joint"]
    assert (method.columns["status"] == Status.UNSUPPORTED).all(), f"statuses {method.columns['status']}"
    reason = str(method.attributes["reason"])
    assert "\n" not in reason and len(reason) < 250, f"no line to read: {reason}"
    return reason


def test_without_a_teacher() -> None:
    assert "teacher" in reason_of(run(BY_NAME["mlp"].network(), None))


def test_another_number_of_classes() -> None:
    teacher = mlp((6, 5, 4)).eval()
    assert "differ in their logits" in reason_of(run(BY_NAME["mlp"].network(), teacher))


def test_a_teacher_that_cannot_be_bounded() -> None:
    class Sorted(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sort(dim=1).values[:, :3]

    assert "sort" in reason_of(run(BY_NAME["mlp"].network(), Sorted()))


def test_another_teacher_is_refused_on_the_same_file(tmp_path: Path) -> None:
    student, teacher = copies("mlp")
    run(student, teacher, out=tmp_path / "c.h5")
    run(student, teacher, out=tmp_path / "c.h5")
    for other in (tuned(teacher, 1e-3), None):
        with pytest.raises(InputError, match="teacher"):
            run(student, other, out=tmp_path / "c.h5")


def test_a_teacher_with_other_layers_is_refused_on_the_same_file(tmp_path: Path) -> None:
    student, teacher = copies("mlp")
    run(student, teacher, out=tmp_path / "c.h5")
    smooth = copy.deepcopy(teacher)
    smooth[2] = nn.Tanh()  # the same weights
    with pytest.raises(InputError, match="teacher"):
        run(student, smooth, out=tmp_path / "c.h5")


@pytest.mark.parametrize("who", ["student", "teacher", "both"])
@pytest.mark.parametrize("reach", [0.05])
@pytest.mark.thin(3)
def test_a_planted_counterexample_is_never_inside(who: str, reach: float) -> None:
    trapped, x, hidden = planted(5, reach)
    safe = copy.deepcopy(trapped)
    with torch.no_grad():
        safe.bump.bias.fill_(-1.0)  # the same network without the bump
        assert trapped(hidden[None]).argmax() == 1 and safe(hidden[None]).argmax() == 0
    student, teacher = {"student": (trapped, safe), "teacher": (safe, trapped), "both": (trapped, trapped)}[who]
    for eps in (2 * reach,) if who == "both" else (0.5 * reach, 2 * reach):
        rows = run(student, teacher, x=x.repeat(2, 1), eps=eps).methods["joint"].columns
        assert (rows["radius"] < reach).all(), f"radius {rows['radius']} with a counterexample at {reach} in {who}"
        assert (rows["status"] != Status.ERROR).all(), "no error"
        if eps > reach:
            assert (rows["certified"] == 0).all() and (rows["margin"] < 0).all(), "certified beyond it"
            gap = 2.0 if who != "both" else 0.0  # at the hidden point the margins are 1 and -1
            assert (rows["gap"] >= gap).all(), f"gap {rows['gap']} is less than {gap}"
    assert (rows["radius"] > 0).all(), "nothing was proved near the image"


def test_teacher_and_student_are_left_as_they_were() -> None:
    student, teacher = copies("mlp")
    teacher.train()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    run(student, teacher, x=IMAGES[:1])
    assert teacher.training and all(torch.equal(before[n], v) for n, v in teacher.state_dict().items())
    assert all(p.requires_grad is False for p in student.parameters()), "gradients were switched on"


@pytest.mark.slow
def test_the_notes_say_which_graphs_were_used() -> None:
    student, teacher = copies("mlp")
    few = IMAGES[:1]
    copied = run(student, teacher, x=few).methods["joint"].attributes
    apart = run(*strangers("mlp", "tanh"), x=few).methods["joint"].attributes
    assert (copied["engine"], copied["graphs"]) == ("native", "joint and coupled")
    assert apart["graphs"] == "joint", f"graphs {apart['graphs']}"


def test_a_joint_graph_without_the_teacher_is_refused() -> None:
    with pytest.raises(Unsupported, match="logits"):
        JointEngine(BY_NAME["mlp"].network(), mlp((6, 4, 5)).eval(), IMAGES[:2])
