"""Claims looked at again: what is true stays, each kind of lie is found, and nothing is asked of another network."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.verifiers.methods.test_complete import network_of
from tests.zoo import images, planted
from verifiers.bound_propagation.complete import Complete
from verifiers.certify import verify as module
from verifiers.certify.audit import proofs
from verifiers.certify.audit import subject as subjects
from verifiers.certify.audit.counterexamples import LOGIT_ROUNDING
from verifiers.certify.audit.findings import Audit, Finding
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.errors import Contradiction, InputError, Unsupported
from verifiers.core.quantities import Norm
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.geometry.margins import margins
from verifiers.results.reader import read, read_images
from verifiers.runtime.samples import Data

EPS = {"linf": "0.08", "l2": "0.15"}
METHODS = ("pgd", "ibp", "crown", "complete")
QUICK: dict[str, Any] = {"steps": 3, "restarts": 1}
#: Two that will be misclassified, two that are falsified, one that only branch and bound proves.
CHOSEN = [0, 1, 2, 3, 7, 11, 13, 14]


def subject() -> tuple[nn.Sequential, Tensor, Tensor]:
    """A network, images whose first pixel is so dark that balls leave the image box, and labels: two are wrong."""
    network, x = network_of((5, 10, 10, 3), 5), images((5,), 16, seed=2)[CHOSEN]
    x[:, 0] = 0.02
    with torch.no_grad():
        labels = network(x).argmax(1)
    labels[:2] = (labels[:2] + 1) % 3
    return network, x, labels


def written(place: Path, norm: str = "linf", methods: tuple[str, ...] = METHODS, **more: Any) -> Path:
    """An honest file about the subject."""
    network, x, labels = subject()
    options = QUICK if {"pgd", "complete"} & {*methods} else {}
    asked: dict[str, Any] = {"eps": EPS[norm], "norm": norm, "methods": methods, "options": options, **more}
    certify(network, x, labels, out=place, **asked)
    return place


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An honest file of each norm."""
    folder = tmp_path_factory.mktemp("honest")
    return {norm: written(folder / f"{norm}.h5", norm) for norm in EPS}


def audit(
    path: Path, subject: tuple[nn.Module, Tensor, Tensor] = subject(), teacher: nn.Module | None = None, **asked: Any
) -> Audit:
    """The audit of a file about the subject."""
    network, x, labels = subject
    config = VerifyConfig.parse({"sample": 1000, "time_limit": 5.0, "seed": 0, **asked})
    return verify(network, str(path), Data(x, labels), config, teacher=teacher)


def look(path: Path, subject: tuple[nn.Module, Tensor, Tensor] = subject(), **asked: Any) -> list[Finding]:
    """The findings of an audit."""
    return list(audit(path, subject, **asked).findings)


def contradictions(findings: list[Finding]) -> list[str]:
    """All contradictions."""
    return [line for finding in findings for line in finding.contradictions]


def of(findings: list[Finding], method: str, what: str) -> Finding:
    """The finding of a method whose remark begins so."""
    (found,) = (one for one in findings if one.method == method and one.remark.startswith(what))
    return found


Edit = Callable[[h5py.Group, int], None]


def forged(honest: Path, place: Path, method: str, row: int, edit: Edit) -> Path:
    """A copy with one row of a method edited."""
    place.write_bytes(honest.read_bytes())
    with h5py.File(place, "r+") as file:
        edit(file[method], row)
    return place


def to(**values: Any) -> Edit:
    """Columns of the row get other values."""

    def edit(group: h5py.Group, row: int) -> None:
        for name, value in values.items():
            group[name][row] = value

    return edit


def row_of(path: Path, method: str, status: Status, place: int = -1) -> int:
    """One of the method's rows in a status."""
    return int(np.flatnonzero(read(path)[method]["status"] == status)[place])


def only(findings: list[Finding]) -> str:
    """The first contradiction; all of them are about one sample."""
    lines = contradictions(findings)
    assert lines and len({line.split(": ")[0].split(", ")[-1] for line in lines}) == 1, lines
    assert all(one.asked == one.again + one.open + len(one.contradictions) for one in findings)
    assert all("\n" not in line for line in lines)
    return lines[0]


