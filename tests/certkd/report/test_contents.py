"""What the tables say: counts at eps first, a radius above 0 is no certificate at eps, 80 columns hold them."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from certkd.comparison.compare import compare
from certkd.report import tables
from certkd.report.console import display
from tests.certificate_files import write_file
from verifiers.core.columns import COMMON_COLUMNS
from verifiers.core.errors import InputError
from verifiers.core.statistics import wilson
from verifiers.core.status import Status
from verifiers.core.table import Table
from verifiers.methods.registry import BY_KIND, find
from verifiers.results.rows import Certificates, MethodRows

COUNT, EPS = 12, 0.1
NOISE = {"smoothing": {"sigma": 0.25, "n": 1000}}
FACTS = {
    "graphs": "joint",
    "certkd_version": "1",
    "torch_version": "2",
    "auto_lirpa_version": "3",
    "numpy_version": "4",
    "device": "cpu",
    "started": "now",
    "command": "certkd",
    "architecture": "certkd:mlp",
    "model_sha256": "ab" * 32,
}


def rows(method: str, seed: int = 0, status: Status = Status.CERTIFIED, radius: float = 0.2) -> dict[str, np.ndarray]:
    """Rows of a method with numbers in every column, all in one status."""
    random = np.random.default_rng(seed)
    values = {c.name: random.uniform(0, 3, COUNT) for c in (*COMMON_COLUMNS, *find(method).columns) if not c.axes}
    shares = {
        "correct": 1,
        "certified": radius >= EPS,
        "status": status.value,
        "radius": radius,
        "index": 0,
        "label": 0,
        "predicted": 0,
    }
    return {**values, **{name: np.full(COUNT, value) for name, value in shares.items()}, "index": np.arange(COUNT)}


def file(path: Path, *methods: str, **changes: Any) -> Certificates:
    content = {method: rows(method, **changes) for method in methods}
    certificates = write_file(path, content, eps=EPS, settings=NOISE, **FACTS)
    if "joint" in certificates:
        certificates["joint"].attributes["graphs"] = "joint"  # type: ignore[index]
    return certificates


def cells(table: Table, first: str) -> list[str]:
    """The row of a table that begins so."""
    (found,) = (list(row) for row in table.rows if row[0] == first)
    return found


def test_80_columns_hold_every_method(tmp_path: Path) -> None:
    certificates = file(tmp_path / "a.h5", *BY_KIND)
    parts = [*tables.contents(certificates), *tables.summaries(certificates)]
    assert sum(isinstance(part, Table) for part in parts) >= 7, "a summary is missing"
    for part in parts:
        screen = io.StringIO()
        display(part, console=Console(file=screen, width=10_000))
        lines = [line.rstrip() for line in screen.getvalue().splitlines()]
        assert isinstance(part, str) or max(map(len, lines[1:])) <= 80, screen.getvalue()


def test_80_columns_hold_a_comparison(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = file(tmp_path / "1.h5", "crown", "crown-ibp", "ibp", seed=1)
    monkeypatch.setitem(FACTS, "model_sha256", "cd" * 32)
    two = file(tmp_path / "2.h5", "crown", "crown-ibp", "ibp", seed=1)
    for part in tables.comparison(compare(one, two), "teacher", "student"):
        screen = io.StringIO()
        display(part, console=Console(file=screen, width=10_000))
        assert isinstance(part, str) or max(len(line.rstrip()) for line in screen.getvalue().splitlines()) <= 80, part


def test_a_radius_below_eps_is_not_called_certified(tmp_path: Path) -> None:
    small, large = (file(tmp_path / f"{radius}.h5", "crown", radius=radius) for radius in (0.05, 0.2))
    for certificates, count, accuracy in ((small, "0", ">= 0.0%"), (large, str(COUNT), ">= 100.0%")):
        contents, statuses = tables.contents(certificates)
        assert isinstance(contents, Table) and isinstance(statuses, Table)
        assert cells(contents, "crown")[1:3] == [count, accuracy] and contents.columns[1] == "at eps"
        assert "certified" not in " ".join(statuses.columns)
        assert statuses.columns == ["method", "radius > 0"] and cells(statuses, "crown") == ["crown", str(COUNT)]


@pytest.mark.parametrize("status", [Status.PENDING, Status.TIMEOUT, Status.ERROR])
def test_without_all_answers_there_is_no_accuracy(tmp_path: Path, status: Status) -> None:
    content = rows("crown")
    content["status"][3] = status
    contents, statuses = tables.contents(write_file(tmp_path / "a.h5", {"crown": content}, eps=EPS))
    assert isinstance(contents, Table) and cells(contents, "crown")[1:4] == ["-", "-", "-"]
    assert isinstance(statuses, Table) and status.name.lower() in statuses.columns


def test_an_attack_leaves_an_upper_limit(tmp_path: Path) -> None:
    contents, _ = tables.contents(file(tmp_path / "a.h5", "pgd", status=Status.NOT_CERTIFIED, radius=0.0))
    assert isinstance(contents, Table) and cells(contents, "pgd")[1:4] == [str(COUNT), "<= 100.0%", "-"]


def test_what_a_method_is_worth_is_not_read_from_its_file(tmp_path: Path) -> None:
    certificates = file(tmp_path / "a.h5", "pgd", status=Status.NOT_CERTIFIED)
    certificates["pgd"].attributes["guarantee"] = "deterministic"  # type: ignore[index]
    contents, _ = tables.contents(certificates)
    assert isinstance(contents, Table) and cells(contents, "pgd")[-1] == "estimate"
    with pytest.raises(InputError, match="pgd: the file says its guarantee is deterministic"):
        compare(certificates, certificates)


def test_rows_of_an_unknown_method_are_refused(tmp_path: Path) -> None:
    known = file(tmp_path / "a.h5", "crown")
    strange = MethodRows("crwn", known["crown"].attributes, known["crown"].columns)
    certificates = Certificates(known.attributes, {"crwn": strange}, "b.h5")
    for refused in (tables.contents, lambda file: compare(known, file)):
        with pytest.raises(InputError, match=r"b\.h5: unknown method 'crwn'\. Did you mean 'crown'\?"):
            refused(certificates)


def test_facts_name_network_data_and_settings(tmp_path: Path) -> None:
    text = "\n".join(tables.facts(file(tmp_path / "a.h5", "crown")).lines())
    assert "certkd:mlp  sha256 abab" in text and "given as arrays  sha256 data" in text
    assert "crown engine=auto" in text or "engine=" in text
    assert find("crown").claim in text


def test_the_answer_is_one_sentence(tmp_path: Path) -> None:
    content = rows("crown", radius=0.2)
    (found,) = tables.answer(write_file(tmp_path / "a.h5", {"crown": content}, eps=EPS))
    sure = wilson(COUNT, COUNT)
    assert found == (
        f"At eps 0.1 (linf) {COUNT} of {COUNT} samples are correct and certified (100.0%, 95 % interval {sure.low:.1%} "
        "to 100.0%)."
    )
    content["status"][:2], content["certified"][:2] = Status.PENDING, 0
    (found,) = tables.answer(write_file(tmp_path / "b.h5", {"crown": content}, eps=EPS))
    assert (
        found.startswith(f"At eps 0.1 (linf) {COUNT - 2} of {COUNT} samples") and "; 2 samples not asked yet." in found
    )
    broken = file(tmp_path / "c.h5", "pgd", status=Status.FALSIFIED, radius=0.0)
    assert tables.answer(broken) == [f"At eps 0.1 (linf) an attack breaks {COUNT} of {COUNT} samples."]
    assert tables.answer(file(tmp_path / "d.h5", "match")) == []
