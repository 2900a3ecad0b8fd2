"""The method autoattack: rows, flags, summary, audit and comparison."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from certkd.comparison.compare import figures
from tests.certifying import certify
from tests.verifiers.geometry.attacks.subjects import hidden, perceptron, pictures
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.core.errors import InputError
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.core.table import Table
from verifiers.methods.autoattack import AutoAttack
from verifiers.results.reader import read
from verifiers.results.rows import MethodRows
from verifiers.results.summaries.autoattack import TITLES, flags, summary
from verifiers.runtime.samples import Data

COUNT = 8
QUICK = {"steps": 10, "queries": 30}


class Listening(Reporter):
    """Keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def run(network: nn.Module, x: Tensor, eps: float = 0.1, **more: object) -> tuple[MethodRows, list[str]]:
    """Attack every image, and keep the warnings."""
    listening = Listening()
    with torch.no_grad():
        labels = network(x).argmax(1)
    settings = {**QUICK, **more}
    found = certify(network, x, labels, eps=eps, methods=["autoattack"], reporter=listening, **settings)  # type: ignore[arg-type]
    return found["autoattack"], listening.warnings


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with rows of pgd, autoattack and ibp; the first label is wrong."""
    network, x = perceptron(), pictures(COUNT)
    with torch.no_grad():
        labels = network(x).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    path = tmp_path_factory.mktemp("autoattack") / "rows.h5"
    methods = [{"kind": "pgd", "steps": 1, "restarts": 1}, {"kind": "autoattack", **QUICK}, "ibp"]
    certify(network, x, labels, eps=0.1, methods=methods, out=path)
    return path


def rows_of(path: Path) -> MethodRows:
    return read(path)["autoattack"]


def test_columns_say_which_attack_broke_a_sample(honest: Path) -> None:
    rows = rows_of(honest)
    found = np.stack([rows[name] for name in TITLES])
    falsified = rows["status"] == Status.FALSIFIED
    assert falsified.any() and ((found == 1).sum(0) == falsified).all(), "broken by one attack each, and no other row"
    assert (found[:, 0] == -1).all() and rows["status"][0] == Status.MISCLASSIFIED, "a wrong sample was attacked"
    kept = rows["status"] == Status.NOT_CERTIFIED
    assert (found[:, kept] == 0).all() and (rows["margin"][kept] >= 0).all() and (rows["margin"][falsified] < 0).all()
    assert not any(marks.any() for marks in AutoAttack(**QUICK).problems(rows, str(honest), 12).values())


@pytest.mark.slow
def test_the_audit_runs_every_counterexample_again(honest: Path) -> None:
    network, x = perceptron(), pictures(COUNT)
    with torch.no_grad():
        labels = network(x).argmax(1)
    labels[0] = (labels[0] + 1) % 5
    audit = verify(network, str(honest), Data(x, labels), VerifyConfig(sample=COUNT, seed=0))
    findings = [one for one in audit.findings if one.method == "autoattack"]
    assert findings and not [line for one in findings for line in one.contradictions]
    rerun = next(one for one in findings if one.remark == "counterexamples")
    assert rerun.claims == rerun.again == rows_of(honest).count(Status.FALSIFIED)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("apgd_ce", 2, "a flag is none of -1, 0 and 1"),
        ("zero_gradient", 5, "a flag is none of -1, 0 and 1"),
        ("margin", 1.0, "it is falsified and its margin is not negative"),
        ("square", 1, "an attack ran on it after it was falsified"),
    ],
)
def test_rows_that_contradict_themselves_are_marked(honest: Path, column: str, value: float, words: str) -> None:
    rows = rows_of(honest)
    row = int(np.flatnonzero(rows["apgd_ce"] == 1)[0])
    values = {name: array.copy() for name, array in rows.columns.items()}
    values[column][row] = value
    marks = AutoAttack(**QUICK).problems(MethodRows(rows.name, rows.attributes, values), "", 12)
    assert marks[words][row] and marks[words].sum() == 1


@pytest.mark.parametrize(
    ("status", "column", "value", "words"),
    [
        (Status.MISCLASSIFIED, "zero_gradient", 0, "an attack ran on it and it is misclassified"),
        (Status.MISCLASSIFIED, "square", 0, "an attack ran on it and it is misclassified"),
        (Status.FALSIFIED, "zero_gradient", 0, "its gradient was looked at and its second attack did not run"),
        (Status.NOT_CERTIFIED, "zero_gradient", -1, "its gradient was looked at and its second attack did not run"),
    ],
)
def test_flags_of_attacks_that_did_not_run_are_marked(
    honest: Path, status: Status, column: str, value: int, words: str
) -> None:
    rows = rows_of(honest)
    row = int(np.flatnonzero((rows["status"] == status) & ((status != Status.FALSIFIED) | (rows["apgd_ce"] == 1)))[0])
    values = {name: array.copy() for name, array in rows.columns.items()}
    values[column][row] = value
    marks = AutoAttack(**QUICK).problems(MethodRows(rows.name, rows.attributes, values), "", 12)
    found = next(mark for name, mark in marks.items() if name.startswith(words))
    assert found[row] and found.sum() == 1


def test_a_flag_without_a_counterexample_is_marked(honest: Path) -> None:
    rows = rows_of(honest)
    row = int(np.flatnonzero(rows["status"] == Status.NOT_CERTIFIED)[0])
    values = {name: array.copy() for name, array in rows.columns.items()}
    values["square"][row] = 1
    marks = AutoAttack(**QUICK).problems(MethodRows(rows.name, rows.attributes, values), "", 12)
    assert marks["it is falsified and no attack found that, or the reverse"][row]


@pytest.mark.parametrize(
    ("version", "flags", "words"),
    [
        ("fast", {}, "an attack ran on it that its version has not"),
        ("standard", {"square": -1}, "an attack of its version did not run on it"),
        ("each", {"apgd_t": -1}, "an attack of its version did not run on it"),
    ],
)
def test_flags_of_another_version_are_marked(honest: Path, version: str, flags: dict[str, int], words: str) -> None:
    rows = rows_of(honest)
    row = int(np.flatnonzero(rows["status"] == Status.NOT_CERTIFIED)[0])
    values = {name: array.copy() for name, array in rows.columns.items()}
    for name, flag in flags.items():
        values[name][row] = flag
    attack = AutoAttack.model_validate({**QUICK, "version": version})
    assert attack.problems(MethodRows(rows.name, rows.attributes, values), "", 12)[words][row]


def test_a_comparison_counts_the_samples_that_no_attack_broke(honest: Path) -> None:
    certificates = read(honest)
    pgd, rows = certificates["pgd"], certificates["autoattack"]
    kept = rows["status"] == Status.NOT_CERTIFIED
    blind = np.where(pgd["status"] == Status.FALSIFIED, Status.NOT_CERTIFIED, pgd["status"])
    weak = MethodRows("pgd", pgd.attributes, {**pgd.columns, "status": blind, "margin": np.ones(COUNT)})
    methods = {**certificates.methods, "pgd": weak}
    assert figures(replace(certificates, methods=methods)).pgd == kept.mean() < (blind == 2).mean()


def test_the_summary_counts_what_each_attack_broke(honest: Path) -> None:
    rows = rows_of(honest)
    table, *warnings = summary(rows, read(honest))
    assert isinstance(table, Table) and [line[0] for line in table.rows] == list(TITLES.values()) and not warnings
    for line, name in zip(table.rows, TITLES, strict=True):
        assert line[1:3] == [str((rows[name] >= 0).sum()), str((rows[name] == 1).sum())]
    assert table.rows[-1][3] == f"{(rows['status'] == Status.NOT_CERTIFIED).mean():.1%}"


# Versions


def test_versions_differ_in_what_runs() -> None:
    network, x = perceptron(), pictures(COUNT)
    fast, _ = run(network, x, version="fast")
    each, _ = run(network, x, version="each")
    assert (fast["fab_t"] == -1).all() and (fast["square"] == -1).all() and (fast["apgd_ce"] >= 0).all()
    assert all((each[name] >= 0).all() for name in TITLES)
    assert not any(marks.any() for marks in AutoAttack(version="each").problems(each, "", 12).values())
    assert set(np.flatnonzero(fast["status"] == Status.FALSIFIED)) <= set(
        np.flatnonzero(each["status"] == Status.FALSIFIED)
    )


def test_an_unknown_version_is_refused_in_one_line() -> None:
    with pytest.raises(InputError, match="'plus'") as refusal:
        AutoAttack(version="plus")  # type: ignore[arg-type]
    assert "\n" not in str(refusal.value)


# Flags


def test_zero_gradients_and_a_black_box_that_wins_are_flagged() -> None:
    rows, warnings = run(hidden(), torch.full((3, 1, 2, 5), 0.4), 0.2, queries=400)
    assert (rows["status"] == Status.FALSIFIED).all() and (rows["zero_gradient"] == 1).all()
    assert any("the gradient was zero at starts of 3 samples" in line for line in warnings), warnings
    assert any("Square, which needs no gradient, broke 3 samples" in line for line in warnings), warnings
    assert all("\n" not in line for line in warnings)


class Probabilities(nn.Module):
    """Gives a softmax in the middle of other operations, which is not left out."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x).softmax(1).flip(1).flip(1)