# ------------------------------------------------------------------------------------------------------------- truth


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
def test_an_honest_file_holds(honest: dict[str, Path], norm: str) -> None:
    findings, certificates = look(honest[norm]), read(honest[norm])
    assert contradictions(findings) == []
    for name, rows in certificates.methods.items():
        facts = of(findings, name, "predictions")
        assert facts.claims == facts.asked == facts.again == len(CHOSEN)
        if name in ("pgd", "complete"):
            stored = of(findings, name, "counterexamples")
            assert stored.claims == stored.asked == stored.again == rows.count(Status.FALSIFIED) > 0
        if name != "pgd":
            proofs = of(findings, name, "proofs")
            assert proofs.claims == proofs.asked == proofs.again == rows.count(Status.CERTIFIED) > 0
            assert proofs.open == 0 and "IBP and CROWN by" in proofs.remark
    assert certificates["complete"].count(Status.MISCLASSIFIED) == 2


@pytest.mark.skipif(importlib.util.find_spec("auto_LiRPA") is None, reason="auto-LiRPA is not installed")
@pytest.mark.parametrize(("wrote", "proves"), [("auto-lirpa", "native"), ("native", "auto-lirpa")])
@pytest.mark.slow
def test_the_other_engine_proves(tmp_path: Path, wrote: str, proves: str) -> None:
    path = written(tmp_path / "a.h5", methods=("crown",), engine=wrote)
    proofs = of(look(path, sample=3), "crown", "proofs")
    # Where the network is linear in the whole ball, rounding may leave the largest radius itself open.
    assert proofs.again >= 2 and proofs.asked == 3 and not proofs.contradictions
    assert proofs.remark.endswith(f"; IBP and CROWN by {proves}")


# -------------------------------------------------------------------------------------------------------------- lies


@pytest.mark.parametrize("norm", ["linf", pytest.param("l2", marks=pytest.mark.slow)])
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_a_radius_beyond_a_counterexample_is_found(
    honest: dict[str, Path], tmp_path: Path, method: str, norm: str
) -> None:
    """Each of them is claimed at 1.1 times the distance at which another method stored a counterexample."""
    complete = read(honest[norm])["complete"]
    row = next(
        int(i)
        for i in np.flatnonzero(complete["status"] == Status.FALSIFIED)
        if read(honest[norm])[method]["status"][i] == Status.CERTIFIED
    )
    radius = 1.1 * float(complete["distance"][row])
    lie = to(status=Status.CERTIFIED, radius=radius, certified=int(radius >= complete.eps))
    findings = look(forged(honest[norm], tmp_path / "lie.h5", method, row, lie))
    assert only(findings) == f"{method}, sample {row}: its radius contains a counterexample of the file"
    (line,) = of(findings, method, "attacks").contradictions
    assert line.startswith(f"{method}, sample {row}: a point at distance 0.") and f"{radius:.6g}" in line
    assert float(line.split("distance ")[1].split()[0]) <= radius


def test_a_falsifiable_sample_is_not_certified(honest: dict[str, Path], tmp_path: Path) -> None:
    row = row_of(honest["linf"], "complete", Status.FALSIFIED)
    lie = to(status=Status.CERTIFIED, radius=0.08, certified=1)
    findings = look(forged(honest["linf"], tmp_path / "lie.h5", "complete", row, lie))
    (line,) = of(findings, "complete", "attacks").contradictions
    assert line.startswith(f"complete, sample {row}: a point at distance 0.0")


@pytest.mark.slow
def test_a_counterexample_that_attacks_miss_is_found(tmp_path: Path) -> None:
    """The planted one, which no gradient betrays: the attack finds nothing, branch and bound does."""
    network, x, _ = planted(4, reach=0.1)
    labels = torch.zeros(1, dtype=torch.long)
    path = tmp_path / "planted.h5"
    rows = certify(network, x, labels, eps="0.05", methods=("pgd", "crown"), out=path)
    assert rows["crown"]["status"][0] == Status.CERTIFIED
    attack = certify(network, x, labels, eps="0.101", methods=("pgd",))["pgd"]
    assert attack["status"][0] == Status.NOT_CERTIFIED, "the attack finds it: nothing was tested"
    true = of(look(path, (network, x, labels)), "crown", "proofs")
    assert true.again == true.claims == 1
    lie = forged(path, tmp_path / "lie.h5", "crown", 0, to(radius=0.101))
    findings = look(lie, (network, x, labels), time_limit=120.0)
    assert only(findings).startswith("crown, sample 0: radius is 0.101 in the file, 0.0")


