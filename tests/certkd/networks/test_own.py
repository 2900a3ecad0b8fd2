"""A user's own class: named by a person, built with options, trained, saved and opened again; never by a file."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from certkd.config.experiment import ExperimentConfig
from certkd.config.reading import read
from certkd.config.settings import TrainJob
from certkd.data.splits import DataSet, Split, TensorImages
from certkd.experiment import run as run_experiment
from certkd.networks import checkpoint, resolve
from certkd.networks.builders import ModelSpec, build, is_own, short
from certkd.training.job import run_training
from verifiers.core.errors import InputError

CODE = """
from dataclasses import dataclass
from torch import nn
import blocks

RUNS = open(__file__ + ".runs", "a").write("x")


class Net(nn.Module):
    def __init__(self, num_classes, width=4, *, depth=1):
        super().__init__()
        inner = [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth)]
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), *inner, nn.Sequential())
        self.head = blocks.head(width, num_classes)

    def forward(self, x):
        return self.head(self.body(x.float()))


class Named(Net):
    def forward(self, x):
        scores = super().forward(x)
        return {"logits": scores, "features": scores * 2}


class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        raise RuntimeError("no such thing")


class Needs(nn.Module):
    def __init__(self, channels, size):
        super().__init__()


def made(width):
    return Net(3, width)


def number():
    return 3


instance = Net(3)
CONSTANT = 5
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A user's file, with another module beside it."""
    (tmp_path / "blocks.py").write_text("from torch import nn\n\n\ndef head(a, b):\n    return nn.Linear(a, b)\n")
    path = tmp_path / "net.py"
    path.write_text(CODE)
    return path


@pytest.fixture
def data() -> DataSet:
    """Twelve images of 2x2 pixels in three classes."""
    generator = torch.Generator().manual_seed(0)
    split = Split(TensorImages(torch.rand(12, 1, 2, 2, generator=generator)), torch.arange(12) % 3, torch.arange(12))
    return DataSet("made", 3, (1, 2, 2), {"train": split, "validation": split, "test": split})


def spec(file: Path, name: str = "Net", classes: int = 3, **options: Any) -> ModelSpec:
    return ModelSpec(name=f"{file}:{name}", options=options, classes=classes, shape=(1, 2, 2))


# Building


def test_a_class_is_built_with_its_options_and_the_classes_of_the_data(file: Path) -> None:
    model = build(spec(file, width=6, depth=2))
    assert model(torch.rand(5, 1, 2, 2)).shape == (5, 3)
    assert model.network.head.weight.shape == (3, 6) and len(model.network.body) == 6
    assert build(spec(file, "made", width=5)).network.head.weight.shape == (3, 5)
    assert build(spec(file, "instance")).network is not build(spec(file, "instance")).network
    assert Path(f"{file}.runs").read_text() == "x", "the file is run once"


WRONG: dict[str, tuple[str, dict[str, Any], str]] = {
    "unknown class": ("Nett", {}, "has no 'Nett'. Did you mean 'Net'?"),
    "unknown option": ("Net", {"widht": 3}, "has no option 'widht'. Did you mean 'width'?"),
    "missing options": ("Needs", {}, "needs channels, size: add channels=VALUE"),
    "its own error": (
        "Fails",
        {},
        'fails (net.py:29: raise RuntimeError("no such thing")): RuntimeError: no such thing',
    ),
    "no network": ("number", {}, "gives int, and no torch.nn.Module"),
    "a number": ("CONSTANT", {}, "is int: name a class"),
    "options of an instance": ("instance", {"width": 3}, "takes no options: drop width"),
    "other classes": ("made", {"width": 3}, "not one logit for each of 4 classes"),
    "several outputs": ("Named", {}, "it gives a dict (logits, features)"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_line(name: str, file: Path) -> None:
    attribute, options, said = WRONG[name]
    with pytest.raises(InputError) as caught:
        build(spec(file, attribute, 4 if name == "other classes" else 3, **options))
    assert said in str(caught.value), str(caught.value)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("1 / 0", "ZeroDivisionError"),
    ],
)
def test_a_file_that_cannot_be_run_is_refused(code: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.py"
    path.write_text(code)
    with pytest.raises(InputError) as caught:
        build(spec(path))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no such file: .*absent\.py"):
        build(spec(tmp_path / "absent.py"))


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("net.py:Net", True),
        ("a b/net.py:Net", True),
        ("timm:resnet18", False),
        ("net.py", False),
        ("net.py:", False),
        ("net.py:a.b", False),
        ("net.pyc:Net", False),
    ],
)
def test_names_of_classes_look_like_files(name: str, own: bool) -> None:
    assert is_own(name) == own
    assert short(name) == (name.rpartition("/")[2] if own else name)


def test_one_output_of_several_is_chosen(file: Path, tmp_path: Path, data: DataSet) -> None:
    name = f"{file}:Named"
    torch.save(build(spec(file)).network.state_dict(), tmp_path / "w.pt")
    known = resolve.load(tmp_path / "w.pt", architecture=name, data=data, form=resolve.FileFormat(output="logits"))
    x = torch.rand(2, 1, 2, 2)
    plain = resolve.load(tmp_path / "w.pt", architecture=f"{file}:Net", data=data)
    assert torch.equal(known.model(x), plain.model(x))
    with pytest.raises(InputError, match="with no tensor 'scores': choose another output"):
        resolve.load(tmp_path / "w.pt", architecture=name, data=data, form=resolve.FileFormat(output="scores"))


