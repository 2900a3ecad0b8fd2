"""VNN-LIB files of both versions, read into exact boxes and inequalities."""

import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from certkd.exchange.query import Entry, Kind, Query
from certkd.exchange.vnnlib import Style, ball, write_property
from certkd.exchange.vnnlib_file import property_of, read_query
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.properties.property import Inequality, Property

HALF = Fraction(1, 2)
FIRST = """; a comment (with brackets
(declare-const X_0 Real)
(declare-const X_1 Real)
(declare-const Y_0 Real) (declare-const Y_1 Real)
(assert (>= X_0 -0.25)) (assert (<= X_0 1e-1))
(assert (and (>= X_1 0) (<= X_1 (+ 0.5 0.25))))
"""
SECOND = """(vnnlib-version <2.0>)
(declare-network acc
    (declare-input  X float32 [1, 2] "image")
    (declare-output Y Real [2])
)
(assert (and (>= X[0,0] -0.25) (<= X [0, 0] 0.1) (>= X[0,1] 0.0) (<= X[0,1] 0.75)))
"""
BOX = ((Fraction(-1, 4), Fraction(0)), (Fraction(1, 10), Fraction(3, 4)))


def read(text: str, folder: Path) -> Query:
    path = folder / "p.vnnlib"
    path.write_text(text)
    return read_query(path)


def as_property(text: str, folder: Path) -> Property:
    return property_of(read(text, folder), 2, 2)


def terms(inequality: Inequality) -> tuple[dict[int, Fraction], dict[int, Fraction], Fraction, bool]:
    return dict(inequality.outputs), dict(inequality.inputs), inequality.constant, inequality.strict


@pytest.mark.parametrize(
    ("first", "second", "cases"),
    [
        pytest.param("(<= Y_0 Y_1)", "(<= Y[0] Y[1])", [[({0: 1, 1: -1}, {}, 0, False)]], id="below"),
        pytest.param("(> Y_0 1.5)", "(> Y[0] 1.5)", [[({0: -1}, {}, 1.5, True)]], id="strictly above"),
        pytest.param(
            "(or (and (>= Y_0 1) (<= Y_1 2)) (and (< Y_1 Y_0)))",
            "(or (and (>= Y[0] 1.0) (<= Y[1] 2.0)) (< Y[1] Y[0]))",
            [[({0: -1}, {}, 1, False), ({1: 1}, {}, -2, False)], [({1: 1, 0: -1}, {}, 0, True)]],
            id="alternatives",
        ),
        pytest.param(
            "(<= (+ (* 2 Y_0) (* -0.5 X_1) (- Y_1)) (- 3 1 0.5))",
            "(<= (+ (* 2.0 Y[0]) (* -0.5 X[0,1]) (- Y[1])) (- 3.0 1.0 0.5))",
            [[({0: 2, 1: -1}, {1: -HALF}, -1.5, False)]],
            id="linear",
        ),
        pytest.param("(= Y_0 1)", "(== Y[0] 1.0)", [[({0: 1}, {}, -1, False), ({0: -1}, {}, 1, False)]], id="equal"),
        pytest.param("(!= Y_0 1)", "(!= Y[0] 1.0)", [[({0: 1}, {}, -1, True)], [({0: -1}, {}, 1, True)]], id="unequal"),
        pytest.param(
            "(not (or (<= Y_0 1) (< Y_1 2)))",
            "(and (> Y[0] 1.0) (>= Y[1] 2.0))",
            [[({0: -1}, {}, 1, True), ({1: -1}, {}, 2, False)]],
            id="negated",
        ),
        pytest.param("(<= 0 1)", "(<= 0.0 1.0)", [[]], id="always true"),
        pytest.param("(<= 1 0)", "(<= 1.0 0.0)", [], id="never true"),
        pytest.param("(< X_0 0)", "(< X[0,0] 0.0)", [[({}, {0: 1}, 0, True)]], id="an open bound stays"),
    ],
)
def test_conditions(first: str, second: str, cases: list, tmp_path: Path) -> None:
    for head, text in ((FIRST, first), (SECOND, second)):
        found = as_property(f"{head}(assert {text})", tmp_path)
        assert [[terms(each) for each in case.inequalities] for case in found.cases] == cases
        if "X" not in text:
            assert {(case.box.low, case.box.high) for case in found.cases} <= {BOX}
            assert len({id(case.box) for case in found.cases}) <= 1, "cases of one box share it"


def test_alternatives_of_inputs_are_cases_with_their_own_boxes(tmp_path: Path) -> None:
    text = "(assert (or (and (<= X_0 0) (>= Y_0 1)) (and (>= X_0 0.05) (<= Y_0 0)) (>= X_0 0.2)))"
    found = as_property(FIRST + text, tmp_path)
    assert [(case.box.low[0], case.box.high[0]) for case in found.cases] == [
        (Fraction(-1, 4), 0),
        (Fraction(1, 20), Fraction(1, 10)),
    ], "the third box is empty"
    assert all(case.box.high[1] == Fraction(3, 4) for case in found.cases)