def _further(group: h5py.Group, row: int) -> None:
    group["counterexample"][row, 1] = subject()[1][row, 1] + 0.1


def _darker(group: h5py.Group, row: int) -> None:
    group["counterexample"][row, 0] = -0.01


def _clean(group: h5py.Group, row: int) -> None:
    group["counterexample"][row], group["distance"][row] = subject()[1][row].numpy(), 0.0


def _unknown(group: h5py.Group, row: int) -> None:
    group["counterexample"][row] = np.nan


COUNTEREXAMPLES: list[tuple[Edit, str]] = [
    (_further, "is outside the ball"),
    (_unknown, "is outside the ball"),
    (_darker, "is outside the image box"),
    (_clean, "is classified right"),
    (to(distance=0.01), "is at another distance"),
    (to(distance=np.nan), "is at another distance"),
    (to(margin=-9.0), "has another margin"),
]


@pytest.mark.parametrize(("edit", "words"), COUNTEREXAMPLES)
@pytest.mark.parametrize("method", ["pgd", "complete"])
@pytest.mark.thin(5)
def test_a_counterexample_that_does_not_hold_is_found(
    honest: dict[str, Path], tmp_path: Path, method: str, edit: Edit, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subjects, "BLOCK", 2)  # so that it lies in a later block
    row = row_of(honest["linf"], method, Status.FALSIFIED)
    findings = look(forged(honest["linf"], tmp_path / "lie.h5", method, row, edit), sample=0)
    assert f"{method}, sample {row}: its counterexample {words}" in contradictions(findings)
    found = of(findings, method, "counterexamples")
    assert found.asked == found.claims == found.again + 1 and found.open == 0


def test_an_invented_counterexample_is_found(honest: dict[str, Path], tmp_path: Path) -> None:
    """A row said to be falsified, with no image stored."""
    row = row_of(honest["linf"], "pgd", Status.NOT_CERTIFIED)
    lie = forged(honest["linf"], tmp_path / "lie.h5", "pgd", row, to(status=Status.FALSIFIED, distance=0.05))
    assert [line for line in contradictions(look(lie, sample=0)) if line.startswith(f"pgd, sample {row}: its count")]


def test_a_counterexample_on_the_boundary_is_open(honest: dict[str, Path], tmp_path: Path) -> None:
    """Another machine's rounding can change the sign of its margin: that is no contradiction."""
    network, x, _ = subject()
    row = row_of(honest["linf"], "pgd", Status.FALSIFIED)
    found = torch.from_numpy(read_images(honest["linf"], "pgd", "counterexample", [row]))
    low, high = x[row : row + 1].double(), found.double()
    with torch.no_grad():
        predicted = network(x[row : row + 1]).argmax(1)
        for _ in range(60):
            middle = (low + high) / 2
            beyond = margins(network(middle.float()), predicted) < LOGIT_ROUNDING / 4  # not 0, in any batch
            low, high = (low, middle) if beyond else (middle, high)
        assert LOGIT_ROUNDING / 4 <= float(margins(network(low.float()), predicted)) < LOGIT_ROUNDING / 2

    def edit(group: h5py.Group, row: int) -> None:
        group["counterexample"][row] = low[0].float().numpy()
        group["distance"][row] = float((low.float() - x[row]).abs().max())
        group["margin"][row] = -1e-7

    findings = look(forged(honest["linf"], tmp_path / "near.h5", "pgd", row, edit), sample=0)
    assert contradictions(findings) == []
    assert of(findings, "pgd", "counterexamples").open == 1


