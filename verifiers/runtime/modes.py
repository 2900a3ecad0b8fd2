"""How a network and torch's arithmetic are set while certifying or attacking; all of it is undone afterwards."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Below this many floating-point operations per batch, other threads cost more than they do: on a shared two-core
#: machine a second thread made small networks 4 to 50 times slower.
SMALL_WORK = 1e9


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode, and afterwards as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def trusted_arithmetic() -> Iterator[None]:
    """TF32 off and deterministic algorithms on; both as they were afterwards.

    TF32 convolutions, on by default on NVIDIA GPUs, are off by 1e-3: enough to void a bound.
    """
    cudnn = torch.backends.cudnn
    before = (_matmul_precision(), cudnn.allow_tf32, torch.get_deterministic_debug_mode())
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms takes seconds to import the compiler
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
        torch.set_deterministic_debug_mode(before[2])


def reuse_memory() -> None:
    """Let the C library keep up to 1 GiB of freed memory for this process; for programs, not for libraries.

    Large tensors are otherwise mapped anew each time, and their first use costs more than the arithmetic. Does nothing
    where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option in (-3, -1):  # M_MMAP_THRESHOLD, M_TRIM_THRESHOLD
            mallopt(option, 2**30)


@contextmanager
def suitable_threads(model: nn.Module, sample: Float[Tensor, "1 *shape"], batch: int) -> Iterator[None]:
    """One thread while a small network works on the CPU; the number that was set afterwards.

    The choice depends on the network and the batch size alone, so that a resumed run computes the same. A machine
    whose owner set OMP_NUM_THREADS keeps that number.
    """
    before = torch.get_num_threads()
    free = sample.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ
    if free and 0 < _operations(model, sample, batch) < SMALL_WORK:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _operations(model: nn.Module, sample: Tensor, batch: int) -> float:
    """Two for each weight of a linear or convolution layer and each position it is applied at."""
    counts = []

    def count(module: nn.Module, given: object, output: Tensor) -> None:
        weight = module.weight
        assert isinstance(weight, Tensor)
        counts.append(2.0 * weight.numel() * output.numel() / len(weight))

    layers = [module for module in model.modules() if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d)]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        with torch.no_grad(), eval_mode(model):
            model(sample)
    finally:
        for hook in hooks:
            hook.remove()
    return sum(counts, 0.0) * batch


def _matmul_precision() -> str:
    """What ``set_float32_matmul_precision`` would restore; torch does not tell when its two interfaces were mixed."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if torch.backends.cuda.matmul.allow_tf32 else "highest"