def test_two_disjunctions_multiply(tmp_path: Path) -> None:
    text = "(assert (or (<= Y_0 0) (<= Y_0 1))) (assert (or (<= Y_1 2) (<= Y_1 3)))"
    pairs = [tuple(-each.constant for each in case.inequalities) for case in as_property(FIRST + text, tmp_path).cases]
    assert pairs == [(0, 2), (0, 3), (1, 2), (1, 3)]


def test_declarations_of_several_networks(tmp_path: Path) -> None:
    text = """(vnnlib-version <2.0>)
    (declare-network f (declare-input A float32 [2,3]) (declare-hidden H real [4] "h") (declare-output B real []))
    (declare-network g (isomorphic-to f) (declare-input C float32 [2,3]) (declare-output D real []))
    (assert (<= (+ A[1,2] C[0,1]) B)) (assert (< B D))"""
    found = read(text, tmp_path)
    assert found.version == "2.0" and [network.name for network in found.networks] == ["f", "g"]
    assert found.networks[1].relation == ("isomorphic-to", "f") and found.networks[0].relation is None
    hidden = found.networks[0].of(Kind.HIDDEN)[0]
    assert (hidden.name, hidden.shape, hidden.onnx, hidden.size) == ("H", (4,), "h", 4)
    common, cases = found.cases()
    assert cases == [[]]
    assert dict(common[0].function.terms) == {Entry("A", 5): 1, Entry("C", 1): 1, Entry("B", 0): -1}
    assert common[1].strict and not common[0].strict
    with pytest.raises(InputError, match=r"2 networks \(f, g\)"):
        property_of(found, 6, 1)


GOOD = FIRST + "(assert (<= Y_0 0))"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "empty"),
        ("(assert (<= Y_0 0)", "line 1: a bracket is never closed"),
        ("\n\n)", "line 3: "),
        ("hello", "line 1: 'hello' stands outside"),
        ('(assert "', "no word"),
        ("(" * 300, "nested"),
        (GOOD + "(check-everything)", "no command"),
        (GOOD + "\n\n(assert (<= Y_0 Y_7))", "line 9: 'Y_7' is not declared"),
        (GOOD + "(assert (<= (* Y_0 Y_1) 0))", "not linear"),
        (GOOD + "(assert (<= Y_0 1/0))", "divides by zero"),
        (GOOD + "(assert (<= Y_0 0x10))", "not a number"),
        (GOOD + "(assert (<= Y_0))", "must compare two"),
        (GOOD + "(assert (xor Y_0 Y_1))", "no condition"),
        (GOOD + "(assert Y_0)", "no condition"),
        (GOOD + "(assert (<= (/ Y_0 2) 1))", "no sum"),
        (GOOD + "(declare-const X_0 Real)", "twice"),
        (GOOD + "(declare-const Z_0 Real)", "must declare X_0"),
        (GOOD + "(declare-const X_5 Real)", "does not declare X_2"),
        ("(declare-const X_0 Real)(assert (<= X_0 1))", "does not declare Y_0"),
        (FIRST.partition("(assert")[0], "asserts nothing"),
        ("(set-logic QF_LRA)", "declares nothing"),
        ("(vnnlib-version <3.0>)", "version '3.0'"),
        (SECOND + "(assert (<= X[0,2] 0.0))", "no entry"),
        (SECOND + "(assert (<= X[a] 0.0))", "whole numbers"),
        (SECOND + "(assert (<= X 0.0))", "not declared"),
        (SECOND + "(declare-network acc (declare-input A real [1]) (declare-output B real [1]))", "twice"),
        (SECOND + "(declare-network f (declare-input X real [1]) (declare-output B real [1]))", "twice"),
        (SECOND + "(declare-network f (equal-to h) (declare-input A real [1]))", "not declared before"),
        (SECOND + "(declare-network f (declare-input A real [1]))", "needs an input and an output"),
        (SECOND + "(declare-network f (declare-input A real))", "must look like"),
        (SECOND + "(declare-network f (declare-thing A real [1]))", "no declaration"),
        (SECOND + GOOD, "both versions"),
    ],
)
def test_mistakes_are_named(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read(text, tmp_path)
    assert said in str(caught.value) and "p.vnnlib" in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("text", "sizes", "said"),
    [
        (GOOD, (3, 2), "2 inputs, the network has 3"),
        (GOOD, (2, 5), "2 outputs, the network has 5"),
        (GOOD.replace("(<= X_0 1e-1)", "(<= Y_0 1)"), (2, 2), "input 0 has no upper bound"),
        (GOOD.replace("-0.25", "-1e50"), (2, 2), "beyond float32"),
    ],
)
def test_properties_of_other_networks_are_refused(text: str, sizes: tuple[int, int], said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said):
        property_of(read(text, tmp_path), *sizes)


