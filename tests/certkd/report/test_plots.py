"""Plots: every sample is drawn once, every measured metric is a line, bands are right, and files are what they say."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.markers import CARETLEFT, CARETRIGHT
from PIL import Image

from certkd.comparison.critical import critical, decided
from certkd.report import plots, style
from certkd.report.plots import Caption
from tests.certificate_files import write_file
from tests.certkd.comparison.test_compare import attack, file, proofs
from tests.cli import refused, succeeds
from verifiers.core.errors import InputError
from verifiers.core.statistics import wilson
from verifiers.core.status import Status

ABOUT = Caption("linf", 0.1, 4, ("crown",))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures, in the order in which they would be saved."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    return figures


def test_pairs_are_sorted_by_what_became_of_them(drawn: list[Any]) -> None:
    teacher = np.array([0.2, 0.2, 0.05, 0.0, 0.1, 0.3])
    student = np.array([0.2, 0.05, 0.2, 0.0, 0.1, 0.0])
    plots.paired_radii(Path("x.png"), teacher, student, replace(ABOUT, norm="l2"), ("teacher", "kdiga"))
    axes = drawn[0].axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["equal radii", "kept at eps (2)", "lost at eps (2)", "gained at eps (1)", "neither (1)"]
    points = np.concatenate([dots.get_offsets() for dots in axes.collections])
    assert sorted(map(tuple, points)) == sorted(zip(teacher, student, strict=True)), "not every sample is drawn once"
    assert "kdiga" in axes.get_ylabel() and "l2" in axes.get_xlabel()
    assert axes.get_xlim() == axes.get_ylim() and axes.get_xlim()[1] >= 0.3, "a sample is outside"


def test_radii_end_where_nothing_is_certified(drawn: list[Any]) -> None:
    plots.radius_curves(Path("x.png"), {"a": [np.array([0.1, 0.4])], "b": [np.zeros(2)]}, replace(ABOUT, samples=2))
    axes = drawn[0].axes[0]
    curves = {line.get_label(): np.asarray(line.get_data()) for line in axes.lines}
    assert curves["a"].tolist() == [[0.0, 0.1, 0.4], [1.0, 0.5, 0.0]] and curves["b"].tolist() == [[0.0], [0.0]]
    assert (
        "eps = 0.1" in curves
        and axes.get_title() == "crown; linf; n = 2; band: pointwise 95 % Wilson"
        and axes.get_xlim()[1] > 0.4
    )


def test_metrics_that_were_never_measured_are_no_line(drawn: list[Any]) -> None:
    histories = {
        "teacher": [{"epoch": i, "validation": {"clean": 0.5, "pgd": 0.1 * i}} for i in range(3)],
        "kd": [{"epoch": 0, "validation": {"clean": 0.5}}, {"epoch": 1, "validation": {"clean": 0.6, "noisy": 0.4}}],
    }
    plots.training_curves(Path("x.png"), histories)
    axes = drawn[0].axes[0]
    assert axes.get_title() == "clean; PGD at the eps of the selection; under noise"
    lines = {line.get_label(): np.asarray(line.get_data()) for line in axes.lines}
    assert set(lines) == {"teacher, clean", "teacher, pgd", "kd, clean", "kd, noisy"}
    np.testing.assert_allclose(lines["teacher, pgd"], [[1, 2, 3], [0, 0.1, 0.2]])
    np.testing.assert_array_equal(lines["kd, noisy"], [[1, 2], [np.nan, 0.4]], "an epoch without it is drawn")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")])
def test_the_suffix_is_the_form_of_a_plot(tmp_path: Path, name: str, start: bytes) -> None:
    plots.training_curves(tmp_path / name, {"kd": [{"epoch": 0, "validation": {"clean": 0.5}}]})
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif"])
def test_another_suffix_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: the name of a figure ends in \.png, \.pdf, \.svg$"):
        plots.training_curves(Path(name), {"kd": [{"epoch": 0, "validation": {"clean": 0.5}}]})


def test_a_plot_is_a_whole_png(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.png"
    plots.training_curves(path, {"kd": [{"epoch": 0, "validation": {"clean": 0.5}}]})
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width >= 600 and image.height >= 450
    assert [one.name for one in path.parent.iterdir()] == ["x.png"]


def bands(axes: Any) -> list[np.ndarray]:
    """The corners of every band, in the order of the networks."""
    return [np.round(band.get_paths()[0].vertices, 6) for band in axes.collections]


def test_the_band_of_one_seed_is_wilsons_interval(drawn: list[Any]) -> None:
    plots.radius_curves(Path("x.png"), {"a": [np.array([0.1, 0.1, 0.3, 0.0])]}, ABOUT)
    corners = bands(drawn[0].axes[0])[0]
    for radius, count in ((0.0, 3), (0.1, 1), (0.3, 0)):
        limits = wilson(count, 4)
        found = corners[np.isclose(corners[:, 0], radius)][:, 1]
        for limit in (limits.low, limits.high):
            assert np.isclose(found, limit, atol=1e-5).any(), f"{limit} is not in the band at {radius}: {found}"


def test_the_band_of_seeds_is_their_standard_deviation(drawn: list[Any]) -> None:
    plots.radius_curves(Path("x.png"), {"a": [np.array([0.2, 0.2, 0.0, 0.0]), np.array([0.2, 0.0, 0.0, 0.0])]}, ABOUT)
    axes = drawn[0].axes[0]
    line = axes.lines[0].get_xydata()
    np.testing.assert_allclose(line, [[0, 0.375], [0.2, 0.0]])
    deviation = np.std([0.5, 0.25], ddof=1)
    heights = bands(axes)[0][:, 1]
    for limit in (0.375 - deviation, 0.375 + deviation):
        assert np.isclose(heights, limit, atol=1e-5).any(), f"{limit} is not in the band: {heights}"
    assert axes.get_title().endswith("band: mean ± s.d. over 2 seeds")


def test_networks_differ_in_colour_and_in_line(drawn: list[Any]) -> None:
    plots.radius_curves(Path("x.png"), {f"net {i}": [np.array([0.1])] for i in range(7)}, ABOUT)
    lines = drawn[0].axes[0].lines[:7]
    assert len({line.get_color() for line in lines}) == 7 == len({str(look) for look in style.LINES})
    assert {line.get_linestyle() for line in lines[:4]} == {"-", "--", "-.", ":"}


#: Viénot, Brettel and Mollon's kind of matrices for linear RGB, as Machado et al. 2009 give them for full severity.
BLIND = {
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def linear(color: str) -> np.ndarray:
    values = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def contrast(one: np.ndarray, two: np.ndarray) -> float:
    """The contrast of WCAG 2."""
    light, dark = sorted((float(color @ [0.2126, 0.7152, 0.0722]) for color in (one, two)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("kind", BLIND)
def test_the_first_colours_stay_apart_for_colour_blind_readers(kind: str) -> None:
    seen = [np.clip(np.array(BLIND[kind]) @ linear(color), 0, 1) for color in style.COLORS]
    for i in range(4):
        for j in range(i):
            apart = float(np.abs(seen[i] - seen[j]).max())
            assert apart > 0.1, f"{style.COLORS[i]} and {style.COLORS[j]} are {apart:.2f} apart"
    assert contrast(linear(style.GREY), linear("#ffffff")) > 4.5


@pytest.mark.parametrize("colour", style.COLORS)
def test_a_line_stands_out_on_white(colour: str) -> None:
    assert contrast(linear(colour), linear("#ffffff")) >= 3


@pytest.mark.slow
def test_names_are_never_formulas_nor_left_out(tmp_path: Path) -> None:
    names = ("_hidden", r"$\frac$", "a$b$c", "x\x1b[2J", "<b>", "long" * 40)
    shown = [style.text(name) for name in names]
    assert shown[0] == " _hidden" and shown[1] == r"\$\frac\$" and "\x1b" not in shown[3] and len(shown[5]) == 48
    plots.radius_curves(tmp_path / "a.svg", {name: [np.array([0.1])] for name in names}, ABOUT)
    assert "<script" not in (tmp_path / "a.svg").read_text()


@pytest.mark.slow
def test_the_fonts_of_a_pdf_are_inside(tmp_path: Path) -> None:
    for name in ("a.pdf", "b.pdf"):
        plots.radius_curves(tmp_path / name, {"net": [np.array([0.1, 0.2])]}, ABOUT)
    content = (tmp_path / "a.pdf").read_bytes()
    assert content.count(b"/FontFile2") >= 1 and b"/Type3" not in content
    assert content == (tmp_path / "b.pdf").read_bytes(), "the same figure gives other bytes"


def test_letters_of_an_svg_are_outlines(tmp_path: Path) -> None:
    plots.radius_curves(tmp_path / "a.svg", {"net": [np.array([0.1, 0.2])]}, ABOUT)
    content = (tmp_path / "a.svg").read_text()
    assert "<text" not in content and 'href="http' not in content


def test_a_distribution_is_between_proof_and_attack(drawn: list[Any]) -> None:
    limits = np.array([0.0, 0.1, 0.2, 0.3]), np.array([0.0, 0.2, np.inf, np.inf])
    plots.distributions(Path("x.png"), {"net": limits}, ABOUT)
    axes = drawn[0].axes[0]
    proof, attacked = (line.get_xydata() for line in axes.lines[:2])
    at = {
        round(float(x), 3): (float(most), float(least)) for (x, most), (_, least) in zip(proof, attacked, strict=True)
    }
    assert at[0.0] == (0.25, 0.25) and at[0.1] == (0.5, 0.25) and at[0.2] == (0.75, 0.5) and at[0.3] == (1.0, 0.5)
    assert all(most >= least for most, least in at.values())


WORDS = ("certified (proof)", "survived the attack")


def test_a_bracket_reaches_from_proof_to_attack(drawn: list[Any]) -> None:
    plots.brackets(Path("x.png"), {"a": (0.25, 0.75, 1.0), "b": (0.5, np.nan, 0.75)}, ABOUT)
    axes = drawn[0].axes[0]
    bars = [(bar.get_x(), bar.get_width()) for bar in axes.patches]
    assert bars == [(0.25, 0.5)], "a network without an attack has no bar"
    sure, survived = (next(one for one in axes.lines if one.get_label() == word) for word in WORDS)
    assert (sure.get_marker(), survived.get_marker()) == (CARETRIGHT, CARETLEFT), "a tip is beside its value"
    assert (sure.get_xdata()[0], survived.get_xdata()[0]) == (0.25, 0.75)
    assert [text.get_text() for text in axes.get_yticklabels()] == ["a", "b"]
    labels = {text.get_text() for text in drawn[0].legends[0].get_texts()}
    assert labels == {"open", "certified (proof)", "survived the attack", "clean"}


def test_stages_and_open_samples_are_bars(drawn: list[Any]) -> None:
    plots.stages(Path("x.png"), {"n": {"attack": (0, 3), "crown": (5, 0)}}, {"n": 2}, ABOUT)
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["attack", "crown", "open"]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == [0, 5, 0, 3, 0, 0, 0, 0, 2], widths


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two files with proofs and attacks, and one of complete verification."""
    folder = tmp_path_factory.mktemp("figures")
    correct = np.array([True, True, True, False])
    for name, radius in (("t", [0.2, 0.1, 0.02, 0.0]), ("s", [0.1, 0.05, 0.0, 0.0])):
        found = np.array(radius) < 0.05
        content = {"pgd": attack(correct, found), "crown": proofs(correct, np.array(radius))}
        file(folder / f"{name}.h5", content, model_sha256=name)
    status = [Status.FALSIFIED, Status.CERTIFIED, Status.TIMEOUT, Status.MISCLASSIFIED]
    columns = {
        "status": np.array(status, "uint8"),
        "stage": np.array([1, 3, 5, 0], "uint8"),
        "radius": np.array([0.0, 0.1, 0.0, 0.0]),
        "distance": np.array([0.08, np.nan, np.nan, np.nan]),
        "margin": np.array([-1.0, 1.0, np.nan, np.nan]),
        "correct": np.array([1, 1, 1, 0], "uint8"),
        "certified": np.array([0, 1, 0, 0], "uint8"),
        "label": np.zeros(4, np.int64),
        "predicted": np.array([0, 0, 0, 1]),
    }
    write_file(folder / "complete.h5", {"complete": columns}, eps=0.1)
    return folder


