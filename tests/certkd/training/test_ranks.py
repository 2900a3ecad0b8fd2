"""A training that several processes share is that of one which goes through the same parts."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, nn

from certkd.objectives import Kdiga, Mtard, Standard
from certkd.training.ranks import Ranks
from certkd.training.step import ALONE, backward
from tests.certkd.objectives.objective_cases import ROWS
from tests.certkd.training.test_optimisation import batch_of
from tests.certkd.training.test_training import CLASSES, FAST, Recipe, busy, fit, plain, samples, seeded, state_of
from tests.training import train
from verifiers.core.errors import InputError

#: Objectives whose batches can be parted, one row for each kind.
PARTED = {
    row.objective.kind: row.objective  # type: ignore[attr-defined]
    for row in ROWS
    if not row.objective.remembers and getattr(row.objective, "reduction", "") != "batch_frobenius"
}
FIVE_STEPS = Recipe(epochs=1, batch_size=24, optimizer=FAST)


def test_without_torchrun_there_is_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert Ranks.of_environment() == ALONE and ALONE.first
    with ALONE.joined(torch.device("cpu")):
        ALONE.wait()
        assert not distributed.is_initialized()


def test_torchrun_tells_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    ranks = Ranks.of_environment()
    assert ranks == Ranks(5, 8) and not ranks.first
    assert ranks.place(torch.device("cuda")) == torch.device("cuda", 1), "each has a GPU of its own"
    assert ranks.place(torch.device("cuda", 3)) == torch.device("cuda", 3)
    assert ranks.place(torch.device("cpu")) == torch.device("cpu") and ALONE.place(torch.device("cuda")).index is None
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(InputError, match="process 2 of this machine has no GPU of its own: start at most 2 here"):
        ranks.place(torch.device("cuda"))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_part_has_one_process(count: int) -> None:
    parts = [(name, 0.25) for name in "abcd"]
    shared = [Ranks(rank, count).share(parts) for rank in range(count)]
    assert sorted(name for each in shared for name, share in each if share) == list("abcd")
    assert all(shared), "a process without a part would not take part in the sums"
    assert sum(share for each in shared for _, share in each) == 1


@pytest.fixture
def sums(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """Let sums over all processes be twice what one has; return what was added."""
    seen: list[Tensor] = []

    def add(flat: Tensor) -> None:
        seen.append(flat.clone())
        flat.mul_(2)

    monkeypatch.setattr(distributed, "all_reduce", add)
    return seen


def test_tensors_are_added_in_one_message(sums: Sequence[Tensor]) -> None:
    tensors = [torch.ones(2, 3), torch.tensor(2.0), torch.arange(4.0)]
    Ranks(0, 2).add(iter(tensors))
    assert len(sums) == 1 and torch.equal(tensors[0], torch.full((2, 3), 2.0))
    assert float(tensors[1]) == 4 and tensors[2].tolist() == [0, 2, 4, 6]
    ALONE.add(tensors)
    Ranks(0, 2).add([])
    assert len(sums) == 1


def test_processes_that_begin_differently_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A student without a seed, or a folder that only some see."""
    monkeypatch.setattr(distributed, "all_reduce", lambda numbers, operation: None)
    Ranks(0, 2).check_same("3 abc", "weights", torch.device("cpu"))

    def other(numbers: Tensor, operation: distributed.ReduceOp) -> None:
        numbers += int(operation == distributed.ReduceOp.MAX)

    monkeypatch.setattr(distributed, "all_reduce", other)
    with pytest.raises(InputError, match="the processes of the training differ in weights: give all the same"):
        Ranks(0, 2).check_same("3 abc", "weights", torch.device("cpu"))
    ALONE.check_same("3 abc", "weights", torch.device("cpu"))


def test_running_statistics_are_means_and_other_buffers_stay(sums: Sequence[Tensor]) -> None:
    network = nn.Sequential(nn.BatchNorm2d(2))
    network.register_buffer("mean", torch.tensor([0.1]))
    network[0].running_mean.fill_(0.3)
    before = network[0].running_mean.clone()
    Ranks(0, 2).average_buffers(network)
    assert torch.equal(network[0].running_mean, before) and len(sums) == 1, "the mean of two equal values"
    assert len(sums[0]) == 4 and torch.equal(network.mean, torch.tensor([0.1]))


