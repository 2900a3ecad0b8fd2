"""Sentences and tables of results: the figures that are given, in words that do not change their meaning."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from certkd.comparison.carried_over import CarriedOver
from certkd.networks.copies.facts import Facts
from certkd.report import tables
from certkd.report.tables.certification import inspection, verification
from certkd.report.tables.comparison import kept
from verifiers.certify.audit.findings import Audit, Finding
from verifiers.certify.inspect import Cost, Preflight
from verifiers.core.table import Part, Table

CARRIED = CarriedOver(
    samples=50,
    norm="linf",
    eps="2/255",
    held=40,
    direct=20,
    through=10,
    at_least=15,
    blocked={"by the gradient": 7, "by the output": 3},
    to_first_order=12,
    shortfall=0.25,
)


def cells(parts: Sequence[Part], title: str) -> list[list[str]]:
    """The rows of the table whose title begins so."""
    (table,) = (part for part in parts if isinstance(part, Table) and part.title.startswith(title))
    assert all(len(row) == len(table.columns) for row in table.rows), f"{table.title}: ragged rows"
    return [list(row) for row in table.rows]


def test_a_verdict_in_words() -> None:
    share, blocked, order = kept(CARRIED)
    assert "it keeps 75.0% [59.8%, 85.8%]: 20 of 40 by its own certificates, 10 through the teacher's; 15" in share
    assert blocked == "Of the 10 that it loses: 7 by the gradient, 3 by the output."
    assert "is proved on 12 of 40; on the median sample it lacks 0.25 logits." in order


def test_a_verdict_says_no_more_than_is_known() -> None:
    assert kept(replace(CARRIED, held=0)) == [], "there is nothing to keep"
    assert len(kept(replace(CARRIED, blocked={}, shortfall=math.nan))) == 1
    assert "it lacks 0 logits" in kept(replace(CARRIED, shortfall=-0.5))[-1], "a condition with room lacks less than 0"


PREFLIGHT = Preflight(
    layers={"Linear": 2, "ReLU": 1},
    parameters=12_345,
    engines={"native": None, "auto-lirpa": "no such operator"},
    refused={"native": {"alpha-crown": "too large", "crown": "too large", "ibp": "other"}},
    operators={},
    costs=(Cost("ibp", 1, 0.5, 2**30), Cost("crown", 1_000, 7200.0, 2**31), Cost("alpha-crown", 1_000, 200_000.0, 0)),
    lipschitz={"everywhere": None, "on balls": "a softmax"},
)


def test_an_inspection_shows_what_each_engine_takes() -> None:
    parts = inspection(PREFLIGHT, "8/255", "l2")
    assert parts[0] == "12,345 parameters; layers: 2 Linear, 1 ReLU"
    assert cells(parts, "Bound-propagation engines") == [
        ["native", "takes it", "alpha-crown, crown: too large; ibp: other"],
        ["auto-lirpa", "refuses it", "no such operator"],
    ]
    assert cells(parts, "One evaluation of one sample at l2 eps 8/255") == [
        ["ibp", "1", "0.5 s", "1.00 GiB"],
        ["crown", "1,000", "2.0 h", "2.00 GiB"],
        ["alpha-crown", "1,000", "2.3 days", "0.00 GiB"],
    ]
    assert cells(parts, "Lipschitz constants") == [["everywhere", "yes", ""], ["on balls", "no", "a softmax"]]


def test_an_inspection_of_a_refused_network_is_short() -> None:
    refused = replace(PREFLIGHT, engines=dict.fromkeys(PREFLIGHT.engines, "no"), refused={}, costs=(), lipschitz={})
    assert [part.title for part in inspection(refused, "0.1", "linf") if isinstance(part, Table)] == [
        "Bound-propagation engines"
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.01234, "0.0123 s"), (119.0, "119 s"), (120.0, "2.0 min"), (7199.0, "120.0 min")]
)
def test_times_have_a_unit_that_people_read(seconds: float, shown: str) -> None:
    one = replace(PREFLIGHT, costs=(Cost("ibp", 1, seconds, 0),))
    assert cells(inspection(one, "0.1", "linf"), "One evaluation")[0][2] == shown


def test_claims_are_counted_as_they_were_checked() -> None:
    findings = [
        Finding("crown", claims=10, asked=8, again=5, contradictions=["row 3", "row 4"], remark="by native"),
        Finding("pgd", claims=4, remark="not asked"),
    ]
    verdict, table, limits = verification(Audit(findings, [], ["versions are not checked"], 7))
    assert limits == "Looked at in part, or not at all: versions are not checked. Rows were drawn with --seed 7."
    assert verdict == "The file is wrong: 2 contradictions."
    assert isinstance(table, Table) and table.columns[1:6] == ["claims", "checked", "hold", "open", "contradicted"]
    assert [list(row) for row in table.rows] == [
        ["crown", "10", "8", "5", "1", "2", "by native"],
        ["pgd", "4", "0", "0", "0", "0", "not asked"],
    ]


def test_an_audit_begins_with_its_verdict() -> None:
    findings = [Finding("crown", claims=10, asked=10, again=10)]
    partly = Audit(findings, ["joint compares with a teacher"], ["x"], 0)
    assert verification(partly)[2] == "not looked at: joint compares with a teacher" and not partly.holds
    assert verification(partly)[0] == "Nothing contradicts the file, but not every claim was looked at."
    whole = Audit(findings, [], ["x"], 0)
    assert whole.holds and str(verification(whole)[0]).startswith("Every claim was looked at")


def test_sizes_have_one_row_a_network(tmp_path: Path) -> None:
    (tmp_path / "a.pt").write_bytes(b"x" * 1234)
    whole = Facts(weights=2000, nonzero=2000, bytes=8000, multiply_adds=5000)
    thin = Facts(weights=2000, nonzero=500, bytes=8000, multiply_adds=1250)
    table = tables.sizes({"whole": (whole, tmp_path / "a.pt"), "thin": (thin, tmp_path / "none.pt")})
    assert table.rows == [["whole", "2,000", "0.0%", "5,000", "1,234"], ["thin", "2,000", "75.0%", "1,250", ""]]
