"""Formulas: their normal forms agree with them at every point, and arithmetic is exact."""

from collections.abc import Mapping
from fractions import Fraction

import numpy as np
import pytest

from certkd.exchange import query
from certkd.exchange.expressions import expressions
from certkd.exchange.query import (
    Condition,
    Entry,
    Formula,
    Junction,
    Kind,
    Linear,
    Network,
    Query,
    Scope,
    Variable,
    disjuncts,
    formula_of,
    linear_of,
    whole_numbers,
)
from verifiers.core.errors import InputError

X = Variable("X", Kind.INPUT, "float32", (2, 3))
Y = Variable("Y", Kind.OUTPUT, "float32", ())


@pytest.fixture
def scope() -> Scope:
    made = Scope()
    made.add(X)
    made.add(Y)
    return made


def tree(text: str) -> list:
    return next(iter(expressions(text)))[0]


def value(function: Linear, at: Mapping[Entry, Fraction]) -> Fraction:
    return function.constant + sum(slope * at[entry] for entry, slope in function.terms.items())


def true(formula: Formula, at: Mapping[Entry, Fraction]) -> bool:
    if isinstance(formula, Condition):
        found = value(formula.function, at)
        return found < 0 or (found == 0 and not formula.strict)
    assert isinstance(formula, Junction)
    return (all if formula.every else any)(true(part, at) for part in formula.parts)


def written_true(expression: list | str, at: Mapping[str, Fraction]) -> bool | Fraction:
    """The value of an expression of single names, computed in another way than the reader's."""
    if isinstance(expression, str):
        return at[expression] if expression in at else Fraction(expression)
    head, *parts = expression
    values = [written_true(part, at) for part in parts]
    if head == "-" and len(values) == 1:
        return -values[0]
    if head in ("+", "-", "*"):
        total = values[0]
        for each in values[1:]:
            total = total + each if head == "+" else total - each if head == "-" else total * each
        return total
    if head in ("and", "or"):
        return all(values) if head == "and" else any(values)
    if head == "not":
        return not values[0]
    one, two = values
    return {"<=": one <= two, ">=": one >= two, "<": one < two, ">": one > two, "==": one == two, "!=": one != two}[
        head
    ]


NAMES = ("A", "B", "C")


def drawn_term(rng: np.random.Generator, depth: int) -> str:
    kind = rng.integers(6) if depth else rng.integers(2)
    if kind == 0:
        return str(rng.choice(NAMES))
    if kind == 1:
        return str(rng.choice(["0", "1", "-2", "0.5", "-0.25"]))
    if kind == 2:
        return f"(* {rng.choice(['2', '-0.5', '0'])} {drawn_term(rng, depth - 1)})"
    if kind == 3:
        return f"(- {drawn_term(rng, depth - 1)})"
    return f"({'+' if kind == 4 else '-'} {' '.join(drawn_term(rng, depth - 1) for _ in range(rng.integers(2, 4)))})"


def drawn_formula(rng: np.random.Generator, depth: int) -> str:
    kind = rng.integers(4) if depth else 3
    if kind == 0:
        return f"(not {drawn_formula(rng, depth - 1)})"
    if kind < 3:
        parts = " ".join(drawn_formula(rng, depth - 1) for _ in range(rng.integers(1, 4)))
        return f"({'and' if kind == 1 else 'or'} {parts})"
    word = rng.choice(["<=", ">=", "<", ">", "==", "!="])
    return f"({word} {drawn_term(rng, 2)} {drawn_term(rng, 2)})"


@pytest.mark.parametrize("seed", range(30))
def test_formulas_mean_what_they_say(seed: int) -> None:
    """At points of a coarse grid, where ties are common: read, brought into normal form, and negated."""
    rng, scope = np.random.default_rng(seed), Scope()
    for name in NAMES:
        scope.add(Variable(name, Kind.INPUT, "real", ()))
    text = drawn_formula(rng, 3)
    formula, opposite = formula_of(tree(text), scope), formula_of(tree(f"(not {text})"), scope)
    cases = disjuncts(formula)
    for _ in range(20):
        point = {name: Fraction(int(rng.integers(-2, 3)), 2) for name in NAMES}
        at = {Entry(name, 0): number for name, number in point.items()}
        expected = written_true(tree(text), point)
        assert true(formula, at) == expected, f"{text} at {point}"
        assert true(opposite, at) != expected, f"not {text} at {point}"
        assert any(all(true(each, at) for each in case) for case in cases) == expected, (
            f"the cases of {text} at {point}"
        )


