"""Benchmarks' lists: what is read, what is refused with its line, and that each image meets its own radius."""

import csv
import re
from pathlib import Path

import pytest

from certkd.config.settings import DataConfig
from certkd.data.sources import load
from certkd.exchange.instance_list import by_eps, read
from tests.cli import certkd, refused, succeeds
from tests.paths import GOLDEN, ROOT
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.results import reader

STUDENT = ROOT / "artifacts" / "reference" / "digits" / "kdiga.pt"
LIST = GOLDEN / "nets" / "instances.csv"
needs_golden = pytest.mark.skipif(not LIST.is_file(), reason="the benchmark's list is not beside the repository")
LABELS = [7, 2, 1, 0, 4]


def written(folder: Path, text: str) -> Path:
    """A list of that content."""
    (folder / "list.csv").write_text(text, encoding="utf-8")
    return folder / "list.csv"


def refusal(path: Path, net: str = "net") -> str:
    """The one line that refuses a list on a split of five samples."""
    with pytest.raises(InputError) as caught:
        by_eps(read(path, net), path, LABELS, "the test split of toys")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("column", ["image_index", "index", "image", " Image_Index "])
def test_a_list_is_read_by_its_header(tmp_path: Path, column: str) -> None:
    path = written(tmp_path, f'id,{column},eps,why,label\n"a,b",4,2/255,x,4\r\n\nc,0, 0.5 ,,7\n')
    found = [(i.line, i.index, i.label, i.eps.text, i.eps.value) for i in read(path, "net")]
    assert found == [(2, 4, 4, "2/255", 2 / 255), (4, 0, 7, "0.5", 0.5)]


def test_an_image_may_stand_there_at_several_radii_and_a_radius_in_several_spellings(tmp_path: Path) -> None:
    path = written(tmp_path, "index,label,eps\n4,4,1/10\n0,7,0.2\n3,0,0.10\n4,4,0.2\n")
    groups = by_eps(read(path, "net"), path, LABELS, "it")
    assert [(eps.text, rows.rows(5, "it")) for eps, rows in groups] == [("1/10", [4, 3]), ("0.2", [0, 4])]


def test_of_several_networks_one_is_taken(tmp_path: Path) -> None:
    path = written(tmp_path, "net,index,label,eps\na,0,7,0.1\nb,1,2,0.1\na,2,1,0.1\n")
    assert [i.index for i in read(path, "a")] == [0, 2]
    assert "lists no instance of the network 'c': it has a, b" in refusal(path, "c")
    alone = written(tmp_path, "net,index,label,eps\na,0,7,0.1\n")
    assert [i.index for i in read(alone, "c")] == [0], "a list about one network fits a file of any name"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column 'image_index': its header must name image_index, label, eps; it has nothing"),
        ("image,eps\n0,1\n", "no column 'label'"),
        ("image,label\n0,7\n", "no column 'eps': its header must name image_index, label, eps; it has image, label"),
        ("index,label,eps\n", "list.csv lists no instance"),
        ("index,label,eps\n0,7,0.1\n1.5,2,0.1\n", "list.csv line 3: index '1.5' is not a whole number of 0 or more"),
        ("index,label,eps\n-1,7,0.1\n", "line 2: index '-1'"),
        ("index,label,eps\n0,seven,0.1\n", "line 2: label 'seven'"),
        ("index,label,eps\n0,7,2/0\n", "line 2: eps: '2/0' divides by zero"),
        ("index,label,eps\n0,7,-0.1\n", "line 2: eps must be positive and finite, got '-0.1'"),
        ("index,label,eps\n0,7,\n", "line 2: eps: '' is not a number"),
        ("net,index,label,eps\nx", "line 2 has 1 cell, its header 4"),
        ("index,label,eps\n0,7\n", "line 2 has 2 cells, its header 3"),
        ("index,label,eps\n0,7,0.1,9\n", "line 2 has 4 cells, its header 3"),
        ('index,label,eps\n0,7,"0.1\n', "is not CSV"),
        ("index,label,eps\n0,7,0.1\n1,2,0.1\n0,7,1/10\n", "line 4: image 0 at eps 1/10 is on line 2 already"),
        ("index,label,eps\n0,7,0.1\n5,2,0.1\n", "line 3: image 5 does not exist: the test split of toys has 5, numb"),
        ("index,label,eps\n0,7,0.1\n1,3,0.1\n", "line 3: image 1 has label 3 there and 2 in the test split of toys"),
    ],
)
def test_a_wrong_list_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    message = refusal(written(tmp_path, text))
    assert words in message and str(tmp_path / "list.csv") in message, message


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_bytes(b"\x89HDF\r\n")
    assert "is not UTF-8 text" in refusal(tmp_path / "list.csv")
    assert "no such file" in refusal(tmp_path / "none.csv")


