"""Forged and stale certificate files: none passes an audit, and honest files pass with every seed."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.marks import thin
from tests.verifiers.methods.test_complete import network_of
from tests.zoo import images
from verifiers.certify.audit.findings import Audit
from verifiers.certify.audit.proofs import proves_row
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.columns import indices_sha256
from verifiers.core.errors import InputError
from verifiers.core.noise import LOOKS
from verifiers.core.status import Status
from verifiers.results.rows import MethodRows
from verifiers.results.schema import attributes_of, put_attributes
from verifiers.runtime.fingerprint import structure_sha256, weights_sha256
from verifiers.runtime.samples import Data
from verifiers.smoothing.recount import consistency
from verifiers.smoothing.statistics import Law, Noise, Norm, Schedule

COUNT = 10
FILES: dict[str, dict[str, Any]] = {
    "proofs": {"eps": "0.15", "methods": ("pgd", "ibp", "crown"), "options": {"steps": 8, "restarts": 2}},
    "complete": {"eps": "0.15", "methods": ("complete",), "options": {"steps": 8, "restarts": 1, "time_limit": 60}},
    "slopes": {"eps": "0.02", "methods": ("lipschitz", "local-linearity"), "options": {"shells": 3, "steps": 3}},
    "pair": {
        "eps": "0.02",
        "methods": ("joint", "transfer", "diagnostics"),
        "options": {"steps": 3, "restarts": 2},
    },
    "votes": {"eps": "0.05", "norm": "l2", "methods": ("smoothing",), "options": {"sigma": 0.2, "n": 1000, "n0": 50}},
    "full": {
        "eps": "0.05",
        "norm": "l2",
        "methods": ("smoothing",),
        "options": {"sigma": 0.2, "n": 3000, "n0": 50, "question": "full"},
    },
}


@dataclass(frozen=True)
class Subject:
    """A network with a teacher, ten images, and labels of which two are wrong."""

    network: nn.Sequential
    teacher: nn.Sequential
    images: Tensor
    labels: Tensor

    @classmethod
    def make(cls) -> "Subject":
        network, x = network_of((4, 8, 3), 3), images((4,), COUNT, seed=1)
        with torch.no_grad():
            labels = network(x).argmax(1)
        labels[:2] = (labels[:2] + 1) % 3
        teacher = network_of((4, 8, 3), 3)
        with torch.no_grad():
            for weight in teacher.parameters():
                weight.add_(0.02 * torch.sin(torch.arange(weight.numel()).float()).reshape(weight.shape))
        return cls(network, teacher, x, labels)

    def certified(self, place: Path, kind: str, **changes: Any) -> Path:
        """An honest file."""
        asked = {**FILES[kind], **changes}
        teacher = {"teacher": self.teacher} if kind == "pair" else {}
        certify(self.network, self.images, self.labels, out=place, **asked, **teacher)
        return place

    def audit(self, path: Path, seed: int | None = None, teacher: bool = True, **asked: Any) -> Audit:
        """The audit of a file; of all rows unless a sample is given."""
        config = VerifyConfig.parse({"sample": 1000, "time_limit": 20.0, "seed": seed, **asked})
        known = self.teacher if teacher and path.stem.startswith("pair") else None
        return verify(self.network, str(path), Data(self.images, self.labels), config, teacher=known)


SUBJECT = Subject.make()


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An honest file of each kind."""
    folder = tmp_path_factory.mktemp("honest")
    return {kind: SUBJECT.certified(folder / f"{kind}.h5", kind) for kind in FILES}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.slow
def test_an_honest_file_passes(honest: dict[str, Path], kind: str) -> None:
    audit = SUBJECT.audit(honest[kind])
    assert audit.holds, [*audit.contradictions, *audit.missing]


@pytest.mark.slow
@pytest.mark.parametrize("kind", FILES)
def test_an_honest_file_passes_with_every_seed(honest: dict[str, Path], kind: str) -> None:
    for seed in range(8):
        audit = SUBJECT.audit(honest[kind], seed, sample=4)
        assert audit.holds, [*audit.contradictions, *audit.missing]


