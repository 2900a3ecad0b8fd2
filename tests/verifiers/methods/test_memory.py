"""Every method when memory runs out: batches are split, and a row that does not fit even alone says so."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from tests.certifying import certify
from tests.marks import thin
from verifiers.certify import batches
from verifiers.core.reporter import Reporter
from verifiers.core.status import About, Status
from verifiers.methods.registry import METHODS, settings_of
from verifiers.results.rows import MethodRows
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
COUNT, BIG = 8, 5
CASES = [(kind, list(ERRORS)[place % len(ERRORS)]) for place, kind in enumerate(KINDS)]
CASES += [(kind, error) for kind in KINDS for error in ERRORS if (kind, error) not in CASES]


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
    """Certify eight images by one method; the first is misclassified."""
    model, x = network(), torch.rand(COUNT, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(1)
    y[0] = (y[0] + 1) % 3
    more |= {"teacher": network(1)} if KINDS[kind].about is About.PAIR else {}
    more |= {"norm": "l2"} if kind == "smoothing" else {}
    options = {name: value for name, value in SMALL.items() if name in settings_of(KINDS[kind])}
    return certify(model, x, y, eps="0.01", methods=[kind], options=options, **more)[kind]


@pytest.fixture
def memory(request: pytest.FixtureRequest) -> Iterator[Memory]:
    with Memory(getattr(request, "param", "cpu")) as mode:
        yield mode


def limit_batches(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No batch with one of the samples fits, nor does that sample alone."""
    original = batches.Asked.batch

    def batch(self: Any, rows: np.ndarray) -> Any:
        made = original(self, rows)
        memory.limit = 0 if BIG in made.indices.tolist() else float("inf")
        return made

    monkeypatch.setattr(batches.Asked, "batch", batch)


@pytest.mark.parametrize(("kind", "memory"), thin(CASES, 4), indirect=["memory"])
def test_a_sample_that_does_not_fit_says_so_and_the_others_are_answered(
    kind: str, memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(kind)
    limit_batches(memory, monkeypatch)
    rows = run(kind)
    assert memory.failures >= 2, "the batch was not split"
    assert np.flatnonzero(rows["status"] == Status.OUT_OF_MEMORY).tolist() == [BIG]
    assert rows["radius"][BIG] == 0 and rows["certified"][BIG] == 0
    assert rows.attributes["reason"] == "1 sample did not fit into memory, even alone"
    others = np.arange(COUNT) != BIG
    assert (rows["status"][others] == whole["status"][others]).all(), "other rows suffer"
    assert not np.isin(whole["status"], [Status.ERROR, Status.UNSUPPORTED, Status.OUT_OF_MEMORY]).any()


@pytest.mark.parametrize(("kind", "memory"), thin(CASES, 4), indirect=["memory"])
def test_a_method_that_cannot_be_prepared_says_so(kind: str, memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    original = batches.first_images

    def first(*given: Any) -> Tensor:
        images = original(*given)
        memory.limit = 0
        return images

    monkeypatch.setattr(batches, "first_images", first)
    rows = run(kind)
    expected = np.full(COUNT, Status.OUT_OF_MEMORY.value)
    if kind != "smoothing":
        expected[0] = Status.MISCLASSIFIED
    assert rows["status"].tolist() == expected.tolist(), [Status(int(status)).name for status in rows["status"]]
    assert "fit" in rows.attributes["reason"] or "memory" in rows.attributes["reason"], rows.attributes["reason"]


def test_an_engine_without_memory_is_no_engine_without_support(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("auto_LiRPA")
    original = batches.first_images
    monkeypatch.setattr(batches, "first_images", lambda *given: (original(*given), setattr(memory, "limit", 0))[0])
    rows = run("crown", engine="auto-lirpa")
    assert rows.count(Status.OUT_OF_MEMORY) == COUNT - 1 and "auto-lirpa" in rows.attributes["reason"]


@pytest.mark.parametrize("fitting", [0, 1])
def test_claims_are_attacked_in_parts_and_none_stands_without_attack(
    fitting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = batches.refuted

    def tight(program: Any, question: Any, x: Tensor, *rest: Any) -> Tensor:
        if len(x) > fitting:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return original(program, question, x, *rest)

    monkeypatch.setattr(batches, "refuted", tight)
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