def test_probabilities_are_flagged() -> None:
    _, warnings = run(Probabilities().eval(), pictures(COUNT))
    assert any("the network gives probabilities" in line for line in warnings), warnings


def test_a_last_softmax_is_left_out_and_not_flagged() -> None:
    network, x = nn.Sequential(perceptron(), nn.Softmax(1)).eval(), pictures(COUNT)
    rows, warnings = run(network, x)
    plain, _ = run(perceptron(), x)
    assert not any("the network gives probabilities" in line for line in warnings)
    np.testing.assert_array_equal(rows["status"], plain["status"])


class Random(nn.Module):
    """Adds noise to every answer."""

    def __init__(self) -> None:
        super().__init__()
        self.body = perceptron()

    def forward(self, x: Tensor) -> Tensor:
        logits = self.body(x)
        return logits + 0.5 * torch.randn_like(logits)


def test_a_randomised_network_is_refused() -> None:
    with pytest.raises(InputError) as refusal:
        run(Random().eval(), pictures(COUNT))
    assert "\n" not in str(refusal.value)


def test_a_network_that_is_followed_well_has_no_flag(honest: Path) -> None:
    assert list(flags(rows_of(honest))) == []
    _, warnings = run(perceptron(), pictures(COUNT))
    assert warnings == []


@pytest.mark.parametrize(
    ("square", "others", "flagged"),
    [([1, 0, 0], [0, 0, 0], True), ([1, 0, 0], [1, 0, 0], False), ([0] * 3, [0] * 3, False)],
)
def test_the_black_box_is_flagged_only_where_it_is_alone(
    square: Sequence[int], others: Sequence[int], flagged: bool
) -> None:
    columns = {name: np.array(others, "int8") for name in TITLES} | {
        "square": np.array(square, "int8"),
        "zero_gradient": np.zeros(3, "int8"),
        "status": np.full(3, Status.NOT_CERTIFIED.value, "uint8"),
    }
    assert bool(list(flags(MethodRows("autoattack", {}, columns)))) is flagged
