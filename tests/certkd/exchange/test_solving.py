"""Properties of ONNX files as VNN-COMP publishes them, solved from the command line."""

import csv
import gzip
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from onnx import helper

from certkd.exchange.assignments import read_assignment
from certkd.exchange.vnnlib_file import property_of, read_query
from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint
from certkd.networks.checkpoint import save as save_checkpoint
from certkd.networks.onnx.function import function
from tests.certkd.exchange.models import random, save
from tests.cli import certkd, refused, succeeds
from verifiers.core.errors import InputError
from verifiers.core.status import Status
from verifiers.properties.witnesses import holds
from verifiers.results.reader import read as read_certificates

HEAD = "".join(f"(declare-const {name} Real)\n" for name in ("X_0", "X_1", "Y_0", "Y_1"))
BOX = HEAD + "".join(f"(assert (>= X_{i} -0.5))(assert (<= X_{i} 1.5))\n" for i in range(2))
#: y_0 = relu(x_0) + relu(x_1), y_1 = x_0 - x_1
SAT = BOX + "(assert (and (>= Y_0 2.75) (<= Y_1 0)))"
UNSAT = BOX + "(assert (or (<= Y_0 -0.125) (and (>= Y_0 2.5) (>= Y_1 0.75))))"


def network(path: Path) -> Path:
    constants = {
        "w": np.array([[1, 0], [0, 1], [1, -1], [-1, 1]], np.float32),
        "v": np.array([[1, 1, 0, 0], [0, 0, 1, -1]], np.float32),
    }
    nodes = [
        helper.make_node("Flatten", ["x"], ["f"]),
        helper.make_node("Gemm", ["f", "w"], ["h"], transB=1),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    return save(path, nodes, constants, shape=(1, 1, 1, 2))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    network(tmp_path / "net.onnx")
    (tmp_path / "sat.vnnlib").write_text(SAT)
    (tmp_path / "unsat.vnnlib.gz").write_bytes(gzip.compress(UNSAT.encode()))
    (tmp_path / "wrong.vnnlib").write_text(BOX.replace("X_1", "X_2") + "(assert (>= Y_0 0))")
    return tmp_path


@pytest.mark.slow
def test_one_property(folder: Path) -> None:
    out = succeeds("solve", folder / "net.onnx", folder / "sat.vnnlib", "--timeout", "900", "--out", folder / "out")
    assert out.splitlines()[0] == "sat"
    found = read_assignment(folder / "out" / "net_sat.counterexample")
    session = onnxruntime.InferenceSession(folder / "net.onnx", providers=["CPUExecutionProvider"])
    image = np.array(list(map(float, found.x)), np.float32).reshape(1, 1, 1, 2)
    outputs = session.run(None, {"x": image})[0].reshape(-1)
    cases = property_of(read_query(folder / "sat.vnnlib"), 2, 2).cases
    assert holds(cases, found.x, outputs) and found.y == [Fraction(float(value)) for value in outputs]
    assert succeeds("solve", folder / "net.onnx", folder / "unsat.vnnlib").splitlines() == ["unsat"]
    assert (folder / "unsat-solved" / "results.csv").is_file(), "the default folder is next to the property"


@pytest.mark.slow
def test_a_list_and_another_tools_results(folder: Path) -> None:
    names = ("sat", "unsat", "wrong")
    (folder / "list.csv").write_text("".join(f"net.onnx,{name}.vnnlib,900\n" for name in names))
    (folder / "theirs.csv").write_text("".join(f"b,net.onnx,{name}.vnnlib,0,unsat,1\n" for name in names))
    arguments = ("solve", folder / "list.csv", "--out", folder / "out", "--against", folder / "theirs.csv")
    result = certkd(*arguments)
    assert result.code == 1, result.err
    assert "3 instances in" in result.out and "1 sat, 1 unsat, 1 unknown, 0 timeout" in result.out
    assert "3 of 3 instances" in result.out and "1 decided alike" in result.out and "1 by the other tool" in result.out
    assert "contradiction: net with sat: certkd says sat, the other tool unsat" in result.err
    assert "1/3 sat" in result.err and "3/3 unknown" in result.err
    with open(folder / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["result"] for row in rows] == ["sat", "unsat", "unknown"]
    assert rows[0]["counterexample"] == "net_sat.counterexample" and "X_1" in rows[2]["reason"]
    assert all(0 <= float(row["time"]) < 900 for row in rows)
    assert "results.csv is there already: add --overwrite" in refused(*arguments)


def test_a_packed_network(folder: Path) -> None:
    (folder / "packed.onnx.gz").write_bytes(gzip.compress((folder / "net.onnx").read_bytes()))
    out = succeeds("solve", folder / "packed.onnx.gz", folder / "unsat.vnnlib.gz", "--out", folder / "out")
    assert out.startswith("unsat")
    (folder / "packed.onnx.gz").write_bytes(b"\x1f\x8bnothing")
    said = refused("solve", folder / "packed.onnx.gz", folder / "unsat.vnnlib.gz", "--out", folder / "other")
    assert "packed.onnx.gz" in said


def test_counterexamples_are_run_again(folder: Path) -> None:
    (folder / "good").write_text("((X_0 1.375) (X_1 1.5) (Y_0 2.875) (Y_1 -0.125))")
    command = ("solve", folder / "net.onnx", folder / "sat.vnnlib", "--replay")
    out = succeeds(*command, folder / "good")
    assert out.count("is satisfied") == 2 and "at most 0" in out and out.endswith("holds\n")
    (folder / "outside").write_text("((X_0 1.375) (X_1 1.5000001))")
    (folder / "safe").write_text("((X_0 0) (X_1 0))")
    for name, said in (("outside", "outside of every box"), ("safe", "is not satisfied")):
        result = certkd(*command, folder / name)
        assert result.code == 1 and said in result.out and "does not hold" in result.out
    (folder / "short").write_text("((X_0 0))")
    assert "has 1 inputs, the network 2" in refused(*command, folder / "short")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["net.onnx"], "which property"),
        (["none.onnx", "sat.vnnlib"], "no such network"),
        (["net.onnx", "none.vnnlib"], "no such property"),
        (["net.onnx", "wrong.vnnlib"], "does not declare X_1"),
        (["net.onnx", "sat.vnnlib", "--timeout", "0"], "positive number of seconds"),
        (["net.onnx", "sat.vnnlib", "--arithmetic", "exact"], "unknown arithmetic"),
        (["sat.vnnlib", "net.onnx"], "net.onnx is an ONNX file, not a VNN-LIB property"),
        (["none.csv"], "no such list of instances"),
        (["net.onnx", "sat.vnnlib", "--against", "none.csv"], "no such table of results"),
        (["list.csv", "--replay", "x"], "needs its network"),
    ],
)
def test_mistakes(arguments: list[str], said: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "list.csv").write_text("net.onnx,sat.vnnlib,900\n")
    assert said in refused("solve", *arguments)


