"""The method ``match``: its settings, and rows whose columns contradict each other."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.core.question import Question
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.methods.match import Match
from verifiers.methods.registry import RELATIONAL, keeps, parse
from verifiers.results.rows import MethodRows
from verifiers.results.summaries.match import Stage

EPS = 0.1


def test_the_relation_of_the_settings() -> None:
    assert Match().relation == Relation(Property.SAME_CLASS)
    assert parse("match", {"property": "close", "tolerance": "1/4"}).relation == Relation(Property.CLOSE, 0.25)
    assert Match(property="not-worse").relation == Relation(Property.NOT_WORSE, 0.0)
    assert Match(delta=0.5, bisect=True).relation == Relation(Property.SAME_CLASS, delta=0.5)
    assert Match(time_limit=60.0).again(10.0) == Match(time_limit=10.0) == Match(time_limit=10.0).again(60.0)
    assert json.loads(json.dumps(Match().options))["property"] == "same-class"
    assert Match(points=["a.h5"]).options == Match().options, "rows do not depend on where a point comes from"


def test_points_are_those_of_certificate_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no certificate file at"):
        Match(points=[str(tmp_path / "gone.h5")]).check(Question(Epsilon.parse("0.1")))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"property": "close"}, "close needs a tolerance above 0, in logits, like 0.05"),
        ({"property": "close", "tolerance": 0.1, "delta": 0.5}, "close has no delta: drop delta 0.5"),
        ({"tolerance": 0.1}, "same-class has no tolerance: drop tolerance 0.1"),
        ({"property": "transfer", "tolerance": 0.1}, "transfer has no tolerance: drop tolerance 0.1"),
        ({"property": "transfer", "delta": 1}, "transfer has no delta: drop delta 1"),
        ({"property": "transfer", "bisect": True}, "transfer has neither tolerance nor delta: drop bisect"),
        ({"tolerance": -1}, "tolerance must be at least 0, got -1"),
        ({"property": "clos"}, "property: unknown property 'clos'. Did you mean 'close'?"),
        ({"property": 3}, "property must be 'same-class', 'close', 'not-worse' or 'transfer', got 3"),
    ],
)
def test_thresholds_that_a_property_does_not_have(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as refusal:
        parse("match", settings)
    assert str(refusal.value) == f"method match: {said}"


def test_only_match_says_nothing_about_a_prediction() -> None:
    assert RELATIONAL == ("match",) and not keeps("match")
    assert [kind for kind in ("crown", "joint", "smoothing", "pgd") if keeps(kind)] == ["crown", "joint"]


PROVED = {"status": Status.CERTIFIED, "radius": EPS, "margin": 0.5, "stage": Stage.CROWN}
REFUTED = {
    "status": Status.FALSIFIED,
    "margin": -0.25,
    "stage": Stage.ATTACK,
    "distance": EPS,
    "violation": 0.25,
    "student_class": 1,
}
OPEN = {"status": Status.TIMEOUT, "margin": -0.5}
IMAGE = {**REFUTED, "stage": Stage.IMAGE, "distance": 0.0, "predicted": 1}
FRAME = {
    "radius": 0.0,
    "predicted": 0,
    "student_class": 0,
    "teacher_class": 0,
    "stage": 0,
    "distance": np.nan,
    "violation": np.nan,
    "least": np.nan,
}


def problems(method: Match, row: dict[str, Any]) -> list[str]:
    columns = {name: np.array([value]) for name, value in {**FRAME, **row}.items()}
    rows = MethodRows("match", {"eps": EPS, **method.options}, columns)
    return [words for words, wrong in method.problems(rows, "", None).items() if wrong[0]]


CLOSE, DELTA = Match(property="close", tolerance=0.25, bisect=True), Match(delta=0.25)


@pytest.mark.parametrize(
    ("method", "row"),
    [
        (Match(), PROVED),
        (Match(), REFUTED),
        (Match(), OPEN),
        (Match(), IMAGE),
        (Match(property="transfer"), REFUTED),
        (CLOSE, {**PROVED, "student_class": 0, "teacher_class": 1, "least": 0.125}),
        (CLOSE, {**REFUTED, "student_class": 0, "least": 0.5}),
        (CLOSE, {**OPEN, "least": 0.5}),
        (DELTA, {**PROVED, "student_class": 0, "teacher_class": 1}),
        (Match(delta=0.25, bisect=True), {**REFUTED, "least": 0.75}),
        (Match(), {**PROVED, "stage": Stage.IDENTITY, "margin": 0.0}),
        (CLOSE, {**PROVED, "stage": Stage.IDENTITY, "margin": 0.25, "least": 0.0}),
    ],
)
def test_an_honest_row_has_no_problem(method: Match, row: dict[str, Any]) -> None:
    assert problems(method, row) == []


@pytest.mark.parametrize(
    ("method", "row", "words"),
    [
        (Match(), {**PROVED, "radius": 2 * EPS}, "proved at another radius"),
        (Match(), {**PROVED, "margin": 0.0}, "its margin is not positive"),
        (Match(), {**PROVED, "margin": np.nan}, "its margin is not positive"),
        (Match(), {**PROVED, "stage": Stage.ATTACK}, "no such stage"),
        (Match(), {**PROVED, "stage": 0}, "no such stage"),
        (Match(), {**PROVED, "stage": max(Stage) + 1}, "no such stage"),
        (Match(), {**PROVED, "stage": Stage.IDENTITY}, "its margin is not the threshold"),
        (DELTA, {**PROVED, "stage": Stage.IDENTITY, "margin": 0.0}, "its margin is not the threshold"),
        (Match(), {**REFUTED, "stage": Stage.IDENTITY}, "the two networks are identical"),
        (Match(), {**PROVED, "teacher_class": 1}, "the classes at the image differ"),
        (Match(), {**PROVED, "student_class": 2, "teacher_class": 2}, "the student's class is not its prediction"),
        (Match(), {**PROVED, "violation": 0.5}, "no point is stored"),
        (Match(), {**REFUTED, "status": Status.CERTIFIED, "radius": EPS}, "its margin is not positive"),
        (Match(), {**PROVED, "status": Status.FALSIFIED, "radius": 0.0}, "does not break the property"),
        (Match(), {**REFUTED, "violation": 0.0, "margin": 0.0}, "does not break the property"),
        (Match(), {**REFUTED, "violation": np.nan, "margin": np.nan}, "does not break the property"),
        (Match(), {**REFUTED, "margin": -0.5}, "not minus the violation"),
        (Match(), {**REFUTED, "distance": 1.01 * EPS}, "outside the ball"),
        (Match(), {**REFUTED, "distance": np.nan}, "outside the ball"),
        (Match(), {**REFUTED, "stage": 0}, "no such stage"),
        (Match(), {**REFUTED, "teacher_class": 1}, "both networks give its point one class"),
        (Match(property="transfer"), {**REFUTED, "student_class": 0}, "both networks give its point one class"),
        (DELTA, {**REFUTED, "student_class": 0}, "both networks give its point one class"),
        (Match(), {**IMAGE, "distance": 0.01}, "its point is the image and has a distance"),
        (Match(), {**OPEN, "margin": 0.5}, "a bound proves it"),
        (Match(), {**OPEN, "distance": 0.05}, "no point is stored"),
        (Match(), {**PROVED, "least": 0.0}, "none was bisected"),
        (CLOSE, {**PROVED, "least": 0.5}, "its least threshold is above the one asked"),
        (CLOSE, {**PROVED, "least": -0.5}, "its least threshold is negative"),
        (CLOSE, {**REFUTED, "least": 0.25}, "breaks the least threshold proved"),
    ],
)
def test_a_row_that_contradicts_itself(method: Match, row: dict[str, Any], words: str) -> None:
    found = problems(method, row)
    assert any(words in one for one in found), found
