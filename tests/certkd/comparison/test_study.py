"""Many networks against one reference: literal counts, seeds, another radius, and the tables of papers."""

import csv
import io
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from certkd.comparison.compare import compare
from certkd.comparison.intervals import holm, over_samples, over_seeds
from certkd.comparison.study import Study, study
from certkd.report import paper
from certkd.report.console import fitted, lines
from certkd.report.tables import study as tables_of
from tests.certificate_files import write_file
from tests.certkd.comparison.test_compare import EPS, attack, file, proofs
from tests.cli import certkd, refused, succeeds
from verifiers.core.errors import InputError
from verifiers.core.statistics import mcnemar
from verifiers.core.status import Status
from verifiers.core.table import Table
from verifiers.results.rows import Certificates

ALL = np.ones(10, bool)
#: Radii of ten samples: the teacher certifies six at eps, the students eight, five and four.
TEACHER = [0.2] * 6 + [0.05] * 4
RADII = {"a-seed0": [0.15] * 8 + [0.0] * 2, "a-seed1": [0.15] * 5 + [0.02] * 5, "b": [0.0] * 6 + [0.12] * 4}


def written_files(folder: Path) -> dict[str, Certificates]:
    """Write the teacher's file and three students', two of which are seeds of one."""
    found = {}
    for name, radii in {"t": TEACHER, **RADII}.items():
        radius = np.array(radii)
        content = {"pgd": attack(ALL, radius < 0.01), "crown": proofs(ALL, radius)}
        found[name] = file(folder / f"{name}.h5", content, model_sha256=name, arithmetic="float32")
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Certificates]:
    return written_files(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def made(files: dict[str, Certificates]) -> Study:
    return study(("t", files["t"]), {"a": [files["a-seed0"], files["a-seed1"]], "b": [files["b"]]})


def test_shares_are_means_over_seeds(made: Study) -> None:
    reference, a, b = made.entries
    assert reference.label == "t" and reference.difference is None and math.isnan(reference.p_holm)
    assert reference.figures["certified"].mean == 0.6 and math.isnan(reference.figures["certified"].deviation)
    assert a.figures["certified"].mean == pytest.approx(0.65)
    assert a.figures["certified"].deviation == pytest.approx(math.sqrt(0.045))
    assert a.figures["retention"].mean == pytest.approx((1 + 5 / 6) / 2) and b.figures["retention"].mean == 0
    assert a.figures["pgd"].mean == pytest.approx(0.9) and b.figures["clean"].mean == 1
    assert (made.norm, made.eps, made.samples, made.methods) == ("linf", str(EPS), 10, ("crown",))


def seeded(folder: Path, name: str, radii: dict[str, list[float]]) -> list[Certificates]:
    """The files of one network's seeds, in folders like those of three experiments."""
    made = []
    for seed, values in radii.items():
        (folder / f"seed{seed}").mkdir(exist_ok=True)
        content = {"pgd": attack(ALL, np.array(values) < 0.01), "crown": proofs(ALL, np.array(values))}
        about = {"model_sha256": f"{name}{seed}", "arithmetic": "float32"}
        made.append(file(folder / f"seed{seed}" / f"{name}.h5", content, **about))
    return made


def test_a_reference_of_several_seeds_is_compared_seed_by_seed(tmp_path: Path) -> None:
    """The student gains 0.1, 0.2 and 0.1 over the teacher of its seed; the teachers themselves differ by 0.4."""
    shares = {"0": (2, 3), "1": (6, 8), "2": (4, 5)}
    radii = [{seed: [0.15] * one[i] + [0.0] * (10 - one[i]) for seed, one in shares.items()} for i in (0, 1)]
    teachers, students = (seeded(tmp_path, name, one) for name, one in zip(("t", "s"), radii, strict=True))
    found = study(("t", teachers), {"s": students})
    reference, student = found.entries
    expected = over_seeds([0.1, 0.2, 0.1])
    assert student.difference is not None and student.difference.p == pytest.approx(expected.p)
    assert (student.difference.low, student.difference.high) == pytest.approx((expected.low, expected.high))
    assert reference.figures["certified"].mean == pytest.approx(0.4) and len(reference.files) == 3
    assert reference.figures["certified"].deviation == pytest.approx(0.2)
    assert any(
        "over 3 seeds, each compared with t of the same seed." in one for one in tables_of(found) if type(one) is str
    )
    for wrong in (students[:2], [students[1], students[0], students[2]]):
        with pytest.raises(InputError, match="are not of the same seeds in the same order"):
            study(("t", teachers), {"s": wrong})
    with pytest.raises(InputError, match="they are one file; give those of two networks"):
        study(("t", [teachers[0], teachers[0]]), {"s": students[:2]})
    paths = [str(one.path) for one in (*teachers, *students)]
    assert "+13.3" in succeeds("compare", *paths) and "s " in succeeds("compare", *paths, "--format", "csv").replace(
        ",", " "
    )


def test_differences_are_over_seeds_or_over_samples(made: Study) -> None:
    a, b = made.entries[1:]
    assert a.difference is not None and b.difference is not None
    seeds = over_seeds([0.8 - 0.6, 0.5 - 0.6])
    assert (a.difference.mean, a.difference.p) == pytest.approx((seeds.mean, seeds.p))
    assert (a.difference.low, a.difference.high) == (-1, 1) and seeds.low < -1 and seeds.high > 1, "shares have limits"
    assert b.difference == over_samples(4, 6, 10, mcnemar(4, 6))
    assert (a.p_holm, b.p_holm) == holm([a.difference.p, b.difference.p])
    assert len(made.tests) == 2 and "McNemar" in made.tests[0] and "Student" in made.tests[1]


def test_seeds_that_agree_are_compared_over_samples(files: dict[str, Certificates], tmp_path: Path) -> None:
    radius = np.array([0.0] * 6 + [0.13] * 4)
    content = {"pgd": attack(ALL, radius < 0.01), "crown": proofs(ALL, radius)}
    again = file(tmp_path / "b1.h5", content, model_sha256="b1", arithmetic="float32")
    found = study(("t", files["t"]), {"b": [files["b"], again]})
    assert found.reference.label == "t" and found.entries[1].difference == over_samples(4, 6, 10, mcnemar(4, 6))
    assert len(found.tests) == 1 and "McNemar" in found.tests[0], (
        "two equal seeds show no spread, and prove no difference"
    )


def test_each_seed_is_the_comparison_of_two_files(made: Study, files: dict[str, Certificates]) -> None:
    assert made.entries[1].comparisons[1] == compare(files["t"], files["a-seed1"])
    assert made.entries[1].files == (files["a-seed0"].path, files["a-seed1"].path)


@pytest.mark.parametrize(("eps", "shares"), [("0.02", (1.0, 0.9, 0.4)), ("0.15", (0.6, 0.65, 0.0)), ("1/4", (0, 0, 0))])
def test_another_radius_counts_the_radii_again(
    files: dict[str, Certificates], eps: str, shares: tuple[float, ...]
) -> None:
    groups = {"a": [files["a-seed0"], files["a-seed1"]], "b": [files["b"]]}
    found = study(("t", files["t"]), groups, eps=eps)
    assert [entry.figures["certified"].mean for entry in found.entries] == pytest.approx(list(shares))
    assert found.eps == eps and all(math.isnan(entry.figures["pgd"].mean) for entry in found.entries)
    assert compare(files["t"], files["b"], eps=eps).student.certified == pytest.approx(shares[2])


def test_methods_that_decide_at_eps_alone_say_nothing_elsewhere(tmp_path: Path) -> None:
    rows = {"status": np.full(2, Status.NOT_CERTIFIED.value, "uint8"), "stage": np.full(2, 1, "uint8")}
    common = {"label": np.zeros(2), "predicted": np.zeros(2), "correct": np.ones(2), "margin": np.full(2, -1.0)}
    one, two = (
        write_file(tmp_path / f"{name}.h5", {"complete": {**rows, **common}}, eps=0.1, model_sha256=name)
        for name in "ab"
    )
    assert compare(one, two).student.certified == 0
    with pytest.raises(InputError, match=r"says nothing at eps 0.05: its methods \(complete\) decide at eps 0.1 alone"):
        compare(one, two, eps="0.05")


def test_one_network_is_not_two_seeds(files: dict[str, Certificates], tmp_path: Path) -> None:
    content = {"pgd": attack(ALL, ALL), "crown": proofs(ALL, np.zeros(10))}
    again = file(tmp_path / "copy.h5", content, model_sha256="b", arithmetic="float32")
    with pytest.raises(InputError, match="are one network, not two seeds"):
        study(("t", files["t"]), {"b": [files["b"], again]})


def test_an_int8_student_is_not_called_float32(files: dict[str, Certificates], tmp_path: Path) -> None:
    content = {"pgd": attack(ALL, ALL), "crown": proofs(ALL, np.zeros(10))}
    deployed = file(tmp_path / "int8.h5", content, model_sha256="int8", arithmetic="int8")
    assert study(("t", files["t"]), {"b": [files["b"]], "int8": [deployed]}).arithmetic == "float32+int8"


def test_the_answer_comes_first_in_one_sentence(made: Study) -> None:
    sentence = tables_of(made)[0]
    assert isinstance(sentence, str) and sentence.startswith(
        "At eps 0.1 (linf) a certifies 65.0% of 10 samples, the most of 2 networks"
    )
    assert "5.0 points more than t (95 % interval" in sentence and "it keeps 91.7% of t's certificates" in sentence


@pytest.mark.parametrize("width", [80, 120])
def test_tables_fit_a_terminal(made: Study, width: int) -> None:
    for part in tables_of(made):
        if isinstance(part, Table):
            assert len(fitted(part, width)) == 1, f"{part.title} is split at {width} columns"


def test_notes_name_what_a_reader_asks(made: Study) -> None:
    text = " ".join(part for part in tables_of(made) if isinstance(part, str))
    for word in (
        "n = 10",
        "linf",
        "eps 0.1",
        "crown",
        "float32",
        "seeds",
        "tolerance",
        "Holm",
        "lower limit",
        "paired",
    ):
        assert word in text, word


def test_csv_holds_every_number_in_full(made: Study) -> None:
    rows = list(csv.DictReader(io.StringIO(paper.written(made, "csv"))))
    assert [row["network"] for row in rows] == ["t", "a", "b"] and rows[1]["seeds"] == "2"
    for row, entry in zip(rows, made.entries, strict=True):
        assert float(row["certified"]) == entry.figures["certified"].mean
        assert (row["p_holm"] == "") == math.isnan(entry.p_holm) and row["eps"] == "0.1"
    assert (
        rows[0]["retention"] == rows[0]["difference"] == ""
        and float(rows[2]["high"]) == made.entries[2].difference.high
    )


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)&", line.removesuffix("\\\\"))]


