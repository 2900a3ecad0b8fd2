"""One table of all certificate methods, and the rules that every one of them keeps."""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import only
from verifiers.core.columns import COMMON_COLUMNS
from verifiers.core.errors import InputError
from verifiers.core.quantities import Norm
from verifiers.core.reporter import Reporter
from verifiers.core.status import FAILURES, About, Guarantee, Status
from verifiers.geometry.ascent import ascend
from verifiers.geometry.balls import Balls, norms, random_start
from verifiers.geometry.margins import margins
from verifiers.methods.autoattack import AutoAttack
from verifiers.methods.base import Method
from verifiers.methods.complete import Complete
from verifiers.methods.crown import AlphaCrown, Crown, CrownIbp, Ibp, SdpCrown
from verifiers.methods.diagnostics import Diagnostics
from verifiers.methods.joint import Joint
from verifiers.methods.lipschitz import Lipschitz
from verifiers.methods.local_linearity import LocalLinearity
from verifiers.methods.match import Match
from verifiers.methods.pgd import Pgd
from verifiers.methods.registry import BY_KIND, METHODS, parse, settings_of
from verifiers.methods.smoothing import Smoothing
from verifiers.methods.transfer import Transfer
from verifiers.results.reader import read
from verifiers.results.rows import MethodRows
from verifiers.runtime.fingerprint import weights_sha256

COUNT = 8
WRONG = 2  # the first samples carry a wrong label
BATCH = 3
EPS = {Norm.LINF: "1/100", Norm.L2: "1/50", Norm.L1: "1/30"}
POINTS = 200
EVERY_NORM = {Norm.LINF, Norm.L2, Norm.L1}


@dataclass(frozen=True)
class Case:
    """A method, as this table says it is.

    Attributes:
        method: settings that make it quick.
        guarantee: what its radii are worth.
        needs: settings that have no default.
        teacher: whether it compares with a teacher.
        norms: the norms that it handles.
    """

    method: Method
    guarantee: str = "deterministic"
    needs: tuple[str, ...] = ()
    teacher: bool = False
    norms: frozenset[Norm] = frozenset(EVERY_NORM)


CASES = (
    Case(Pgd(steps=5, restarts=2), "estimate"),
    Case(AutoAttack(steps=5, queries=10), "estimate"),
    Case(Ibp(tolerance=0.05, cross_check=0)),
    Case(CrownIbp(tolerance=0.05, cross_check=0)),
    Case(Crown(tolerance=0.05, cross_check=0)),
    Case(AlphaCrown(tolerance=0.05, cross_check=0, iterations=2)),
    Case(SdpCrown(tolerance=0.05, cross_check=0, iterations=2), norms=frozenset({Norm.L2})),
    Case(Complete(steps=3, restarts=1, iterations=2, time_limit=300.0)),
    Case(Joint(tolerance=0.05), teacher=True),
    Case(Match(steps=3, restarts=1, iterations=2, time_limit=300.0), teacher=True),
    Case(Lipschitz(shells=3, constants="fast")),
    Case(LocalLinearity(steps=3)),
    Case(Transfer(steps=2), teacher=True),
    Case(Diagnostics(steps=3, restarts=2), "estimate", teacher=True),
    Case(Smoothing(sigma=0.1, n=300, n0=20), "probabilistic", needs=("sigma",)),
)
TABLE = {case.method.kind: case for case in CASES}
BALLS = [(case.method.kind, norm) for case in CASES for norm in Norm if norm in case.norms]
#: Each method in its first norm, and some in the other norms.
FIRST = {case.method.kind: next(norm for norm in Norm if norm in case.norms) for case in CASES}
QUICK = [
    *FIRST.items(),
    ("crown", Norm.L2),
    ("lipschitz", Norm.L2),
    ("joint", Norm.L1),
]

every_method = pytest.mark.parametrize("kind", TABLE)
every_ball = pytest.mark.parametrize(("kind", "norm"), only(QUICK, BALLS), ids=str)
pairs = pytest.mark.parametrize("kind", [kind for kind, case in TABLE.items() if case.teacher])


