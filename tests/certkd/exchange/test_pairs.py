"""Queries of VNN-LIB 2.0 about two networks: read, solved, written and run again."""

import csv
from fractions import Fraction
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from onnx import helper

from certkd.exchange.assignments import read_tensors
from certkd.exchange.instance_table import Instance
from certkd.exchange.pairs import Wiring, pair_property, wiring_of
from certkd.exchange.solving import Networks, Settings, solve
from certkd.exchange.vnnlib_file import read_query
from certkd.networks.onnx.function import function
from tests.certkd.exchange.models import random, save
from tests.cli import certkd, refused, succeeds
from tests.verifiers.properties.milp import least_of_pair
from verifiers.core.errors import InputError

HEAD = """(vnnlib-version <2.0>)
(declare-network f (declare-input X float32 [1,2]) (declare-output Y float32 [1,2]))
(declare-network g {relation} (declare-input Z float32 [1,2]) (declare-output W float32 [1,2]))
"""
BOX = "".join(f"(assert (and (>= X[0,{i}] -0.5) (<= X[0,{i}] 1.0)))\n" for i in range(2))
TIED = "".join(f"(assert (== X[0,{i}] Z[0,{i}]))\n" for i in range(2))
#: |Y_0 - W_0| is more than a number.
APART = "(assert (or (> (- Y[0,0] W[0,0]) {0}) (> (- W[0,0] Y[0,0]) {0})))\n"


def weights(seed: int) -> list[np.ndarray]:
    return [random(4, 2, seed=seed), 0.2 * random(4, seed=seed + 50), random(2, 4, seed=seed + 100)]


def network(path: Path, given: list[np.ndarray], shape: tuple[int, ...] = (1, 2)) -> Path:
    nodes = [
        helper.make_node("Flatten", ["x"], ["h"]),
        helper.make_node("Gemm", ["h", "w", "b"], ["z"], transB=1),
        helper.make_node("Relu", ["z"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], transB=1),
    ]
    return save(path, nodes, dict(zip("wbv", given, strict=True)), shape=shape)


def copy(given: list[np.ndarray], noise: float = 0.02) -> list[np.ndarray]:
    return [value + np.float32(noise) * random(*value.shape, seed=7) for value in given]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("pairs")
    network(place / "f.onnx", weights(0))
    network(place / "g.onnx", copy(weights(0)))
    network(place / "h.onnx", weights(3), (1, 1, 1, 2))
    return place


def query(place: Path, text: str, relation: str = "") -> Path:
    place.write_text(HEAD.format(relation=relation) + text)
    return place


