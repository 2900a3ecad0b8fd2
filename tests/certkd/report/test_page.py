"""The page: what it holds, that no name is read as markup, and that a real browser shows, filters and sorts it."""

import json
import re
import shutil
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from certkd.report import charts
from certkd.report.page import CERTIFIED, FALSIFIED, MISCLASSIFIED, OPEN, Page, outcome, render, write
from tests.certificate_files import write_file
from tests.certkd.comparison.test_compare import EPS, attack, file, proofs
from tests.cli import refused, succeeds
from verifiers.results.rows import Certificates

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow
EVIL = "</script><img src=x onerror=alert(1)>\"'&{{}}@@title@@"
CORRECT = np.array([True, True, True, True, True, False])
RADII = {"t": [0.2, 0.2, 0.12, 0.05, 0.02, 0.0], "s": [0.2, 0.05, 0.01, 0.12, 0.02, 0.0]}
FOUND = {"t": [0, 0, 0, 0, 1, 0], "s": [0, 0, 1, 0, 1, 0]}


def certificates(folder: Path, name: str, **changes: Any) -> Certificates:
    """A file of six samples: one kept, two lost, one gained, one falsified twice, one misclassified."""
    rows = attack(CORRECT, np.array(FOUND[name], bool))
    points = np.zeros((6, 1, 4, 4), "float32")
    points[:, 0, 1, 1] = np.arange(6) / 10
    proved = {**proofs(CORRECT, np.array(RADII[name])), "margin": np.where(np.array(FOUND[name], bool), -2.0, 0.0)}
    content = {"pgd": {**rows, "counterexample": points}, "crown": proved}
    about = {
        **{"certkd_version": "1", "torch_version": "2", "auto_lirpa_version": "-", "device": "cpu", "started": "now"},
        **{"architecture": "net", "command": "certkd certify", "model_sha256": name, "arithmetic": "float32"},
    }
    return write_file(folder / f"{name}.h5", content, eps=EPS, shape=(1, 4, 4), **{**about, **changes})


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page of two networks with images and counterexamples; every name is hostile."""
    folder = tmp_path_factory.mktemp("page")
    files = {"t": certificates(folder, "t", command=EVIL), EVIL: certificates(folder, "s", architecture=EVIL)}
    images = {row: np.full((1, 4, 4), row / 10, "float32") for row in range(6)}
    return Page(f"Page {EVIL}", files, images, "Images: all.")


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
    assert any(EVIL in words for words in outline.words["pre"]), "the command line is not shown"


def test_the_answer_and_the_sections_are_there(outline: Outline) -> None:
    heads = outline.words["h2"]
    assert heads[:3] == ["Networks", "Radii", "Samples"] and heads[-2:] == ["Protocol", "How to verify again"]
    verdict = next(words for words in outline.words["p"] if words.startswith("At eps"))
    assert "33.3% of 6 samples, 16.7 points less than t" in verdict
    assert any("certkd verify s.h5 --model" in words for words in outline.words["pre"])
    assert any("sha256" in words and "arithmetic float32" in words for words in outline.words["pre"])


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


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Headless Chromium, where the machine has one."""
    if CHROMIUM is None:
        pytest.skip("needs a chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=0)
        yield started
        started.close()


def opened(browser: Any, path: Path, **options: Any) -> tuple[Any, list[str]]:
    """Open a page; errors, dialogs and requests for anything but the file are listed."""
    shown, problems = browser.new_page(**options), []
    shown.set_default_timeout(0)  # a busy machine takes what it takes
    shown.on("console", lambda message: message.type in ("error", "warning") and problems.append(message.text))
    shown.on("pageerror", lambda error: problems.append(str(error)))
    shown.on("dialog", lambda dialog: (problems.append("a dialog"), dialog.dismiss()))
    shown.on("request", lambda request: request.url.startswith(("file:", "data:")) or problems.append(request.url))
    shown.goto(path.as_uri())
    shown.wait_for_selector(".bk-Figure")
    return shown, problems


def test_a_browser_shows_filters_and_sorts(browser: Any, made: Page, tmp_path: Path) -> None:
    place = tmp_path / "a folder with ä ö ü" / "page.html"
    write(made, place)
    for scheme in ("light", "dark"):
        shown, problems = opened(browser, place, color_scheme=scheme)
        rows = shown.locator("#table tbody tr")
        assert rows.count() == 6 and shown.locator(".bk-Figure").count() == 2
        shown.select_option("#outcome", "lost")
        assert rows.count() == 2 and shown.inner_text("#count") == "2 of 6 samples"
        shown.select_option("#outcome", "")
        shown.click("button[data-key=net1]")
        assert shown.get_attribute("th:has(button[data-key=net1])", "aria-sort") == "ascending"
        assert rows.first.inner_text().split()[-2:] == ["0", "misclassified"]
        shown.fill("#text", "112")
        assert rows.count() == 1
        rows.first.focus()
        shown.keyboard.press("Enter")
        words = shown.inner_text("#detail")
        assert "Sample 112" in words and EVIL in words and "amplified" in words
        assert not problems, problems
        dark = shown.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(22, 24, 27)"
        assert dark == (scheme == "dark")
    shown.emulate_media(media="print")
    assert not shown.is_visible("#filters") and shown.pdf()[:4] == b"%PDF"
    assert not shown.locator(".bk-Toolbar").first.is_visible(), "buttons are printed"
    assert shown.evaluate("getComputedStyle(document.querySelector('.plot')).filter") == "none", "print is dark"


READ = """([id, x, y]) => {
  const view = [...Bokeh.index.roots].find((one) => document.getElementById(id).contains(one.el));
  const { left, top } = view.el.getBoundingClientRect();
  return [left + view.frame.x_scale.compute(x), top + view.frame.y_scale.compute(y)];
}"""


def read(shown: Any, figure: str, x: float, y: float) -> str:
    """What a figure says of the values under the mouse."""
    shown.locator(f"#{figure}").scroll_into_view_if_needed()
    shown.mouse.move(*shown.evaluate(READ, [figure, x, y]))
    shown.wait_for_selector(".bk-tooltip-content")
    return " ".join(" ".join(tip.inner_text().split()) for tip in shown.locator(".bk-tooltip-content").all())


def test_figures_answer_to_the_mouse(browser: Any, made: Page, tmp_path: Path) -> None:
    write(made, tmp_path / "page.html")
    shown, problems = opened(browser, tmp_path / "page.html")
    words = read(shown, "curves", 0.1, 0.4)
    assert "t r: 0.1000 share: 0.500" in words and f"{EVIL} r: 0.1000 share: 0.333" in words
    words = read(shown, "scatter0", 0.05, 0.12)
    assert words == f"sample: 109 t: 0.05000 {EVIL}: 0.12000", words
    assert not problems, problems


def test_a_narrow_window_shows_whole_figures(browser: Any, made: Page, tmp_path: Path) -> None:
    write(made, tmp_path / "page.html")
    shown, problems = opened(browser, tmp_path / "page.html", viewport={"width": 400, "height": 800})
    wide = "[...document.querySelectorAll('.plot, .bk-Figure')].map((one) => one.getBoundingClientRect().right)"
    assert shown.evaluate("document.documentElement.scrollWidth") == 400
    assert shown.locator(".bk-Figure").count() == 2
    assert all(right <= 400 for right in shown.evaluate(wide)) and not problems


def test_ten_thousand_samples_are_a_small_page(browser: Any, tmp_path: Path) -> None:
    count, random = 10_000, np.random.default_rng(0)
    files = {}
    for name in ("t", "s"):
        correct = random.random(count) < 0.9
        content = {"crown": proofs(correct, np.abs(random.normal(0.1, 0.04, count)))}
        made_by = {"certkd_version": "1", "torch_version": "2", "auto_lirpa_version": "-", "device": "cpu"}
        more = {"started": "now", "architecture": "net", "command": "c", "model_sha256": name, **made_by}
        files[name] = file(tmp_path / f"{name}.h5", content, arithmetic="float32", **more)
    write(Page("Large", files), tmp_path / "large.html")
    assert (tmp_path / "large.html").stat().st_size < 5_000_000
    shown, problems = opened(browser, tmp_path / "large.html")
    assert shown.locator("#table tbody tr").count() == 100 and not problems
    assert shown.inner_text("#count") == "10000 of 10000 samples"
    shown.select_option("#outcome", "gained")
    assert shown.inner_text("#count") != "10000 of 10000 samples"
    shown.click("#next")
    assert shown.inner_text("#place").startswith("101 to 200 of ")
