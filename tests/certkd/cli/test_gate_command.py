"""``certkd gate``: its answer, exit codes, JUnit XML and Markdown, and networks that are certified on the way."""

import json
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import junitparser
import numpy as np
import pytest
import torch
from ruamel.yaml import YAML

from certkd.cli import cli
from certkd.comparison.gate import Counts, Decision, Rule, Verdict
from certkd.config.settings import DataConfig
from certkd.data.sources import load as load_data
from certkd.networks.checkpoint import load, save
from certkd.report.gate import Gated, junit, markdown
from tests.certkd.comparison.test_compare import attack, file, proofs
from tests.cli import certkd, refused, succeeds
from tests.paths import REFERENCE, ROOT

COUNT = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped network's file, a better one's, a worse one's, one of about the same, and one without an attack."""
    place = tmp_path_factory.mktemp("gate")
    correct = np.arange(COUNT) % 10 != 9
    shares = {"shipped": 0.6, "better": 0.65, "worse": 0.4, "near": 0.58, "bare": 0.6}
    for name, share in shares.items():
        radius = np.where(np.arange(COUNT) < share * COUNT, 0.2, 0.05) * correct
        content = {"crown": proofs(correct, radius)}
        if name != "bare":
            content = {"pgd": attack(correct, np.zeros(COUNT, bool)), **content}
        file(place / f"{name}.h5", content, model_sha256=name)
    return place


CASES = [
    ("better", ["certified>=0.95*shipped"], 0, "The gate passes: 1 of 1 requirement met"),
    ("better", ["certified>=0.95*shipped", "clean>=shipped-0.05"], 0, "The gate passes: 2 of 2 requirements met"),
    ("worse", ["certified>=0.95*shipped"], 1, "The gate fails: 1 of 1 requirement failed"),
    ("worse", ["certified>=0.95*shipped", "clean>=shipped-0.05"], 1, "The gate fails: 1 of 2 requirements failed"),
    ("worse", ["retention>=0.9"], 1, "The gate fails"),
    ("near", ["certified>=0.95*shipped"], 2, "The gate is not decided: 1 of 1 requirement needs more samples"),
    ("near", ["pgd>=shipped-0.05"], 0, "The gate passes"),
]


@pytest.mark.parametrize(("new", "rules", "code", "words"), CASES, ids=lambda value: str(value))
def test_the_exit_code_is_the_answer(folder: Path, new: str, rules: list[str], code: int, words: str) -> None:
    given = [part for rule in rules for part in ("--require", rule)]
    result = certkd("gate", folder / f"{new}.h5", "--shipped", folder / "shipped.h5", *given)
    assert result.code == code and result.out.startswith(words), result
    if code == 2:
        assert (
            result.err == "certkd: 300 samples cannot decide at alpha 0.05: certify more, or loosen the requirement\n"
        )
    else:
        assert result.err == ""


def test_its_document_has_counts_and_hashes(folder: Path) -> None:
    given = ("gate", folder / "better.h5", "--shipped", folder / "shipped.h5", "--require", "certified>=0.95*shipped")
    content = json.loads(succeeds(*given, "--json"))
    assert content["verdict"] == "met" and content["exit_code"] == 0 and content["alpha"] == "0.05"
    assert (content["new_sha256"], content["shipped_sha256"]) == ("better", "shipped")
    decision = content["decisions"][0]
    assert decision["both"] == 162 and decision["gained"] == 14 and decision["lost"] == 0 and content["lost"] == []