@pytest.mark.slow
def test_a_pair_is_not_looked_at_without_its_teacher(honest: dict[str, Path]) -> None:
    audit = SUBJECT.audit(honest["pair"], teacher=False, sample=0)
    assert not audit.holds and not audit.contradictions
    assert [line.split()[0] for line in audit.missing] == ["joint", "transfer", "diagnostics"] or audit.missing


# ------------------------------------------------------------------------------------------------------------ forgeries

Forge = Callable[[h5py.File], None]


def rows_of(group: h5py.Group, status: Status) -> np.ndarray:
    """The rows in a status; some must be."""
    found = np.flatnonzero(group["status"][:] == int(status))
    assert len(found), f"{group.name} has no row in the status {status.name}: nothing would be forged"
    return found


def follow(group: h5py.Group) -> None:
    """Make the column ``certified`` follow from the others, as a careful forger does."""
    group["certified"][:] = (group["correct"][:] == 1) & (group["radius"][:] >= group.attrs["eps"])


def scaled(method: str, factor: float, some: slice = slice(None)) -> Forge:
    """Radii of certified rows times a factor."""

    def forge(file: h5py.File) -> None:
        for row in rows_of(file[method], Status.CERTIFIED)[some]:
            file[method]["radius"][row] *= factor
        follow(file[method])

    return forge


def smallest_scaled(method: str, factor: float) -> Forge:
    """The smallest radius of certified rows times a factor."""

    def forge(file: h5py.File) -> None:
        rows = rows_of(file[method], Status.CERTIFIED)
        file[method]["radius"][rows[np.argmin(file[method]["radius"][:][rows])]] *= factor
        follow(file[method])

    return forge


def raised(method: str, radius: float) -> Forge:
    """All right rows certified at a radius, with a margin to match."""

    def forge(file: h5py.File) -> None:
        group = file[method]
        right = group["predicted"][:] == group["label"][:]
        group["radius"][:] = np.where(right, radius, 0.0)
        group["status"][:] = np.where(right, int(Status.CERTIFIED), group["status"][:])
        if "votes" not in group:
            group["margin"][:] = np.where(right, np.fmax(group["margin"][:], 0.5), group["margin"][:])
        follow(group)

    return forge


def marked(method: str, among: Status, place: int = -1, **values: Any) -> Forge:
    """One row of a status with other values."""

    def forge(file: h5py.File) -> None:
        row = rows_of(file[method], among)[place]
        for name, value in values.items():
            file[method][name][row] = value
        if not {"certified", "radius"} & set(values):
            follow(file[method])

    return forge


def moved(method: str, column: str, factor: float, offset: float = 0.0) -> Forge:
    """A whole column times a factor, plus an offset."""

    def forge(file: h5py.File) -> None:
        values = file[method][column]
        values[:] = (values[:] * factor + offset).astype(values.dtype)

    return forge


def attribute(name: str, value: Any, method: str = "") -> Forge:
    """An attribute of the file or of a method."""

    def forge(file: h5py.File) -> None:
        owner = file[method] if method else file
        put_attributes(owner, {name: value})

    return forge


def restamped(settings: dict[str, dict[str, Any]] | None = None, **values: Any) -> Forge:
    """Attributes changed wherever they stand: in the file, its identity, its settings and its methods."""

    def forge(file: h5py.File) -> None:
        identity = json.loads(file.attrs["identity"])
        for name, value in values.items():
            identity[name] = value
        for method, changes in (settings or {}).items():
            identity["settings"][method] |= changes
            put_attributes(file[method], changes)
        put_attributes(file, {**values, "settings": identity["settings"], "identity": identity})
        for group in file.values():
            put_attributes(group, {name: value for name, value in values.items() if name in group.attrs})
            if "eps_text" in values:
                put_attributes(group, {"eps": float(values["eps_text"])})
            follow(group)

    return forge


def hidden(method: str, status: Status, margin: float = 0.3) -> Forge:
    """Counterexamples taken out, with a margin to match."""

    def forge(file: h5py.File) -> None:
        group = file[method]
        for row in rows_of(group, Status.FALSIFIED):
            group["status"][row], group["distance"][row], group["margin"][row] = status, np.nan, margin
            if method == "complete":
                group["stage"][row], group["margin"][row] = 5, -margin

    return forge


def permuted(file: h5py.File) -> None:
    """All columns in another order, with the samples' hashes as they were."""
    order = np.roll(np.arange(COUNT), 1)
    for group in file.values():
        for column in group.values():
            column[:] = column[:][order]


