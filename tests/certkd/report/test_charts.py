"""The figures of the page: what Bokeh draws, and that its library and its JSON can stand inside a page."""

import json
from typing import Any

import numpy as np
import pytest

from certkd.report import charts
from certkd.report.style import COLORS

pytestmark = pytest.mark.slow
TEACHER, STUDENT = np.array([0.2, 0.2, 0.05, 0.05, 0.0]), np.array([0.3, 0.05, 0.2, 0.0, 0.0])


def drawn(figure: Any, kind: str) -> list[Any]:
    """The renderers of one kind of mark."""
    return [one for one in figure.renderers if type(one.glyph).__name__ == kind]


def labels(figure: Any) -> list[str]:
    return [item.label.value for item in figure.legend[0].items]


def test_every_sample_is_one_dot_of_its_group() -> None:
    figure = charts.scatter(TEACHER, STUDENT, [7, 8, 9, 10, 11], ("t", "s"), "linf", 0.1)
    assert labels(figure) == ["kept (1)", "lost (1)", "gained (1)", "neither (2)"]
    groups = [one.data_source.data["index"].tolist() for one in drawn(figure, "Scatter")]
    assert groups == [[7], [8], [9], [10, 11]]
    markers = {one.glyph.marker for one in drawn(figure, "Scatter")}
    assert len(markers) == 4, "a reader who sees no colours cannot tell the groups apart"


def test_the_axes_have_names_and_units() -> None:
    figure = charts.scatter(TEACHER, STUDENT, [7, 8, 9, 10, 11], ("t", "s"), "l2", 0.1)
    found = [axis.axis_label for axis in (*figure.xaxis, *figure.yaxis)]
    assert found == ["radius of t (l2, pixels in [0, 1])", "radius of s (l2, pixels in [0, 1])"]
    figure = charts.curves({"t": TEACHER}, "linf", 0.1)
    found = [axis.axis_label for axis in (*figure.xaxis, *figure.yaxis)]
    assert found == ["radius r (linf, pixels in [0, 1])", "certified accuracy at r"]


def test_curves_differ_in_colour_and_in_dashes() -> None:
    figure = charts.curves({f"net {i}": TEACHER for i in range(7)}, "linf", 0.1)
    steps = drawn(figure, "Step")
    assert [one.glyph.line_color for one in steps] == list(COLORS)
    assert len({str(one.glyph.line_dash) for one in steps}) == 7
    assert labels(figure) == [f"net {i}" for i in range(7)]


def test_a_curve_is_the_share_above_each_radius() -> None:
    source = drawn(charts.curves({"t": TEACHER}, "linf", 0.1), "Step")[0].data_source.data
    np.testing.assert_allclose(source["x"], [0.0, 0.05, 0.2])
    np.testing.assert_allclose(source["y"], [0.8, 0.4, 0.0])


def test_a_network_without_certificates_is_a_point() -> None:
    source = drawn(charts.curves({"t": np.zeros(4)}, "linf", 0.1), "Step")[0].data_source.data
    assert source["x"].tolist() == [0.0] and source["y"].tolist() == [0.0]


def test_eps_is_marked() -> None:
    figure = charts.curves({"t": TEACHER}, "linf", 0.1)
    assert [one.location for one in figure.center if type(one).__name__ == "Span"] == [0.1]


def test_the_documents_name_their_elements() -> None:
    found = json.loads(charts.documents({"curves": charts.curves({"t": TEACHER}, "linf", 0.1)}))
    assert [one["target_id"] for one in found] == ["curves"] and found[0]["doc"]["roots"]


def test_the_library_can_stand_inside_a_script() -> None:
    text = charts.library()
    assert len(text) > 500_000 and "</script" not in text.lower() and "sourceMappingURL" not in text


def test_control_characters_of_names_are_shown() -> None:
    figure = charts.curves({"x\x1b[2J": TEACHER}, "linf", 0.1)
    assert labels(figure) == ["x\\x1b[2J"]