def test_sums_are_exact_and_drop_what_cancels() -> None:
    one = Linear({Entry("X", 0): Fraction(1, 10), Entry("X", 1): Fraction(1)}, Fraction(1, 3))
    two = Linear({Entry("X", 0): Fraction(1, 5)}, Fraction(1, 6))
    found = one.plus(two, Fraction(-1, 2))
    assert found == Linear({Entry("X", 1): Fraction(1)}, Fraction(1, 4))
    assert one.terms == {Entry("X", 0): Fraction(1, 10), Entry("X", 1): Fraction(1)}, "the first is left as it was"


@pytest.mark.parametrize(
    ("text", "terms", "constant"),
    [
        ("(+ X[1,2] Y)", {Entry("X", 5): 1, Entry("Y", 0): 1}, 0),
        ("(- X[0,0] X[0,0])", {}, 0),
        ("(* 2 (+ Y 1) -0.5)", {Entry("Y", 0): -1}, -1),
        ("(* (+ Y 1) 3)", {Entry("Y", 0): 3}, 3),
        ("(* 0 Y)", {}, 0),
        ("(- (- Y 1))", {Entry("Y", 0): -1}, 1),
        ("(+ 1e-3 .5)", {}, Fraction(501, 1000)),
    ],
)
def test_linear_functions(text: str, terms: dict[Entry, int], constant: Fraction, scope: Scope) -> None:
    assert linear_of(tree(text), scope) == Linear({e: Fraction(v) for e, v in terms.items()}, Fraction(constant))


@pytest.mark.parametrize("text", ["(* Y Y)", "(* X[0,0] (+ Y 1))", "(/ Y 2)", "(+)", "(max Y 0)"])
def test_other_functions_are_refused(text: str, scope: Scope) -> None:
    with pytest.raises(InputError):
        linear_of(tree(text), scope)


def test_entries_are_in_the_order_of_memory(scope: Scope) -> None:
    places = [scope.entry("X", f"[{i},{j}]").place for i in range(2) for j in range(3)]
    assert places == list(range(6)) and scope.entry("Y", None) == Entry("Y", 0) == scope.entry("Y", "[]")
    for name, indices in (("X", "[2,0]"), ("X", "[0]"), ("X", None), ("Z", "[0]"), ("Y", "[0]"), ("X", "[-1,0]")):
        with pytest.raises(InputError):
            scope.entry(name, indices)
    with pytest.raises(InputError, match="declared twice"):
        scope.add(X)


@pytest.mark.parametrize(("text", "numbers"), [("[]", ()), ("[ ]", ()), ("[3]", (3,)), ("[1, 20 ,3]", (1, 20, 3))])
def test_indices(text: str, numbers: tuple[int, ...]) -> None:
    assert whole_numbers(text) == numbers
    with pytest.raises(InputError, match="whole numbers"):
        whole_numbers(f"[{text[1:-1]},]")


def test_conditions_that_all_cases_share_are_not_multiplied() -> None:
    a, b, c = (Condition(Linear({Entry(name, 0): Fraction(1)}, Fraction(0))) for name in "abc")
    either = Junction(False, (a, Junction(True, (b, c))))
    made = Query("2.0", (Network("n", (X, Y)),), (a, either, Junction(True, (b, c))))
    assert made.cases() == ([a, b, c], [[a], [b, c]])


def test_the_number_of_cases_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query, "MOST_CASES", 8)
    a = Condition(Linear({}, Fraction(0)))
    pair = Junction(False, (a, a))
    assert len(disjuncts(Junction(True, (pair,) * 3))) == 8
    with pytest.raises(InputError, match="more than 8 cases"):
        disjuncts(Junction(True, (pair,) * 4))
    with pytest.raises(InputError, match="more than 8 cases"):
        disjuncts(Junction(False, (a,) * 9))


def test_tensors_know_their_size() -> None:
    assert (X.size, Y.size) == (6, 1)
    network = Network("n", (X, Y))
    assert network.of(Kind.INPUT) == [X] and network.of(Kind.HIDDEN) == []