def test_any_ci_reads_its_junit(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "new folder" / "gate.xml"
    rules = ("--require", "certified>=0.95*shipped", "--require", "clean>=shipped-0.05")
    result = certkd("gate", folder / "worse.h5", "--shipped", folder / "shipped.h5", *rules, "--junit", place)
    assert result.code == 1 and f"written to {place}" in result.out
    suite = next(iter(junitparser.JUnitXml.fromfile(str(place))))
    assert (suite.tests, suite.failures, suite.errors) == (2, 1, 0)
    failed, passed = list(suite)
    assert failed.name == "certified>=0.95*shipped" and failed.classname == "certkd.gate" and passed.is_passed
    assert isinstance(failed.result[0], junitparser.Failure)
    assert "certified 36.0%, shipped 54.0%" in failed.result[0].message


#: The elements of the JUnit schema that CI servers read (Jenkins' xUnit plug-in, junit-10.xsd): attributes that each
#: must and may have, and the elements in it, in their order.
SCHEMA = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "disabled", "errors"}, ["testsuite"]),
    "testsuite": (
        {"name", "tests"},
        {"failures", "errors", "time", "disabled", "skipped", "timestamp", "hostname", "id", "package"},
        ["properties", "testcase", "system-out", "system-err"],
    ),
    "properties": (set(), set(), ["property"]),
    "property": ({"name", "value"}, set(), []),
    "testcase": ({"name", "classname"}, {"assertions", "time", "status"}, ["skipped", "error", "failure"]),
    "failure": (set(), {"type", "message"}, []),
    "error": (set(), {"type", "message"}, []),
}


def follow(element: ElementTree.Element) -> None:
    """Check an element and all elements in it against the schema."""
    must, may, inside = SCHEMA[element.tag]
    assert must <= set(element.attrib) <= must | may, f"{element.tag} has {sorted(element.attrib)}"
    for name in ("tests", "failures", "errors"):
        assert element.get(name, "0").isdigit(), f"{name} is {element.get(name)}"
    places = [inside.index(child.tag) for child in element]
    assert places == sorted(places), f"{element.tag}: {[child.tag for child in element]}"
    for child in element:
        follow(child)


def test_its_junit_follows_the_schema_of_ci_servers() -> None:
    root = ElementTree.fromstring(junit(made()))
    follow(root)
    cases = root.findall(".//testcase")
    counts = [len(root.findall(f".//{name}")) for name in ("failure", "error")]
    assert [root.get(name) for name in ("tests", "failures", "errors")] == [str(len(cases)), *map(str, counts)]
    for broken in ("<testsuite name='a'/>", "<testsuites><testcase/></testsuites>", "<property name='a'/>"):
        with pytest.raises((AssertionError, ValueError)):
            follow(ElementTree.fromstring(broken))


def made(**changes: object) -> Gated:
    """An answer with one requirement of each verdict."""
    counts = Counts(10, 1, 2, 3)
    decisions = [
        Decision(Rule.parse("certified>=0.5"), Verdict.MET, 0.6875, 0.75, counts, 0),
        Decision(Rule.parse("clean>=shipped"), Verdict.FAILED, 0.6875, 0.75, counts, 0),
        Decision(Rule.parse("retention>=0.9"), Verdict.UNDECIDED, 0.8333, 0.75, counts, 400),
    ]
    facts = {"norm": "linf", "eps": "2/255", "samples": "16", "alpha": "0.05"}
    return Gated(("new.h5", "old.h5"), facts, decisions, (4, 7))


JUNIT = """<?xml version='1.0' encoding='utf-8'?>
<testsuites tests="3" failures="1" errors="1">
  <testsuite name="certkd gate" tests="3" failures="1" errors="1">
    <properties>
      <property name="new" value="new.h5" />
      <property name="shipped" value="old.h5" />
      <property name="norm" value="linf" />
      <property name="eps" value="2/255" />
      <property name="samples" value="16" />
      <property name="alpha" value="0.05" />
    </properties>
    <testcase classname="certkd.gate" name="certified&gt;=0.5" time="0" />
    <testcase classname="certkd.gate" name="clean&gt;=shipped" time="0">
      <failure message="{failed}" type="failed" />
    </testcase>
    <testcase classname="certkd.gate" name="retention&gt;=0.9" time="0">
      <error message="{open}" type="undecided" />
    </testcase>
  </testsuite>
</testsuites>
"""
FAILED = "failed: clean&gt;=shipped (clean 68.8%, shipped 75.0%, 1 gained, 2 lost, n = 16)"
OPEN = (
    "undecided: retention&gt;=0.9 (retention 83.3%, 1 gained, 2 lost, n = 16; that many cannot decide, about 400 could)"
)