def test_too_many_cases_are_refused(tmp_path: Path) -> None:
    alternatives = "(assert (or (<= Y_0 0) (<= Y_0 1)))" * 17
    with pytest.raises(InputError, match="more than 100000 cases"):
        as_property(FIRST + alternatives, tmp_path)


def test_packed_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "p.vnnlib.gz"
    path.write_bytes(gzip.compress(GOOD.encode()))
    assert property_of(read_query(path), 2, 2).cases[0].box.high == BOX[1]
    path.write_bytes(gzip.compress(GOOD.encode())[:-9])
    with pytest.raises(InputError, match="damaged"):
        read_query(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_written_is_read(version: str, tmp_path: Path) -> None:
    image = np.random.default_rng(0).random((2, 3, 2), dtype=np.float32)
    ends = ball(image, Epsilon.parse("2/255"))
    write_property(tmp_path / "w.vnnlib", *ends, 1, 3, Style(version, "a comment"))
    assert "; a comment\n" in (tmp_path / "w.vnnlib").read_text()
    query = read_query(tmp_path / "w.vnnlib")
    assert query.version == version
    found = property_of(query, 12, 3)
    assert len({id(case.box) for case in found.cases}) == 1
    assert [list(map(float, end)) for end in (found.cases[0].box.low, found.cases[0].box.high)] == [
        end.reshape(-1).tolist() for end in ends
    ]
    assert [dict(case.inequalities[0].outputs) for case in found.cases] == [{0: -1, 1: 1}, {2: -1, 1: 1}]


@pytest.mark.parametrize("label", [0, 2])
def test_version_two_is_what_the_reference_parser_reads(label: int, tmp_path: Path) -> None:
    vnnlib = pytest.importorskip("vnnlib", reason="the reference parser is not installed")
    image = np.random.default_rng(1).random((1, 2, 2), dtype=np.float32)
    ends = ball(image, Epsilon.parse("1/10"))
    write_property(tmp_path / "w.vnnlib", *ends, label, 3, Style("2.0"))
    theirs = vnnlib.parse_query_file(str(tmp_path / "w.vnnlib"))
    assert [network.name for network in theirs.networks] == ["classifier"]
    found = property_of(read_query(tmp_path / "w.vnnlib"), 4, 3)
    bounds = {(">=", i): float(value) for i, value in enumerate(found.cases[0].box.low)}
    bounds |= {("<=", i): float(value) for i, value in enumerate(found.cases[0].box.high)}
    *inputs, unsafe = theirs.assertions
    for assertion in inputs:
        comparison = assertion.expr
        word = {"GreaterEqual": ">=", "LessEqual": "<="}[type(comparison).__name__]
        place = np.ravel_multi_index(comparison.lhs.indices, (1, 1, 2, 2))
        assert bounds.pop((word, int(place))) == float(comparison.rhs.lexeme)
    assert not bounds
    pairs = {(case[0].lhs.indices[1], case[0].rhs.indices[1], type(case[0]).__name__) for case in unsafe.expr.to_dnf()}
    assert pairs == {(j, label, "GreaterEqual") for j in range(3) if j != label}


@pytest.mark.parametrize(
    ("text", "ends"),
    [
        pytest.param("(<= X_1 X_0) (>= X_1 -1)", (-1, 3), id="below another"),
        pytest.param("(<= (+ X_1 X_1) (- 4 X_0)) (>= X_1 X_0)", (1, Fraction(3, 2)), id="a share of others"),
        pytest.param("(<= X_1 X_0) (>= X_1 (* -2 X_0)) (<= X_1 7)", (-6, 7), id="a bound of its own is kept"),
    ],
)
def test_a_bound_may_follow_from_others(text: str, ends: tuple, tmp_path: Path) -> None:
    """X_0 is from 1 to 3; the bounds of X_1 follow."""
    head = "".join(f"(declare-const {name} Real)" for name in ("X_0", "X_1", "Y_0", "Y_1"))
    asserted = f"(assert (and (>= X_0 1) (<= X_0 3) {text} (<= Y_0 0)))"
    (case,) = as_property(head + asserted, tmp_path).cases
    assert (case.box.low, case.box.high) == ((1, ends[0]), (3, ends[1]))
    with pytest.raises(InputError, match="input 1 has no upper bound"):
        as_property(head + "(assert (and (>= X_0 1) (<= X_0 3) (>= X_1 0) (<= X_1 Y_0)))", tmp_path)
