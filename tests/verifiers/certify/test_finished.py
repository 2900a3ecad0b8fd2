"""A finished file answers what it includes, method by method and sample by sample, and nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import InputError
from verifiers.core.reporter import Reporter
from verifiers.results.rows import Certificates
from verifiers.runtime.samples import Data

LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


class Listener(Reporter):
    """Keep the methods that ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.said: list[str] = []

    def start(self, method: str, total: int, done: int) -> None:
        self.ran.append(method)

    def inform(self, text: str) -> None:
        self.said.append(text)


@dataclass
class Subject:
    """A network, its images, and a finished file about all of them."""

    network: nn.Module
    images: Tensor
    path: Path

    def lookup(self, indices: Tensor) -> tuple[Tensor, Tensor] | None:
        return (self.images[indices], LABELS[indices]) if int(indices.max()) < len(LABELS) else None

    def ask(self, rows: list[int], **changes: Any) -> tuple[Certificates, Listener]:
        given = {"eps": "0.02", "methods": ("ibp", "crown"), "options": {"cross_check": 0}, **changes}
        listener, chosen = Listener(), torch.tensor(rows)
        about = given.pop("about", {"split": "test"})
        data = Data(self.images[chosen], LABELS[chosen], chosen, about, given.pop("others", self.lookup))
        network = given.pop("network", self.network)
        return certify(network, data, CertifyConfig(**given), out=self.path, reporter=listener), listener


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    torch.manual_seed(3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()
    found = Subject(network, torch.rand(6, 1, 2, 2), tmp_path_factory.mktemp("finished") / "c.h5")
    found.ask([0, 1, 2, 3, 4, 5])
    before = found.path.read_bytes()
    yield found
    assert found.path.read_bytes() == before, "a finished file was touched"


QUESTIONS: list[tuple[list[int], tuple[str, ...]]] = [
    ([0, 1, 2, 3, 4, 5], ("crown",)),
    ([0, 1, 2], ("ibp", "crown")),
    ([4, 2], ("crown",)),
    ([5], ("ibp",)),
]


@pytest.mark.parametrize(("rows", "methods"), QUESTIONS)
def test_no_method_runs_for_what_the_file_has(rows: list[int], methods: tuple[str, ...], subject: Subject) -> None:
    found, listener = subject.ask(rows, methods=methods)
    assert not listener.ran
    fresh, _ = Subject(subject.network, subject.images, subject.path.with_name("fresh.h5")).ask(rows, methods=methods)
    subject.path.with_name("fresh.h5").unlink()
    assert list(found.methods) == list(fresh.methods) and found.attributes["identity"] == fresh.attributes["identity"]
    for method in methods:
        for name, values in fresh[method].columns.items():
            if name == "seconds":
                continue
            close = np.allclose(found[method][name], values, rtol=1e-3, equal_nan=True)
            assert close, f"{method} {name}: {found[method][name]} is not {values}"


def test_exactly_the_same_question_is_resumed_as_before(subject: Subject) -> None:
    found, listener = subject.ask([0, 1, 2, 3, 4, 5])
    assert listener.ran == ["ibp", "crown"] and not listener.said, "with nothing left to do"
    assert found["crown"].answered


def other() -> nn.Module:
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).eval()


REFUSED: dict[str, dict[str, Any]] = {
    "another eps": {"eps": "0.03"},
    "another seed": {"seed": 1},
    "another norm": {"norm": "l2"},
    "another setting": {"options": {"cross_check": 0, "tolerance": 0.5}},
    "another arithmetic": {"arithmetic": "real"},
    "a method more": {"methods": ("ibp", "crown-ibp")},
    "another split": {"about": {"split": "train"}},
    "another network": {"network": other()},
    "samples that nobody can look up": {"others": None},
    "other images in the split": {"others": lambda indices: (torch.zeros(len(indices), 1, 2, 2), LABELS[indices])},
    "samples that are gone": {"others": lambda indices: None},
}


@pytest.mark.parametrize("what", REFUSED)
def test_another_question_is_not_answered(what: str, subject: Subject) -> None:
    with pytest.raises(InputError, match="choose another output file"):
        subject.ask([0, 1], **REFUSED[what])


def test_a_file_with_a_row_left_or_changed_does_not_answer(subject: Subject) -> None:
    content = subject.path.read_bytes()
    for change in ({"status": 0}, {"label": 2}, {"radius": 0.9, "certified": 0}):
        copy = Subject(subject.network, subject.images, subject.path.with_name("copy.h5"))
        copy.path.write_bytes(content)
        with h5py.File(copy.path, "r+") as file:
            for name, value in change.items():
                file["crown"][name][0] = value
        with pytest.raises(InputError, match="choose another output file"):
            copy.ask([0, 1])
        copy.path.unlink()
