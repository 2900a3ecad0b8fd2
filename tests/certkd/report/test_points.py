"""The sheet of refuted points: three pictures a row, both networks' classes above them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from certkd.report import points
from certkd.report.points import Refuted, is_drawn, sheet


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Figures, in the order in which they would be saved."""
    figures: list[Any] = []
    monkeypatch.setattr(points, "save", lambda figure, path: figures.append(figure))
    return figures


def refuted(index: int = 7, channels: int = 1, change: float = 0.05) -> Refuted:
    image = np.full((channels, 2, 2), 0.5, "f4")
    point = image.copy()
    point[:, 0, 1] += change
    return Refuted(index, image, point, before=("3", "3"), after=("5", "3"), violation=0.25)


def pictures(figure: Any) -> list[np.ndarray]:
    return [np.asarray(axes.images[0].get_array()) for axes in figure.axes]


def test_a_row_is_image_point_and_difference(drawn: list[Any]) -> None:
    sheet(Path("x.png"), [refuted(), refuted(8, change=-0.1)], "The student " + "word " * 40)
    (figure,) = drawn
    assert [axes.get_title() for axes in figure.axes] == [
        "sample 7\nstudent 3, teacher 3",
        "point, violation 0.25\nstudent 5, teacher 3",
        "difference\nx 10",
        "sample 8\nstudent 3, teacher 3",
        "point, violation 0.25\nstudent 5, teacher 3",
        "difference\nx 5",
    ]
    image, point, difference, *_, other = pictures(figure)
    np.testing.assert_allclose(image, 0.5)
    np.testing.assert_allclose(point, [[0.5, 0.55], [0.5, 0.5]])
    np.testing.assert_allclose(difference, [[0.5, 1.0], [0.5, 0.5]], atol=1e-6)
    np.testing.assert_allclose(other, [[0.5, 0.0], [0.5, 0.5]], atol=1e-6)
    title = figure.get_suptitle()
    assert "\n" in title and max(map(len, title.splitlines())) <= points.WIDTH


def test_classes_have_their_names(drawn: list[Any]) -> None:
    named = replace(refuted(), before=("cat", "cat"), after=("great white pelican", "cat"))
    sheet(Path("x.png"), [named], "title")
    titles = [axes.get_title() for axes in drawn[0].axes]
    assert titles[0].endswith("student cat, teacher cat")
    assert titles[1].endswith("student great white pelic…, teacher cat"), "long names are cut"


def test_the_image_itself_has_no_difference(drawn: list[Any]) -> None:
    sheet(Path("x.png"), [refuted(change=0.0)], "title")
    assert drawn[0].axes[2].get_title() == "difference\nnone: the image itself"
    np.testing.assert_array_equal(pictures(drawn[0])[2], 0.5)


@pytest.mark.parametrize(("channels", "shape"), [(1, (2, 2)), (3, (2, 2, 3)), (4, (2, 2))])
def test_three_channels_are_colours(drawn: list[Any], channels: int, shape: tuple[int, ...]) -> None:
    sheet(Path("x.png"), [refuted(channels=channels)], "title")
    assert all(picture.shape == shape for picture in pictures(drawn[0]))


def test_vectors_are_not_drawn() -> None:
    assert is_drawn((1, 8, 8)) and is_drawn((3, 2, 2)) and not is_drawn((5,)) and not is_drawn((2, 3))


def test_the_file_is_a_png(tmp_path: Path) -> None:
    sheet(tmp_path / "a.png", [refuted()], "title")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.format == "PNG" and picture.size[0] > 500
