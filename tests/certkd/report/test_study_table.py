"""The sentence and the tables of a study: every case of the answer, and numbers as they are written."""

import math
from dataclasses import replace

import pytest

from certkd.comparison.intervals import Estimate
from certkd.comparison.study import Entry, Spread, Study
from certkd.report import paper
from certkd.report.console import fitted
from certkd.report.tables import study as tables_of
from certkd.report.tables.study import answer, notes, p_value, spread
from verifiers.core.table import Table


def entry(label: str, certified: float, difference: Estimate | None = None, *, seeds: int = 1, **more: float) -> Entry:
    """A network with these figures; its other accuracies are 1."""
    shares = {"certified": certified, "pgd": 1.0, "clean": 1.0, "retention": more.get("retention", 0.5)}
    deviation = 0.01 if seeds > 1 else math.nan
    figures = {name: Spread(value, deviation) for name, value in shares.items()}
    p = math.nan if difference is None else difference.p
    return Entry(label, tuple(f"{label}{i}.h5" for i in range(seeds)), figures, difference, p, ())


def made(*students: Entry) -> Study:
    """A study of these students."""
    settings = {"crown": {"engine": "auto"}}
    reference = entry("t", 0.5)
    return Study("linf", "2/255", 200, ("crown",), settings, "float32", ("native",), (reference, *students))


MORE, LESS, SAME = Estimate(0.1, 0.05, 0.15, 0.001), Estimate(-0.2, -0.3, -0.1, 1e-9), Estimate(0.0, -0.02, 0.02, 1.0)

ANSWERS = [
    (
        (entry("a", 0.6, MORE),),
        "a certifies 60.0% of 200 samples, 10.0 points more than t (95 % interval +5.0 to +15.0)",
    ),
    (
        (entry("a", 0.3, LESS),),
        "a certifies 30.0% of 200 samples, 20.0 points less than t (95 % interval -30.0 to -10.0)",
    ),
    ((entry("a", 0.5, SAME),), "a certifies 50.0% of 200 samples, as much as t (95 % interval -2.0 to +2.0)"),
    (
        (entry("a", 0.3, LESS), entry("b", 0.6, MORE)),
        "b certifies 60.0% of 200 samples, the most of 2 networks, 10.0 points more",
    ),
    ((entry("a", 0.6, MORE, retention=0.925),), "it keeps 92.5% of t's certificates."),
]


@pytest.mark.parametrize(("students", "words"), ANSWERS, ids=[words[:40] for _, words in ANSWERS])
def test_the_answer_is_one_sentence(students: tuple[Entry, ...], words: str) -> None:
    sentence = answer(made(*students))
    assert words in sentence and sentence.startswith("At eps 2/255 (linf) ") and sentence.count(". ") == 0


def test_nothing_to_keep_is_not_said_to_be_kept() -> None:
    assert "keeps" not in answer(made(entry("a", 0.6, MORE, retention=math.nan)))


SPREADS = [
    (Spread(0.5, math.nan), "50.0"),
    (Spread(0.5, 0.0), "50.0 ± 0.0"),
    (Spread(0.12345, 0.01), "12.3 ± 1.0"),
    (Spread(1.0, 0.25), "100.0 ± 25.0"),
    (Spread(math.nan, math.nan), "-"),
]


@pytest.mark.parametrize(("value", "text"), SPREADS, ids=[text for _, text in SPREADS])
def test_a_share_is_in_percent_with_its_deviation(value: Spread, text: str) -> None:
    assert spread(value) == text


P_VALUES = [
    (math.nan, "-"),
    (1.0, "1"),
    (0.0512, "0.051"),
    (0.0001, "0.0001"),
    (9.9e-5, "<0.0001"),
    (0.0, "<0.0001"),
]


@pytest.mark.parametrize(("value", "text"), P_VALUES, ids=[text for _, text in P_VALUES])
def test_a_p_value_has_two_digits(value: float, text: str) -> None:
    assert p_value(value) == text


def test_seeds_are_counted_in_the_notes() -> None:
    one, three = entry("a", 0.6, MORE), entry("b", 0.6, MORE, seeds=3)
    assert "One seed each." in notes(made(one))[0]
    assert "over 3 seeds." in notes(made(three))[0]
    assert "over seeds, where there are several." in notes(made(one, three))[0]


def test_one_comparison_is_not_adjusted() -> None:
    one = notes(made(entry("a", 0.6, MORE)))
    two = notes(made(entry("a", 0.6, MORE), entry("b", 0.5, SAME)))
    assert "Holm" not in one[-1] and one[-1].endswith("a paired bootstrap over samples.")
    assert two[-1].endswith("Holm's adjustment for 2 comparisons.")


def test_rows_of_a_log_have_no_arithmetic() -> None:
    bare = replace(made(entry("a", 0.6, MORE)), arithmetic="", engines=())
    assert not any("rithmetic" in note for note in notes(bare)) and "engine" not in notes(bare)[0]


def test_each_arithmetic_is_explained() -> None:
    both = notes(replace(made(entry("a", 0.6, MORE)), arithmetic="float32+int8"))
    assert [note.split(":")[0] for note in both if "rithmetic" in note] == ["Arithmetic float32", "Arithmetic int8"]


def test_long_names_do_not_split_a_table() -> None:
    found = made(entry("a-rather-long-name-of-it", 0.6, MORE, seeds=3), entry("b", 0.5, SAME))
    tables = [part for part in tables_of(found) if isinstance(part, Table)]
    assert len(tables) == 2 and all(len(fitted(table, 80)) == 1 for table in tables)


def test_the_only_student_is_not_in_bold() -> None:
    assert "textbf" not in paper.written(made(entry("a", 0.6, MORE)), "latex")
    tied = paper.written(made(entry("a", 0.6, MORE), entry("b", 0.6, MORE)), "markdown")
    assert tied.count("**60.0**") == 2, "ties are both the best"
