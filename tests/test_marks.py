"""Thinned families keep every case: one that is not in the default suite is slow, and none is lost."""

from typing import Any

import pytest

from tests import conftest
from tests.marks import only, thin


def seen(cases: list[Any]) -> list[tuple[Any, bool]]:
    """Each case's values, and whether it is slow."""
    found = []
    for case in cases:
        values, marks = (case.values, case.marks) if hasattr(case, "marks") else (case, ())
        alone = isinstance(values, tuple) and hasattr(case, "marks") and len(values) == 1
        found.append((values[0] if alone else values, any(mark.name == "slow" for mark in marks)))
    return found


def test_every_third_case_is_kept() -> None:
    assert seen(thin("abcde")) == [("a", False), ("b", True), ("c", True), ("d", False), ("e", True)]
    assert seen(thin([("a", 1), ("b", 2)], every=2)) == [(("a", 1), False), (("b", 2), True)]


def test_chosen_cases_are_kept_in_their_place() -> None:
    assert seen(only("c", "abc")) == [("a", True), ("b", True), ("c", False)]
    with pytest.raises(AssertionError, match=r"no such cases: \['d'\]"):
        only("d", "abc")


def test_other_marks_and_names_stay() -> None:
    skipped = pytest.param(1, 2, marks=pytest.mark.skip, id="pair")
    first, second = thin([skipped, skipped])
    assert first is skipped and second.id == "pair" and second.values == (1, 2)
    assert [mark.name for mark in second.marks] == ["skip", "slow"]


@pytest.mark.parametrize("letter", thin("abcdefg"))
def test_the_default_suite_runs_what_is_kept(letter: str, request: pytest.FixtureRequest) -> None:
    assert (request.node.get_closest_marker("slow") is None) == (letter in "adg")


@pytest.mark.thin(3)
@pytest.mark.parametrize("letter", only("abcdf", "abcdef"))
def test_the_mark_thins_what_is_not_slow(letter: str, request: pytest.FixtureRequest) -> None:
    assert (request.node.get_closest_marker("slow") is None) == (letter in "ad")


class Item:
    """A test with some marks, as pytest collects it."""

    def __init__(self, nodeid: str, *marks: str) -> None:
        self.nodeid, self.marks = nodeid, marks

    def get_closest_marker(self, name: str) -> bool:
        return name in self.marks

    def iter_markers(self, name: str) -> tuple[()]:
        return ()


def test_a_part_of_the_slow_cases_of_each_test_can_be_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test of one case is always run, and tests that are not slow stay."""
    names = ("a[0]", "a[1]", "a[2]", "b", "c[x]", "c[y]")
    made = [Item(name, *([] if name[0] == "c" else ["slow"])) for name in names]
    for every, left in (
        ("1", names),
        ("2", ("a[0]", "a[2]", "b", "c[x]", "c[y]")),
        ("3", ("a[0]", "b", "c[x]", "c[y]")),
    ):
        monkeypatch.setenv("CERTKD_SLOW_EVERY", every)
        items = list(made)
        conftest.pytest_collection_modifyitems(items)  # type: ignore[arg-type]
        assert tuple(item.nodeid for item in items) == left
