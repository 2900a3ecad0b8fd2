"""Every method when memory runs out: batches are split, and a row that does not fit even alone says so."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.certifying import certify
from tests.marks import thin
from verifiers.certify import answers, batches
from verifiers.core.quantities import Norm
from verifiers.core.reporter import Reporter
from verifiers.core.status import About, Status
from verifiers.methods.registry import METHODS, settings_of
from verifiers.results.rows import MethodRows
from verifiers.runtime.certifier import Answer, Batch, Certifier
from verifiers.runtime.dispatch import DispatchMode
from verifiers.runtime.samples import Data, validate

KINDS = {str(method.model_fields["kind"].default): method for method in METHODS}
ERRORS = {
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
    "python": lambda: MemoryError(),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
}
SMALL = {"steps": 2, "restarts": 1, "iterations": 2, "shells": 2, "constants": "fast", "sigma": 0.2, "n": 20, "n0": 5}
SMALL |= {"tolerance": 0.2, "cross_check": 0}
COUNT, BIG = 4, 2
#: Every method with one of the errors.
CASES = [(kind, list(ERRORS)[place % len(ERRORS)]) for place, kind in enumerate(KINDS)]


class Memory(DispatchMode):
    """Tensors of more entries than the limit do not fit."""

    def __init__(self, error: str) -> None:
        super().__init__()
        self.limit, self.error, self.failures = float("inf"), error, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(leaf.numel() > self.limit for leaf in tree_leaves(result) if isinstance(leaf, Tensor)):
            self.failures += 1
            raise ERRORS[self.error]()
        return result


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).eval()


def run(kind: str, **more: Any) -> MethodRows:
    """Certify four images by one method; the first is misclassified."""
    model, x = network(), torch.rand(COUNT, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    more |= {"teacher": network(1)} if KINDS[kind].about is About.PAIR else {}
    more |= {"norm": "l2"} if kind == "smoothing" or Norm.LINF not in KINDS[kind].norms else {}
    known = set(settings_of(KINDS[kind])) - ({"tolerance"} if KINDS[kind].relational else set())
    options = {name: value for name, value in SMALL.items() if name in known}
    return certify(model, x, y, eps="0.01", methods=[kind], options=options, **more)[kind]


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    with Memory(getattr(request, "param", "cpu")) as mode:
        yield mode


@dataclass
class Limited:
    """A certifier without memory for a batch with one of the samples, nor for that sample alone."""

    inner: Certifier
    memory: Memory

    @property
    def batch_size(self) -> int:
        return self.inner.batch_size

    @property
    def notes(self) -> Any:
        return self.inner.notes

    def __call__(self, batch: Batch) -> Iterator[Answer]:
        self.memory.limit = 0 if BIG in batch.indices.tolist() else float("inf")
        try:
            yield from self.inner(batch)
        finally:
            self.memory.limit = float("inf")


@pytest.mark.parametrize(("kind", "memory"), thin(CASES, 4), indirect=["memory"])
def test_a_sample_that_does_not_fit_says_so_and_the_others_are_answered(
    kind: str, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = batches.Run._prepared
    monkeypatch.setattr(batches.Run, "_prepared", lambda run: Limited(prepared(run), memory))
    rows = run(kind)
    assert memory.failures >= 2, "the batch was not split"
    assert np.flatnonzero(rows["status"] == Status.OUT_OF_MEMORY).tolist() == [BIG]
    assert rows["radius"][BIG] == 0 and rows["certified"][BIG] == 0
    assert rows.attributes["reason"] == "1 sample did not fit into memory, even alone"
    others = np.delete(rows["status"], BIG)
    assert not np.isin(others, [Status.ERROR, Status.UNSUPPORTED, Status.OUT_OF_MEMORY]).any(), "other rows suffer"


def without_memory(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave no memory while a method is prepared."""
    first, prepared = batches.first_images, batches.Run._prepared

    def images(*given: Any) -> Tensor:
        found = first(*given)
        memory.limit = 0
        return found

    def prepare(run: batches.Run) -> Any:
        try:
            return prepared(run)
        finally:
            memory.limit = float("inf")

    monkeypatch.setattr(batches, "first_images", images)
    monkeypatch.setattr(batches.Run, "_prepared", prepare)


@pytest.mark.parametrize(("kind", "memory"), thin([case for case in CASES if case[0] != "pgd"], 4), indirect=["memory"])
def test_a_method_that_cannot_be_prepared_says_so(kind: str, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    without_memory(memory, monkeypatch)
    rows = run(kind)
    failed = rows["status"] == Status.OUT_OF_MEMORY
    assert failed[1:].all(), [Status(int(status)).name for status in rows["status"]]
    assert failed[0] or rows["status"][0] == Status.MISCLASSIFIED
    assert "memory" in rows.attributes["reason"], rows.attributes["reason"]


def test_an_engine_without_memory_is_no_engine_without_support(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("auto_LiRPA")
    without_memory(memory, monkeypatch)
    rows = run("crown", engine="auto-lirpa")
    assert rows.count(Status.OUT_OF_MEMORY) == COUNT - 1 and "auto-lirpa" in rows.attributes["reason"]


@pytest.mark.parametrize("fitting", [0, 1])
def test_claims_are_attacked_in_parts_and_none_stands_without_attack(
    fitting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = answers.refuted

    def tight(program: Any, question: Any, x: Tensor, *rest: Any) -> Tensor:
        if len(x) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(program, question, x, *rest)

    monkeypatch.setattr(answers, "refuted", tight)
    rows = run("crown")
    assert rows.count(Status.CERTIFIED if fitting else Status.OUT_OF_MEMORY) == COUNT - 1
    assert fitting or (rows["radius"] == 0).all(), "a radius that was not attacked stands"


class Tight(nn.Module):
    """Takes few images at a time, and none of another size than one at all if ``most`` is 1."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.inner, self.most = network(), most

    def forward(self, x: Tensor) -> Tensor:
        if len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.inner(x)


@pytest.mark.parametrize("most", [1, 3])
def test_predictions_are_made_in_parts(most: int) -> None:
    x = torch.rand(10, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = network()(x).argmax(1)
    assert torch.equal(validate(Tight(most), Data(x, y), Reporter()).predicted, y)
    with pytest.raises(torch.OutOfMemoryError):
        validate(Tight(0), Data(x, y), Reporter())
