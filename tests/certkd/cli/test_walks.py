"""Three new users with their own network, pictures and properties: every step from the command line, on real data."""

import json
import os
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.cli import certkd
from verifiers.core.status import Status
from verifiers.results.reader import read

DATA = Path(os.environ.get("CERTKD_DATA", "none"))
PICTURES = DATA / "tiny-imagenet-10"
OWN = '''
import torch
from torch import nn

class Net(nn.Module):
    """A residual network as people write it."""

    def __init__(self, width=8, num_classes=10):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, stride=4)
        self.conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.head = nn.Linear(width, num_classes)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.bn(self.conv(x)))
        return self.head(x.mean((2, 3)))
'''


def run(*arguments: str | Path) -> str:
    """Run a command that must succeed, and return what it printed."""
    done = certkd(*arguments)
    assert done.code == 0, f"{' '.join(map(str, arguments))}: {done.err}"
    return done.out


def train(*arguments: str | Path) -> None:
    """Train for an epoch on a few images; a warning that the network collapsed exits with 1."""
    done = certkd("train", *arguments)
    assert done.code in (0, 1) and done.out.startswith("best epoch 1"), done.err


def answered(path: Path, *methods: str) -> None:
    """Check that every row of a certificate file has an answer that is no failure."""
    rows = read(path)
    for method in methods:
        found = {Status(value) for value in rows[method]["status"]}
        assert found <= {Status.CERTIFIED, Status.NOT_CERTIFIED, Status.MISCLASSIFIED, Status.FALSIFIED}, found


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "cifar-10-batches-py").is_dir(), reason="no CIFAR-10 below CERTKD_DATA")
def test_an_own_class_on_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a teacher and a student of an own class, certify, match, compare and verify them."""
    monkeypatch.chdir(tmp_path)
    Path("mynet.py").write_text(OWN)
    settings = {"data": {"name": "cifar10", "limit": 512}, "epochs": 1, "batch_size": 64}
    teacher = {**settings, "out": "teacher", "model": {"name": "mynet.py:Net"}, "objective": {"kind": "standard"}}
    student = {
        **settings,
        "out": "student",
        "model": {"name": "mynet.py:Net", "options": {"width": 6}},
        "teacher": "teacher/best.pt",
        "objective": {"kind": "kdiga"},
    }
    Path("teacher.yaml").write_text(json.dumps(teacher))
    Path("student.yaml").write_text(json.dumps(student))
    train("teacher.yaml")
    train("student.yaml", "--teacher-arch", "mynet.py:Net")
    own = ("--arch", "mynet.py:Net,width=6")
    pair = ("--teacher", "teacher/best.pt", "--teacher-arch", "mynet.py:Net", "--limit", "4")
    printed = run(
        "certify", "student/best.pt", *own, *pair, "--eps", "1/1024", "--methods", "pgd,crown", "--out", "s.h5",
        "--teacher-out", "t.h5",
    )  # fmt: skip
    assert "crown" in printed and "4 samples" in printed
    answered(Path("s.h5"), "pgd", "crown")
    printed = run("match", "--student", "student/best.pt", *own, *pair, "--eps", "1/1024", "--out", "m.h5")
    assert "of 4 samples" in printed or "all 4 samples" in printed
    assert "crown" in run("compare", "t.h5", "s.h5")
    run("verify", "s.h5", "--model", "student/best.pt", *own)


@pytest.mark.slow
@pytest.mark.skipif(not PICTURES.is_dir(), reason="no tiny-imagenet-10 below CERTKD_DATA")
def test_a_timm_model_on_folders_of_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train a timm model on folders, and certify it by an attack, intervals and smoothing."""
    monkeypatch.chdir(tmp_path)
    settings = {
        "out": "timm",
        "data": {"name": str(PICTURES), "limit": 64, "image_size": [32, 32]},
        "model": {"name": "timm:test_resnet"},
        "objective": {"kind": "standard"},
        "epochs": 1,
        "batch_size": 16,
    }
    Path("timm.yaml").write_text(json.dumps(settings))
    train("timm.yaml")
    given = ("--data", PICTURES, "--limit", "3", "--batch-size", "3")
    run("certify", "timm/best.pt", *given, "--eps", "1/1024", "--methods", "pgd,ibp", "--out", "linf.h5")
    answered(Path("linf.h5"), "pgd", "ibp")
    smoothing = ("--methods", "smoothing", "--sigma", "0.25", "--n", "40", "--n0", "10")
    run("certify", "timm/best.pt", *given, "--eps", "0.1", "--norm", "l2", *smoothing, "--out", "l2.h5")
    found = {Status(value) for value in read(Path("l2.h5"))["smoothing"]["status"]}
    assert found <= {Status.CERTIFIED, Status.ABSTAINED, Status.MISCLASSIFIED, Status.NOT_CERTIFIED}


@pytest.mark.slow
def test_an_onnx_file_with_a_list_of_properties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Export properties of an ONNX file that ends in softmax, solve them, and certify the same instances."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10), nn.Softmax(1)).eval()
    named = {"input_names": ["input"], "dynamic_axes": {"input": {0: "n"}}}
    torch.onnx.export(network, (torch.zeros(1, 1, 8, 8),), "soft.onnx", dynamo=False, **named)
    digits = ("soft.onnx", "--data", "digits")
    run("certify", *digits, "--eps", "0.02", "--limit", "40", "--methods", "pgd", "--out", "a.h5")
    rows = read(Path("a.h5"))["pgd"]
    right = [str(place) for place, correct in enumerate(rows["correct"]) if correct][:4]
    assert right, "no sample is classified correctly"
    chosen = ("--indices", ",".join(right))
    run("export", *digits, "--eps", "0.02", *chosen, "--vnnlib", "2.0", "--out", "properties")
    run("solve", "properties/instances.csv", "--out", "solved")
    run("certify", *digits, "--instances", "properties/instances.csv", "--complete", "--out", "complete.h5")
    (results,) = Path("solved").glob("*.csv")
    verdicts = read(Path("complete.h5"))["complete"]["status"]
    expected = {Status.CERTIFIED: "unsat", Status.FALSIFIED: "sat"}
    told = re.findall(r"\b(unsat|sat)\b", results.read_text())
    assert sorted(told) == sorted(expected[Status(value)] for value in verdicts)
