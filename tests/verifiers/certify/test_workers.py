"""Rows that workers answer are those of one process, and none is lost with a worker."""

import os
import signal
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.certifying import certify
from tests.pools import Inline
from verifiers.certify.answers import Answers
from verifiers.certify.workers import Certification
from verifiers.core.errors import Contradiction, Unsupported
from verifiers.core.reporter import Reporter
from verifiers.core.status import Status
from verifiers.results.reader import read
from verifiers.results.rows import Certificates
from verifiers.runtime import staff


def network() -> nn.Sequential:
    """A small network with weights of its own."""
    made, generator = nn.Sequential(nn.Flatten(), nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), torch.Generator()
    with torch.no_grad():
        for weight in made.parameters():
            weight.copy_(torch.randn(weight.shape, generator=generator.manual_seed(weight.numel())))
    return made


NET = network().eval()
IMAGES = torch.rand(10, 1, 2, 3, generator=torch.Generator().manual_seed(0))
with torch.no_grad():
    LABELS = NET(IMAGES).argmax(1)
LABELS[3] = (LABELS[3] + 1) % 3


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> list[Inline]:
    """Take pools without processes, whose tasks end in the reverse order."""
    made: list[Inline] = []

    def pool(job: Certification, count: int, threads: int) -> AbstractContextManager[Inline]:
        made.append(Inline(job, count, order="last"))
        return nullcontext(made[-1])

    monkeypatch.setattr(staff, "Processes", pool)
    return made


def run(count: int, out: Path | None = None, **more: Any) -> Certificates:
    return certify(NET, IMAGES, LABELS, eps="0.05", workers=count, out=out, **{"batch_size": 3, **more})


def assert_equal(one: Certificates, other: Certificates) -> None:
    assert list(one.methods) == list(other.methods)
    for name, rows in one.methods.items():
        for column, values in rows.columns.items():
            if "seconds" not in column:
                np.testing.assert_array_equal(values, other[name][column], f"{name}: {column}")
        notes = rows.attributes, other[name].attributes
        assert notes[0] == notes[1], f"{name}: {notes}"


