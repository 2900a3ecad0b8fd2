"""BibTeX: an entry for every paper that a method or an objective names, and of a file what ran."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from certkd.objectives import OBJECTIVES
from certkd.report.citations import PAPERS, PUBLISHED, citations, entries_of
from tests.certificate_files import write_file
from tests.cli import succeeds
from verifiers.core.status import Status
from verifiers.methods.registry import METHODS

NAMED = sorted({source.paper for source in (*METHODS, *OBJECTIVES) if source.paper})
ENTRY = re.compile(r"@(misc|inproceedings)\{[\w.]+,\n(  \w+ = \{.+\},\n)+\}")


@pytest.mark.parametrize("paper", NAMED)
def test_every_paper_that_is_named_has_its_entry(paper: str) -> None:
    entries = entries_of(paper)
    assert entries, (
        f'{paper!r} names no arXiv number and no paper of certkd/report/citations.py; an own idea has paper = ""'
    )
    for number in re.findall(r"\d{4}\.\d{5}", paper):
        assert sum(f"eprint = {{{number}}}" in entry for entry in entries) == 1
    assert all(ENTRY.fullmatch(entry) and entry.count("{") == entry.count("}") for entry in entries)


def test_a_number_that_is_not_in_the_table_is_cited_by_itself() -> None:
    assert entries_of("Somebody, arXiv 2601.12345") == [
        "@misc{arxiv2601.12345,\n  eprint = {2601.12345},\n  archivePrefix = {arXiv},\n}"
    ]


def test_the_table_has_each_paper_once_and_none_that_nobody_names() -> None:
    keys = Counter(paper.key for paper in (*PAPERS, *PUBLISHED.values()))
    assert max(keys.values()) == 1
    text = " ".join(NAMED)
    assert [paper.key for paper in PAPERS if paper.eprint not in text] == []
    assert [name for name in PUBLISHED if name not in text] == []
    for paper in PAPERS:
        preprint = 2000 + int(paper.eprint[:2])
        assert preprint <= paper.year <= preprint + 2, paper.key


def test_a_key_is_the_first_author_the_year_and_the_first_word_of_the_title() -> None:
    for paper in (*PAPERS, *PUBLISHED.values()):
        author = re.sub(r"[^a-z]", "", paper.authors.partition(",")[0].lower().replace('{\\"u}', "ue"))
        assert re.fullmatch(rf"{author.replace(' ', '')}{paper.year}[a-z]+", paper.key), paper.key
        word = paper.key.removeprefix(f"{author}{paper.year}")
        assert word in re.sub(r"[{}]", "", paper.title).lower(), paper.key


def test_authors_and_title_are_those_of_the_named_venue_and_not_of_the_preprint() -> None:
    smoothed, split = entries_of("arXiv 1906.04584 and 2103.06624")
    assert "author = {Salman, Hadi and Li, Jerry and Razenshteyn, Ilya and Zhang, Pengchuan and " in smoothed
    assert "Per-neuron Split Constraints for Neural Network Robustness Verification}" in split


def rows() -> dict[str, np.ndarray]:
    return {"status": np.full(3, Status.NOT_CERTIFIED.value, "uint8"), "radius": np.zeros(3)}


def test_a_file_cites_what_ran_and_nothing_twice(tmp_path: Path) -> None:
    content = {"pgd": rows(), "crown": rows(), "ibp": rows()}
    facts = {"certkd_version": "1.2.3", "objective_paper": "Shao et al., arXiv 2110.12072"}
    entries = citations(write_file(tmp_path / "a.h5", content, eps=0.1, **facts))
    keys = [re.findall(r"\{(.+),", entry)[0] for entry in entries]
    assert keys[0] == "certkd" and "Version 1.2.3" in entries[0]
    assert set(keys) >= {"madry2018towards", "zhang2018efficient", "gowal2018effectiveness", "shao2021how"}
    assert len(set(keys)) == len(keys) and "fazlyab2019efficient" not in keys


@pytest.mark.parametrize(
    ("notes", "ran"),
    [
        ({}, False),
        ({"engine": "native"}, False),
        ({"engine": "auto-lirpa"}, True),
        ({"engine": "native", "cross_check": "2 samples cross-checked by auto-lirpa"}, True),
        ({"engine": "native", "cross_check": "0 samples cross-checked by auto-lirpa"}, False),
        ({"engine": "native", "cross_check": "not cross-checked: auto-lirpa refuses the layer"}, False),
    ],
)
def test_auto_lirpa_is_cited_where_it_ran(tmp_path: Path, notes: dict[str, str], ran: bool) -> None:
    certificates = write_file(tmp_path / "a.h5", {"ibp": rows()}, eps=0.1)
    certificates["ibp"].attributes.update(notes)  # type: ignore[attr-defined]
    assert any("xu2020automatic" in entry for entry in citations(certificates)) == ran


def test_the_command_prints_entries_apart(tmp_path: Path) -> None:
    write_file(tmp_path / "a.h5", {"pgd": rows()}, eps=0.1)
    printed = succeeds("cite", tmp_path / "a.h5")
    assert all(ENTRY.fullmatch(entry) for entry in printed.strip().split("\n\n"))
