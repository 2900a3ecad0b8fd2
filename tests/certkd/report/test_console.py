"""Tables on the screen: nothing is cut, numbers stand at the right, 80 columns hold what certkd prints."""

import io

import pytest
from rich.console import Console

from certkd.report.console import Mode, begin, display, lines, record, stderr
from certkd.report.progress import CertifyProgress, TrainProgress
from verifiers.core.table import Facts, Part, Table, figure, percent


def printed(*parts: Part, width: int = 80) -> str:
    screen = io.StringIO()
    display(*parts, console=Console(file=screen, width=width, markup=False))
    return screen.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_narrow_terminal_loses_no_figure(width: int) -> None:
    rows = [["a network of a long name", *(f"{i}23.4567" for i in range(1, 10))]]
    shown = printed(Table("title", ["network", *(f"{i}0% quantile" for i in range(1, 10))], rows), width=width)
    assert "…" not in shown, "a cell was cut"


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_word_is_cut_however_many_columns_there_are(width: int) -> None:
    names = ["method", *(f"statusnumber{i}" for i in range(9)), "what, and by what"]
    rows = [["local-linearity", *("12,345.6 GiB" for _ in range(9)), "sentences of several words may be wrapped"]]
    shown = printed(Table("title", names, rows), width=width)
    assert max(map(len, shown.splitlines())) <= width
    words = {word for line in shown.splitlines() for word in line.replace("┃", " ").replace("│", " ").split()}
    assert {*names[:-1], "local-linearity", "12,345.6", "sentences", "wrapped"} <= words
    assert shown.count("local-linearity") == shown.count("method") == {60: 5, 80: 3, 200: 1}[width]


def test_a_table_of_one_column_and_one_without_rows_are_drawn() -> None:
    assert "only" in printed(Table("title", ["only"], [["a"]]))
    assert "second" in printed(Table("title", ["first", "second"], []))


def test_numbers_stand_at_the_right_and_words_at_the_left() -> None:
    rows = [["a", ">= 72.5%", "-", "x" * 9], ["b", "<= 5.0%", "1.25", "y"]]
    shown = printed(Table("title", ["", "share", "radius", "words"], rows))
    spread = printed(
        Table("title", ["", "mean", "interval"], [["a", "2.5 ± 0.1", "[-1.0, +10.5]"], ["b", "-", "[+1, +2]"]])
    )
    assert "│         - │      [+1, +2] │" in spread
    assert "│  <= 5.0% │" in shown and "│      - │" in shown and "│ y         │" in shown


def test_a_title_is_no_wider_than_it_must_be_and_columns_without_names_have_no_header() -> None:
    title = "a title that is longer than its table"
    assert printed(Table(title, ["", ""], [["a", "1"]])).splitlines()[0] == title
    assert len(printed(Table(title, ["", ""], [["a", "1"]])).splitlines()) == 4


def test_nothing_is_markup_and_a_long_word_is_not_cut() -> None:
    word = "[bold]" * 40
    assert printed(f"written to {word}") == f"written to\n{word}\n"


def test_a_sentence_is_wrapped_between_words_and_a_document_is_not() -> None:
    text = "a sentence of words " * 6
    assert printed(text, width=60).splitlines() == ["a sentence of words a sentence of words a sentence of words"] * 2
    assert printed(f"{text}\nend", width=60) == f"{text}\nend\n"


def test_facts_go_on_below_themselves_and_wide_characters_count_twice() -> None:
    shown = printed(Facts([("command", "certkd certify " * 5), ("", "x"), ("local-linearity", "long name")]), width=40)
    assert shown.splitlines() == [
        "command    certkd certify certkd certify",
        "           certkd certify certkd certify",
        "           certkd certify",
        "           x",
        "local-linearity long name",
    ]
    assert printed("網路 " * 12, width=60).splitlines() == [("網路 " * 12).strip()]
    assert printed("網路 " * 13, width=60).splitlines() == [("網路 " * 12).strip(), "網路"]


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


class Clock:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_has_counts_and_the_time_that_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = CertifyProgress("net.pt", clock)
    progress.start("crown", 100, 10)
    progress.advance(5)  # no line is due yet
    clock.now = 30.0
    progress.within(10, "step 3 of the radius search")
    clock.now = 50.0
    progress.advance(20)
    clock.now = 300.0
    progress.advance(65)
    progress.finish("crown")
    assert capsys.readouterr().err.splitlines() == [
        "net.pt: crown (10 rows already done) ...",
        "net.pt: crown 25/100 (step 3 of the radius search), about 2 min left",
        "net.pt: crown 35/100, about 2 min left",
        "net.pt: crown 100/100 in 5 min",
    ]


def test_a_long_epoch_is_seen_in_a_log(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    progress = TrainProgress("kd", clock)
    progress.start(2, 0, 4)
    record = {"epoch": 0, "terms": {"loss": 1.0}, "validation": {"clean": 0.5}}
    for clock.now in (5.0, 20.0, 25.0, 40.0):
        progress.step()
    progress.epoch(record)
    assert capsys.readouterr().err.splitlines() == [
        "kd: epoch 1/2 step 2/4, about 60 s left",
        "kd: epoch 1/2 loss 1.000 clean 0.500, about 40 s left",
    ]


def test_quiet_leaves_results_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    begin(Mode(quiet=True))
    try:
        progress = CertifyProgress("net.pt", clock := Clock())
        progress.clean(0.5, 1)
        progress.start("crown", 2, 0)
        clock.now = 100.0
        progress.advance(1)
        progress.finish("crown")
        progress.inform("a remark")
        progress.warn("something is wrong")
        display("a result")
    finally:
        begin(Mode())
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("a result\n", "net.pt: warning: something is wrong\n")


def test_results_as_one_document() -> None:
    mode = Mode(plain=True)
    begin(mode)
    try:
        display("a sentence", Table("title", ["name", "share"], [["a", ">= 5%"]]))
        record(files=[1], holds=True)
        record(files=[2])
    finally:
        begin(Mode())
    assert mode.document() == {
        "files": [1, 2],
        "holds": True,
        "tables": [{"title": "title", "columns": ["name", "share"], "rows": [["a", ">= 5%"]]}],
        "lines": ["a sentence"],
    }


def test_lines_keep_their_ends() -> None:
    assert lines("a\n\x1bb\n") == "a\n\\x1bb\n"