MARKDOWN = r"""### Robustness gate: failed

The gate fails: 1 of 3 requirements failed (each answer is wrong with probability 0.05 at most).

| requirement | | new | shipped | samples |
| --- | --- | ---: | ---: | --- |
| certified&gt;=0.5 | ✅ met | 68.8% | 75.0% | 1 gained, 2 lost |
| clean&gt;=shipped | ❌ failed | 68.8% | 75.0% | 1 gained, 2 lost |
| retention&gt;=0.9 | ❔ undecided | 83.3% | - | 1 gained, 2 lost |

{open}

lost certificates, by index: 4, 7

New new.h5, shipped old.h5: norm linf, eps 2/255, samples 16, alpha 0.05.
"""


def test_junit_whole() -> None:
    assert junit(made()) == JUNIT.format(failed=FAILED, open=OPEN)


def test_markdown_whole() -> None:
    assert markdown(made()) == MARKDOWN.format(open=OPEN)


def test_a_gate_without_losses_lists_none() -> None:
    kept = Gated(("n.h5", "o.h5"), made().facts, made().decisions[:1], ())
    assert "lost certificates" not in markdown(kept) and kept.verdict is Verdict.MET
    assert len(kept.lines()) == 2


def test_a_metric_of_both_networks_has_no_share_of_the_shipped_one() -> None:
    decision = Decision(Rule.parse("same-class>=0.9"), Verdict.MET, 0.95, 0.95, Counts(19, 0, 0, 1), 0)
    assert "| same-class&gt;=0.9 | ✅ met | 95.0% | - | - |" in markdown(replace(made(), decisions=[decision]))
    assert decision.sentence == "met: same-class>=0.9 (same-class 95.0%, n = 20)"


def test_hostile_names_stay_text() -> None:
    name = "<script>alert(1)</script>|`x`\x1b[2J&\"'"
    hostile = Gated((name, name), {**made().facts, "note": name}, made().decisions, ())
    root = ElementTree.fromstring(junit(hostile))
    assert root.find(".//property[@name='note']").attrib["value"].startswith("<script>")  # type: ignore[union-attr]
    text = markdown(hostile)
    assert "<script" not in text and "\x1b" not in text and r"\`x\`" in text


MISTAKES = [
    (["better.h5", "--shipped", "shipped.h5"], "--require"),
    (["better.h5", "--require", "certified>=0.5"], "--shipped"),
    (["better.h5", "--shipped", "shipped.h5", "--require", "certifed>=0.5"], "Did you mean 'certified'?"),
    (["better.h5", "--shipped", "none.h5", "--require", "certified>=0.5"], "no certificate file at none.h5"),
    (["better.h5", "--shipped", "net.pt", "--require", "certified>=0.5"], "or the certificate files of both"),
    (["none.pt", "--shipped", "net.pt", "--require", "certified>=0.5"], "which radius? Give --eps, like --eps 2/255"),
    (["none.pt", "--shipped", "n.pt", "--eps", "0.1", "--require", "clean>=0.5"], "no such checkpoint: none.pt"),
    (["better.h5", "--shipped", "better.h5", "--require", "clean>=0.5"], "they are one file"),
    (["better.h5", "--shipped", "shipped.h5", "--require", "same-class>=0.9"], "same-class needs rows of match in"),
    (
        ["better.h5", "--shipped", "shipped.h5", "--require", "same-class>=0.9"],
        "--teacher SHIPPED --methods crown,match",
    ),
    (["better.h5", "--shipped", "shipped.h5", "--require", "clean>=0.5", "--eps", "0.1"], "--eps is for networks"),
    (["better.h5", "--shipped", "shipped.h5", "--require", "clean>=0.5", "--limit", "9"], "--limit is for networks"),
    (["better.h5", "--shipped", "shipped.h5", "--require", "clean>=0.5", "--junit", "bare.h5"], "ends in .xml"),
    (["better.h5", "--shipped", "shipped.h5", "--require", "clean>=0.5", "--summary", "a.xml"], "ends in .md"),
    (["bare.h5", "--shipped", "shipped.h5", "--require", "pgd>=0.9"], "has no attack: certify with pgd too"),
    (["better.h5", "--shipped", "bare.h5", "--require", "pgd>=0.9"], "have different attacks (pgd and none)"),
    (
        ["better.h5", "--shipped", "shipped.h5", "--require", "clean>=0.5", "--alpha", "1"],
        "--alpha must be between 0 and 1",
    ),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: str(value)[:60])
