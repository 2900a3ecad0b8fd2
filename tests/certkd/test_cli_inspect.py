"""``certkd inspect``, the choice of engine and joint bounds, as typed."""

from pathlib import Path

import pytest
import torch

from certkd.checkpoint import Checkpoint, save
from certkd.models import ModelSpec, build
from tests.certkd.test_cli import refused, succeeds
from verifiers.store import read


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A student and a teacher of one architecture, untrained, for the digits."""
    folder = tmp_path_factory.mktemp("pair")
    paths = folder / "student.pt", folder / "teacher.pt"
    for seed, path in enumerate(paths):
        torch.manual_seed(seed)
        spec = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8))
        save(Checkpoint(build(spec).eval(), data={"name": "digits"}), path)
    return paths


def test_inspect_a_checkpoint(pair: tuple[Path, Path]) -> None:
    said = succeeds("inspect", pair[0], "--eps", "0.01")
    for part in ("auto-lirpa", "native", "takes it", "alpha-crown", "parameters"):
        assert part in said, f"{part!r} is not said: {said}"


def test_inspect_names_what_is_refused() -> None:
    said = succeeds("inspect", "certkd:resnet,depth=8", "--shape", "3,8,8", "--classes", "10", "--norm", "l2")
    assert "takes it" in said, said


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nonsense",), "nonsense"),
        (("certkd:mlp", "--shape", "a,b"), "a,b"),
        (("certkd:mlp", "--classes", "1"), "1"),
        (("certkd:mlp", "--eps", "0"), "0"),
        (("certkd:mlp", "--norm", "l3"), "l3"),
    ],
)
def test_inspect_refuses_nonsense(arguments: tuple[str, ...], named: str) -> None:
    assert named in refused("inspect", *arguments), "the input is not repeated"


def certify(pair: tuple[Path, Path], *more: str) -> str:
    return succeeds("certify", "--model", pair[0], "--eps", "0.01", "--limit", "6", "--methods", "crown", *more)


def test_the_file_says_which_engine_ran(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for engine, ran in (("auto", "auto-lirpa"), ("native", "native")):
        certify(pair, "--engine", engine, "--cross-check", "2", "--out", str(tmp_path / f"{engine}.h5"))
        assert read(tmp_path / f"{engine}.h5")["crown"].attributes["engine"] == ran


def test_a_teacher_brings_joint_bounds_and_files_of_its_own(pair: tuple[Path, Path]) -> None:
    certify(pair)
    said = certify(pair, "--teacher", str(pair[1]))
    assert "Joint bounds (joint and differential graph)" in said, said
    alone, together = (pair[0].with_name(f"student-linf-0.01{end}.h5") for end in ("", "-with-teacher"))
    assert "joint" not in read(alone).methods and "joint" in read(together).methods, "one file for two questions"


@pytest.mark.parametrize("methods", ["joint", "crown,joint"])
def test_joint_bounds_need_a_teacher(pair: tuple[Path, Path], methods: str) -> None:
    said = refused("certify", "--model", pair[0], "--eps", "0.01", "--methods", methods)
    assert "--teacher" in said, said


@pytest.mark.parametrize("more", [("--engine", "foo"), ("--cross-check", "-1")])
def test_engine_options_are_checked(pair: tuple[Path, Path], more: tuple[str, str]) -> None:
    assert more[1] in refused("certify", "--model", pair[0], "--eps", "0.01", *more), "the input is not repeated"
