"""Relations of two networks, written as VNN-LIB 2.0: what the files mean, and what solves them."""

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch

from certkd.exchange.pair_vnnlib import PairProperties, PairQuery, write_pair_query
from certkd.exchange.pairs import pair_property, wiring_of
from certkd.exchange.query import Query
from certkd.exchange.vnnlib import ball
from certkd.exchange.vnnlib_file import read_query
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.checkpoint import save as save_checkpoint
from certkd.networks.onnx.function import Function
from tests.cli import refused, succeeds
from verifiers.bound_propagation import unsafe
from verifiers.bound_propagation.relations import violation
from verifiers.core.quantities import Epsilon
from verifiers.core.relation import Property, Relation
from verifiers.core.status import Status
from verifiers.properties.witnesses import holds
from verifiers.results.reader import read as read_certificates

CLASSES, C = 3, 1
RELATIONS = [
    Relation(),
    Relation(delta=0.25),
    Relation(Property.CLOSE, tolerance=0.5),
    Relation(Property.NOT_WORSE),
    Relation(Property.NOT_WORSE, tolerance=0.25),
    Relation(Property.TRANSFER),
]
IMAGE = np.random.default_rng(0).random((1, 2, 2), dtype=np.float32)


def written(relation: Relation, folder: Path, *, alike: bool = False) -> Query:
    ends = ball(IMAGE, Epsilon.parse("1/10"))
    path = folder / "q.vnnlib"
    write_pair_query(path, PairQuery(*ends, unsafe(relation, C, CLASSES), alike, ("a comment",)))
    assert path.read_text().startswith("; a comment\n")
    return read_query(path)


@pytest.mark.parametrize("relation", RELATIONS, ids=str)
def test_the_unsafe_set_is_where_the_relation_fails(relation: Relation, tmp_path: Path) -> None:
    """Quarters as outputs, so that ties are met: a tie is no failure."""
    query = written(relation, tmp_path)
    wiring = wiring_of(query)
    assert wiring.shared and wiring.size == IMAGE.size, "both networks get the same image"
    function = object.__new__(Function)  # of which only these are read
    for name, value in {"shape": tuple(IMAGE.shape), "outputs": CLASSES}.items():
        object.__setattr__(function, name, value)
    found = pair_property(query, wiring, [function, function])  # type: ignore[list-item]
    assert len({id(case.box) for case in found.cases}) == 1
    box = found.cases[0].box
    assert [list(map(float, end)) for end in (box.low, box.high)] == [
        end.reshape(-1).tolist() for end in ball(IMAGE, Epsilon.parse("1/10"))
    ]
    outputs = np.random.default_rng(1).integers(-3, 4, (300, 2 * CLASSES)) / np.float32(4)
    student, teacher = torch.from_numpy(outputs).chunk(2, 1)
    expected = (violation(relation, student.double(), teacher.double(), torch.full((300,), C)) > 0).tolist()
    point = [Fraction(0)] * IMAGE.size
    assert [holds(found.cases, point, row) for row in outputs] == expected
    assert 5 < sum(expected) < 295, "both answers are met"


@pytest.mark.parametrize("relation", RELATIONS[2:5], ids=str)
@pytest.mark.parametrize("alike", [False, True])
def test_the_reference_parser_reads_it(relation: Relation, alike: bool, tmp_path: Path) -> None:
    vnnlib = pytest.importorskip("vnnlib", reason="the reference parser is not installed")
    ours = written(relation, tmp_path, alike=alike)
    theirs = vnnlib.parse_query_file(str(tmp_path / "q.vnnlib"))
    assert [network.name for network in theirs.networks] == ["student", "teacher"]
    assert theirs.networks[1].isometric_to == ("student" if alike else "")
    assert ours.networks[1].relation == (("isomorphic-to", "student") if alike else None)
    assert len(theirs.assertions) == len(ours.assertions) == 3 * IMAGE.size + 1
    cases = theirs.assertions[-1].expr.to_dnf()
    assert len(cases) == len(ours.cases()[1])
    assert [len(case) for case in cases] == [len(case) for case in ours.cases()[1]]


