"""Parts of the page that need no figure: pictures, radii as they are shown, tables as HTML."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from certkd.report import page as pages
from certkd.report import pictures
from certkd.report.page import element
from verifiers.core.table import Table


@pytest.mark.parametrize(
    ("radius", "shown"), [(0.123456, 0.1234), (0.0999999, 0.09999), (0.1, 0.1), (0.0, 0.0), (12.3456, 12.34)]
)
def test_no_radius_is_shown_larger_than_it_is(radius: float, shown: float) -> None:
    found = pages._short(np.array([radius]))[0]
    assert found == shown and found <= radius


def pixels(uri: str) -> np.ndarray:
    head, _, content = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))


def test_pictures_are_the_images() -> None:
    grey = np.array([[[0.0, 1.0], [0.5, np.nan]]])
    np.testing.assert_array_equal(pixels(pictures.picture(grey)), [[0, 255], [128, 0]])
    colour = np.zeros((3, 2, 2))
    colour[1] = 1.0
    assert pixels(pictures.picture(colour))[0, 0].tolist() == [0, 255, 0]
    assert pixels(pictures.picture(np.zeros((1, 300, 200)))).shape == (96, 64)


def test_a_difference_is_amplified_around_grey() -> None:
    image, point = np.full((1, 1, 3), 0.5), np.array([[[0.5, 0.51, 0.49]]])
    assert pixels(pictures.difference(image, point)).tolist() == [[128, 255, 0]]
    assert pixels(pictures.difference(image, image)).tolist() == [[128, 128, 128]]


def test_pictures_stop_where_the_budget_ends() -> None:
    images = {row: np.random.default_rng(row).random((1, 8, 8)) for row in range(20)}
    some = pictures.thumbnails(images, [7, 3, 99, 5], budget=600)
    assert next(iter(some)) == 7 and 0 < len(some) < 3
    assert list(pictures.thumbnails(images, [7, 3, 99, 5])) == [7, 3, 5]
    assert pictures.thumbnails({0: np.zeros(5)}, [0]) == {} and not pictures.is_drawn((2, 4, 4))


def test_a_table_and_a_sentence_are_escaped() -> None:
    assert element("a < b & \x1b[2J") == r'<p class="note">a &lt; b &amp; \x1b[2J</p>'
    table = element(Table("T<", ["a", "b"], [["x<y", "1.5"], ["-", "[1, 2]"]]))
    assert "<h3>T&lt;</h3>" in table and "<td>x&lt;y</td><td class=number>1.5</td>" in table
    assert table.count("<tr>") == 3 and '<th scope="col">a</th><th scope="col" class=number>b</th>' in table
