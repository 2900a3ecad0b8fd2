"""``certkd inspect``, the choice of engine and joint bounds, as typed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from certkd.networks.builders import ModelSpec, build
from certkd.networks.checkpoint import Checkpoint, save
from certkd.report import tables
from tests.cli import refused, succeeds
from verifiers.bound_propagation.auto_lirpa.adapter import AutoLirpa
from verifiers.bound_propagation.engine import BOUND_METHODS
from verifiers.bound_propagation.native.engine import Native
from verifiers.certify.inspect import NO_MEMORY, NOT_TRIED, preflight
from verifiers.results.reader import read


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


def test_inspect_bare_weights_and_names_with_a_data_set(pair: tuple[Path, Path], tmp_path: Path) -> None:
    spec = ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8))
    torch.save({"state_dict": build(spec).network.state_dict()}, tmp_path / "bare.pt")
    words = ["--norm", "l2", "--data", "digits"]
    said = succeeds("inspect", tmp_path / "bare.pt", "--arch", "certkd:mlp,hidden=[8]", *words)
    assert "takes it" in said and "610 parameters" in said, said
    assert "610 parameters" in succeeds("inspect", "certkd:mlp,hidden=[8]", *words)
    assert "needs --data" in refused("inspect", tmp_path / "bare.pt", "--arch", "certkd:mlp,hidden=[8]")


@pytest.mark.slow
def test_inspect_names_what_is_refused() -> None:
    said = succeeds("inspect", "certkd:resnet,depth=8", "--shape", "3,8,8", "--classes", "10", "--norm", "l2")
    assert "takes it" in said, said


class Waves(nn.Module):
    """auto-LiRPA takes it, but not with alpha-CROWN."""

    def __init__(self) -> None:
        super().__init__()
        body = (nn.Conv2d(3, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Flatten())
        self.body = nn.Sequential(*body, nn.Linear(64, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


@pytest.mark.slow
def test_methods_that_an_engine_lacks_are_said() -> None:
    torch.manual_seed(0)
    found = preflight(Waves().eval(), torch.rand(2, 3, 4, 4), 0.01)
    assert found.engines == {"auto-lirpa": None, "native": None}
    assert set(found.refused["auto-lirpa"]) == {"alpha-crown"} and found.refused["native"] == {}
    shown = [part for part in tables.inspection(found, "0.01", "linf") if not isinstance(part, str)]
    cells = [cell for part in shown for row in part.rows for cell in row]
    assert any(cell.startswith("alpha-crown: auto-LiRPA fails in ") for cell in cells), cells


def test_methods_that_would_take_long_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verifiers.certify.inspect.LARGEST_TRIED", 0)
    network = build(ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8))).eval()
    found = preflight(network, torch.rand(2, 1, 8, 8), 0.01)
    assert found.refused == {"auto-lirpa": dict.fromkeys(BOUND_METHODS, NOT_TRIED), "native": {}}


def test_inspect_goes_on_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise torch.OutOfMemoryError

    network = build(ModelSpec(name="certkd:mlp", options={"hidden": [8]}, classes=10, shape=(1, 8, 8))).eval()
    monkeypatch.setattr(AutoLirpa, "__init__", fail)
    assert preflight(network, torch.rand(2, 1, 8, 8), 0.01).engines == {"auto-lirpa": NO_MEMORY, "native": None}
    monkeypatch.setattr(Native, "ask", fail)
    found = preflight(network, torch.rand(2, 1, 8, 8), 0.01)
    assert found.engines == {"auto-lirpa": NO_MEMORY, "native": NO_MEMORY} and found.costs == ()


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
    methods = () if "--teacher" in more else ("--methods", "crown")
    return succeeds("certify", "--model", pair[0], "--eps", "0.01", "--limit", "6", *methods, *more)


@pytest.mark.slow
def test_the_file_says_which_engine_ran(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for engine, ran in (("auto", "native"), ("auto-lirpa", "auto-lirpa")):
        certify(pair, "--engine", engine, "--cross-check", "2", "--out", str(tmp_path / f"{engine}.h5"))
        assert read(tmp_path / f"{engine}.h5")["crown"].attributes["engine"] == ran


@pytest.mark.slow
def test_a_teacher_brings_joint_bounds_and_files_of_its_own(pair: tuple[Path, Path]) -> None:
    certify(pair)
    said = certify(pair, "--teacher", str(pair[1]))
    assert "Student and teacher at eps, bounds of the joint and coupled graph" in said, said
    alone, together = (
        pair[0].with_name(f"student-linf-0.01{end}.h5") for end in ("-first6-crown", "-with-teacher-first6")
    )
    assert "joint" not in read(alone).methods and "joint" in read(together).methods, "one file for two questions"


@pytest.mark.parametrize("methods", ["joint", "crown,joint"])
def test_joint_bounds_need_a_teacher(pair: tuple[Path, Path], methods: str) -> None:
    said = refused("certify", "--model", pair[0], "--eps", "0.01", "--methods", methods)
    assert "--teacher" in said, said


@pytest.mark.parametrize("more", [("--engine", "foo"), ("--cross-check", "-1")])
def test_engine_options_are_checked(pair: tuple[Path, Path], more: tuple[str, str]) -> None:
    assert more[1] in refused("certify", "--model", pair[0], "--eps", "0.01", *more), "the input is not repeated"