def test_names_of_files() -> None:
    wanted = PairProperties(("s.onnx", "t.onnx"), RELATIONS[1], "digits_test", Epsilon.parse("2/255"), 9)
    assert wanted.path(17) == "vnnlib/digits_test_17_2_255_same-class-0.25.vnnlib"
    assert wanted.cell == "[('student', 's.onnx'), ('teacher', 't.onnx')]"


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, a copy with a little noise, and another network, all of digits."""
    folder = tmp_path_factory.mktemp("pair")
    torch.manual_seed(0)
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [6]}, classes=10, shape=(1, 8, 8))
    teacher = build(spec).eval()
    save_checkpoint(Checkpoint(teacher, data={"name": "digits"}), folder / "teacher.pt")
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.add_(0.01 * torch.randn(weight.shape))
    save_checkpoint(Checkpoint(teacher, data={"name": "digits"}), folder / "student.pt")
    other = build(spec.model_copy(update={"options": {"hidden": [4]}})).eval()
    save_checkpoint(Checkpoint(other, data={"name": "digits"}), folder / "other.pt")
    return folder


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("--property", "close", "--tolerance", "0.06"), id="close"),
        pytest.param(("--property", "not-worse", "--tolerance", "0.05"), id="not worse", marks=pytest.mark.slow),
        pytest.param(("--property", "same-class"), id="same class", marks=pytest.mark.slow),
        pytest.param(("--property", "transfer"), id="transfer", marks=pytest.mark.slow),
    ],
)
def test_solve_and_match_decide_alike(options: tuple[str, ...], networks: Path, tmp_path: Path) -> None:
    given = (networks / "student.pt", "--teacher", networks / "teacher.pt", "--eps", "0.02", "--limit", "6", *options)
    said = succeeds("export", *given, "--out", tmp_path / "out", "--timeout", "900")
    assert "6 properties" in said and options[1] in said
    text = next((tmp_path / "out" / "vnnlib").iterdir()).read_text()
    assert "(isomorphic-to student)" in text and "linf ball of radius 0.02" in text
    succeeds("solve", tmp_path / "out" / "instances.csv", "--out", tmp_path / "solved")
    with open(tmp_path / "solved" / "results.csv", newline="") as file:
        solved = [(int(row["vnnlib"].split("_")[2]), row["result"]) for row in csv.DictReader(file)]
    succeeds("match", *given, "--time-limit", "900", "--out", tmp_path / "m.h5")
    rows = read_certificates(str(tmp_path / "m.h5"))["match"]
    words = {Status.CERTIFIED: "unsat", Status.FALSIFIED: "sat"}
    assert solved == [(int(i), words[Status(s)]) for i, s in zip(rows["index"], rows["status"], strict=True)]


def test_another_architecture_is_not_called_isomorphic(networks: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "student.pt").write_bytes((networks / "other.pt").read_bytes())
    teacher = tmp_path / "elsewhere" / "student.pt"
    given = ("export", networks / "student.pt", "--teacher", teacher, "--eps", "0.02", "--limit", "2")
    said = succeeds(*given, "--out", tmp_path / "out")
    assert "student-teacher.onnx" in said, "two files of one name"
    assert "isomorphic" not in next((tmp_path / "out" / "vnnlib").iterdir()).read_text()
    with open(tmp_path / "out" / "instances.csv", newline="") as file:
        assert {row[0] for row in csv.reader(file)} == {
            "[('student', 'student.onnx'), ('teacher', 'student-teacher.onnx')]"
        }
    command = ("certify", "--model", networks / "student.pt", "--instances", tmp_path / "out" / "instances.csv")
    assert "about 2 networks" in refused(*command, "--out", tmp_path / "c.h5")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--teacher", "teacher.pt"), "add --eps"),
        (("--teacher", "teacher.pt", "--eps", "0.1", "--vnnlib", "1.0"), "knows one network"),
        (("--teacher", "teacher.pt", "--eps", "0.1", "--property", "clos"), "Did you mean 'close'"),
        (("--teacher", "teacher.pt", "--eps", "0.1", "--property", "close"), "needs a tolerance"),
        (("--eps", "0.1", "--property", "close"), "add --teacher"),
        (("--eps", "0.1", "--delta", "1"), "add --teacher"),
        (("--teacher", "none.pt", "--eps", "0.1"), "none.pt"),
    ],
)
def test_mistakes(options: tuple[str, ...], said: str, networks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(networks)
    assert said in refused("export", "student.pt", *options, "--out", "out")
    assert not Path("out").exists()