def reordered(file: h5py.File) -> None:
    """The same, with the hash of the indices to match."""
    permuted(file)
    index = next(iter(file.values()))["index"][:]
    restamped(indices_sha256=indices_sha256(index))(file)


def doubled(file: h5py.File) -> None:
    """The easiest sample in the place of the hardest."""
    for group in file.values():
        easy = int(np.argmax(file["crown"]["radius"][:]))
        for column in group.values():
            column[0] = column[easy]


def swapped_radii(file: h5py.File) -> None:
    """Each radius in the next row."""
    group = file["crown"]
    rows = rows_of(group, Status.CERTIFIED)
    for name in ("radius", "margin"):
        group[name][rows] = np.roll(group[name][rows], 1)
    follow(group)


def kind_votes(change: Callable[[np.ndarray, int], np.ndarray]) -> Forge:
    """Other votes, and every column that follows from them."""

    def forge(file: h5py.File) -> None:
        group, attributes = file["smoothing"], attributes_of(file["smoothing"], "smoothing")
        full = attributes["question"] == "full"
        plan = (Schedule.single if full else Schedule.staged)(int(attributes["n"]), float(attributes["alpha"]))
        law = Law(Noise.GAUSSIAN, float(attributes["sigma"]), Norm.L2, 4)
        looks = np.array(plan.counts)
        for row in range(COUNT):
            selected, stage = int(group["selected"][row]), int(group["stage"][row])
            votes = group["votes"][row].astype(np.int64)
            votes = np.stack([change(votes[look], selected) for look in range(len(looks))])
            own, second = votes[:stage, selected][:, None], np.delete(votes[:stage], selected, 1).max(1)[:, None]
            one, p, q = plan.bounds(own, second)
            group["votes"][row] = votes[[*range(len(looks)), *[-1] * (LOOKS - len(looks))]]
            group["p_lower"][row], group["radius_two_class"][row] = one[0], law.radius(p, q)[0]
            radius = law.one_class(one)[0]
            group["radius_one_class"][row] = radius
            group["predicted"][row] = selected if radius > 0 else -1
            right = group["predicted"][row] == group["label"][row]
            group["correct"][row], group["radius"][row] = right, radius if right else 0.0
            known = Status.CERTIFIED if right else Status.MISCLASSIFIED
            group["status"][row] = known if radius > 0 else Status.ABSTAINED
        follow(group)

    return forge


def _all_for_one(votes: np.ndarray, selected: int) -> np.ndarray:
    return np.where(np.arange(len(votes)) == selected, votes.sum(), 0)