# Checkpoints


def test_a_checkpoint_opens_again_with_its_class_and_keeps_its_options(file: Path, tmp_path: Path) -> None:
    model, path = build(spec(file, width=5)).eval(), tmp_path / "own.pt"
    checkpoint.save(checkpoint.Checkpoint(model), path)
    stored = torch.load(path, weights_only=True)["architecture"]
    assert stored["name"] == "net.py:Net" and stored["options"] == {"width": 5}
    known = resolve.load(path, architecture=f"{file}:Net")
    x = torch.rand(3, 1, 2, 2)
    assert torch.equal(known.model(x), model(x)) and known.sha256 == checkpoint.Checkpoint(model).sha256
    assert checkpoint.class_of(path) == "net.py:Net" and not resolve.describes_itself(str(path))


def test_a_checkpoint_never_runs_the_code_that_it_names(file: Path, tmp_path: Path) -> None:
    """Not even with the right path, and not with another architecture."""
    path = tmp_path / "own.pt"
    checkpoint.save(checkpoint.Checkpoint(build(spec(file))), path)
    content = torch.load(path, weights_only=True)
    evil = tmp_path / "evil.py"
    evil.write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n{CODE}")
    content["architecture"]["name"] = f"{evil}:Net"
    torch.save(content, path)
    with pytest.raises(InputError, match=r"was trained from a class of its user, .* --arch evil\.py:Net"):
        resolve.load(path)
    with pytest.raises(InputError, match=r"trained from a class|describes its own network"):
        checkpoint.load(path, architecture=ModelSpec(name="certkd:mlp", classes=3, shape=(1, 2, 2)))
    resolve.load(path, architecture=f"{file}:Net")
    assert not (tmp_path / "ran").exists()


def test_a_network_of_ours_takes_no_class(file: Path, tmp_path: Path, data: DataSet) -> None:
    path = tmp_path / "ours.pt"
    checkpoint.save(checkpoint.Checkpoint(build(ModelSpec(name="certkd:mlp", classes=3, shape=(1, 2, 2)))), path)
    with pytest.raises(InputError, match="describes its own network: drop --arch"):
        resolve.load(path, architecture=f"{file}:Net", data=data)
    assert resolve.describes_itself(str(path)) and checkpoint.class_of(path) is None


# Training


def arrays(folder: Path) -> str:
    """A small data set as a file of arrays."""
    generator = np.random.default_rng(0)
    x, y = generator.random((24, 1, 2, 2), dtype=np.float32), np.arange(24) % 3
    np.savez(folder / "d.npz", x_train=x, y_train=y, x_test=x[:6], y_test=y[:6])
    return str(folder / "d.npz")


def job(tmp_path: Path, file: Path, out: str, **more: Any) -> TrainJob:
    settings = {
        "out": str(tmp_path / out),
        "data": {"name": arrays(tmp_path)},
        "model": {"name": f"{file}:Net", "options": {"width": 3}},
        "epochs": 1,
        "objective": {"kind": "standard"},
        "device": "cpu",
        **more,
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(settings))
    return read(str(tmp_path / "job.yaml"), TrainJob, [])


def test_a_teacher_and_a_student_of_a_class_are_trained_and_opened_again(file: Path, tmp_path: Path) -> None:
    run_training(job(tmp_path, file, "teacher"))
    teacher = tmp_path / "teacher" / "best.pt"
    with pytest.raises(InputError, match="add --arch"):
        run_training(job(tmp_path, file, "student", objective={"kind": "kd"}, teacher=str(teacher)))
    run_training(
        job(tmp_path, file, "student", objective={"kind": "kd"}, teacher=str(teacher), teacher_arch=f"{file}:Net")
    )
    student = resolve.load(tmp_path / "student" / "best.pt", architecture=f"{file}:Net")
    assert student.teacher_sha256 == resolve.load(teacher, architecture=f"{file}:Net").sha256
    assert student.model.network.head.weight.shape == (3, 3)


@pytest.mark.slow
def test_an_experiment_may_be_about_a_class(file: Path, tmp_path: Path) -> None:
    network = {"model": {"name": f"{file}:Net"}, "epochs": 1}
    settings = {
        "out": str(tmp_path / "all"),
        "data": {"name": arrays(tmp_path)},
        "device": "cpu",
        "teacher": {**network, "objective": {"kind": "standard"}},
        "students": {**network, "objectives": {"kd": {"kind": "kd"}}},
        "certify": {"eps": "1/255", "methods": ["crown"], "options": {"cross_check": 0}},
    }
    (tmp_path / "all.yaml").write_text(yaml.safe_dump(settings))
    found = run_experiment(read(str(tmp_path / "all.yaml"), ExperimentConfig, []))
    assert set(found.networks) == {"teacher", "kd"}
