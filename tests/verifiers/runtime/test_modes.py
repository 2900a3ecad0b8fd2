"""Modes, threads, devices and memory: set for a certification, and afterwards as they were."""

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from verifiers.core.errors import InputError
from verifiers.runtime.device import choose_device
from verifiers.runtime.modes import SMALL_WORK, eval_mode, in_eval_mode, suitable_threads, trusted_arithmetic
from verifiers.runtime.oom import fits, in_parts, out_of_memory, pass_on_memory


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Four threads on a machine whose owner has not chosen a number."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_every_module_gets_its_mode_back() -> None:
    network = nn.Sequential(nn.Dropout(), nn.Sequential(nn.BatchNorm1d(3), nn.Dropout()))
    network.eval()
    network[1][1].train()
    with pytest.raises(ZeroDivisionError), eval_mode(network):
        assert not any(module.training for module in network.modules())
        raise ZeroDivisionError
    assert [module.training for module in network.modules()] == [False, False, False, False, True]


def test_arithmetic_is_trusted_inside_and_as_it_was_outside() -> None:
    def now() -> tuple[object, ...]:
        precision = torch.get_float32_matmul_precision()
        filled = torch.utils.deterministic.fill_uninitialized_memory
        return precision, torch.backends.cudnn.allow_tf32, torch.get_deterministic_debug_mode(), filled

    before = now()
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.allow_tf32 = True
    try:
        with pytest.raises(ZeroDivisionError), trusted_arithmetic():
            assert now() == ("highest", False, 1, False)
            raise ZeroDivisionError
        assert now() == ("high", True, *before[2:])
    finally:
        torch.set_float32_matmul_precision(str(before[0]))
        torch.backends.cudnn.allow_tf32 = bool(before[1])


def test_a_small_network_works_on_one_thread(four_threads: None) -> None:
    network, sample = nn.Linear(10, 10).train(), torch.rand(1, 10)
    weights = copy.deepcopy(network.state_dict())
    with suitable_threads(network, sample, batch=8):
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 4 and network.training
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(("batch", "threads"), [(int(SMALL_WORK) // 200, 4), (int(SMALL_WORK) // 200 - 1, 1)])
def test_two_operations_count_for_each_weight(batch: int, threads: int, four_threads: None) -> None:
    with suitable_threads(nn.Linear(10, 10), torch.rand(1, 10), batch):
        assert torch.get_num_threads() == threads


def test_weights_of_a_convolution_count_at_each_position(four_threads: None) -> None:
    network, sample = nn.Conv2d(2, 5, 3, padding=1), torch.rand(1, 2, 10, 10)
    operations = 2 * (5 * 2 * 3 * 3) * 100
    for batch, threads in ((int(SMALL_WORK) // operations + 1, 4), (int(SMALL_WORK) // operations - 1, 1)):
        with suitable_threads(network, sample, batch):
            assert torch.get_num_threads() == threads


def test_a_number_of_threads_that_the_owner_chose_stays(four_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    with suitable_threads(nn.Linear(10, 10), torch.rand(1, 10), batch=8):
        assert torch.get_num_threads() == 4


def test_devices_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == choose_device("cpu") == torch.device("cpu")
    with pytest.raises(InputError, match=r"device 'cuda:1' was asked for, but this machine has no CUDA device"):
        choose_device("cuda:1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto") == torch.device("cuda") and choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(InputError, match=r"device 'cuda:1': this machine has 1 CUDA devices"):
        choose_device("cuda:1")


@pytest.mark.parametrize("name", ["gpu", "meta", "mps", "", "cuda:x"])
def test_unknown_devices_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"unknown device {name!r}: use auto, cpu or cuda"):
        choose_device(name)


MEMORY = [
    torch.OutOfMemoryError("CUDA"),
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
    RuntimeError("std::bad_alloc"),
]


@pytest.mark.parametrize("error", MEMORY, ids=lambda error: type(error).__name__)
def test_a_lack_of_memory_does_not_fit(error: Exception) -> None:
    def fail() -> None:
        raise error

    assert out_of_memory(error) and not fits(fail)
    with pytest.raises(type(error)):
        pass_on_memory(error)
    with pytest.raises(type(error)):
        in_parts(lambda part: fail() or part, torch.arange(4))


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    def fail() -> None:
        raise RuntimeError("shapes do not match")

    assert not out_of_memory(ValueError("memory")) and fits(lambda: None)
    with pytest.raises(RuntimeError, match="shapes"):
        fits(fail)
    pass_on_memory(RuntimeError("shapes do not match"))


@pytest.mark.parametrize("most", [1, 2, 3, 7, 20])
def test_a_batch_is_halved_until_its_parts_fit(most: int) -> None:
    sizes: list[int] = []

    def double(part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        if len(part) > most:
            raise MemoryError
        return 2 * part

    assert in_parts(double, torch.arange(10)).tolist() == list(range(0, 20, 2)), "in the order of the batch"
    assert sizes[0] == 10 and sum(size for size in sizes if size <= most) == 10, "an item was computed twice"


def test_a_callers_autocast_does_not_reach_the_network() -> None:
    layer, x = torch.nn.Linear(4, 2), torch.rand(1, 4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
        with trusted_arithmetic():
            assert layer(x).dtype == torch.float32
        assert layer(x).dtype == torch.bfloat16


class _Counting(nn.Sequential):
    """A network that counts how often it is put into eval mode."""

    calls = 0

    def eval(self) -> "_Counting":
        self.calls += 1
        return super().eval()


def test_a_network_in_eval_mode_sees_no_further_call() -> None:
    network = _Counting(nn.Linear(2, 2), nn.Dropout()).eval()
    for _ in range(2):
        with eval_mode(network):
            assert not network.training
    assert in_eval_mode(network) is network and network.calls == 1
    network[1].train()  # one layer is enough
    with eval_mode(network):
        assert not network[1].training
    assert network[1].training and network.calls == 2
