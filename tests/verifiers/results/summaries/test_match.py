"""The answers about a pair in a table and in a sentence."""

import json
from typing import Any

import numpy as np
import pytest

from verifiers.core.status import Status
from verifiers.core.table import Table
from verifiers.results.rows import Certificates, MethodRows
from verifiers.results.summaries.match import Matched, Stage, answers, summary

PROVED, REFUTED, TIMEOUT = Status.CERTIFIED, Status.FALSIFIED, Status.TIMEOUT


def file_of(
    proved: int, refuted: int, timeout: int = 0, *, least: float = np.nan, more: tuple[Status, ...] = (), **about: Any
) -> Certificates:
    """A file with so many answers: CROWN proves, the attack refutes."""
    status = np.array([PROVED] * proved + [REFUTED] * refuted + [TIMEOUT] * timeout + list(more), "uint8")
    stage = np.select([status == PROVED, status == REFUTED], [Stage.CROWN, Stage.ATTACK], 0)
    columns = {"status": status, "stage": stage, "least": np.full(len(status), least)}
    columns["seconds"] = np.where(status == Status.PENDING, np.nan, 0.5)
    settings = {"match": {"property": "same-class", "tolerance": 0.0, "delta": 0.0, **about}}
    rows = MethodRows("match", {"norm": "linf", "eps": 0.05, "eps_text": "1/20"}, columns)
    return Certificates({"settings": json.dumps(settings)}, {"match": rows})


def matched(file: Certificates) -> Matched:
    return Matched.of(file["match"], file)


CLASS = "The student gives the teacher's class everywhere in the ball for "
SENTENCES = [
    (
        file_of(326, 34),
        CLASS + "326 of 360 samples; on 34 it does not, here is a point for each; none is open.",
    ),
    (file_of(360, 0), CLASS + "all 360 samples; none is refuted; none is open."),
    (file_of(1, 0), CLASS + "1 of 1 sample; none is refuted; none is open."),
    (file_of(0, 1), CLASS + "0 of 1 sample; on 1 it does not, here is a point; none is open."),
    (file_of(0, 0, 1), CLASS + "0 of 1 sample; none is refuted; 1 is open (out of time)."),
    (
        file_of(2, 2, 2, more=(Status.OUT_OF_MEMORY, Status.NOT_CERTIFIED)),
        CLASS + "2 of 8 samples; on 2 it does not, here is a point for each; "
        "4 are open (2 out of time, 1 out of memory, 1 undecided).",
    ),
    (
        file_of(3, 0, more=(Status.PENDING, Status.ERROR, Status.UNSUPPORTED)),
        CLASS + "3 of 6 samples; none is refuted; 3 are open (1 unsupported, 1 in error, 1 not asked yet).",
    ),
    (
        file_of(2, 1, delta=0.5),
        "The student gives the teacher's class wherever in the ball the teacher prefers it by more than 0.5 for 2 of 3 "
        "samples; on 1 it does not, here is a point; none is open.",
    ),
    (
        file_of(2, 1, property="close", tolerance=0.05),
        "The student's logits are within 0.05 of the teacher's everywhere in the ball for 2 of 3 samples; on 1 they "
        "are not, here is a point; none is open.",
    ),
    (
        file_of(2, 1, property="not-worse"),
        "The student's margin is nowhere in the ball below the teacher's for 2 of 3 samples; on 1 it is, here is a "
        "point; none is open.",
    ),
    (
        file_of(2, 1, property="not-worse", tolerance=1.5),
        "The student's margin is nowhere in the ball more than 1.5 below the teacher's for 2 of 3 samples; on 1 it is, "
        "here is a point; none is open.",
    ),
    (
        file_of(2, 0, property="transfer"),
        "The student keeps the teacher's class of the image wherever in the ball the teacher does for all 2 samples; "
        "none is refuted; none is open.",
    ),
]


@pytest.mark.parametrize(("file", "sentence"), SENTENCES, ids=range(len(SENTENCES)))
def test_the_sentence_for_a_sign_off(file: Certificates, sentence: str) -> None:
    assert matched(file).sentence == sentence


def test_every_sample_is_proved_refuted_or_open() -> None:
    for file, _ in SENTENCES:
        found = matched(file)
        assert found.proved + found.refuted + sum(found.open.values()) == found.samples == len(file["match"])


def test_the_tables() -> None:
    file = file_of(2, 1, 1, property="close", tolerance=0.25, least=0.125)
    sentence, table, stages, least = summary(file["match"], file)
    assert isinstance(table, Table) and isinstance(stages, Table) and isinstance(least, Table)
    assert table.title == "Student and teacher on the linf ball of eps 1/20, 4 samples"
    assert table.columns == ["property", "proved", "refuted", "open", "s/sample"]
    assert table.rows == [["close, tolerance 0.25", "2", "1", "1", "0.5"]]
    assert [list(row) for row in stages.rows] == [["attack", "-", "1"], ["CROWN", "2", "0"]]
    assert least.title == "Least tolerance proved, logits, 4 samples" and set(least.rows[0]) == {"0.125"}
    assert sentence == matched(file).sentence


def test_several_properties_share_a_table() -> None:
    files = file_of(3, 1), file_of(1, 1, 2, delta=0.5), file_of(0, 4, property="transfer")
    table = answers("Pairs", list(map(matched, files)))
    assert table.title == "Pairs" and table.rows == [
        ["same-class", "3", "1", "0", "0.5"],
        ["same-class, delta 0.5", "1", "1", "2", "0.5"],
        ["transfer", "0", "4", "0", "0.5"],
    ]


def test_without_bisection_there_is_no_table_of_least_thresholds() -> None:
    file = file_of(1, 1)
    assert len(summary(file["match"], file)) == 3
    file = file_of(1, 1, least=0.5)
    title = summary(file["match"], file)[3]
    assert isinstance(title, Table) and title.title == "Least delta proved, logits, 2 samples"
