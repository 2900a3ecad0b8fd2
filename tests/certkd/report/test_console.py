"""Tables on the screen: nothing is cut, numbers stand at the right, 80 columns hold what certkd prints."""

import io

import pytest
from rich.console import Console

from certkd.report.console import CertifyProgress, TrainProgress, display, lines, stderr
from verifiers.core.table import Part, Table, figure, percent


def printed(*parts: Part, width: int = 80) -> str:
    screen = io.StringIO()
    display(*parts, console=Console(file=screen, width=width, markup=False))
    return screen.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_loses_no_figure(width: int) -> None:
    rows = [["a network of a long name", *(f"{i}23.4567" for i in range(1, 10))]]
    shown = printed(Table("title", ["network", *(f"{i}0% quantile" for i in range(1, 10))], rows), width=width)
    assert "…" not in shown, "a cell was cut"


def test_numbers_stand_at_the_right_and_words_at_the_left() -> None:
    rows = [["a", ">= 72.5%", "-", "x" * 9], ["b", "<= 5.0%", "1.25", "y"]]
    shown = printed(Table("title", ["", "share", "radius", "words"], rows))
    assert "│  <= 5.0% │" in shown and "│      - │" in shown and "│ y         │" in shown


def test_a_title_is_no_wider_than_it_must_be_and_columns_without_names_have_no_header() -> None:
    title = "a title that is longer than its table"
    assert printed(Table(title, ["", ""], [["a", "1"]])).splitlines()[0] == title
    assert len(printed(Table(title, ["", ""], [["a", "1"]])).splitlines()) == 4


def test_a_sentence_is_one_line_and_nothing_is_markup() -> None:
    text = f"written to {'[bold]' * 40}"
    assert printed(text) == f"{text}\n"


def test_what_is_not_a_number_is_a_dash() -> None:
    assert (percent(float("nan")), percent(0.1234)) == ("-", "12.3%")
    assert (figure(float("nan")), figure(0.12345)) == ("-", "0.123")


def test_control_characters_are_shown_and_not_obeyed(capsys: pytest.CaptureFixture[str]) -> None:
    evil = "a\x1b[2J\x9b1mb\u202ec\rd\x07[bold]"
    display(evil, Table(evil, ["name", evil], [[evil, "1"]]))
    stderr().print(evil)
    CertifyProgress(evil).warn(evil)
    TrainProgress(evil).warn(evil)
    shown = "".join(capsys.readouterr())
    assert r"a\x1b[2J\x9b1mb\u202ec\rd\x07[bold]" in shown
    assert not {c for c in shown if not c.isprintable()} - {"\n"}, shown


def test_lines_keep_their_ends() -> None:
    assert lines("a\n\x1bb\n") == "a\n\\x1bb\n"