COLUMNS: list[tuple[str, Status, Edit, str]] = [
    ("ibp", Status.CERTIFIED, to(predicted=7), "the network predicts another class"),
    ("pgd", Status.NOT_CERTIFIED, to(predicted=7), "the network predicts another class"),
    ("ibp", Status.MISCLASSIFIED, to(correct=1), "it is not correct where the prediction is right, or the reverse"),
    ("ibp", Status.CERTIFIED, to(label=7), "its true class is another"),
    ("ibp", Status.CERTIFIED, to(index=99), "it is another sample"),
    ("ibp", Status.MISCLASSIFIED, to(status=Status.CERTIFIED, radius=1e-4), "it is certified and misclassified"),
    ("pgd", Status.NOT_CERTIFIED, to(radius=0.2, certified=1), "it has no radius and is certified, or the reverse"),
    ("pgd", Status.NOT_CERTIFIED, to(margin=-1.0), "no counterexample is stored and its margin is negative"),
    ("ibp", Status.CERTIFIED, to(margin=-1.0), "its radius is at least eps and its margin at eps is not positive"),
    ("ibp", Status.MISCLASSIFIED, to(status=Status.NOT_CERTIFIED), "it is wrong and has an answer"),
    ("pgd", Status.NOT_CERTIFIED, to(certified=1), "certified at eps is not what its radius says"),
    ("ibp", Status.CERTIFIED, to(radius=0.0), "it has no radius and is certified, or the reverse"),
]