@needs_golden
def test_the_published_list_is_read_as_it_is() -> None:
    with open(LIST, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for net in {row["net"] for row in rows}:
        expected = [(int(r["image_index"]), int(r["label"]), float(r["eps"])) for r in rows if r["net"] == net]
        assert [(i.index, i.label, i.eps.value) for i in read(LIST, net)] == expected, net


# the command


DIGITS = load(DataConfig(name="digits")).splits["test"]
QUESTIONS = [(3, "0.02"), (17, "0.02"), (5, "1/8"), (9, "0.125"), (100, "0.02"), (101, "0.125"), (5, "0.02")]
QUICK = ("--methods", "pgd,ibp,crown", "--option", "steps=5")


@pytest.fixture
def network(tmp_path: Path) -> Path:
    """A trained network in a folder of its own."""
    (tmp_path / "net.pt").write_bytes(STUDENT.read_bytes())
    return tmp_path / "net.pt"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """A list with two radii for it, and lines about another network."""
    lines = [f"net,{i},{int(DIGITS.labels[i])},{eps}" for i, eps in QUESTIONS]
    return written(tmp_path, "\n".join(["net,image_index,label,eps", *lines, "other,0,99,-1"]) + "\n")


@pytest.mark.slow
def test_each_image_meets_its_own_radius(network: Path, listed: Path) -> None:
    printed = succeeds("certify", "--model", network, "--instances", listed, *QUICK)
    files = {text: reader.read(network.with_name(f"net-linf-{text}-list.h5")) for text in ("0.02", "1_8")}
    assert files.keys() == {path.stem.split("-")[2] for path in network.parent.glob("*.h5")} == {"0.02", "1_8"}
    for text, eps in (("0.02", 0.02), ("1_8", 0.125)):
        expected = [i for i, asked in QUESTIONS if asked in (text.replace("_", "/"), str(eps))]
        assert files[text].eps == eps
        assert files[text]["crown"]["index"].tolist() == DIGITS.indices[expected].tolist()
    certified = sum(int(file["crown"]["certified"].sum()) for file in files.values())
    falsified = sum(file["pgd"].count(Status.FALSIFIED) for file in files.values())
    assert certified and falsified, "the list decides nothing either way"
    assert printed.count("written to") == 2
    assert f"7 instances at 2 radii: {certified} certified, {falsified} falsified" in printed.splitlines()[-1]
    before = {path: path.read_bytes() for path in network.parent.glob("*.h5")}
    assert succeeds("certify", "--model", network, "--instances", listed, *QUICK) == printed
    assert before == {path: path.read_bytes() for path in network.parent.glob("*.h5")}, "finished files were changed"


@pytest.mark.slow
def test_a_name_for_the_files_of_all_radii(network: Path, listed: Path, tmp_path: Path) -> None:
    succeeds("certify", "--model", network, "--instances", listed, "--methods", "ibp", "--out", tmp_path / "x" / "c.h5")
    assert sorted(path.name for path in (tmp_path / "x").iterdir()) == ["c-0.02.h5", "c-1_8.h5"]


@pytest.mark.slow
def test_a_teacher_is_certified_on_the_same_list(network: Path, tmp_path: Path) -> None:
    labels = DIGITS.labels.tolist()
    listed = written(tmp_path, f"index,label,eps\n0,{labels[0]},0.02\n1,{labels[1]},0.04\n")
    teacher = tmp_path / "teacher.pt"
    teacher.write_bytes(STUDENT.with_name("teacher.pt").read_bytes())
    arguments = ("--model", network, "--teacher", teacher, "--instances", listed, "--methods", "ibp")
    printed = succeeds("certify", *arguments)
    names = {f"net-linf-{e}-with-teacher-list-ibp.h5" for e in ("0.02", "0.04")}
    names |= {f"teacher-linf-{e}-list-ibp.h5" for e in ("0.02", "0.04")}
    assert {path.name for path in tmp_path.glob("*.h5")} == names
    assert [line.split(":")[0] for line in printed.splitlines()[-2:]] == ["teacher", "student"]


def test_what_a_list_replaces_is_refused_beside_it(network: Path, listed: Path) -> None:
    for option in (["--eps", "0.1"], ["--indices", "3"], ["--indices-file", "x"], ["--limit", "3"]):
        message = refused("certify", "--model", network, "--instances", listed, *option)
        assert f"--instances lists its own samples and radii: drop {option[0]}" in message
    assert "--eps 8/255" in refused("certify", "--model", network)


def test_a_wrong_label_is_refused_before_any_work(network: Path, tmp_path: Path) -> None:
    right, wrong = int(DIGITS.labels[0]), (int(DIGITS.labels[1]) + 1) % 10
    listed = written(tmp_path, f"index,label,eps\n0,{right},0.1\n1,{wrong},0.2\n")
    result = certkd("certify", "--model", network, "--instances", listed)
    assert result.code == 2 and result.err.count("\n") == 1
    label = int(DIGITS.labels[1])
    assert f"line 3: image 1 has label {wrong} there and {label} in the test split of digits" in result.err
    assert not list(tmp_path.glob("*.h5"))


@pytest.mark.slow
def test_the_list_of_the_documentation_ends_as_it_says(network: Path, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "certify.md").read_text(encoding="utf-8")
    lines, claim = re.search(r"\n(image_index,label,eps\n.*?)```.*?are decided:\n`(.*?)`", text, re.S).groups()
    printed = succeeds("certify", "--model", network, "--instances", written(tmp_path, lines))
    assert printed.splitlines()[-1] == claim