def outputs(path: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": image})[0].reshape(-1)


def decide(folder: Path, files: tuple[str, ...], question: Path) -> str:
    cell = repr([str(folder / file) for file in files])
    return solve(Instance(cell, str(question), 900.0, Path()), Settings(question.parent), Networks()).result


@pytest.mark.parametrize(
    ("text", "places"),
    [
        pytest.param(TIED, ((0, 1), (0, 1)), id="equal"),
        pytest.param("(assert (and (<= Z[0,1] X[0,1]) (<= X[0,1] Z[0,1])))", ((0, 1), (2, 1)), id="one of two"),
        pytest.param("(assert (== X[0,0] Z[0,1]))(assert (== X[0,1] Z[0,0]))", ((0, 1), (1, 0)), id="exchanged"),
        pytest.param("(assert (== (* 2.0 X[0,0]) (* 2.0 Z[0,0])))", ((0, 1), (0, 2)), id="scaled"),
        pytest.param("(assert (== X[0,0] X[0,1]))(assert (== X[0,1] Z[0,0]))", ((0, 0), (0, 1)), id="three"),
        pytest.param("(assert (or (== X[0,0] Z[0,0]) (<= Y[0,0] 0.0)))", ((0, 1), (2, 3)), id="in one case only"),
        pytest.param("(assert (== X[0,0] (+ Z[0,0] 0.5)))", ((0, 1), (2, 3)), id="moved"),
        pytest.param("(assert (<= X[0,0] Z[0,0]))", ((0, 1), (2, 3)), id="below"),
        pytest.param("(assert (== X[0,0] (- Z[0,0])))", ((0, 1), (2, 3)), id="opposite"),
    ],
)
def test_ties(text: str, places: tuple, tmp_path: Path) -> None:
    found = wiring_of(read_query(query(tmp_path / "q.vnnlib", BOX + text)))
    assert found.places == places and found.shared == (places == ((0, 1), (0, 1)))


def test_a_pair_becomes_a_property_of_one_point(folder: Path, tmp_path: Path) -> None:
    """Z_0 is at least -1, and at most X_0, which is at most 1."""
    text = BOX + "(assert (== X[0,1] Z[0,1]))(assert (and (>= Z[0,0] -1.0) (<= Z[0,0] X[0,0])))"
    asked = read_query(query(tmp_path / "q.vnnlib", text.replace("(>= Z[0,0] -1.0)", "") + APART.format(0.5)))
    wiring = wiring_of(asked)
    assert wiring == Wiring(3, ((0, 1), (2, 1)), ("X[0,0]", "X[0,1]", "Z[0,0]"))
    with pytest.raises(InputError, match=r"Z\[0,0\] has no lower bound"):
        pair_property(asked, wiring, [function(folder / "f.onnx")] * 2)
    asked = read_query(query(tmp_path / "q.vnnlib", text + APART.format(0.5)))
    found = pair_property(asked, wiring, [function(folder / "f.onnx")] * 2)
    assert (found.inputs, found.outputs, len(found.cases)) == (3, 4, 2)
    case = found.cases[0]
    half = Fraction(1, 2)
    assert case.box.low == (-half, -half, -1) and case.box.high == (1, 1, 1)
    below, apart = case.inequalities
    assert dict(below.inputs) == {2: 1, 0: -1} and not below.outputs and not below.strict
    assert dict(apart.outputs) == {0: -1, 2: 1} and apart.constant == half and apart.strict


def check_against_programs(seed: int, folder: Path, tmp_path: Path) -> str:
    """A random pair, copies if the seed is even, with a threshold on either side of the exact greatest difference."""
    rng = np.random.default_rng(seed)
    given = weights(seed)
    other = copy(given, 0.05) if seed % 2 == 0 else weights(seed + 20)
    network(tmp_path / "a.onnx", given)
    network(tmp_path / "b.onnx", other)
    exact = least_of_pair(given, other, (-0.5, 1.0), {0: -1.0, 2: 1.0})  # of W_0 - Y_0
    threshold = round(-exact + float(rng.choice([-1, 1])) * 0.02, 3)
    text = BOX + TIED + f"(assert (>= (- Y[0,0] W[0,0]) {threshold:.3f}))"
    relation = "(isomorphic-to f)" if seed % 2 == 0 else ""
    answer = decide(tmp_path, ("a.onnx", "b.onnx"), query(tmp_path / "q.vnnlib", text, relation))
    assert answer == ("sat" if threshold < -exact else "unsat"), f"seed {seed}: {threshold} against {-exact}"
    return answer


@pytest.mark.parametrize("seed", range(3))
def test_pairs_are_decided_as_programs_say(seed: int, folder: Path, tmp_path: Path) -> None:
    check_against_programs(seed, folder, tmp_path)


@pytest.mark.slow
def test_many_pairs_are_decided_as_programs_say(folder: Path, tmp_path: Path) -> None:
    verdicts = [check_against_programs(seed, folder, tmp_path) for seed in range(10, 22)]
    assert min(verdicts.count("sat"), verdicts.count("unsat")) > 2, "both answers are met"


@pytest.mark.parametrize("seed", [41, pytest.param(40, marks=pytest.mark.slow)])
def test_neurons_of_pairs_are_split(seed: int, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.properties.solver.FEW_INPUTS", 0)
    check_against_programs(seed, folder, tmp_path)


#: The first output of f does not fall when its first input rises.
MONOTONIC = BOX + "(assert (and (== X[0,1] Z[0,1]) (>= Z[0,0] -0.5) (<= Z[0,0] X[0,0])))(assert (< Y[0,0] W[0,0]))"


@pytest.mark.slow
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_one_network_at_two_points(sign: float, tmp_path: Path) -> None:
    """y_0 rises by at least 1/2 per unit of x_0, or falls; f is given once, as it is equal to g."""
    slopes = np.array([[sign, 1], [2 * sign, -1], [0, 1], [0, -1]], np.float32)
    shift = np.array([3, 3, 0, 0], np.float32)
    network(tmp_path / "m.onnx", [slopes, shift, np.array([[1, 1, 1, -2], [0, 0, 1, 1]], np.float32)])
    question = tmp_path / "q.vnnlib"
    text = MONOTONIC.replace("(< Y[0,0] W[0,0])", "(<= (+ Y[0,0] 0.001) W[0,0])")
    query(question, text, "(equal-to f)")
    assert decide(tmp_path, ("m.onnx",), question) == decide(tmp_path, ("m.onnx", "m.onnx"), question)
    expected = "unsat" if sign > 0 else "sat"
    assert decide(tmp_path, ("m.onnx",), question) == expected
    if expected == "sat":
        found = read_tensors(tmp_path / "m_q.counterexample")
        assert found["Z"][0] <= found["X"][0] and found["Z"][1] == found["X"][1]
        assert found["Y"][0] + Fraction(1, 1000) <= found["W"][0]


@pytest.mark.slow
def test_networks_of_other_shapes_and_numbers_of_outputs(folder: Path, tmp_path: Path) -> None:
    one, *_, last = weights(3)
    network(tmp_path / "three.onnx", [one, np.zeros(4, np.float32), np.concatenate([last, last[:1] + 1])], (1, 1, 1, 2))
    network(tmp_path / "two.onnx", [one, np.zeros(4, np.float32), last])
    head = HEAD.replace("Z float32 [1,2]", "Z float32 [1,1,1,2]").replace("W float32 [1,2]", "W float32 [3]")
    text = (BOX + TIED).replace("Z[0,", "Z[0,0,0,")
    for threshold, answer in ((0.01, "unsat"), (-0.01, "sat")):
        above = f"(assert (or (> W[1] (+ Y[0,1] {threshold})) (< W[0] (- Y[0,0] {threshold}))))"
        (tmp_path / "q.vnnlib").write_text(head.format(relation="") + text + above)
        assert decide(tmp_path, ("two.onnx", "three.onnx"), tmp_path / "q.vnnlib") == answer


@pytest.mark.slow
def test_a_counterexample_lists_every_tensor_and_is_run_again(folder: Path, tmp_path: Path) -> None:
    question = query(tmp_path / "q.vnnlib", BOX + TIED + APART.format(0.001), "(isomorphic-to f)")
    files = (folder / "f.onnx", folder / "g.onnx", question)
    out = succeeds("solve", *files, "--out", tmp_path / "out")
    assert out.splitlines()[0] == "sat" and "f_g_q.counterexample" in out
    written = tmp_path / "out" / "f_g_q.counterexample"
    headings = [line for line in written.read_text().splitlines() if line[0].isalpha()]
    assert headings == [f"{name} float32 [1,2]" for name in "XYZW"]
    found = {name: np.array(list(map(float, values)), np.float32) for name, values in read_tensors(written).items()}
    assert np.array_equal(found["X"], found["Z"])
    theirs = [outputs(folder / f"{name}.onnx", found["X"][None])[0] for name in "fg"]
    assert abs(theirs[0] - theirs[1]) > 0.001 and np.allclose(theirs, [found["Y"][0], found["W"][0]], atol=1e-6)
    again = succeeds("solve", *files, "--replay", written)
    assert again.count("is satisfied") == 2 and "outputs differ" in again and again.endswith("holds\n")
    text = written.read_text()
    for change, said in (
        (("Z float32 [1,2]\n", "Z float32 [1,2]\n1"), "sets them equal"),
        (("X float32 [1,2]", "Q float32 [1,2]"), "must list 2 entries of 'X'"),
        (("W float32", "Y float32"), "lists 'Y' twice"),
    ):
        (tmp_path / "changed").write_text(text.replace(*change))
        result = certkd("solve", *files, "--replay", tmp_path / "changed")
        assert result.code in (1, 2) and said in result.out + result.err, result


def test_a_list_names_its_networks(folder: Path, tmp_path: Path) -> None:
    for name in "fg":
        (tmp_path / f"{name}.onnx").write_bytes((folder / f"{name}.onnx").read_bytes())
    query(tmp_path / "near.vnnlib", BOX + TIED + APART.format(5.0), "(isomorphic-to f)")
    query(tmp_path / "far.vnnlib", BOX + TIED + APART.format(0.001))
    cells = "[('g', 'g.onnx'), ('f', 'f.onnx')]"
    lines = f"\"{cells}\",near.vnnlib,900\n{cells},far.vnnlib,900\n\"[('f', 'f.onnx')]\",far.vnnlib,900\n"
    (tmp_path / "list.csv").write_text(lines)
    (tmp_path / "theirs.csv").write_text(f'onnx,vnnlib,result\n"{cells}",near.vnnlib,unsat\n')
    out = succeeds("solve", tmp_path / "list.csv", "--out", tmp_path / "out", "--against", tmp_path / "theirs.csv")
    assert "1 sat, 1 unsat, 1 unknown" in out and "1 decided alike" in out
    with open(tmp_path / "out" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["result"] for row in rows] == ["unsat", "sat", "unknown"]
    assert rows[0]["onnx"] == cells and rows[1]["counterexample"] == "g_f_far.counterexample"
    assert "'g' of the property has no file" in rows[2]["reason"]


@pytest.mark.parametrize(
    ("files", "text", "relation", "said"),
    [
        (["f.onnx"], TIED, "", "2 networks (f, g), 1 file given"),
        (["f.onnx", "g.onnx", "h.onnx"], TIED, "", "2 networks (f, g), 3 files given"),
        (["f.onnx", "none.onnx"], TIED, "", "no such network"),
        (["f.onnx", "g.onnx"], TIED, "(equal-to f)", "the two files differ"),
        (["[('f', 'f.onnx'), ('k', 'g.onnx')]"], TIED, "", "about f, g, not 'k' too"),
        (["[('f', 'f.onnx'), ('f', 'g.onnx')]"], TIED, "", "about f, g, not 'f' too"),
        (["[('f', 'f.onnx')"], TIED, "", "must look like"),
        (["[1]"], TIED, "", "must look like"),
        (["f.onnx", "g.onnx"], "", "", "Z[0,0] has no lower bound"),
        (["f.onnx", "h.onnx"], TIED.replace("[0,", "[0,"), "(isomorphic-to k)", "not declared before"),
        (["f.onnx", "wide.onnx"], TIED, "", "declares 'g' with 2 inputs, its network has 3"),
    ],
)
def test_mistakes(
    files: list[str], text: str, relation: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    wide = [random(4, 3), random(4), random(2, 4)]
    network(folder / "wide.onnx", wide, (1, 3))
    query(folder / "q.vnnlib", BOX + text + APART.format(1.0), relation)
    found = refused("solve", *files, "q.vnnlib", "--out", "out", "--overwrite")
    assert said in found, found


def test_three_networks_or_more_tensors_are_refused(folder: Path, tmp_path: Path) -> None:
    third = "(declare-network k (declare-input P float32 [1,2]) (declare-output Q float32 [1,2]))\n"
    (tmp_path / "q.vnnlib").write_text(HEAD.format(relation="") + third + BOX + TIED + APART.format(1.0))
    files = [folder / "f.onnx"] * 3
    assert "3 networks (f, g, k): one or two are read" in refused("solve", *files, tmp_path / "q.vnnlib")
    text = HEAD.format(relation="").replace("(declare-output W", "(declare-input V float32 [1])(declare-output W")
    (tmp_path / "q.vnnlib").write_text(text + BOX + TIED + APART.format(1.0))
    assert "'g' has several inputs" in refused("solve", *files[:2], tmp_path / "q.vnnlib")
    assert "which property of" in refused("solve", *files)
