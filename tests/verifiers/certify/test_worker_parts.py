"""The parts of a shared certification: tasks, what workers send, threads, pairs of networks, and the audit."""

import pickle
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.certifying import certify
from tests.pools import Inline
from tests.verifiers.certify.test_workers import IMAGES, LABELS, NET, Heard, assert_equal, network
from verifiers.certify.config import CertifyConfig
from verifiers.certify.verify import VerifyConfig, verify
from verifiers.certify.workers import Crew, Ended, Failed, Shares, Task, Within, Wrote, _Sender
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon
from verifiers.core.question import Question
from verifiers.core.status import Status
from verifiers.graph.program import Program
from verifiers.methods.pgd import Pgd
from verifiers.runtime import staff
from verifiers.runtime.pool import End
from verifiers.runtime.samples import Data
from verifiers.runtime.staff import Staff

Began = list[tuple[int, int]]


@pytest.fixture
def began(monkeypatch: pytest.MonkeyPatch) -> Began:
    """Take pools without processes; return the workers and threads of each."""
    made: Began = []

    def pool(job: Any, count: int, threads: int) -> AbstractContextManager[Inline]:
        made.append((count, threads))
        return nullcontext(Inline(job, count, order="last"))

    monkeypatch.setattr(staff, "Processes", pool)
    return made


@pytest.fixture
def threads() -> Callable[[int], None]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def crew_of(count: int) -> Crew:
    program = Program(NET)
    program.hold(IMAGES[:2])
    return Crew.of(Question(Epsilon.parse("0.1")), program, (Pgd(),), IMAGES[:2], Staff(count))


@pytest.mark.parametrize(("set_to", "count", "each"), [(1, 4, 1), (2, 2, 1), (4, 2, 2), (2, 8, 1)])
def test_threads_are_divided(began: Began, threads: Callable[[int], None], set_to: int, count: int, each: int) -> None:
    threads(set_to)
    with crew_of(count) as crew:
        assert not began, "workers begin before they are needed"
        pool = crew.begin()
        assert crew.begin() is pool and began == [(count, each)]


def task(rows: int = 3) -> Task:
    numbers = np.arange(rows)
    return Task(
        kind="pgd",
        images=IMAGES[:rows].numpy(),
        labels=numbers,
        predicted=numbers[::-1].copy(),
        finite=np.ones(rows, bool),
        indices=10 * numbers,
        margin=np.full(rows, np.nan),
        classes=3,
        known=[IMAGES[:rows].numpy()],
        distance=np.array([np.nan, 0.5, np.nan])[:rows],
        largest=0.75,
        size=2,
    )


def test_a_task_is_its_samples_after_the_way() -> None:
    samples = pickle.loads(pickle.dumps(task())).samples()
    assert torch.equal(samples.images, IMAGES[:3]) and samples.indices.tolist() == [0, 10, 20]
    assert samples.labels.tolist() == [0, 1, 2] and samples.predicted.tolist() == [2, 1, 0]
    assert samples.correct.tolist() == [False, True, False] and samples.classes == 3


def test_a_worker_knows_of_the_file_what_its_rows_need() -> None:
    sent: list[Any] = []
    store = _Sender(task(), sent.append)
    rows = np.array([1, 2])
    np.testing.assert_array_equal(store.attack_distance(rows), [0.5, np.nan])
    np.testing.assert_array_equal(store.counterexamples(rows)[0], IMAGES[1:3].numpy())
    assert store.largest_radius("pgd") == 0.75
    store.write("pgd", rows, {"status": np.array([2, 3])})
    assert isinstance(sent[0], Wrote) and sent[0].rows is rows
    for part in (Within(3, "half"), Failed(Status.ERROR, "why", final=True), Ended(np.zeros(2), {"engine": "native"})):
        assert repr(pickle.loads(pickle.dumps(part))) == repr(part)


class Stub:
    """Stands for answers and file, and remembers what is written."""

    def __init__(self) -> None:
        self.reporter, self.kind, self.rows = Heard(), "crown", list[tuple[int, Status]]()
        self.samples = task().samples()

    def write(self, rows: np.ndarray, columns: dict[str, np.ndarray]) -> None:
        assert columns["radius"].tolist() == [0.0] and columns["seconds"].tolist() == [0.0]
        self.rows.append((int(rows[0]), Status(int(columns["status"][0]))))


def test_rows_that_are_given_up_say_why() -> None:
    stub = Stub()
    shares = Shares.__new__(Shares)
    shares.answers, shares._lost = stub, []  # type: ignore[assignment]
    shares.give_up(0, End(0, "no memory", memory=True))
    shares.give_up(1, End(1, "its process was killed by SIGKILL", memory=True, died=True))
    shares.give_up(2, End(2, "its process was killed by SIGSEGV", died=True))
    assert stub.rows == [(0, Status.OUT_OF_MEMORY), (1, Status.OUT_OF_MEMORY), (2, Status.ERROR)]
    assert list(shares.failures()) == [
        (Status.OUT_OF_MEMORY, "1 sample did not fit into memory, even alone"),
        (Status.OUT_OF_MEMORY, "sample 10 was tried alone: its process was killed by SIGKILL"),
        (Status.ERROR, "sample 20 was tried alone: its process was killed by SIGSEGV"),
    ]


@pytest.mark.slow
def test_pairs_of_networks_are_shared_too(began: Began) -> None:
    """Both networks are sent; a relation and a joint bound are those of one process."""
    teacher = network().eval()
    with torch.no_grad():
        for weight in teacher.parameters():
            weight.mul_(1.01)
    given = {"eps": "0.02", "methods": ("joint", "match"), "teacher": teacher, "batch_size": 4}
    one, two = (certify(NET, IMAGES, LABELS, workers=count, **given) for count in (1, 2))
    assert [count for count, _ in began] == [2]
    assert_equal(one, two)


@pytest.mark.slow
def test_an_audit_may_be_shared(began: Began, tmp_path: Path) -> None:
    place = tmp_path / "a.h5"
    certify(NET, IMAGES, LABELS, eps="0.02", methods=("pgd",), batch_size=3, out=place)
    audit = verify(NET, str(place), Data(IMAGES, LABELS), VerifyConfig(sample=10, seed=0, workers=2))
    assert audit.holds and began == [], "one batch of the method's own size needs no workers"


def test_the_number_of_workers_is_no_part_of_the_question(began: Began, tmp_path: Path) -> None:
    """A run may be resumed with more workers, and a finished file answers any number."""
    given = {"eps": "0.02", "methods": ("pgd",), "batch_size": 2, "out": tmp_path / "a.h5"}
    first = certify(NET, IMAGES, LABELS, workers=2, **given)
    again = certify(NET, IMAGES, LABELS, workers=5, **given)
    assert len(began) == 1, "nothing is left to do"
    assert_equal(first, again)


@pytest.mark.parametrize("wrong", [0, -1, "many", 1.5])
def test_the_number_of_workers_is_checked(wrong: Any) -> None:
    with pytest.raises(InputError, match="workers"):
        CertifyConfig.parse({"eps": "0.1", "workers": wrong})
