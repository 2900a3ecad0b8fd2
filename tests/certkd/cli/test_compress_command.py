"""``certkd compress``: copies as files, the table of sizes, and what it refuses."""

import json
from pathlib import Path

import pytest

from certkd.networks.checkpoint import load, save
from certkd.networks.copies.facts import Copied
from tests.certkd.networks.copies.originals import original
from tests.cli import certkd, refused, succeeds


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("compress") / "student.pt"
    save(original("certkd:mlp", classes=10, hidden=[12]), path)
    return path


@pytest.mark.parametrize("way", ["prune --share 4/5", "low-rank --ranks 4x", "low-rank --form tt --ranks energy=0.5"])
def test_a_copy_is_a_checkpoint_that_other_commands_take(way: str, student: Path, tmp_path: Path) -> None:
    out = succeeds("compress", student, "--how", *way.split(), "--out", tmp_path / "copy.pt")
    assert "student.pt" in out and "copy.pt" in out and "multiply-adds" in out
    copy = load(tmp_path / "copy.pt")
    assert copy.copied["of"] == load(student).sha256
    given = ["--eps", "0.01", "--methods", "ibp,crown", "--limit", "3", "--out", tmp_path / "copy.h5"]
    assert "crown" in succeeds("certify", tmp_path / "copy.pt", *given)


def test_sizes_are_recorded(student: Path, tmp_path: Path) -> None:
    out = succeeds(
        "compress", student, "--how", "prune", "--share", "0.9", "--out", tmp_path / "a.safetensors", "--json"
    )
    found = json.loads(out)
    about = Copied.parse({name: found[name] for name in Copied.model_fields})
    assert found["bytes"] == (tmp_path / "a.safetensors").stat().st_size
    assert about.how["share"] == 0.9 and about.facts.multiply_adds < 0.11 * about.original.multiply_adds


def test_a_copy_is_trained_further_and_stays_one(student: Path, tmp_path: Path) -> None:
    succeeds("compress", student, "--how", "prune", "--share", "0.8", "--out", tmp_path / "copy.pt")
    given = ["--student", tmp_path / "copy.pt", "--teacher", student, "--out", tmp_path / "tuned"]
    certkd("train", *given, "--set", "epochs=1", "--set", "data.limit=64", "--set", "objective.kind=kdiga")
    before, after = load(tmp_path / "copy.pt"), load(tmp_path / "tuned/best.pt")
    assert after.copied == before.copied and after.teacher_sha256 == load(student).sha256
    assert after.model.spec.layers == before.model.spec.layers
    zeros = [network.model.network[1].weight == 0 for network in (before, after)]
    assert bool((zeros[0] == zeros[1]).all()) and int(zeros[0].sum()) > 500


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("--how prun --out OUT.pt", "--how 'prun' is unknown. Did you mean 'prune'?"),
        ("--how prune --share 1 --out OUT.pt", "--how prune: share: a share is between 0 and 1, got 1: 80 % is 0.8"),
        ("--how prune --share 80% --out OUT.pt", "--how prune: share"),
        ("--how prune --what filters --out OUT.pt", "--how prune: what must be 'weights' or 'channels', got 'filters'"),
        ("--how prune --ranks 2x --out OUT.pt", "--ranks '2x' is no setting of prune: drop it"),
        ("--how low-rank --share 0.5 --out OUT.pt", "--share 0.5 is no setting of low-rank: drop it"),
        ("--how low-rank --ranks 3 --out OUT.pt", "ranks are a ratio of weights like 2x"),
        ("--how low-rank --ranks 1x --out OUT.pt", "got '1x'"),
        ("--how low-rank --ranks energy=2 --out OUT.pt", "got 'energy=2'"),
        (
            "--how low-rank --form tucked --out OUT.pt",
            "--how low-rank: form must be 'tucker', 'cp' or 'tt', got 'tucked'",
        ),
        ("--how prune --out OUT.onnx", ".pt, .pth"),
        ("--how prune --out SAME", "is the network itself: give the copy another name"),
    ],
)
def test_mistakes_are_one_line(arguments: str, why: str, student: Path, tmp_path: Path) -> None:
    places = {"OUT": str(tmp_path / "copy"), "SAME": str(student)}
    for word, place in places.items():
        arguments = arguments.replace(word, place)
    assert why in refused("compress", student, *arguments.split())


def test_networks_that_are_no_checkpoints_are_refused(student: Path, tmp_path: Path) -> None:
    out = ("--how", "prune", "--out", tmp_path / "copy.pt")
    succeeds("export", student, "--out", tmp_path)
    assert "has operators, not layers: compress the checkpoint" in refused("compress", tmp_path / "student.onnx", *out)
    assert "no such checkpoint" in refused("compress", tmp_path / "absent.pt", *out).lower()


def test_an_int8_copy_is_the_file_that_is_certified(student: Path, tmp_path: Path) -> None:
    given = ["--how", "int8", "--images", "64", "--data", "digits", "--out", tmp_path / "copy.onnx", "--json"]
    found = json.loads(succeeds("compress", student, *given))
    assert found["of"] == load(student).sha256 and found["same_class"] > 0.8
    assert found["bytes"] == (tmp_path / "copy.onnx").stat().st_size
    asked = ["--eps", "0.01", "--methods", "crown", "--limit", "3", "--data", "digits", "--out", tmp_path / "copy.h5"]
    succeeds("certify", tmp_path / "copy.onnx", *asked)
    assert "int8 (as in the file)" in succeeds("show", tmp_path / "copy.h5")
    refusal = refused("compress", tmp_path / "copy.onnx", "--how", "int8", "--out", tmp_path / "b.onnx")
    assert "is already in int8: compress the checkpoint" in refusal
    assert "give a name that ends in .onnx" in refused("compress", student, "--how", "int8", "--out", tmp_path / "b.pt")
    assert "--scales" in refused("compress", student, "--how", "prune", "--scales", "x", "--out", tmp_path / "b.pt")
    assert "is there already" in refused("compress", student, *given[:-1])