@pytest.fixture(scope="module")
def ibp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of the attack and of intervals, at so small a radius that most are certified."""
    return written(tmp_path_factory.mktemp("ibp") / "ibp.h5", methods=("pgd", "ibp"), eps="0.001")


@pytest.mark.parametrize(("method", "status", "edit", "words"), COLUMNS)
@pytest.mark.thin(3)
def test_a_column_that_does_not_follow_is_found(
    ibp: Path, tmp_path: Path, method: str, status: Status, edit: Edit, words: str
) -> None:
    """Figures are made of these columns: a certified accuracy is the share of rows with certified = 1."""
    row = row_of(ibp, method, status)
    findings = look(forged(ibp, tmp_path / "lie.h5", method, row, edit), sample=0)
    assert only(findings) == f"{method}, sample {row}: {words}"


@pytest.mark.parametrize("radius", [np.inf, np.nan, -0.1, 1.5])
def test_a_radius_that_no_certificate_has_is_refused(ibp: Path, tmp_path: Path, radius: float) -> None:
    row = row_of(ibp, "ibp", Status.CERTIFIED)
    with pytest.raises(InputError, match=f"row {row} has the radius {radius}, which no certificate has"):
        look(forged(ibp, tmp_path / "lie.h5", "ibp", row, to(radius=radius, certified=1)))


def test_a_status_that_does_not_exist_is_refused(ibp: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has the status 99"):
        look(forged(ibp, tmp_path / "lie.h5", "ibp", 0, to(status=99)))


# ------------------------------------------------------------------------------------------------ other things, refused


def test_other_networks_and_images_are_refused(honest: dict[str, Path]) -> None:
    network, x, labels = subject()
    path = honest["linf"]

    def refusal(network: nn.Module, x: Tensor, labels: Tensor) -> str:
        with pytest.raises(InputError) as caught:
            look(path, (network, x, labels))
        return str(caught.value)

    assert "is about another network (model_sha256" in refusal(network_of((5, 10, 10, 3), 6), x, labels)
    leaky = nn.Sequential(*(nn.LeakyReLU(0.1) if isinstance(m, nn.ReLU) else m for m in network)).eval()
    assert "is about another structure (structure_sha256" in refusal(leaky, x, labels)
    brighter = x.clone()
    brighter[3, 2] += 0.01
    assert "is about another set of samples (data_sha256" in refusal(network, brighter, labels)
    assert "is about another set of samples" in refusal(network, x, labels.roll(1))
    assert "is about another set of samples" in refusal(network, x.flip(0), labels.flip(0))
    assert "is about another network" in refusal(network_of((7, 4, 3), 6), x, labels), "it was run before it was known"


@pytest.mark.slow
def test_a_network_in_training_mode_is_left_as_it_was(honest: dict[str, Path]) -> None:
    network, x, labels = subject()
    network.train()
    assert not contradictions(look(honest["linf"], (network, x, labels), sample=1))
    assert network.training


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        (0.0, "must be greater than 0, got 0.0"),
        (-1.0, "must be greater than 0, got -1.0"),
        (float("nan"), ": nan is not a number"),
        (float("inf"), ": inf is not a number"),
    ],
)
def test_a_time_limit_that_is_none_is_refused(honest: dict[str, Path], limit: float, words: str) -> None:
    with pytest.raises(InputError, match=f"^time_limit ?{words}"):
        look(honest["linf"], time_limit=limit)


@pytest.mark.slow
def test_claims_about_two_networks_need_both(tmp_path: Path) -> None:
    teacher = network_of((5, 6, 3), 1)
    path = written(tmp_path / "a.h5", methods=("crown", "joint"), eps="0.001", teacher=teacher)
    alone, both = audit(path, sample=2), audit(path, teacher=teacher, sample=2)
    assert not alone.contradictions and not both.contradictions
    assert list(alone.missing) == ["joint compares with a teacher that was not given: give the teacher"]
    assert not alone.holds and both.holds and not both.missing
    assert of(list(both.findings), "joint", "run again").asked == 2
    assert (
        of(list(both.findings), "joint", "attacks on the teacher's").asked
        == read(path)["joint"].count(Status.CERTIFIED)
        > 0
    )
    assert of(list(alone.findings), "joint", "attacks on the prediction").asked > 0
    with pytest.raises(InputError, match="is about another teacher"):
        audit(path, teacher=network_of((5, 6, 3), 2))
    with pytest.raises(InputError, match="has no rows about a teacher"):
        audit(written(tmp_path / "b.h5", methods=("ibp",), eps="0.001"), teacher=teacher)


def test_votes_are_counted_again(tmp_path: Path) -> None:
    options = {"sigma": 0.1, "n": 200, "n0": 20}
    path = written(tmp_path / "a.h5", "l2", ("smoothing",), options=options, eps="0.01")
    findings = look(path)
    votes = of(findings, "smoothing", "votes counted again")
    assert votes.asked == votes.again == len(CHOSEN) and not contradictions(findings)
    row = row_of(path, "smoothing", Status.CERTIFIED)
    lie = forged(path, tmp_path / "lie.h5", "smoothing", row, to(base=(subject()[2][row] + 1) % 3))
    assert only(look(lie)) == f"smoothing, sample {row}: the network predicts another class"


@pytest.mark.slow
def test_a_network_that_no_engine_takes_says_why(honest: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise Unsupported("no engine takes Fold")

    monkeypatch.setattr(Complete, "prepare", refuse)
    findings = look(honest["linf"])
    assert not [line for line in contradictions(findings) if not line.startswith("complete, ")]
    report = audit(written(honest["linf"].parent / "ibp.h5", methods=("ibp",), eps="0.001"))
    ibp = of(list(report.findings), "ibp", "proofs: no engine takes Fold")
    assert ibp.claims > 0 and ibp.asked == ibp.again == ibp.open == 0 and report.holds
    assert "ibp: no proof again: no engine takes Fold; no engine takes Fold" in report.limits


@pytest.mark.parametrize("when", ["prepared", "asked"])
@pytest.mark.slow
def test_bounds_that_exclude_each_other_are_a_contradiction(
    honest: dict[str, Path], monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    def broken(*_: Any) -> None:
        raise Contradiction("a bound is broken")

    if when == "prepared":
        monkeypatch.setattr(Complete, "prepare", broken)
    else:
        monkeypatch.setattr(proofs, "_answer", broken)
    findings = look(honest["linf"])
    assert contradictions(findings) == [f"{name}: a bound is broken" for name in ("ibp", "crown", "complete")]
    assert all(one.again == one.open == 0 for one in findings if one.remark == "a bound is broken")


# ---------------------------------------------------------------------------------------------- which ones, unfinished


@pytest.mark.slow
def test_the_seed_chooses_that_many_rows(ibp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = read(ibp)["ibp"]
    certified = set(np.flatnonzero(rows["status"] == Status.CERTIFIED).tolist())
    asked: list[int] = []

    def note(prover: Any, samples: Any, row: int, radius: float) -> dict[str, Any]:
        assert radius == rows["radius"][row]
        asked.append(row)
        return {"status": Status.TIMEOUT}

    monkeypatch.setattr(proofs, "_prover", lambda *_: None)
    monkeypatch.setattr(proofs, "_answer", note)
    monkeypatch.setattr(module, "run_again", lambda subject: [])

    def chosen(sample: int, seed: int | None) -> list[int]:
        asked.clear()
        report = audit(ibp, sample=sample, seed=seed)
        found = of(list(report.findings), "ibp", "proofs")
        assert found.asked == found.open == len(asked) and found.claims == len(certified)
        assert report.holds == (not report.contradictions), "an attacked claim is looked at"
        assert seed in (None, report.seed)
        return list(asked)

    few = chosen(3, 0)
    assert len(few) <= 3 and set(few) <= certified and chosen(3, 0) == few
    assert any(chosen(3, seed) != few for seed in (1, 2, 3)), "the seed chooses nothing"
    assert set(chosen(100, 0)) == certified and chosen(0, 0) == []
    assert len({audit(ibp, sample=0, seed=None).seed for _ in range(2)}) == 2, "a file could be made to suit the seed"


class Stop(Exception):
    pass


class Impatient(Reporter):
    """Stops a run after so many rows."""

    def __init__(self, rows: int) -> None:
        self.left = rows

    def advance(self, rows: int) -> None:
        self.left -= rows
        if self.left <= 0:
            raise Stop


@pytest.mark.slow
def test_an_unfinished_file_is_looked_at_as_far_as_it_goes(tmp_path: Path) -> None:
    path = tmp_path / "part.h5"
    with pytest.raises(Stop):
        written(path, methods=("pgd", "crown"), batch_size=4, reporter=Impatient(8 + 4))
    assert read(path)["crown"].count(Status.PENDING) == 4
    report = audit(path)
    findings = list(report.findings)
    assert not report.contradictions and not report.holds
    assert list(report.missing) == ["the file is not finished: 4 rows without an answer"]
    assert of(findings, "crown", "predictions").asked == of(findings, "crown", "run again").asked == 4
    proofs = of(findings, "crown", "proofs")
    assert proofs.asked == proofs.again == read(path)["crown"].count(Status.CERTIFIED) > 0


def test_a_file_whose_samples_are_not_known_yet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "part.h5"
    with pytest.raises(Stop):
        written(path, methods=("pgd", "crown"), batch_size=4, reporter=Impatient(4))
    with pytest.raises(InputError, match=r"part\.h5 is not finished: no method has an answer for 4 of 8 samples"):
        look(path)


@pytest.mark.slow
def test_samples_are_known_from_any_method(honest: dict[str, Path], tmp_path: Path) -> None:
    """The first method's rows are wanted again, as after a failure; the others have all of them."""

    def again(group: h5py.Group, row: int) -> None:
        group["status"][:], group["index"][:] = Status.PENDING, -1

    findings = look(forged(honest["linf"], tmp_path / "part.h5", "pgd", 0, again), sample=3)
    assert not contradictions(findings) and not [one for one in findings if one.method == "pgd"]
    assert of(findings, "complete", "counterexamples").again > 0


def test_what_is_no_certificate_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no certificate file"):
        look(tmp_path / "none.h5")


def test_norms_are_those_of_the_file(honest: dict[str, Path], tmp_path: Path) -> None:
    """An l2 counterexample is measured in l2: in linf it would lie well inside its ball."""
    row = row_of(honest["l2"], "pgd", Status.FALSIFIED)
    assert read(honest["l2"])["pgd"].attributes["norm"] == Norm.L2

    def sideways(group: h5py.Group, row: int) -> None:
        clean = subject()[1][row].numpy()
        group["counterexample"][row] = clean + 0.1  # at 0.1 in linf, at 0.22 in l2

    line = only(look(forged(honest["l2"], tmp_path / "lie.h5", "pgd", row, sideways), sample=0))
    assert line.endswith("its counterexample is outside the ball")