class Subject(nn.Module):
    """Four pixels, three classes; some parts are in training mode, some weights frozen."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            self.norm, self.drop = nn.BatchNorm1d(4), nn.Dropout(0.5)
            self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 3)
        with torch.no_grad():
            for parameter in (*self.first.parameters(), *self.last.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
                parameter.add_(noise * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        self.train()
        self.norm.eval()
        self.first.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.relu(self.first(self.drop(self.norm(x)))))


def images_of() -> Tensor:
    """Images with four pixels; in the first of those with a right label one pixel is black."""
    images = torch.rand(COUNT, 4, generator=torch.Generator().manual_seed(1))
    images[WRONG, 0] = 0.0
    return images


def labels_of() -> Tensor:
    """The predictions, except that the first few are wrong."""
    with torch.no_grad():
        labels = Subject().eval()(images_of()).argmax(1)
    labels[:WRONG] = (labels[:WRONG] + 1) % 3
    return labels


def state_of(*networks: nn.Module) -> dict[str, Any]:
    """All that a certification could change, of networks and of torch."""
    modules = [module for network in networks for module in network.modules()]
    parameters = [parameter for network in networks for parameter in network.parameters()]
    return {
        "training": [module.training for module in modules],
        "hooks": [len(module._forward_hooks) for module in modules],
        "types": [type(module) for module in modules],
        "weights": [weights_sha256(network) for network in networks],
        "requires_grad": [parameter.requires_grad for parameter in parameters],
        "no gradients": [parameter.grad is None for parameter in parameters],
        "random numbers": torch.get_rng_state().tolist(),
        "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(),
        "gradient mode": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "determinism": torch.get_deterministic_debug_mode(),
        "TF32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
    }


def run(kind: str, norm: Norm | None = None, **more: Any) -> MethodRows:
    """Certify the subject by one method of the table; by default in its first norm."""
    case, norm = TABLE[kind], norm or FIRST[kind]
    if case.teacher:
        more = {"teacher": Subject(noise=0.01), **more}
    asked = {"eps": EPS[norm], "norm": norm, "methods": (case.method,), "batch_size": BATCH, **more}
    model = asked.pop("model", None) or Subject()
    return certify(model, images_of(), labels_of(), **asked)[kind]


@cache
def observed(kind: str, norm: Norm) -> tuple[MethodRows, list[str]]:
    """The rows of all samples, and what the certification changed."""
    networks = {"model": Subject(), **({"teacher": Subject(noise=0.01)} if TABLE[kind].teacher else {})}
    before = state_of(*networks.values())
    rows = run(kind, norm, **networks)
    after = state_of(*networks.values())
    return rows, [name for name in before if before[name] != after[name]]


def whole(kind: str, norm: Norm | None = None) -> MethodRows:
    """The rows of all samples."""
    return observed(kind, norm or FIRST[kind])[0]


# Facts and settings


def test_the_table_lists_every_method() -> None:
    assert [type(case.method) for case in CASES] == list(METHODS)
    assert list(TABLE) == list(BY_KIND), "two methods share a name, or one has another name than it is listed by"


@every_method
def test_facts(kind: str) -> None:
    case, method = TABLE[kind], BY_KIND[kind]
    assert method.guarantee == Guarantee(case.guarantee)
    assert (method.about is About.PAIR) == case.teacher
    assert set(method.norms) == case.norms and len(set(method.norms)) == len(method.norms)
    for fact in (method.claim, method.paper, method.cost, method.__doc__ or ""):
        assert fact.strip(), "a fact is missing"
    assert "\n" not in method.claim + method.paper + method.cost, "a fact is longer than a line"
    names = [column.name for column in (*COMMON_COLUMNS, *method.columns) if column.name != "predicted"]
    assert len(set(names)) == len(names), f"a column is there twice: {names}"
    for column in method.columns:
        assert np.dtype(column.dtype).kind in "fiu" and column.description, f"{column.name}: no type, or says nothing"


@every_method
def test_settings_survive_being_written_and_read(kind: str) -> None:
    needs = {name: "1/4" for name in TABLE[kind].needs}
    for method in (parse(kind, needs), TABLE[kind].method):
        kept = [name for name in settings_of(BY_KIND[kind]) if name != "points"]  # where points come from is not kept
        assert list(method.options) == kept
        assert parse(kind, json.loads(json.dumps(method.options))) == method
    for name in needs:
        with pytest.raises(InputError, match=f"^method {kind}: the setting {name} is missing: give one, like {name}="):
            parse(kind, {})


@every_method
def test_a_wrong_setting_is_one_line_that_names_it(kind: str) -> None:
    given = TABLE[kind].method.options
    with pytest.raises(InputError, match=f"^method {kind}: unknown setting 'toleranze'") as refusal:
        parse(kind, {**given, "toleranze": 1})
    assert "\n" not in str(refusal.value)
    for name in given:
        with pytest.raises(InputError, match=rf"^method {kind}: {name}\b.*'nonsense'") as refusal:
            parse(kind, {**given, name: "nonsense"})
        assert "\n" not in str(refusal.value)


# Rows


@every_ball
@pytest.mark.thin(5)
def test_rows_are_total(kind: str, norm: Norm) -> None:
    """One status a row, none left open; a radius exactly where it is CERTIFIED, and never of an estimate."""
    rows = whole(kind, norm)
    status, radius = rows["status"], rows["radius"]
    assert len(rows) == COUNT and set(status) <= {s.value for s in Status} - {Status.PENDING, *FAILURES}, status
    assert rows["index"].tolist() == list(range(COUNT)) and rows["label"].tolist() == labels_of().tolist()
    relational = BY_KIND[kind].relational
    wrong = status[:WRONG] == Status.MISCLASSIFIED
    assert not wrong.any() if relational else wrong.all(), "a misclassified sample has another status"
    assert np.isfinite(radius).all() and ((radius > 0) == (status == Status.CERTIFIED)).all()
    counts = relational | (rows["correct"] == 1)
    assert (rows["certified"] == (counts & (radius >= rows.eps))).all(), "certified breaks its rule"
    if rows.attributes["guarantee"] == Guarantee.ESTIMATE:
        assert (radius == 0).all(), "an estimate has a radius"
    else:
        assert rows["certified"].any(), "nothing is certified at eps: the table's settings test nothing"


@every_ball
def test_a_bound_that_proves_eps_gives_a_radius_of_eps(kind: str, norm: Norm) -> None:
    rows = whole(kind, norm)
    if BY_KIND[kind].guarantee is Guarantee.DETERMINISTIC:
        proved = rows["margin"] > 0
        assert proved.any() and (rows["radius"][proved] >= rows.eps).all(), "proved at eps, and the radius is below"


@every_ball
def test_no_attack_inside_a_radius_changes_a_prediction(kind: str, norm: Norm) -> None:
    """Random points of each ball, and PGD on the margin; for a pair that agrees, of the teacher too."""
    rows, x = whole(kind, norm), images_of()
    held = torch.from_numpy(rows["radius"] > 0)
    if BY_KIND[kind].guarantee is not Guarantee.DETERMINISTIC or BY_KIND[kind].relational:
        return
    x, radius, predicted = x[held], torch.from_numpy(rows["radius"])[held], torch.from_numpy(rows["predicted"])[held]
    networks = [Subject().eval(), *([Subject(noise=0.01).eval()] if kind == "joint" else [])]
    for network in networks:
        for found in (random_points(x, radius, norm), attacked(network, x, radius, predicted, norm)):
            inside = norms((found.double() - x.double()).flatten(0, 1), norm).view(found.shape[:2]) <= radius
            with torch.no_grad():
                classes = network(found.flatten(0, 1)).argmax(1).view(found.shape[:2])
            assert inside.any(), "no point is inside its ball: nothing is tested"
            assert not (inside & (classes != predicted)).any(), f"{kind} in {norm}: a radius is broken"


def random_points(x: Tensor, radius: Tensor, norm: Norm) -> Tensor:
    """Points of each ball within the image box: ``(points, samples, pixels)``."""
    many, eps = x.repeat(POINTS, 1), radius.float().repeat(POINTS) * (1 - 1e-5)
    start = random_start(many, eps, norm, torch.Generator().manual_seed(0))
    return (many + start).clamp(0, 1).view(POINTS, *x.shape)


def attacked(network: nn.Module, x: Tensor, radius: Tensor, predicted: Tensor, norm: Norm) -> Tensor:
    """The points that PGD on the margin ends at: ``(1, samples, pixels)``."""
    eps = radius.float() * (1 - 1e-5)
    return ascend(lambda z: -margins(network(z), predicted), Balls(x, eps, norm), steps=20)[None]


@every_method
@pytest.mark.thin(5)
def test_batch_size_does_not_change_answers(kind: str) -> None:
    """A sum in another order may end a radius search elsewhere, but within its tolerance."""
    rows, alone = whole(kind), run(kind, batch_size=1)
    for name in ("status", "certified", "predicted"):
        np.testing.assert_array_equal(rows[name], alone[name], err_msg=name)
    np.testing.assert_allclose(alone["margin"], rows["margin"], rtol=1e-6, atol=1e-6)
    tolerance = getattr(TABLE[kind].method, "tolerance", 0.0)
    np.testing.assert_allclose(alone["radius"], rows["radius"], rtol=max(1e-6, 1.01 * tolerance))


class Interrupted(Exception):
    pass


class Interrupting(Reporter):
    """Ends a run once its first rows are written."""

    def advance(self, rows: int) -> None:
        if rows != WRONG:  # they are settled before the method is asked
            raise Interrupted


@every_method
@pytest.mark.thin(5)
def test_an_interrupted_run_ends_in_the_same_file(kind: str, tmp_path: Path) -> None:
    """And so does a second run with the same seed, in memory."""
    path = tmp_path / "a.h5"
    with pytest.raises(Interrupted):
        run(kind, out=path, reporter=Interrupting())
    assert 0 < read(path)[kind].count(Status.PENDING) < COUNT
    resumed = run(kind, out=path)
    rows, stored = whole(kind), read(path)[kind]
    assert rows.columns.keys() == resumed.columns.keys() == stored.columns.keys()
    for name, values in rows.columns.items():
        if "seconds" not in name:
            np.testing.assert_array_equal(resumed[name], values, err_msg=name)
            np.testing.assert_array_equal(stored[name], values, err_msg=name)


@every_method
def test_networks_and_torch_are_left_as_they_were(kind: str) -> None:
    assert observed(kind, FIRST[kind])[1] == []


@pairs
def test_a_pair_without_a_teacher_is_unsupported(kind: str) -> None:
    rows = run(kind, teacher=None)
    asked = rows["status"][0 if BY_KIND[kind].relational else WRONG :]
    assert (asked == Status.UNSUPPORTED).all() and (rows["radius"] == 0).all()
    assert "with a teacher: give one" in rows.attributes["reason"]
