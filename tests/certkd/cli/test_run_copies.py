"""``certkd run`` with compressed copies: made, trained further, certified and compared, and resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.certkd.cli.test_cli import EXPERIMENT
from tests.cli import certkd, refused
from verifiers.results.reader import read


def tuned(kind: str) -> dict[str, Any]:
    return {"epochs": 1, "objective": {"kind": kind}}


COPIES: dict[str, Any] = {
    "thin": {"of": "teacher", "how": {"kind": "low-rank"}},
    "tuned": {
        "of": "plain",
        "how": {"kind": "prune", "share": 0.8},
        "tune": {"epochs": 1, "objective": {"kind": "kd"}},
    },
    "int8": {
        "of": "plain",
        "how": {"kind": "int8", "images": 16},
        "tune": {"epochs": 1, "objective": {"kind": "kdiga"}},
    },
}


def settings(folder: Path, copies: dict[str, Any]) -> Path:
    given: dict[str, Any] = json.loads(json.dumps({**EXPERIMENT, "out": str(folder / "out"), "device": "cpu"}))
    given["teacher"] |= {"epochs": 1}
    given["students"] |= {"epochs": 1, "objectives": {"plain": {"kind": "standard"}}, "copies": copies}
    given["certify"] |= {"methods": ["pgd", "crown"], "limit": 4}
    path = folder / "copies.yaml"
    path.write_text(json.dumps(given))
    return path


@pytest.mark.slow
def test_copies_stand_beside_their_originals(tmp_path: Path) -> None:
    path = settings(tmp_path, COPIES)
    done = certkd("run", path)
    assert done.code == 0, done.err
    out = tmp_path / "out"
    assert sorted(file.name for file in (out / "copies").iterdir()) == ["int8.onnx", "thin.pt", "tuned.pt"]
    found = json.loads((out / "report" / "summary.json").read_text())
    assert set(found["comparisons"]) == {"plain", *COPIES} and set(found["sizes"]) == {"teacher", "plain", *COPIES}
    sizes = found["sizes"]
    assert sizes["tuned"]["nonzero"] < 0.3 * sizes["plain"]["nonzero"], "zeros stay in training"
    assert sizes["int8"]["file_bytes"] == (out / "copies" / "int8.onnx").stat().st_size
    assert sizes["thin"]["multiply_adds"] < sizes["teacher"]["multiply_adds"]
    assert "multiply-adds" in done.out and all(name in done.out for name in COPIES)
    assert read(out / "certificates" / "int8.h5").attributes["arithmetic"] == "int8"
    log = json.loads((out / "students" / "int8" / "log.jsonl").read_text().splitlines()[0])
    assert log["epoch"] == 0, "the network was trained as its int8 copy computes"
    before = {file: file.stat().st_mtime_ns for file in (out / "copies").iterdir()}
    assert certkd("run", path).code == 0
    assert before == {file: file.stat().st_mtime_ns for file in (out / "copies").iterdir()}, "finished parts are kept"


@pytest.mark.parametrize(
    ("copies", "words"),
    [
        ({"a": {"of": "nobody", "how": {"kind": "prune"}}}, "the copy a is of 'nobody': name one of teacher, plain"),
        ({"plain": {"of": "teacher", "how": {"kind": "prune"}}}, "a student and a copy are both named plain"),
        ({"a": {"of": "a", "how": {"kind": "prune"}}}, "the copy a is of 'a'"),
        ({"a/b": {"of": "teacher", "how": {"kind": "prune"}}}, "a student cannot be named 'a/b'"),
        ({"a": {"of": "teacher", "how": {"kind": "melt"}}}, "melt"),
        ({"a": {"of": "teacher", "how": {"kind": "prune", "ranks": "2x"}}}, "ranks"),
        ({"a": {"of": "teacher"}}, "how"),
        (
            {"a": {"of": "teacher", "how": {"kind": "int8", "scales": "per-tensor"}, "tune": tuned("kd")}},
            "a scale for each channel: drop scales, or tune",
        ),
    ],
)
def test_what_is_wrong_is_said_before_anything_runs(copies: dict[str, Any], words: str, tmp_path: Path) -> None:
    assert words in refused("run", settings(tmp_path, copies))
    assert not (tmp_path / "out").exists()


def test_a_copy_of_a_users_class_is_not_trained_further(tmp_path: Path) -> None:
    path = settings(tmp_path, COPIES)
    given = json.loads(path.read_text())
    given["students"]["model"] = {"name": str(tmp_path / "net.py:Net")}
    path.write_text(json.dumps(given))
    assert "the copy tuned is of a class of your own and cannot be trained further: drop its tune" in refused(
        "run", path
    )
    assert not (tmp_path / "out").exists()