def test_mistakes_are_one_line(folder: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], message: str) -> None:
    monkeypatch.chdir(folder)
    assert message in refused("gate", *words)


@pytest.fixture(scope="module")
def worsened(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A robust network, and a copy of it after an epoch of plain training."""
    place = tmp_path_factory.mktemp("worsened")
    shutil.copy(REFERENCE / "kdiga.pt", place / "shipped.pt")
    known = load(place / "shipped.pt")
    train = load_data(DataConfig(name="digits")).splits["train"]
    images = train.images[torch.arange(len(train.labels))].float()
    model = known.model.train()
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for rows in torch.randperm(len(train.labels)).split(64):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[rows]), train.labels[rows]).backward()
        optimizer.step()
    save(replace(known, model=model.eval()), place / "new.pt")
    return place


@pytest.mark.slow
def test_an_epoch_of_plain_training_is_caught(worsened: Path) -> None:
    """On the 360 test digits, by CROWN; the files are then enough for the same answer."""
    rules = ("--require", "certified>=0.95*shipped", "--require", "clean>=shipped-0.1")
    networks = ("gate", worsened / "new.pt", "--shipped", worsened / "shipped.pt", *rules)
    asked = (*networks, "--eps", "0.1", "--methods", "crown", "--option", "tolerance=0.5", "--quiet")
    found = certkd(*asked, "--junit", worsened / "gate.xml", "--summary", worsened / "gate.md")
    assert found.code == 1 and "failed: certified>=0.95*shipped" in found.out, found
    assert "met: clean>=shipped-0.1" in found.out and "n = 360" in found.out
    assert "Robustness gate: failed" in (worsened / "gate.md").read_text()
    files = sorted(worsened.glob("*.h5"))
    assert len(files) == 2, files
    assert all(str(file) in found.out for file in files), found.out
    new, shipped = (next(file for file in files if file.name.startswith(name)) for name in ("new", "shipped"))
    again = certkd("gate", new, "--shipped", shipped, *rules)
    assert again.out.splitlines()[:3] == found.out.splitlines()[:3] and again.code == 1


def test_the_workflow_of_the_documentation_runs(folder: Path, tmp_path: Path) -> None:
    """Its steps are what GitHub takes; the gate takes its options, and its summary step is run."""
    text = (ROOT / "docs" / "gate.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```yaml title=[^\n]*\n(.*?)```", text, re.S)
    workflow = YAML(typ="safe").load(block)
    assert set(workflow) == {"name", "on", "jobs"} and workflow["on"] == "pull_request"
    (job,) = workflow["jobs"].values()
    steps = job["steps"]
    assert all(len({"uses", "run"} & set(step)) == 1 for step in steps) and job["runs-on"] == "ubuntu-latest"
    install, given, summary = [step["run"] for step in steps if "run" in step]
    assert install == "uv tool install certkd"
    program, name, *arguments = shlex.split(given)
    assert (program, name) == ("certkd", "gate")
    asked = cli.commands["gate"].make_context("gate", arguments).params
    assert asked["conditions"] == ("certified>=0.95*shipped", "clean>=shipped-0.02") and asked["eps"].text == "2/255"
    (tmp_path / asked["summary"]).write_text(markdown(made()), encoding="utf-8")
    place = tmp_path / "summary"
    subprocess.run(["bash", "-c", summary], check=True, cwd=tmp_path, env={"GITHUB_STEP_SUMMARY": str(place)})
    assert place.read_text(encoding="utf-8").startswith("### Robustness gate: failed")
    assert steps[-1]["with"]["path"] == asked["junit"], "another file is kept"