def test_a_process_computes_its_half_of_the_gradient(sums: Sequence[Tensor]) -> None:
    halves = []
    for rank in (0, 1):
        student = plain()
        backward(Standard(), batch_of(student, 30), Recipe(), Ranks(rank, 2))
        halves.append([p.grad / 2 for p in student.parameters() if p.grad is not None])
    student = plain()
    _, whole = backward(Standard(), batch_of(student, 30), Recipe())
    for one, other, p in zip(*halves, student.parameters(), strict=True):
        torch.testing.assert_close(one + other, p.grad, rtol=1e-4, atol=1e-6)
    assert float(sums[0][0] + sums[2][0]) == pytest.approx(float(whole), rel=1e-5)


@pytest.mark.parametrize(
    ("objective", "more"), [(Mtard(eps=0.1), {"natural_teacher": plain(2)}), (Kdiga(reduction="batch_frobenius"), {})]
)
def test_objectives_that_need_whole_batches_are_refused(
    objective: object, more: dict[str, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="needs whole batches: train in one process, not 2"):
        fit(plain(), objective, teacher=plain(1), **more)  # type: ignore[arg-type]


def test_a_process_that_ends_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    said = r"another process of the training has ended \(.*\): start all again with --resume"
    with pytest.raises(InputError, match=said), Ranks(0, 2).joined(torch.device("cpu")):
        raise RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    with pytest.raises(RuntimeError, match="another fault"), Ranks(0, 2).joined(torch.device("cpu")):
        raise RuntimeError("another fault")


# Processes ------------------------------------------------------------------------------------------------------------


def smooth(seed: int) -> nn.Module:
    """A network with second derivatives."""
    return seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, CLASSES)), seed)


def trained(recipe: Recipe) -> dict[str, dict[str, Tensor]]:
    """Train by every objective, and with averages, bfloat16 and batch statistics."""
    found = {}
    for kind, objective in PARTED.items():
        student = smooth(0)
        train(student, samples(), objective, recipe=recipe, teacher=smooth(1), natural_teacher=smooth(2), device="cpu")
        found[kind] = state_of(student)
    for name, more in (("ema", {"average": "ema"}), ("bfloat16", {"precision": "bfloat16"})):
        student = smooth(0)
        own = recipe.model_copy(update=more)
        train(student, samples(), Kdiga(target="ce"), recipe=own, teacher=smooth(1), device="cpu")
        found[name] = state_of(student)
    student = busy()
    train(student, samples(), Standard(), recipe=recipe, device="cpu")
    found["batch statistics"] = state_of(student)
    return found


def torchrun(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start two processes."""
    given = ("--nproc-per-node", "2", "--master-port", "29791", "-m", "tests.certkd.training.two_processes")
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *given, code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_weights_are_those_of_one_process_for_every_objective(tmp_path: Path) -> None:
    started = torchrun("train", str(tmp_path / "two.pt"))
    one = trained(FIVE_STEPS.model_copy(update={"accumulate": 2}))
    _, err = started.communicate(timeout=600)
    assert started.returncode == 0, err[-3000:]
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    assert len(one) >= 20 and one.keys() == two.keys()
    for name, state in one.items():
        for key, value in state.items():
            if "running" not in key and name != "batch statistics":
                torch.testing.assert_close(two[name][key], value, rtol=1e-5, atol=1e-7, msg=f"{name}: {key}")


@pytest.mark.slow
def test_a_killed_process_ends_the_training_and_one_process_resumes_it(tmp_path: Path) -> None:
    started = torchrun("endless", str(tmp_path / "out"))
    log = tmp_path / "out" / "log.jsonl"
    while not (log.exists() and log.read_text().count("\n") >= 2):
        assert started.poll() is None, started.communicate()[1][-3000:]
        time.sleep(0.05)
    pids = [int(file.read_text()) for file in sorted((tmp_path / "out").glob("pid*"))]
    os.kill(pids[-1], signal.SIGKILL)
    _, err = started.communicate(timeout=120)
    assert started.returncode != 0 and "Segmentation" not in err
    done = log.read_text().count("\n")
    recipe = Recipe(epochs=done + 2, batch_size=24)
    result = fit(plain(), recipe=recipe, out=tmp_path / "out", resume=True)
    assert [record["epoch"] for record in result.history] == list(range(done + 2))