@pytest.mark.parametrize(
    ("methods", "options"),
    [
        (("pgd", "complete"), {}),
        pytest.param(
            ("pgd", "crown", "lipschitz", "smoothing"),
            {"sigma": 0.1, "n": 300, "cross_check": 1},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_rows_are_those_of_one_process(
    inline: list[Inline], tmp_path: Path, methods: tuple[str, ...], options: dict[str, Any]
) -> None:
    """A misclassified row, margins and counterexamples that later methods use, rows that are written one by one."""
    one, three = (run(count, tmp_path / f"{count}.h5", methods=methods, options=options, norm="l2") for count in (1, 3))
    assert len(inline) == 1, "one pool for all methods"
    assert_equal(one, three)
    assert_equal(*(read(tmp_path / f"{count}.h5") for count in (1, 3)))
    assert {Status.CERTIFIED, Status.MISCLASSIFIED} <= {Status(int(s)) for s in one[methods[1]]["status"]}


def test_a_batch_alone_starts_no_workers(inline: list[Inline]) -> None:
    run(2, methods=("ibp",), options={"cross_check": 0}, batch_size=10)
    assert not inline


class Heard(Reporter):
    """Remembers what is reported."""

    def __init__(self) -> None:
        self.rows, self.settled, self.warned, self.done = 0, list[int](), list[str](), list[int]()

    def start(self, method: str, total: int, done: int) -> None:
        self.done.append(done)

    def within(self, settled: int, text: str) -> None:
        self.settled.append(settled)

    def advance(self, rows: int) -> None:
        self.rows += rows

    def warn(self, text: str) -> None:
        self.warned.append(text)


def test_progress_is_of_all_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two workers report in turns; a batch that is written no longer counts as under way."""
    original = Answers.__call__

    def call(answers: Answers, certifier: Any, rows: Any) -> None:
        answers.reporter.within(2, "half way")
        original(answers, certifier, rows)

    monkeypatch.setattr(Answers, "__call__", call)
    monkeypatch.setattr(staff, "Processes", lambda job, count, threads: nullcontext(Inline(job, count, order="turns")))
    heard = Heard()
    run(2, methods=("pgd",), options={}, reporter=heard)
    assert heard.rows == len(IMAGES)
    assert heard.settled == [2, 4, 2, 4], f"of batches of 3: {heard.settled}"


@pytest.mark.parametrize(
    ("error", "status"), [(Unsupported("too odd"), Status.UNSUPPORTED), (Contradiction("broken"), Status.ERROR)]
)
def test_a_failure_of_the_method_is_that_of_all_rows_left(
    inline: list[Inline], monkeypatch: pytest.MonkeyPatch, error: Exception, status: Status
) -> None:
    monkeypatch.setattr(Answers, "__call__", _failing(Answers.__call__, error))
    heard = Heard()
    rows = run(1 + 1, methods=("crown",), options={"cross_check": 0}, reporter=heard)["crown"]
    assert set(rows["status"]) <= {status, Status.MISCLASSIFIED} and str(error) in rows.attributes["reason"]
    assert heard.warned == [f"crown: {status.name}: {error}"], "said once"


def _failing(original: Any, error: Exception) -> Any:
    """Fail where certifiers are called, unless they refuse by themselves."""

    def call(answers: Answers, certifier: Any, rows: Any) -> None:
        if type(certifier).__name__ != "Refusal":
            raise error
        original(answers, certifier, rows)

    return call


def test_a_sample_that_does_not_fit_is_recorded(inline: list[Inline], monkeypatch: pytest.MonkeyPatch) -> None:
    original = Answers.__call__

    def call(answers: Answers, certifier: Any, rows: Any) -> None:
        if 5 in answers.samples.indices[rows].tolist():
            raise MemoryError
        original(answers, certifier, rows)

    monkeypatch.setattr(Answers, "__call__", call)
    heard = Heard()
    rows = run(2, methods=("ibp",), reporter=heard, options={"cross_check": 0})["ibp"]
    lost = rows["status"] == Status.OUT_OF_MEMORY
    assert np.flatnonzero(lost).tolist() == [5] and heard.rows == len(IMAGES)
    assert heard.warned[-1] == "ibp: OUT_OF_MEMORY: 1 sample did not fit into memory, even alone"


class Killer(nn.Module):
    """Ends the process that runs it on a bright image, unless a variable names this very process."""

    def __init__(self) -> None:
        super().__init__()
        self.body = network()

    def forward(self, x: Tensor) -> Tensor:
        if bool((x > 0.9999).any()) and os.environ["CERTKD_SAFE"] != str(os.getpid()):
            os.kill(os.getpid(), signal.SIGKILL)
        return self.body(x)


@pytest.mark.slow
def test_real_processes_lose_nothing_and_name_the_sample_that_kills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One image kills every worker that runs it; all other rows are those of one process."""
    monkeypatch.setenv("CERTKD_SAFE", str(os.getpid()))
    killer, images, labels = Killer().eval(), IMAGES[:4].clone(), LABELS[:4].clone()
    straight = certify(killer, images, labels, eps="0.05", methods=("pgd",), batch_size=1)
    images[1, 0, 0, 0] = 1.0
    labels[1] = killer.body(images[1:2]).argmax()
    heard = Heard()
    given = {"eps": "0.05", "methods": ("pgd",), "batch_size": 1, "out": tmp_path / "killed.h5"}
    found = certify(killer, images, labels, workers=2, reporter=heard, **given)["pgd"]
    assert found["status"][1] == Status.OUT_OF_MEMORY and heard.rows == 4
    assert "sample 1 was tried alone: its process was killed by SIGKILL" in found.attributes["reason"]
    others = [0, 2, 3]
    for name in ("status", "radius", "margin", "distance"):
        np.testing.assert_allclose(found[name][others], straight["pgd"][name][others], rtol=1e-6, err_msg=name)
    again = certify(killer, images, labels, **given)["pgd"]
    assert again.answered, "the row is tried again by the next run"
