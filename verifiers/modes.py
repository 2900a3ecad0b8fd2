"""How a network and torch's arithmetic are set while certifying or attacking; all of it is undone afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


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


def _matmul_precision() -> str:
    """What ``set_float32_matmul_precision`` would restore; torch does not tell when its two interfaces were mixed."""
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return "high" if torch.backends.cuda.matmul.allow_tf32 else "highest"
