"""Plots: every sample is drawn once, every measured metric is a line, and the file is a PNG."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from certkd.report import plots
from verifiers.core.errors import InputError


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures, in the order in which they would be saved."""
    figures: list[Any] = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    return figures


def test_pairs_are_sorted_by_what_became_of_them(drawn: list[Any]) -> None:
    teacher = np.array([0.2, 0.2, 0.05, 0.0, 0.1, 0.3])
    student = np.array([0.2, 0.05, 0.2, 0.0, 0.1, 0.0])
    plots.paired_radii(Path("x.png"), teacher, student, norm="l2", eps=0.1, name="kdiga")
    axes = drawn[0].axes[0]
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert labels == ["kept at eps (2)", "lost at eps (2)", "gained at eps (1)", "neither (1)"]
    points = np.concatenate([dots.get_offsets() for dots in axes.collections])
    assert sorted(map(tuple, points)) == sorted(zip(teacher, student, strict=True)), "not every sample is drawn once"
    assert "kdiga" in axes.get_ylabel() and "l2" in axes.get_xlabel()
    assert axes.get_xlim() == axes.get_ylim() and axes.get_xlim()[1] >= 0.3, "a sample is outside"


def test_radii_end_where_nothing_is_certified(drawn: list[Any]) -> None:
    plots.radius_curves(Path("x.png"), {"a": np.array([0.1, 0.4]), "b": np.zeros(2)}, norm="linf", eps=0.1, samples=2)
    axes = drawn[0].axes[0]
    curves = {line.get_label(): np.asarray(line.get_data()) for line in axes.lines}
    assert curves["a"].tolist() == [[0.0, 0.1, 0.4], [1.0, 0.5, 0.0]] and curves["b"].tolist() == [[0.0], [0.0]]
    assert "eps = 0.1" in curves and "2 test samples" in axes.get_title() and axes.get_xlim()[1] > 0.4


def test_metrics_that_were_never_measured_are_no_line(drawn: list[Any]) -> None:
    histories = {
        "teacher": [{"epoch": i, "validation": {"clean": 0.5, "pgd": 0.1 * i}} for i in range(3)],
        "kd": [{"epoch": 0, "validation": {"clean": 0.5}}, {"epoch": 1, "validation": {"clean": 0.6, "noisy": 0.4}}],
    }
    plots.training_curves(Path("x.png"), histories)
    lines = {line.get_label(): np.asarray(line.get_data()) for line in drawn[0].axes[0].lines}
    assert set(lines) == {"teacher, clean", "teacher, pgd", "kd, clean", "kd, noisy"}
    np.testing.assert_allclose(lines["teacher, pgd"], [[1, 2, 3], [0, 0.1, 0.2]])
    np.testing.assert_array_equal(lines["kd, noisy"], [[1, 2], [np.nan, 0.4]], "an epoch without it is drawn")


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.PDF", b"%PDF"), ("a.svg", b"<?xml")])
def test_the_suffix_is_the_form_of_a_plot(tmp_path: Path, name: str, start: bytes) -> None:
    plots.training_curves(tmp_path / name, {"kd": [{"epoch": 0, "validation": {"clean": 0.5}}]})
    assert (tmp_path / name).read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["a.xyz", "a", "a.gif"])
def test_another_suffix_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: the name of a plot ends in \.png, \.pdf, \.svg$"):
        plots.check_name(Path(name))


def test_a_plot_is_a_whole_png(tmp_path: Path) -> None:
    path = tmp_path / "a" / "x.png"
    plots.training_curves(path, {"kd": [{"epoch": 0, "validation": {"clean": 0.5}}]})
    with Image.open(path) as image:
        assert image.format == "PNG" and image.width >= 600 and image.height >= 450
    assert [one.name for one in path.parent.iterdir()] == ["x.png"]
