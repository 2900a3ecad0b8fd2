"""Stored points as pictures: each belongs to its method, and they fit into the page's bytes."""

import re
from pathlib import Path

import numpy as np
import pytest

from certkd.report import page as pages
from certkd.report import pictures
from certkd.report.stored import Album, counterexamples, disagreements, falsified
from tests.certkd.comparison.test_compare_match import BROKEN, COUNT, EPS, Columns, crown, match, pair, pgd
from tests.certkd.report.test_page_parts import pixels
from verifiers.results.rows import Certificates

IMAGES = {row: np.full((1, 2, 2), 0.5, "float32") for row in range(COUNT)}


def points(value: float) -> np.ndarray:
    """A point of the first sample; those of the others were never found."""
    stored = np.zeros((COUNT, 1, 2, 2), "float32")
    stored[0, 0] = [[value, 0.5], [0.5, 0.5]]
    return stored


@pytest.fixture
def files(tmp_path: Path) -> tuple[Certificates, Certificates]:
    """A teacher, and a student whose attack and whose match found a point each, in this order and in the other."""
    found: dict[str, Columns] = {"match": {**match(BROKEN), "counterexample": points(0.4)}, "crown": crown()}
    found["pgd"] = {**pgd(EPS), "counterexample": points(0.6)}
    return pair(tmp_path, {"crown": crown(0.0)}, found)


def test_a_counterexample_is_that_of_the_attack(files: tuple[Certificates, Certificates]) -> None:
    (one,) = counterexamples({"t": files[0], "<s>": files[1]}, [0, 1], Album(IMAGES))[0]
    assert one["name"] == "<s>" and one["distance"] == "0.1" and pixels(one["point"])[0, 0] == 153
    assert pixels(one["difference"]).tolist() == [[255, 128], [128, 128]]
    assert falsified(files[1]).tolist() == [True, False, False, False] and not falsified(files[0]).any()


def test_a_disagreement_is_beside_its_image(files: tuple[Certificates, Certificates]) -> None:
    ((facts, made),) = disagreements(files[1], 50, Album(IMAGES))
    assert facts == ["100", "1", "0", "0.25"] and list(made) == ["image", "point", "difference"]
    assert pixels(made["point"])[0, 0] == 102 and pixels(made["difference"])[0, 0] == 0
    assert disagreements(files[0], 50, Album(IMAGES)) == []


def test_without_images_there_is_the_point_alone(files: tuple[Certificates, Certificates]) -> None:
    ((_, made),) = disagreements(files[1], 50, Album({}))
    assert list(made) == ["point"]
    other = {row: np.zeros((3, 2, 2)) for row in range(COUNT)}
    assert "difference" not in counterexamples({"s": files[1]}, [0], Album(other))[0][0]


def test_pictures_end_with_their_bytes(files: tuple[Certificates, Certificates]) -> None:
    facts, made = disagreements(files[1], 50, Album(IMAGES, left=200))[0]
    assert facts[0] == "100" and made == {}, "the row itself is lost, or its pictures are too large"
    assert counterexamples({"s": files[1]}, [0], Album(IMAGES, left=200)) == {}
    assert Album({}).left * 2 == pictures.BYTES


def test_files_that_are_gone_have_no_points(files: tuple[Certificates, Certificates]) -> None:
    Path(files[1].path).unlink()
    ((_, made),) = disagreements(files[1], 50, Album(IMAGES))
    assert made == {} and counterexamples({"s": files[1]}, [0], Album(IMAGES)) == {}


def test_the_page_tabulates_disagreements_with_words_for_each_picture(files: tuple[Certificates, Certificates]) -> None:
    made = pages._disagreements(files[1], Album(IMAGES))
    assert re.findall(r'alt="([^"]*)"', made) == [f"{kind} of sample 100" for kind in pages.PICTURES]
    heads = re.findall(r'<th scope="col">([^<]*)', made)
    assert heads == [
        "sample",
        "image",
        "point",
        "difference",
        "student&#x27;s class",
        "teacher&#x27;s",
        "violation, logits",
    ]
    assert (
        "<th" in pages._disagreements(files[1], Album(IMAGES, left=0))
        and pages._disagreements(files[0], Album({})) == ""
    )


def test_a_sample_that_match_alone_refutes_is_not_falsified(tmp_path: Path) -> None:
    found: dict[str, Columns] = {"crown": crown(), "match": {**match(BROKEN), "counterexample": points(0.4)}}
    _, student = pair(tmp_path, {"crown": crown()}, found)
    assert pages.outcome(student, np.zeros(COUNT)).tolist() == [pages.OPEN] * COUNT