def test_critical_eps_is_bounded_from_both_sides(certificates: Path) -> None:
    from verifiers.results.reader import read

    low, high = critical(read(certificates / "t.h5"))
    assert low.tolist() == [0.2, 0.1, 0.02, 0.0] and high.tolist() == [np.inf, np.inf, 0.1, 0.0]
    found = read(certificates / "complete.h5")
    rows = found["complete"]
    assert rows.count(Status.TIMEOUT) == 1
    assert decided(found) == (
        {"attack": (0, 1), "ibp": (0, 0), "crown": (1, 0), "alpha-crown": (0, 0), "branch and bound": (0, 0)},
        1,
    )
    assert decided(read(certificates / "t.h5")) is None


UNIT = "(linf, pixels in [0, 1])"
#: The texts of a figure of each kind: the labels of its axes with their units, methods, n, eps and band.
TEXTS = {
    "curve": (
        "t.h5 s.h5",
        [f"radius r {UNIT}", "certified accuracy at r", "crown; linf; n = 4; band: pointwise 95 % Wilson"],
    ),
    "scatter": ("t.h5 s.h5", [f"t: radius r {UNIT}", "s: radius r", "crown; linf; n = 4; eps = 0.1"]),
    "distribution": (
        "t.h5 s.h5",
        [f"radius r {UNIT}", "share with critical eps at most r", "band: from attack to proof"],
    ),
    "bracket": (
        "t.h5 s.h5",
        [f"accuracy at eps = 0.1 {UNIT}", "crown, pgd; linf; n = 4; line: 95 % Wilson of certified"],
    ),
    "stages": ("complete.h5", ["samples that are classified correctly", "complete; linf; n = 4; eps = 0.1"]),
    "training": ("log.jsonl", ["epoch", "validation accuracy", "clean"]),
}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="needs poppler-utils")
@pytest.mark.parametrize("kind", TEXTS)
def test_a_pdf_holds_its_labels_with_units_in_embedded_fonts(certificates: Path, tmp_path: Path, kind: str) -> None:
    (certificates / "log.jsonl").write_text('{"epoch": 0, "validation": {"clean": 0.5}}\n')
    files, texts = TEXTS[kind]
    path = tmp_path / "a.pdf"
    given = [certificates / name for name in files.split()]
    assert succeeds("figure", kind, *given, "--out", path) == f"written to {path}\n"
    read, fonts = (
        subprocess.run(command, check=True, capture_output=True, text=True).stdout
        for command in (["pdftotext", "-raw", path, "-"], ["pdffonts", path])
    )
    for text in texts:
        assert text in " ".join(read.split()), f"{text!r} is not in the figure"
    rows = [line for line in fonts.splitlines()[2:] if line.strip()]
    assert rows and all(" yes yes " in row or " yes no " in row for row in rows), fonts
    assert "Type 3" not in fonts


MISTAKES = [
    ("curvy t.h5 --out a.png", "curvy"),
    ("curve t.h5 --out a.gif", "--out a.gif: give a name that ends in .png, .pdf or .svg"),
    ("curve none.h5 --out a.png", "no certificate file at none.h5"),
    ("scatter t.h5 --out a.png", "scatter draws one network against another: give two files, not 1"),
    ("stages t.h5 --out a.png", "t.h5 has no rows of complete: certify with --complete"),
    ("training none --out a.png", "no log of a training at none"),
    ("training t.h5 --out a.png", "is not the log of a training"),
    ("curve t.h5 complete.h5 --out a.png", "cannot be compared"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES)
def test_mistakes_of_the_command_are_one_line(
    certificates: Path, monkeypatch: pytest.MonkeyPatch, words: str, message: str
) -> None:
    monkeypatch.chdir(certificates)
    assert message in refused("figure", *words.split())
