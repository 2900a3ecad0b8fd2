"""The page in a real browser: it is shown, filtered, sorted, pointed at and printed, by mouse and by keyboard."""

import io
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from certkd.report.page import Page, write
from tests.certkd.comparison.test_compare import file, proofs
from tests.certkd.report.pages import EVIL, hostile

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return hostile(tmp_path_factory.mktemp("page"))


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


@pytest.fixture(scope="module")
def place(made: Page, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page in a folder whose name a URL must escape."""
    path = tmp_path_factory.mktemp("browser") / "a folder with ä ö ü # %" / "the page.html"
    write(made, path)
    return path


def test_a_browser_shows_filters_and_sorts(browser: Any, place: Path) -> None:
    shown, problems = opened(browser, place)
    rows = shown.locator("#table tbody tr")
    assert rows.count() == 6 and shown.locator(".bk-Figure").count() == 2
    shown.select_option("#outcome", "lost")
    assert rows.count() == 2 and shown.inner_text("#count") == "2 of 6 samples"
    assert shown.inner_text("#place") == "Samples 1 to 2 of 2, filtered from 6"
    shown.select_option("#outcome", "")
    shown.click("button[data-key=net1]")
    assert shown.get_attribute("th:has(button[data-key=net1])", "aria-sort") == "ascending"
    assert rows.first.inner_text().split()[-2:] == ["0", "misclassified"]
    shown.fill("#text", "112")
    assert rows.count() == 1
    rows.first.click()
    words = shown.inner_text("#detail")
    assert "Sample 112" in words and EVIL in words and "amplified" in words
    assert not problems, problems


def test_it_prints_what_is_chosen_and_no_button(browser: Any, place: Path) -> None:
    shown, _ = opened(browser, place, color_scheme="dark")
    shown.select_option("#outcome", "lost")
    shown.emulate_media(media="print")
    for hidden in ("#filters", "#back", ".tools", ".skip"):
        assert not shown.locator(hidden).first.is_visible(), f"{hidden} is printed"
    assert shown.is_visible("#place"), "a reader of the print cannot tell that samples are left out"
    assert shown.locator("th button").first.evaluate("one => getComputedStyle(one).display") == "contents"
    assert shown.evaluate("getComputedStyle(document.querySelector('.plot')).filter") == "none", "print is dark"
    assert shown.pdf()[:4] == b"%PDF"


REACHABLE = """() => [...document.querySelectorAll('a, button, input, select, summary')]
  .filter((one) => one.checkVisibility() && !one.disabled && !(one.className === 'row' && one.tabIndex < 0))
  .map((one) => one.id || one.dataset.key || one.textContent || one.type)"""
FOCUSED = (
    "() => { const one = document.activeElement; return one.id || one.dataset.key || one.textContent || one.type; }"
)


def test_every_control_is_reached_and_used_by_keyboard(browser: Any, place: Path) -> None:
    shown, problems = opened(browser, place)
    for summary in shown.locator(".tools summary").all():
        summary.focus()
        shown.keyboard.press("Enter")
    wanted, found = shown.evaluate(REACHABLE), []
    shown.evaluate("document.activeElement.blur(); window.getSelection().removeAllRanges()")
    for _ in range(len(wanted) + 10):
        shown.keyboard.press("Tab")
        found.append(shown.evaluate(FOCUSED))
    assert set(wanted) <= set(found), f"out of reach: {set(wanted) - set(found)}"
    for word in ("Reset", "Hide, show and zoom", "checkbox", "text", "outcome", "net1", "100", "Skip to the samples"):
        assert word in found, word
    shown.locator(".row").first.focus()
    for key, index in (("ArrowDown", "103"), ("End", "115"), ("ArrowUp", "112"), ("ArrowDown", "115")):
        shown.keyboard.press(key)
        assert shown.evaluate(FOCUSED) == index, key
    shown.keyboard.press("Home")
    for opens in (True, False):
        shown.keyboard.press("Enter")
        assert shown.locator("#detail").count() == opens
        assert shown.get_attribute(".row >> nth=0", "aria-expanded") == str(opens).lower()
        assert shown.evaluate(FOCUSED) == "100", "the focus is lost"
    assert not problems, problems


def test_every_image_and_figure_has_words(browser: Any, place: Path) -> None:
    shown, _ = opened(browser, place)
    shown.click("tr[data-row='4']")
    words = shown.evaluate("[...document.images].map((one) => one.alt)")
    assert len(words) == 6 + 1 + 2 * 2 and all(words)
    assert {"sample 112", "difference, amplified"} <= set(words)
    figures = shown.evaluate("[...document.querySelectorAll('.plot')].map((one) => one.getAttribute('aria-label'))")
    assert figures[0].startswith("Certified accuracy over the radius") and figures[1].startswith("Radius of each")


#: Every text of the page with its colour, and the colour behind it; then edges of controls.
COLOURS = """() => {
  const behind = (one) => {
    for (; one; one = one.parentElement) {
      const colour = getComputedStyle(one).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
  };
  const texts = [...document.body.querySelectorAll('*')].filter((one) => one.checkVisibility() && !one.closest('.plot')
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
  const edges = [...document.querySelectorAll('input, select, #next')].filter((one) => one.checkVisibility());
  return [
    ...texts.map((one) => [one.textContent.slice(0, 40), getComputedStyle(one).color, behind(one), 4.5]),
    ...edges.map((one) => [one.tagName, getComputedStyle(one).borderTopColor, behind(one.parentElement), 3]),
  ];
}"""
#: The colours of a figure's marks and texts, drawn as squares of 8 pixels below it, after its background.
SQUARES = """(id) => {
  const place = document.getElementById(id);
  const plot = [...Bokeh.index.roots].find((one) => place.contains(one.el)).model;
  const marks = plot.renderers.map((one) => one.glyph.line_color.value ?? one.glyph.line_color);
  const texts = [plot.below[0].axis_label_text_color, plot.left[0].major_label_text_color];
  const all = [plot.background_fill_color, ...marks, ...texts].map((one) => one.value ?? one);
  const strip = document.createElement('div');
  strip.style.display = 'flex';
  for (const colour of all) {
    const square = document.createElement('div');
    square.style.cssText = `width: 8px; height: 8px; background: ${colour}`;
    strip.append(square);
  }
  place.append(strip);
  strip.id = `${id}-strip`;
  return [all, marks.length];
}"""


def contrast(first: Sequence[float], second: Sequence[float]) -> float:
    """The contrast ratio of two colours of 0 to 255, by WCAG 2.2."""

    def luminance(colour: Sequence[float]) -> float:
        parts = [value / 255 for value in colour]
        red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    light, dark = sorted((luminance(first), luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_the_one_of_wcag() -> None:
    assert contrast((255, 255, 255), (0, 0, 0)) == pytest.approx(21)
    assert contrast((118, 118, 118), (255, 255, 255)) == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_marks_stand_out(browser: Any, place: Path, scheme: str) -> None:
    shown, problems = opened(browser, place, color_scheme=scheme)
    shown.click("tr[data-row='4']")
    for summary in shown.locator(".tools summary").all():
        summary.click()
    found = shown.evaluate(COLOURS)
    assert len(found) > 60 and {"falsified", "certified", "open", "misclassified"} <= {words for words, *_ in found}
    for words, ink, paper, least in found:
        colours = [tuple(map(float, re.findall(r"[\d.]+", colour))) for colour in (ink, paper)]
        assert all(len(colour) == 3 for colour in colours), f"{words!r} is translucent: {ink} on {paper}"
        assert contrast(*colours) >= least, f"{words!r} is {ink} on {paper}"
    dark = contrast((22, 24, 27), tuple(map(float, re.findall(r"[\d.]+", found[0][2])))) < 1.5
    assert dark == (scheme == "dark")
    for figure in ("curves", "scatter0"):
        names, marks = shown.evaluate(SQUARES, figure)
        strip = Image.open(io.BytesIO(shown.locator(f"#{figure}-strip").screenshot())).convert("RGB")
        paper, *inks = (strip.getpixel((8 * i + 4, 4)) for i in range(len(names)))
        for number, (name, ink) in enumerate(zip(names[1:], inks, strict=True)):
            least = 3 if number < marks else 4.5
            assert contrast(ink, paper) >= least, f"{figure}: {name} is shown as {ink} on {paper}"
    assert not problems, problems


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


def test_figures_answer_to_the_mouse(browser: Any, place: Path) -> None:
    shown, problems = opened(browser, place)
    words = read(shown, "curves", 0.1, 0.4)
    assert "t r: 0.1000 share: 0.500" in words and f"{EVIL} r: 0.1000 share: 0.333" in words
    words = read(shown, "scatter0", 0.05, 0.12)
    assert words == f"sample: 109 t: 0.05000 {EVIL}: 0.12000", words
    assert not problems, problems


STATE = """(id) => {
  const plot = [...Bokeh.index.roots].find((one) => document.getElementById(id).contains(one.el)).model;
  return [plot.x_range.end - plot.x_range.start, plot.renderers.map((one) => one.visible)];
}"""


def test_figures_zoom_and_hide(browser: Any, place: Path) -> None:
    shown, problems = opened(browser, place)
    wide, visible = shown.evaluate(STATE, "scatter0")
    assert all(visible)
    tools = shown.locator("#scatter0 + .tools")
    tools.locator("summary").click()
    labels = tools.locator("label")
    assert [one.strip() for one in labels.all_inner_texts()] == ["kept (1)", "lost (2)", "gained (1)", "neither (2)"]
    tools.get_by_label("lost (2)").uncheck()
    assert shown.evaluate(STATE, "scatter0")[1].count(False) == 1
    for button, factor in (("Zoom in", 0.5), ("Zoom out", 1.0), ("Zoom in", 0.5), ("Reset", 1.0)):
        tools.get_by_role("button", name=button).click()
        assert shown.evaluate(STATE, "scatter0")[0] == pytest.approx(factor * wide, rel=1e-6), button
    assert not problems, problems


def test_a_narrow_window_shows_whole_figures(browser: Any, place: Path) -> None:
    shown, problems = opened(browser, place, viewport={"width": 400, "height": 800})
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
    assert shown.inner_text("#place").startswith("Samples 101 to 200 of ")