def test_latex_is_a_whole_table(made: Study) -> None:
    text = paper.written(made, "latex")
    assert re.findall(r"\\(toprule|midrule|bottomrule)", text) == ["toprule", "midrule", "bottomrule"] * 2
    columns = [len(found) for found in re.findall(r"\\begin{tabular}{(\w+)}", text)]
    rows = [cells(line) for line in text.splitlines() if line.endswith("\\\\")]
    assert [len(row) for row in rows] == [columns[0]] * 4 + [columns[1]] * 3, rows
    assert rows[2][2] == r"\textbf{65.0 $\pm$ 21.2}" and rows[3][2] == "40.0", "the best is not in bold"
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if brace == "{" else -1
        assert depth >= 0, "a brace closes nothing"
    assert depth == 0 and not re.search(r"(?<!\\)[#_^&%](?!\s)", text.replace(" & ", " ").split("\n", 1)[1])


HOSTILE = "50%_{\\x}$&#~^|<script>alert(1)</script>`*[a](b)\x1b[2J\n"


def test_names_are_text_in_every_format(files: dict[str, Certificates]) -> None:
    found = study(("t", files["t"]), {HOSTILE: [files["b"]]})
    latex, markdown = paper.latex_text(HOSTILE), paper.markdown_text(HOSTILE)
    assert latex.startswith(r"50\%\_\{\textbackslash{}x\}\$\&\#\textasciitilde{}\textasciicircum{}")
    assert "<" not in markdown and r"\`\*\[a\](b)" in markdown and r"\|" in markdown
    for kind in paper.FORMATS:
        text = paper.written(found, kind)
        assert "\x1b" not in text and "\x1b" not in lines(text)
    rows = [line for line in paper.written(found, "markdown").splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows
    assert "<script" not in paper.written(found, "markdown")


@pytest.mark.slow
def test_the_command_takes_many_files_and_formats(files: dict[str, Certificates]) -> None:
    paths = [file.path for file in files.values()]
    out = succeeds("compare", *paths)
    assert out.startswith("At eps 0.1 (linf) a certifies 65.0%") and out.index("│ a ") < out.index("Holm")
    assert max(map(len, (line for line in out.splitlines() if line[:1] in "│┃"))) <= 80
    assert succeeds("compare", *paths, "--format", "latex").startswith("% needs")
    assert "| **65.0 ± 21.2** |" in succeeds("compare", *paths, "--format", "markdown")
    as_json = succeeds("compare", *paths, "--format", "json")
    assert as_json == succeeds("compare", *paths, "--json")
    content = json.loads(as_json)
    assert [entry["label"] for entry in content["entries"]] == ["t", "a", "b"] and content["exit_code"] == 0
    assert content["entries"][0]["figures"]["certified"] == {"mean": 0.6, "deviation": None}
    assert "│ ours " in succeeds("compare", *paths, *("--label", "T"), *("--label", "ours"), *("--label", "B"))


def test_two_files_of_any_format_and_another_radius(files: dict[str, Certificates]) -> None:
    pair = files["t"].path, files["b"].path
    assert succeeds("compare", *pair).startswith("At eps 0.1 (linf) the student keeps 0 of the teacher's 6")
    assert succeeds("compare", *pair, "--eps", "0.05").startswith(
        "At eps 0.05 (linf) the student keeps 4 of the teacher's 10"
    )
    assert succeeds("compare", *pair, "--format", "csv").splitlines()[1].startswith("t,1,0.6,")


@pytest.mark.slow
def test_a_requirement_holds_for_every_seed(files: dict[str, Certificates], tmp_path: Path) -> None:
    paths = [file.path for file in files.values()]
    missed = certkd("compare", *paths, "--require", "certified>=0.5", "--plot", tmp_path / "all.svg")
    assert missed.code == 1 and missed.err == "b: not met: certified>=0.5 (it is 0.4000)\n"
    drawn = (tmp_path / "all.svg").read_text()
    assert drawn.startswith("<?xml")


MISTAKES = [
    ([], "compare needs a teacher's file and a student's, like teacher.h5 student.h5; got none"),
    (["t"], "compare needs a teacher's file and a student's"),
    (["a-seed0", "a-seed1"], "compare needs a teacher's file and a student's"),
    (
        ["a-seed0", "b", "a-seed1"],
        "are not of the same seeds in the same order: give one file of a, or one for each seed",
    ),
    (["t", "b", "--format", "latx"], "latx"),
    (["t", "b", "--format", "latex", "--json"], "--format latex and --json are two formats"),
    (["t", "b", "--eps", "0"], "eps must be positive"),
    (["t", "b", "--label", "x"], "1 label for 2 networks"),
    (["t", "b", "a-seed0", "--method", "crwn"], "no certificate method 'crwn' in all files. Did you mean 'crown'?"),
    (["t", "b", "--plot", "x.gif"], "x.gif"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=lambda value: str(value)[:40])
def test_mistakes_are_one_line(files: dict[str, Certificates], words: list[str], message: str) -> None:
    assert message in refused("compare", *(files[word].path if word in files else word for word in words))
