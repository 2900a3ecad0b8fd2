"""Set a network's mode and torch's arithmetic for certifying or attacking, and restore both afterwards."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

#: Below this many floating-point operations per batch, more threads cost more than they save: on a shared two-core
#: machine a second thread made small networks 4 to 50 times slower.
SMALL_WORK = 1e9


def in_eval_mode(model: nn.Module) -> nn.Module:
    """Put a network into eval mode; one that is in it already sees no call, and so cannot count them."""
    return model.eval() if any(module.training for module in model.modules()) else model


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, and restore its mode afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    in_eval_mode(model)
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def trusted_arithmetic() -> Iterator[None]:
    """Turn TF32 and autocast off and deterministic algorithms on, and restore them afterwards.

    TF32 convolutions, the default on NVIDIA GPUs, have errors of 1e-3: enough to void a bound. With deterministic
    algorithms torch would also write nan into all memory that it is about to fill, which costs up to a tenth.
    """
    cudnn = torch.backends.cudnn
    filling: Any = torch.utils.deterministic
    before = (_matmul_precision(), cudnn.allow_tf32, torch.get_deterministic_debug_mode())
    filled = filling.fill_uninitialized_memory
    torch.set_float32_matmul_precision("highest")
    cudnn.allow_tf32 = False
    filling.fill_uninitialized_memory = False
    torch.set_deterministic_debug_mode("warn")  # use_deterministic_algorithms imports the compiler, which takes seconds
    try:
        with torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32 = before[1]
        torch.set_deterministic_debug_mode(before[2])
        filling.fill_uninitialized_memory = filled


@contextmanager
def usual_modes() -> Iterator[None]:
    """Set what ``trusted_arithmetic`` changes to torch's defaults, and restore it afterwards.

    Attention layers take no fast path: it is another function of torch for the same layer, which is never captured.
    """
    filling, mha = cast(Any, torch.utils.deterministic), torch.backends.mha
    before = torch.get_deterministic_debug_mode(), filling.fill_uninitialized_memory, mha.get_fastpath_enabled()
    torch.set_deterministic_debug_mode("default")
    filling.fill_uninitialized_memory = True
    mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(before[0])
        filling.fill_uninitialized_memory = before[1]
        mha.set_fastpath_enabled(before[2])


@contextmanager
def suitable_threads(model: nn.Module, sample: Float[Tensor, "1 *shape"], batch: int) -> Iterator[None]:
    """Use one thread for a small network on the CPU, and restore the number of threads afterwards.

    The choice depends on the network and the batch size alone, so that a resumed run computes the same values. If
    OMP_NUM_THREADS is set, nothing changes.
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
    """Count two operations for each weight of a linear or convolution layer and each position where it applies."""
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
    """Return the float32 matmul precision to restore; torch raises an error if its two interfaces were mixed."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if torch.backends.cuda.matmul.allow_tf32 else "highest"
