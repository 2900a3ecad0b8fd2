"""``certkd verify``, ``certkd certify --complete`` and ``certkd export`` of rows, as people type them."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from tests.cli import Interrupted, Result, certkd, refused, refused_after_clean, succeeds
from tests.paths import REFERENCE
from verifiers.core.status import Status
from verifiers.results.reader import read
from verifiers.results.rows import MethodRows
from verifiers.results.summaries.complete import Stage

DECIDED = {Status.CERTIFIED, Status.FALSIFIED, Status.MISCLASSIFIED}
COUNT = 20


@pytest.fixture(scope="module")
def net(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference student in a folder of its own."""
    path = tmp_path_factory.mktemp("a [folder] of") / "kdiga.pt"
    shutil.copy(REFERENCE / path.name, path)
    return path


@pytest.fixture(scope="module")
def rows(net: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of pgd, ibp and crown about it."""
    out = tmp_path_factory.mktemp("rows") / "r.h5"
    succeeds("certify", "--model", net, "--eps", "1/10", "--limit", str(COUNT), "--out", out)
    return out


@pytest.fixture(scope="module")
def complete(net: Path) -> tuple[Path, Result]:
    """Complete rows about it, under the name that they get by themselves, and what was printed."""
    given = ("--complete", "--eps", "1/10", "--limit", str(COUNT), "--time-limit", "20")
    result = certkd("certify", "--model", net, *given)
    return net.with_name(f"kdiga-linf-1_10-first{COUNT}-complete.h5"), result


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("│ ").split("│")]


def lines(printed: str, first: str) -> list[list[str]]:
    """Rows of a table, as cells, that begin with a word."""
    return [cells(line) for line in printed.splitlines() if cells(line)[0] == first]


# verify


@pytest.mark.slow
def test_a_true_file_is_exit_code_0(net: Path, rows: Path) -> None:
    result = certkd("verify", rows, "--model", net, "--sample", "6", "--seed", "3")
    assert result.code == 0 and "contradiction" not in result.err, result.err
    certificates = read(rows)
    for name, method in certificates.methods.items():
        facts, *others = lines(result.out, name)
        assert facts[1:6] == [str(COUNT), str(COUNT), str(COUNT), "0", "0"]
        if name == "pgd":
            found, again = str(method.count(Status.FALSIFIED)), str(COUNT)
            assert others[0][1:] == [found, found, found, "0", "0", "counterexamples"] and found != "0"
            assert others[1][1:4] == [again, again, again], "an attack is run again on all rows"
        else:
            attacked, again, proved = others
            assert attacked[1:4] == [str(method.count(Status.CERTIFIED))] * 3 and "attacks" in attacked[6]
            assert again[1:4] == [str(COUNT), "6", "6"] and proved[2] == proved[3] and int(proved[2]) <= 6
    assert "…" not in result.out and "Rows were drawn with --seed 3." in result.out
    assert f"6 of {COUNT} rows were run again and proved again" in result.out
    assert result.out.startswith("Every claim was looked at, and nothing contradicts the file.\n")


def test_a_lie_is_exit_code_1_and_a_line(net: Path, rows: Path, tmp_path: Path) -> None:
    lie = tmp_path / "lie [b].h5"
    shutil.copy(rows, lie)
    found = int(np.flatnonzero(read(rows)["pgd"]["status"] == Status.FALSIFIED)[0])
    with h5py.File(lie, "r+") as file:
        file["crown/status"][found], file["crown/radius"][found], file["crown/certified"][found] = 1, 0.1, 1
        file["pgd/predicted"][0] = 99
        file["pgd/correct"][0] = 0
    result = certkd("verify", lie, "--model", net)
    assert result.code == 1, result.err
    index = read(rows)["pgd"]["index"]
    told = [line for line in result.err.splitlines() if line.startswith("contradiction: ")]
    assert told[0] == f"contradiction: pgd, sample {index[0]}: the network predicts another class"
    assert told[1] == f"contradiction: crown, sample {index[found]}: its radius contains a counterexample of the file"
    assert told[2].startswith(f"contradiction: crown, sample {index[found]}: a point at distance 0.")
    assert told[2].endswith("changes the prediction, its certified radius is 0.1") and len(told) == 3
    assert [line[5] for line in lines(result.out, "crown")] == ["1", "1"]
    assert [line[5] for line in lines(result.out, "pgd")] == ["1", "0"]
    assert result.out.startswith("The file is wrong: 3 contradictions.\n")


@pytest.mark.slow
def test_rows_about_a_teacher_need_it(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "joint.h5"
    given = ("--teacher", REFERENCE / "standard.pt", "--eps", "1/255", "--limit", "3", "--methods", "pgd,ibp,joint")
    succeeds("certify", "--model", net, *given, "--out", out, "--teacher-out", tmp_path / "t.h5")
    alone = certkd("verify", out, "--model", net, "--sample", "0")
    assert alone.code == 1 and "contradiction" not in alone.err
    assert "not looked at: joint compares with a teacher that was not given: give the teacher" in alone.out
    succeeds("verify", out, "--model", net, "--teacher", REFERENCE / "standard.pt", "--sample", "1")
    message = refused_after_clean("verify", out, "--model", net, "--teacher", REFERENCE / "kd.pt")
    assert "is about another teacher (joint_teacher_sha256" in message


def test_verify_refuses_in_one_line(net: Path, rows: Path, tmp_path: Path) -> None:
    assert "no certificate file at" in refused("verify", tmp_path / "none.h5", "--model", net)
    assert "is not a certificate file" in refused("verify", net, "--model", net)
    assert "--model" in refused("verify", rows)
    assert "no such checkpoint" in refused("verify", rows, "--model", tmp_path / "none.pt")
    assert "is about another network (model_sha256" in refused("verify", rows, "--model", REFERENCE / "kd.pt")
    for option, value in (("--time-limit", "0"), ("--time-limit", "-1"), ("--time-limit", "soon")):
        message = refused("verify", rows, "--model", net, option, value)
        assert value.strip("-") in message and "time" in message, message
    for option in ("--sample", "--seed"):
        assert option in refused("verify", rows, "--model", net, option, "-1")
    with h5py.File(shutil.copy(rows, tmp_path / "no-data.h5"), "r+") as file:
        del file.attrs["data"]
    assert "does not say what data it is about" in refused("verify", tmp_path / "no-data.h5", "--model", net)
    with h5py.File(shutil.copy(rows, tmp_path / "seed.h5"), "r+") as file:
        file.attrs["data_seed"] = 1
    message = refused_after_clean("verify", tmp_path / "seed.h5", "--model", net)
    assert "is about another set of samples" in message or "has no sample" in message
    with h5py.File(shutil.copy(rows, tmp_path / "part.h5"), "r+") as file:
        for group in file.values():
            group["status"][5:], group["index"][5:] = 0, -1
    message = refused("verify", tmp_path / "part.h5", "--model", net)
    assert f"is not finished: no method has an answer for {COUNT - 5} of {COUNT} samples" in message


def test_a_network_for_other_images_is_refused_and_not_run(rows: Path, tmp_path: Path) -> None:
    import torch

    from certkd.networks.builders import ModelSpec, build
    from certkd.networks.checkpoint import Checkpoint, save

    spec = ModelSpec(name="certkd:mlp", options={"hidden": [4]}, classes=10, shape=(3, 4, 4))
    with torch.random.fork_rng():
        save(Checkpoint(build(spec).eval()), tmp_path / "other.pt")
    assert "is about another network" in refused("verify", rows, "--model", tmp_path / "other.pt")


@pytest.mark.slow
def test_an_onnx_network_is_verified(net: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    succeeds("export", "--model", net, "--out", tmp_path)
    onnx, out = tmp_path / "kdiga.onnx", tmp_path / "o.h5"
    given = ("--data", "digits", "--eps", "0.1", "--limit", "6", "--methods", "pgd,crown", "--out", out)
    succeeds("certify", "--model", onnx, *given)
    proofs = lines(succeeds("verify", out, "--model", onnx), "crown")[-1]
    assert proofs[1:6] == ["6", "6", "6", "0", "0"]
    assert "is about another" in refused("verify", out, "--model", net), "the file is about the .onnx file's network"


# certify --complete


def check_stages(printed: str, method: MethodRows) -> None:
    """The table of stages has the counts of the file."""
    status, stage = method["status"], method["stage"]
    for one in Stage:
        (line,) = lines(printed, one.title)
        decided = [int(((stage == one) & (status == end)).sum()) for end in (Status.CERTIFIED, Status.FALSIFIED)]
        assert [int(cell) for cell in line[1:4]] == [int((stage >= one).sum()), *decided], one.title
        assert (line[6] == "-") == (not (stage >= one).any())
        assert float(line[5]) == pytest.approx(method[one.column][stage >= one].sum(), abs=0.051)


@pytest.mark.slow
def test_complete_decides_every_sample(net: Path, complete: tuple[Path, Result]) -> None:
    path, result = complete
    assert result.code == 0, result.err
    method = read(path)["complete"]
    assert len(method) == COUNT and set(method["status"]) <= DECIDED
    assert {Status.CERTIFIED, Status.FALSIFIED} <= set(method["status"])
    assert {Stage.ATTACK, Stage.CROWN, Stage.BRANCH_AND_BOUND} <= set(method["stage"]), "some stage decides nothing"
    assert method.attributes["time_limit"] == 20 and read(path).attributes["methods"] == ["complete"]
    assert f"written to {path}\n" in result.out
    check_stages(result.out, method)
    assert lines(result.out, Stage.BRANCH_AND_BOUND.title)[0][4] == "0", "samples are left"
    again = certkd("verify", path, "--model", net, "--sample", "4")
    proofs = lines(again.out, "complete")[-1]
    assert again.code == 0 and proofs[2] == proofs[3] != "0", again.out


@pytest.mark.slow
def test_complete_goes_on_after_an_interruption(
    net: Path, complete: tuple[Path, Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from certkd.report import progress

    out = tmp_path / "c.h5"
    given = ("--complete", "--eps", "1/10", "--limit", "8", "--time-limit", "20", "--batch-size", "3")
    monkeypatch.setattr(progress.CertifyProgress, "advance", Interrupted())
    assert certkd("certify", "--model", net, *given, "--out", out).code == 130
    monkeypatch.undo()
    there = 8 - read(out)["complete"].count(Status.PENDING)
    assert 0 < there < 8
    assert "another" in refused_after_clean("certify", "--model", net, *given[:5], "--out", out), "without the limit"
    result = certkd("certify", "--model", net, *given, "--out", out)
    assert result.code == 0 and f"complete ({there} rows already done)" in result.err, result.err
    ours, whole = read(out)["complete"], read(complete[0])["complete"]
    for column in ("status", "radius", "index"):
        np.testing.assert_array_equal(ours[column], whole[column][:8], err_msg=column)
    check_stages(result.out, ours)


@pytest.mark.slow
def test_complete_beside_a_teacher(net: Path, tmp_path: Path) -> None:
    files = {"--out": tmp_path / "s.h5", "--teacher-out": tmp_path / "t.h5"}
    given = ("--teacher", REFERENCE / "standard.pt", "--eps", "2/255", "--limit", "6", "--complete")
    out = succeeds("certify", "--model", net, *given, *(part for pair in files.items() for part in pair))
    assert "the student keeps" in out or "there is nothing to keep" in out
    assert out.count("Stages of complete verification") == 2
    for path in files.values():
        assert list(read(path).methods) == ["complete"] and set(read(path)["complete"]["status"]) <= DECIDED
    parts = out.split("Stages of complete verification")
    check_stages(parts[1], read(files["--teacher-out"])["complete"])
    check_stages(parts[2].split("written to")[0], read(files["--out"])["complete"])


COMPLETE: list[tuple[tuple[str, ...], str]] = [
    (("--complete", "--methods", "crown"), "--complete means --methods complete, not crown"),
    (("--complete", "--time-limit", "0"), "method complete: time_limit must be greater than 0, got 0"),
    (("--complete", "--time-limit", "-3"), "method complete: time_limit must be greater than 0, got -3"),
    (("--complete", "--time-limit", "soon"), "method complete: time_limit: 'soon' is not a number"),
    (("--complete", "--time-limit", "1e400"), "method complete: time_limit: "),
    (("--complete", "--time-limit", "2", "--option", "time_limit=3"), "by --time-limit and by --option"),
    (("--methods", "diagnostics", "--time-limit", "5"), "none of the methods diagnostics has a setting 'time_limit'"),
    (("--methods", "pgd,lipschitz", "--sigma", "5"), "none of the methods pgd, lipschitz has a setting"),
    (("--complete", "--sigma", "0.1"), "none of the methods complete has a setting 'sigma'. It belongs to smoothing."),
]


@pytest.mark.parametrize(("given", "words"), COMPLETE)
def test_complete_refuses_in_one_line(net: Path, tmp_path: Path, given: tuple[str, ...], words: str) -> None:
    out = tmp_path / "c.h5"
    assert words in refused("certify", "--model", net, "--eps", "0.1", "--limit", "2", "--out", out, *given)
    assert not out.exists()


def test_complete_is_the_method_of_that_name(net: Path, tmp_path: Path) -> None:
    given = ("--eps", "2/255", "--limit", "3", "--time-limit", "3", "--out", tmp_path / "c.h5")
    out = succeeds("certify", "--model", net, "--methods", "complete", *given)
    check_stages(out, read(tmp_path / "c.h5")["complete"])
    before = read(tmp_path / "c.h5")["complete"]["seconds"]
    succeeds("certify", "--model", net, "--complete", *given)
    assert np.array_equal(before, read(tmp_path / "c.h5")["complete"]["seconds"]), "the same question was asked again"


# export


def test_rows_are_exported_in_all_forms(net: Path, rows: Path, tmp_path: Path) -> None:
    pgd = read(rows)["pgd"]
    found = pgd["index"][pgd["status"] == Status.FALSIFIED]
    assert f"{3 * COUNT} rows written to {tmp_path / 'r.csv'}\n" in succeeds(
        "export", rows, "--out", tmp_path / "r.csv"
    )
    with open(tmp_path / "r.csv", newline="") as file:
        assert [int(row["index"]) for row in csv.DictReader(file)] == [*pgd["index"]] * 3
    succeeds("export", rows, "--out", tmp_path / "r.json")
    assert len(json.loads((tmp_path / "r.json").read_text())["rows"]) == 3 * COUNT
    succeeds("export", rows, "--out", tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as arrays:
        assert arrays["index"].tolist() == found.tolist() != []
    out = succeeds("export", rows, "--model", net, "--out", tmp_path / "found")
    assert out == f"{len(found)} counterexamples written to {tmp_path / 'found'}\n"
    names = {path.name for path in (tmp_path / "found").iterdir()}
    assert names == {f"pgd-{index}.counterexample" for index in found}


def test_export_writes_chosen_samples(net: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    out = tmp_path / "o"
    given = ("--indices", "7,2-3", "--eps", "2/255", "--split", "validation")
    succeeds("export", "--model", net, "--out", out, *given)
    from certkd.config.settings import DataConfig
    from certkd.data import sources as data

    index = data.load(DataConfig(name="digits")).splits["validation"].indices
    with open(out / "instances.csv", newline="") as file:
        listed = list(csv.reader(file))
    expected = [f"vnnlib/digits_validation_{int(index[row])}_2_255.vnnlib" for row in (7, 2, 3)]
    assert [row[1] for row in listed] == expected, "in the order asked, by the index in the data"
    assert {row[2] for row in listed} == {"300"} and all((out / name).is_file() for name in expected)
    chosen = tmp_path / "few.txt"
    chosen.write_text("7\n2-3  # the same\n")
    succeeds("export", "--model", net, "--out", tmp_path / "p", *given[2:], "--indices-file", chosen)
    assert (tmp_path / "p" / "instances.csv").read_text() == (out / "instances.csv").read_text()


def _places(net: Path, rows: Path, folder: Path) -> Callable[[str], str]:
    names = {"NET": str(net), "ROWS": str(rows)}
    return lambda text: names.get(text, text.replace("OUT", str(folder / "out")))


EXPORT: list[tuple[str, str]] = [
    ("--out OUT", "nothing to export: give --model NETWORK, or a certificate file"),
    ("ROWS", "--out"),
    ("ROWS --out OUT.csv --eps 0.1", "--eps 0.1 "),
    ("ROWS --out OUT.csv --limit 3", "--limit 3 "),
    ("ROWS --out OUT.csv --indices 1-3", "--indices 1-3 "),
    ("ROWS --out OUT.csv --indices-file x.txt", "--indices-file x.txt "),
    ("ROWS --out OUT.csv --split test", "--split test "),
    ("ROWS --out OUT.csv --timeout 5", "--timeout 5 "),
    ("ROWS --out OUT --model NET --eps 0.1", "--eps 0.1 "),
    ("ROWS --out OUT.csv --mean 0.5", "--mean 0.5 "),
    ("ROWS --out OUT.csv --arch certkd:mlp", "--arch certkd:mlp "),
    ("ROWS --out OUT.csv --layout flat", "--layout flat "),
    ("ROWS --out OUT.csv --data digits", "--data digits "),
    ("ROWS --out OUT.csv --download", "--download is about a network"),
    ("ROWS --out OUT.csv --model NET", "--model is for a folder of counterexamples"),
    ("ROWS --out OUT", "needs the network (--model)"),
    ("ROWS --out OUT.txt", "give a name that ends in .csv, .json or .npz"),
    ("NET --out OUT.csv", "a network is exported to a folder"),
    ("ROWS --out OUT --model NET --layout flat", "--layout flat is for .onnx files"),
    ("--model NET --out OUT --limit 3", "--limit 3 "),
    ("--model NET --out OUT --indices 1", "--indices 1 "),
    ("--model NET --out OUT --indices-file x.txt", "--indices-file x.txt "),
    ("--model NET --out OUT --timeout 300", "--timeout 300 "),
    ("--model NET --out OUT --split validation", "--split validation "),
    ("--model NET --out OUT --eps 0.1 --indices 1 --limit 2", "--indices and --limit both select samples"),
    ("--model NET --out OUT --eps 0.1 --indices 1-x", "'1-x' is not an index"),
    ("--model NET --out OUT --eps 0.1 --indices 9999", "no sample 9999"),
]


@pytest.mark.parametrize(("line", "words"), EXPORT)
def test_what_has_no_effect_is_refused(net: Path, rows: Path, tmp_path: Path, line: str, words: str) -> None:
    place = _places(net, rows, tmp_path)
    message = refused("export", *map(place, line.split()))
    assert words in re.sub(r"\s+", " ", message), message
    assert not list(tmp_path.iterdir()), "something was written before the input was checked"