def test_a_function_keeps_its_last_layer_and_may_have_one_output(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["h"], transB=1),
        helper.make_node("Sigmoid", ["h"], ["y"]),
    ]
    made = function(save(tmp_path / "one.onnx", nodes, {"w": random(1, 4)}, shape=("N", 4)))
    assert made.shape == (4,) and made.outputs == 1
    image = np.ones(4, np.float32)
    assert 0 < float(made.reference(image)[0]) < 1


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"nothing at all")
    with pytest.raises(InputError, match=r"x\.onnx"):
        function(tmp_path / "x.onnx")


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8), mean=(0.3,), std=(0.4,))
    path = tmp_path_factory.mktemp("solving") / "student.pt"
    save_checkpoint(Checkpoint(build(spec).eval(), data={"name": "digits"}), path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_export_writes_is_solved_and_certified_alike(version: str, student: Path, tmp_path: Path) -> None:
    """Verdicts of ``solve`` and of ``certify --complete`` on the same instances."""
    folder = tmp_path / "out"
    options = ("--eps", "0.02", "--limit", "40", "--timeout", "900", "--vnnlib", version)
    succeeds("export", "--model", student, "--out", folder, *options)
    succeeds("solve", folder / "instances.csv", "--out", tmp_path / "solved")
    with open(tmp_path / "solved" / "results.csv", newline="") as file:
        solved = [(int(row["vnnlib"].split("_")[-2]), row["result"]) for row in csv.DictReader(file)]
    arguments = ("--instances", folder / "instances.csv", "--complete", "--out", tmp_path / "c.h5")
    succeeds("certify", "--model", student, *arguments)
    rows = read_certificates(str(tmp_path / "c.h5"))["complete"]
    words = {Status.CERTIFIED: "unsat", Status.FALSIFIED: "sat"}
    assert len(solved) > 1
    assert solved == [(int(i), words[Status(s)]) for i, s in zip(rows["index"], rows["status"], strict=True)]


def test_properties_of_other_data_are_not_certified(student: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    succeeds("export", "--model", student, "--out", folder, "--eps", "0.02", "--limit", "40")
    path = next((folder / "vnnlib").iterdir())
    text = path.read_text()
    (folder / "instances.csv").write_text(f"student.onnx,vnnlib/{path.name},9\n")
    command = ("certify", "--model", student, "--instances", folder / "instances.csv", "--out", tmp_path / "c.h5")
    path.write_text(text.replace("radius 0.02", "radius 0.03"))
    assert "is not about the ball of radius 0.03" in refused(*command)
    path.write_text(text.replace("linf ball", "ball"))
    assert "does not say which image" in refused(*command)
    path.write_text(text.replace("; image ", "; image 9999"))
    assert "the split does not have" in refused(*command)


def test_a_version_that_is_not_written_is_refused(student: Path, tmp_path: Path) -> None:
    assert "1.0 or 2.0" in refused(
        "export", "--model", student, "--out", tmp_path / "x", "--eps", "0.1", "--vnnlib", "3"
    )
