"""The page: what it holds, and that no name is read as markup."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certkd.report import charts
from certkd.report.page import CERTIFIED, FALSIFIED, MISCLASSIFIED, OPEN, Page, outcome, render, write
from tests.certkd.report.pages import EVIL, RADII, certificates, hostile
from tests.cli import refused, succeeds

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return hostile(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def text(made: Page) -> str:
    return render(made)


class Outline(HTMLParser):
    """Collect elements, attributes and text as a browser sees them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.words.setdefault(self._open[-1] if self._open else "", []).append(data)


@pytest.fixture(scope="module")
def outline(text: str) -> Outline:
    return Outline(text)


def data_of(text: str, name: str = "data") -> Any:
    found = re.search(rf'<script type="application/json" id="{name}">(.*?)</script>', text, re.S)
    assert found is not None
    return json.loads(found[1])


def test_nothing_is_loaded_from_outside(outline: Outline, text: str) -> None:
    tags = [tag for tag, _ in outline.elements]
    assert not {"link", "iframe", "object", "embed", "base", "form action"} & set(tags)
    assert not [values for tag, values in outline.elements if tag in ("script", "img") and "src" in values]
    policy = next(values["content"] for tag, values in outline.elements if values.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'") and "http" not in policy
    assert "sourceMappingURL" not in text and len(text.encode()) < 2_500_000


def test_hostile_names_are_text(outline: Outline, text: str) -> None:
    assert not [values for tag, values in outline.elements if tag == "img" or "onerror" in values]
    assert [tag for tag, _ in outline.elements].count("script") == 4, "a name ends or begins a script"
    assert outline.words["h1"] == [f"Page {EVIL}"] and outline.words["title"] == [f"Page {EVIL}"]
    assert data_of(text)["networks"][1]["name"] == EVIL
    assert any(EVIL in words for words in outline.words["dd"]), "the command line is not shown"


def test_the_answer_and_the_sections_are_there(outline: Outline) -> None:
    heads = outline.words["h2"]
    assert heads[:3] == ["Networks", "Radii", "Samples"] and heads[-2:] == ["Protocol", "How to verify again"]
    verdict = next(words for words in outline.words["p"] if words.startswith("At eps"))
    assert "33.3% of 6 samples, 16.7 points less than t" in verdict
    assert any("certkd verify s.h5 --model" in words for words in outline.words["pre"])
    assert {"file", "model", "command", "data", "arithmetic", "settings"} <= set(outline.words["dt"])
    assert any(words.startswith("float32: proofs hold") for words in outline.words["dd"])
    assert any("sha256" in words for words in outline.words["dd"])


def test_it_is_made_for_everybody(outline: Outline) -> None:
    root = outline.elements[0]
    assert root == ("html", {"lang": "en"})
    plots = [values for _, values in outline.elements if values.get("class") == "plot"]
    assert len(plots) == 2 and all(values["role"] == "img" and values["aria-label"] for values in plots)
    assert all("scope" in values for tag, values in outline.elements if tag == "th")
    regions = {values.get("aria-live") for _, values in outline.elements}
    assert "polite" in regions and any(values.get("class") == "skip" for _, values in outline.elements)


def test_outcomes_are_numbered(made: Page) -> None:
    t, s = (outcome(one, np.array(radii)) for one, radii in zip(made.networks.values(), RADII.values(), strict=True))
    assert t.tolist() == [CERTIFIED, CERTIFIED, CERTIFIED, OPEN, FALSIFIED, MISCLASSIFIED]
    assert s.tolist() == [CERTIFIED, OPEN, FALSIFIED, CERTIFIED, FALSIFIED, MISCLASSIFIED]


def test_the_samples_are_all_there(text: str) -> None:
    data = data_of(text)
    assert data["index"] == [100, 103, 106, 109, 112, 115] and data["networks"][0]["radius"] == RADII["t"]
    assert sorted(map(int, data["pictures"])) == [0, 1, 2, 3, 4, 5]
    assert sorted(data["attacks"]) == ["2", "4"], "not the falsified samples"
    both = data["attacks"]["4"]
    assert [one["name"] for one in both] == ["t", EVIL] and all("difference" in one for one in both)


def test_a_curve_is_thinned_but_keeps_its_ends() -> None:
    radii = {"n": np.linspace(0.001, 1.0, 5000)}
    source = charts.curves(radii, "linf", 0.1).renderers[0].data_source.data
    assert len(source["x"]) == charts.STEPS and source["y"][0] == 1.0 and source["y"][-1] == 0.0
    assert source["x"][0] == 0.0 and source["x"][-1] == 1.0


def test_one_network_is_a_page_too(tmp_path: Path) -> None:
    one = certificates(tmp_path, "t")
    write(Page("One", {"net": one}, {}, "No images."), tmp_path / "one.html")
    outline = Outline((tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "At eps 0.1 (linf) net is certified on 3 of 6 samples (50.0%)." in outline.words["p"]
    assert "No images." in outline.words["p"]


def test_the_command_writes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "certificates").mkdir(parents=True)
    for name in ("t", "s"):
        certificates(tmp_path / "run" / "certificates", name, data="/etc/passwd")
    (tmp_path / "run" / "certificates" / "t.h5").rename(tmp_path / "run" / "certificates" / "teacher.h5")
    monkeypatch.chdir(tmp_path)
    assert succeeds("report", "run").startswith("written to report.html (1.")
    data = data_of(Path("report.html").read_text(encoding="utf-8"))
    assert [one["name"] for one in data["networks"]] == ["teacher", "s"] and data["pictures"] == {}
    assert "report.html is there already: add --overwrite" in refused("report", "run")
    succeeds("report", "run/certificates/s.h5", "--overwrite", "--title", "Mine")
    assert "<title>Mine</title>" in Path("report.html").read_text(encoding="utf-8")
    assert "data set is not one that certkd knows" in Path("report.html").read_text(encoding="utf-8")


MISTAKES = [
    ("report none.h5", "no certificate file at none.h5"),
    ("report none.h5 --out a.pdf", "--out a.pdf: give a name that ends in .html"),
    ("report .", ". holds no certificates/*.h5: give the folder of a 'certkd run', or files"),
    ("report", "Missing argument"),
    ("report t.h5 --out t.h5/page.html", "cannot write t.h5/page.html: its folder is a file; choose another place"),
    ("report t.h5 --data dgits", "Did you mean 'digits'?"),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES)
def test_mistakes_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, words: str) -> None:
    monkeypatch.chdir(tmp_path)
    certificates(tmp_path, "t")
    assert words in refused(*command.split())
