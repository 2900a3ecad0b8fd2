"""Counterexample files of both forms."""

from fractions import Fraction
from pathlib import Path

import pytest

from certkd.exchange.assignments import assignment, decimal, read_assignment
from verifiers.core.errors import InputError


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Fraction(0), "0.0"),
        (Fraction(1), "1.0"),
        (Fraction(-5, 4), "-1.25"),
        (Fraction(1, 1 << 10), "0.0009765625"),
        (Fraction(-1, 1000), "-0.001"),
        (Fraction(12345), "12345.0"),
        (Fraction(1, 3), f"0.{'3' * 40}"),
    ],
)
def test_decimals(value: Fraction, text: str) -> None:
    assert decimal(value) == text


def test_what_is_written_is_read(tmp_path: Path) -> None:
    x, y = [Fraction(1, 10), Fraction(-3, 8)], [Fraction(0.1)]
    (tmp_path / "c").write_text("\n".join(assignment(x, y)))
    assert (tmp_path / "c").read_text().startswith("((X_0 0.1)\n (X_1 -0.375)\n (Y_0 0.1000000000000000055")
    found = read_assignment(tmp_path / "c")
    assert (found.x, found.y) == (x, y)


@pytest.mark.parametrize(
    "text",
    [
        "sat\n((X_0 0.5)\n(X_1 -1e-2)\n(Y_0 3))",
        "((Y_0 3) (X_1 -0.01) (X_0 0.5))",
        "X float32 [1,2]\n0.5\n-0.01\nY Real [1]\n3\n",
        "sat\nX float32 [2]\n0.5\n-0.01\nY real []\n3.0\n",
    ],
)
def test_forms_of_other_tools(text: str, tmp_path: Path) -> None:
    (tmp_path / "c").write_text(text)
    found = read_assignment(tmp_path / "c")
    assert found.x == [Fraction(1, 2), Fraction(-1, 100)] and found.y == [3]


def test_outputs_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / "c").write_text("((X_0 1))")
    assert read_assignment(tmp_path / "c").y == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("unsat", "must be a heading"),
        ("((X_0 1) (X_2 1))", "some entries of X"),
        ("((X_0 one))", "not a number"),
        ("((Z_0 1))", "must look like"),
        ("(X_0 1)", "must look like"),
        ("((X_0 1)", "never closed"),
        ("((Y_0 1))", "no input"),
        ("X float32 [2]\n1\n", "all of its entries"),
        ("X float32 [1]\n1\nY real [1]\n1\nZ real [1]\n1", "one input and one output"),
    ],
)
def test_mistakes(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "c").write_text(text)
    with pytest.raises(InputError) as caught:
        read_assignment(tmp_path / "c")
    assert said in str(caught.value) and str(tmp_path / "c") in str(caught.value)