def _halved(votes: np.ndarray, selected: int) -> np.ndarray:
    lost = votes[selected] // 2
    return votes + np.where(np.arange(len(votes)) == selected, -lost, lost // (len(votes) - 1))


def _one_look(file: h5py.File) -> None:
    file["smoothing"]["stage"][:], file["smoothing"]["used"][:] = 1, 60


def both(*forgeries: Forge) -> Forge:
    """Several forgeries of one file."""

    def forge(file: h5py.File) -> None:
        for each in forgeries:
            each(file)

    return forge


SURE, OPEN, WRONG, BROKEN = Status.CERTIFIED, Status.NOT_CERTIFIED, Status.MISCLASSIFIED, Status.FALSIFIED
#: (kind of forgery, file, forgery). A careful forger is assumed: what follows from what is lied about follows.
FORGERIES: list[tuple[str, str, Forge]] = [
    ("radius", "proofs", scaled("crown", 4.0)),
    ("radius", "proofs", scaled("crown", 4.0, slice(-1, None))),
    ("radius", "proofs", scaled("crown", 1.05)),
    ("radius", "proofs", smallest_scaled("crown", 1.015)),
    ("radius", "proofs", scaled("ibp", 1.3)),
    ("radius", "proofs", scaled("crown", 0.5)),
    ("radius", "proofs", raised("ibp", 0.15)),
    ("radius", "proofs", swapped_radii),
    ("radius", "slopes", scaled("lipschitz", 1.2)),
    ("radius", "slopes", raised("local-linearity", 0.02)),
    ("radius", "complete", raised("complete", 0.15)),
    (
        "guarantee",
        "proofs",
        both(scaled("crown", 4.0), attribute("guarantee", "probabilistic", "crown")),
    ),
    ("guarantee", "proofs", attribute("guarantee", "estimate", "ibp")),
    ("guarantee", "proofs", attribute("guarantee", "deterministic", "pgd")),
    ("guarantee", "votes", attribute("guarantee", "deterministic", "smoothing")),
    ("guarantee", "proofs", attribute("claim", "every margin is positive everywhere", "crown")),
    ("pair", "pair", raised("joint", 1.0)),
    ("pair", "pair", raised("joint", 0.02)),
    ("pair", "pair", raised("transfer", 0.02)),
    ("pair", "pair", moved("joint", "gap", 0.5)),
    ("pair", "pair", moved("joint", "deficit", 0.5)),
    ("pair", "pair", moved("transfer", "shortfall", 1.0, -2.0)),
    ("pair", "pair", moved("transfer", "gamma_student", 0.1)),
    ("pair", "pair", moved("transfer", "theorem_a", 1.0, -0.3)),
    ("estimates", "pair", moved("diagnostics", "gradient_cosine", 0.5)),
    ("estimates", "pair", moved("diagnostics", "gradient_gap", 0.1)),
    ("estimates", "pair", moved("diagnostics", "margin", 3.0)),
    ("teacher", "pair", restamped(joint_teacher_sha256="0" * 64)),
    ("votes", "votes", raised("smoothing", 0.6)),
    ("votes", "votes", moved("smoothing", "radius_two_class", 1.1)),
    ("votes", "votes", moved("smoothing", "p_lower", 0.99)),
    ("votes", "votes", kind_votes(_all_for_one)),
    ("votes", "full", kind_votes(_all_for_one)),
    ("votes", "full", kind_votes(_halved)),
    ("votes", "votes", moved("smoothing", "votes", 2.0)),
    ("votes", "votes", moved("smoothing", "selected", 0.0, 1.0)),
    ("votes", "votes", _one_look),
    ("votes", "votes", marked("smoothing", Status.CERTIFIED, status=Status.ERROR, radius=0.0, certified=0)),
    ("votes", "votes", restamped({"smoothing": {"alpha": 0.3}})),
    ("votes", "votes", restamped({"smoothing": {"sigma": 0.4}})),
    ("votes", "full", restamped({"smoothing": {"n": 100000}})),
    ("hidden", "proofs", hidden("pgd", OPEN)),
    ("hidden", "complete", hidden("complete", OPEN)),
    ("hidden", "complete", hidden("complete", Status.TIMEOUT)),
    ("hidden", "complete", hidden("complete", Status.UNSUPPORTED)),
    ("counterexample", "proofs", moved("pgd", "counterexample", 1.0, 0.2)),
    ("counterexample", "proofs", moved("pgd", "distance", 0.5)),
    (
        "counterexample",
        "proofs",
        marked("pgd", OPEN, status=BROKEN, distance=0.1, margin=-1.0),
    ),
    ("estimates", "proofs", marked("pgd", OPEN, margin=9.0)),
    ("bounds", "proofs", moved("crown", "margin", 1.0, 0.2)),
    ("bounds", "proofs", marked("crown", SURE, margin=7.0)),
    ("bounds", "complete", moved("complete", "margin", 1.01)),
    ("bounds", "slopes", moved("lipschitz", "constant", 0.9)),
    ("bounds", "slopes", moved("lipschitz", "gradient", 2.0)),
    ("bounds", "slopes", moved("local-linearity", "gamma_minus", 0.0)),
    ("bounds", "slopes", moved("local-linearity", "ce_gamma_plus", 3.0)),
    ("eps", "proofs", attribute("eps", 0.01, "crown")),
    ("eps", "proofs", attribute("eps_text", "0.01", "crown")),
    ("eps", "proofs", restamped(eps_text="0.03")),
    ("eps", "complete", restamped(eps_text="0.12")),
    ("norm", "proofs", restamped(norm="l2")),
    ("norm", "proofs", attribute("norm", "l1", "crown")),
    ("norm", "votes", restamped(norm="linf")),
    ("status", "proofs", marked("crown", SURE, status=99)),
    (
        "status",
        "proofs",
        marked("crown", SURE, status=OPEN, radius=0.0, certified=0, margin=-0.1),
    ),
    (
        "status",
        "proofs",
        marked("crown", WRONG, status=SURE, radius=0.15, correct=1, certified=1),
    ),
    ("status", "proofs", marked("pgd", WRONG, status=OPEN, margin=1.0)),
    (
        "status",
        "proofs",
        marked("crown", SURE, status=Status.VACUOUS, radius=0.0, certified=0, margin=-0.1),
    ),
    ("status", "proofs", marked("crown", WRONG, status=Status.PENDING)),
    ("status", "proofs", marked("ibp", SURE, status=Status.ERROR, radius=0.0, certified=0)),
    (
        "columns",
        "proofs",
        marked("crown", WRONG, label=0, predicted=0, correct=1, radius=0.1, status=1, certified=1),
    ),
    ("columns", "proofs", moved("crown", "index", 1.0, 1.0)),
    ("columns", "proofs", marked("ibp", WRONG, certified=1)),
    ("columns", "votes", moved("smoothing", "base", 0.0, 2.0)),
    ("absurd", "proofs", marked("crown", SURE, radius=np.nan)),
    ("absurd", "proofs", marked("crown", SURE, radius=-0.1)),
    ("absurd", "proofs", marked("crown", SURE, radius=np.inf)),
    ("absurd", "proofs", marked("crown", SURE, radius=2.0)),
    ("order", "proofs", permuted),
    ("order", "proofs", reordered),
    ("order", "votes", permuted),
    ("twice", "proofs", doubled),
    ("settings", "proofs", attribute("steps", 1000, "pgd")),
    ("settings", "proofs", restamped({"crown": {"tolerance": -1}})),
    ("identity", "proofs", attribute("samples", 1000)),
    ("identity", "proofs", attribute("eps_text", "0.01")),
    ("identity", "proofs", attribute("architecture", "resnet50")),
    ("identity", "proofs", attribute("indices_sha256", "0" * 64)),
    ("times", "proofs", marked("ibp", SURE, seconds=-1e-9)),
    ("times", "votes", marked("smoothing", SURE, seconds=np.nan)),
    ("times", "complete", marked("complete", SURE, crown_seconds=-0.1)),
    ("times", "complete", marked("complete", SURE, attack_seconds=np.inf)),
    ("run", "proofs", attribute("tf32", True)),
    ("run", "proofs", attribute("dtype", "float16")),
    ("run", "proofs", attribute("pixels", 5)),
    ("teacher", "proofs", restamped(joint_teacher_sha256="0" * 64)),
    ("hashes", "proofs", restamped(model_sha256="0" * 64)),
    ("hashes", "proofs", restamped(data_sha256="0" * 64)),
    ("hashes", "proofs", restamped(structure_sha256="0" * 64)),
]


def _name(place: int) -> str:
    kind, file, _ = FORGERIES[place]
    return f"{place}-{kind}-{file}"


def test_the_table_has_many_kinds() -> None:
    assert len(FORGERIES) >= 40 and len({kind for kind, _, _ in FORGERIES}) >= 15


@pytest.mark.parametrize("place", thin(range(len(FORGERIES))), ids=_name)
@pytest.mark.thin(5)
def test_a_forgery_does_not_pass(honest: dict[str, Path], tmp_path: Path, place: int) -> None:
    kind, name, forge = FORGERIES[place]
    path = tmp_path / f"{name}.h5"
    path.write_bytes(honest[name].read_bytes())
    with h5py.File(path, "r+") as file:
        forge(file)
    assert path.read_bytes() != honest[name].read_bytes(), "nothing was forged"
    try:
        audit = SUBJECT.audit(path)
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert not audit.holds, f"a forgery passes: {kind}"
    assert audit.contradictions or audit.missing


@pytest.mark.slow
def test_a_lie_in_rows_that_are_not_drawn_is_attacked(honest: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "blind.h5"
    path.write_bytes(honest["proofs"].read_bytes())
    with h5py.File(path, "r+") as file:
        scaled("crown", 2.0)(file)
    audit = SUBJECT.audit(path, sample=0)
    attacked = [line for line in audit.contradictions if " changes the prediction" in line]
    others = [line for line in audit.contradictions if line not in attacked]
    assert attacked and all("contains a counterexample of the file" in line for line in others), others


@pytest.mark.slow
@pytest.mark.parametrize("known", [True, False])
def test_a_radius_within_the_search_tolerance_is_proved_by_other_means_or_wrong(
    honest: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: bool
) -> None:
    path = tmp_path / "proofs.h5"
    path.write_bytes(honest["proofs"].read_bytes())
    with h5py.File(path, "r+") as file:
        scaled("crown", 1.009)(file)
    monkeypatch.setattr("verifiers.certify.audit.again.proves_row", lambda subject, rows, row: known)
    wrong = [
        line for line in SUBJECT.audit(path, 0, sample=3).contradictions if "nothing proves the larger one" in line
    ]
    assert bool(wrong) is not known, "a radius that nothing proves passes, or one that is proved does not"
    assert all(line.startswith("crown, sample ") for line in wrong)


@pytest.mark.slow
def test_a_proof_by_other_means_is_of_the_radius_in_the_file(
    honest: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    subjects: list[Any] = []
    monkeypatch.setattr("verifiers.certify.verify.run_again", lambda subject: subjects.append(subject) or [])
    SUBJECT.audit(honest["proofs"], sample=0)
    rows, (row, *_) = subjects[0].certificates["crown"], rows_of(h5py.File(honest["proofs"])["crown"], SURE)
    assert proves_row(subjects[0], rows, int(row))
    larger = np.minimum(10 * rows["radius"], 1.0)
    beyond = MethodRows(rows.name, rows.attributes, {**rows.columns, "radius": larger})
    assert not proves_row(subjects[0], beyond, int(row))


# ---------------------------------------------------------------------------------------------------------- stale files


def _other_weights() -> Subject:
    network = network_of((4, 8, 3), 3)
    with torch.no_grad():
        network[1].weight[0, 0] += 0.05
    return Subject(network, SUBJECT.teacher, SUBJECT.images, SUBJECT.labels)


STALE = {
    "other weights": _other_weights(),
    "another order": Subject(SUBJECT.network, SUBJECT.teacher, SUBJECT.images.flip(0), SUBJECT.labels.flip(0)),
    "other labels": Subject(SUBJECT.network, SUBJECT.teacher, SUBJECT.images, SUBJECT.labels.roll(1)),
}


@pytest.mark.parametrize("what", STALE)
def test_a_stale_file_is_refused(honest: dict[str, Path], what: str) -> None:
    with pytest.raises(InputError, match="is about another"):
        STALE[what].audit(honest["proofs"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["proofs", "slopes", "votes"])
def test_a_stale_file_with_new_hashes_does_not_pass(honest: dict[str, Path], tmp_path: Path, kind: str) -> None:
    other = _other_weights()
    with torch.no_grad():
        other.network[1].weight.mul_(1.2)
    path = tmp_path / f"{kind}.h5"
    path.write_bytes(honest[kind].read_bytes())
    with h5py.File(path, "r+") as file:
        hashes = {"model_sha256": weights_sha256(other.network), "structure_sha256": structure_sha256(other.network)}
        restamped(**hashes)(file)
    assert not other.audit(path).holds


# ------------------------------------------------------------------------------------------------ the test of the votes


def test_consistency_is_fishers_exact_test() -> None:
    from scipy.stats import hypergeom

    k, n, again, m = np.array([90, 500, 0, 40]), np.array([100, 1000, 10, 50]), np.array([12, 30, 0, 20]), 50
    found = consistency(k, n, again, m)
    for i in range(len(k)):
        law = hypergeom(n[i] + m, k[i] + again[i], m)
        tails = law.cdf(again[i]), law.sf(again[i] - 1)
        assert found[i] == pytest.approx(min(1.0, 2 * min(tails)), rel=1e-8)


def test_honest_votes_are_consistent_at_the_level() -> None:
    random = np.random.default_rng(0)
    p = random.random(4000)
    n = np.full(4000, 300)
    found = consistency(random.binomial(n, p), n, random.binomial(100, p), 100)
    for level in (0.2, 0.05, 0.01):
        assert (found < level).mean() <= level * 1.3, f"more than {level} of honest votes fail"
    assert (consistency(np.full(9, 290), np.full(9, 300), np.full(9, 60), 100) < 1e-9).all()
