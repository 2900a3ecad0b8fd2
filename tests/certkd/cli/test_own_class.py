"""An own class and its weights through the command line: trained, certified, audited, exported, and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from tests.cli import certkd, refused, succeeds

CODE = '''
import torch
from torch import nn


class Net(nn.Module):
    """Ends in softmax, as many people's networks do."""

    def __init__(self, num_classes, width=6):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, width), nn.ReLU(), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.body(x).softmax(1)


class Both(Net):
    def forward(self, x):
        return {"logits": self.body(x), "features": x}


class Odd(Net):
    def forward(self, x):
        return torch.special.i0(self.body(x))
'''


class Net(nn.Module):
    """The same network here."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's file, weights in several wrappings, and a small data set that the network is right about."""
    place = tmp_path_factory.mktemp("own")
    (place / "net.py").write_text(CODE)
    torch.manual_seed(0)
    network, x = Net(), torch.rand(24, 1, 2, 2)
    with torch.no_grad():
        network.body[3].bias -= network.body(x).mean(0)  # images of every class
    state = network.state_dict()
    other = {name: -value for name, value in state.items()}
    torch.save({"net": {f"module.{name}": value for name, value in state.items()}, "acc": 1.0}, place / "weights.pt")
    torch.save({"state_dict": other, "state_dict_ema": state}, place / "several.pt")
    y = network.body(x).argmax(1).numpy()
    np.savez(place / "d.npz", x_train=x.numpy(), y_train=y, x_test=x[:6].numpy(), y_test=y[:6])
    return place


def arguments(folder: Path, name: str = "Net", weights: str = "weights.pt") -> list[str]:
    return ["--model", f"{folder}/{weights}", "--arch", f"{folder}/net.py:{name}", "--data", f"{folder}/d.npz"]


QUESTION = ["--eps", "1/255", "--methods", "pgd,crown", "--cross-check", "0", "--device", "cpu"]


@pytest.mark.slow
def test_bare_weights_of_a_class_are_certified_and_audited(folder: Path) -> None:
    out = folder / "x.h5"
    result = certkd("certify", *arguments(folder), *QUESTION, "--out", out)
    assert result.code == 0, result.err
    assert "certified" in result.out and "the network ends in softmax" in result.err.replace("\n", " ")
    audit = certkd("verify", out, *arguments(folder)[:4], "--sample", "1", "--seed", "0", "--device", "cpu")
    assert audit.code == 0, audit.err + audit.out


@pytest.mark.slow
def test_weights_are_chosen_among_several(folder: Path) -> None:
    given = arguments(folder, weights="several.pt")
    taken = certkd("certify", *given, *QUESTION, "--limit", "2", "--out", folder / "a.h5")
    assert taken.code == 0 and "the weights under 'state_dict' are taken" in taken.err
    assert "state_dict_ema" in taken.err
    chosen = certkd(
        "certify", *given, "--weights-key", "state_dict_ema", *QUESTION, "--limit", "2", "--out", folder / "b.h5"
    )
    assert chosen.code == 0 and "are taken" not in chosen.err


@pytest.mark.slow
def test_one_output_of_a_class_is_certified(folder: Path) -> None:
    given = arguments(folder, "Both")
    said = refused("certify", *given, *QUESTION, "--out", folder / "c.h5")
    assert "it gives a dict (logits, features)" in said
    succeeds("certify", *given, "--output", "logits", *QUESTION, "--limit", "2", "--out", folder / "c.h5")


def test_a_layer_without_bounds_is_named_with_its_line(folder: Path) -> None:
    result = certkd("certify", *arguments(folder, "Odd"), *QUESTION, "--limit", "2", "--out", folder / "d.h5")
    said = result.err.replace("\n", " ")
    assert "'special_i0'" in said and "net.py:24: return torch.special.i0(self.body(x))" in said, said


def test_a_class_is_inspected(folder: Path) -> None:
    out = succeeds("inspect", f"{folder}/net.py:Net", "--shape", "1,2,2", "--classes", "3")
    assert "native" in out


@pytest.mark.slow
def test_a_student_of_a_class_is_trained_from_the_command_line(folder: Path) -> None:
    settings = {
        "out": str(folder / "student"),
        "data": {"name": f"{folder}/d.npz"},
        "model": {"name": f"{folder}/net.py:Both", "options": {"width": 4}},
        "objective": {"kind": "standard"},
        "epochs": 1,
    }
    (folder / "c.yaml").write_text(yaml.safe_dump(settings))
    assert "it gives a dict" in refused("train", "--config", folder / "c.yaml", "--device", "cpu")
    net = ["--set", f"model.name={folder}/net.py:Net"]
    certkd("train", "--config", folder / "c.yaml", *net, "--device", "cpu")
    best = folder / "student" / "best.pt"
    assert best.exists()
    said = refused("certify", "--model", best, *QUESTION)
    assert "trained from a class of its user, 'net.py:Net'" in said and "--arch net.py:Net" in said
    pair = ["--teacher", f"{folder}/weights.pt", "--teacher-arch", f"{folder}/net.py:Net", "--data", f"{folder}/d.npz"]
    given = ["--model", best, "--arch", f"{folder}/net.py:Net", *pair, "--methods", "pgd,crown", *QUESTION[:2]]
    outs = ["--out", folder / "s.h5", "--teacher-out", folder / "t.h5", "--limit", "2", "--cross-check", "0"]
    assert "teacher" in succeeds("certify", *given, *outs, "--device", "cpu")
    assert "native" in succeeds("inspect", best, "--arch", f"{folder}/net.py:Net")


MISTAKES: dict[str, tuple[list[str], str]] = {
    "no such file": (["--arch", "absent.py:Net"], "no such file: "),
    "no such class": (["--arch", "{folder}/net.py:Nett"], "has no 'Nett'. Did you mean 'Net'?"),
    "an option without a value": (["--arch", "{folder}/net.py:Net,width"], "must look like key=value"),
    "an unknown option": (["--arch", "{folder}/net.py:Net,depth=3"], "has no option 'depth'"),
    "another width": (["--arch", "{folder}/net.py:Net,width=7"], "has shape (6, 4) instead of (7, 4)"),
    "no such key": (["--arch", "{folder}/net.py:Net", "--weights-key", "ema"], "no weights under 'ema'. It has net"),
    "no architecture": ([], "holds bare weights"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line(name: str, folder: Path) -> None:
    more, said = MISTAKES[name]
    given = [part.replace("{folder}", str(folder)) for part in more]
    start = ["certify", "--model", f"{folder}/weights.pt", "--data", f"{folder}/d.npz", "--eps", "1/255"]
    assert said in refused(*start, *given)


def test_help_says_that_the_code_is_run() -> None:
    out = " ".join(succeeds("certify", "--help").split())
    assert "file.py:Class,width=8, which is run" in out and "--weights-key" in out and "--teacher-arch" in out
