"""Share a training among the processes that torchrun starts.

Each process has all images, and goes through its own parts of every batch. Gradients are added up before the step, so
the weights are the same in all of them, and those of one process that goes through the same parts.
"""

import atexit
import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn

from verifiers.core.errors import InputError, one_line

_T = TypeVar("_T")


@dataclass(frozen=True)
class Ranks:
    """The processes of a training, and which of them this one is.

    Attributes:
        rank: number of this process; 0 alone writes and reports.
        count: number of processes.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def of_environment(cls) -> "Ranks":
        """Read what torchrun says; one process without it."""
        return cls(int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1)))

    @property
    def alone(self) -> bool:
        """True without torchrun."""
        return self.count == 1

    @property
    def first(self) -> bool:
        """True for the process that writes."""
        return self.rank == 0

    def place(self, device: torch.device) -> torch.device:
        """Give each process of a machine a GPU of its own.

        Raises:
            InputError: there are more processes than GPUs.
        """
        if self.alone or device.type != "cuda" or device.index is not None:
            return device
        place, gpus = int(os.environ.get("LOCAL_RANK", self.rank)), torch.cuda.device_count()
        if place >= gpus:
            raise InputError(f"process {place} of this machine has no GPU of its own: start at most {gpus} here")
        return torch.device("cuda", place)

    @contextmanager
    def joined(self, device: torch.device) -> Iterator[None]:
        """Connect the processes, through NCCL between GPUs and gloo otherwise.

        Raises:
            InputError: a process is missing or ends.
        """
        if self.alone:
            yield
            return
        try:
            if not distributed.is_initialized():
                gpu = device if device.type == "cuda" else None
                distributed.init_process_group("gloo" if gpu is None else "nccl", device_id=gpu)
                atexit.register(distributed.destroy_process_group)
            yield
        except InputError:
            raise
        except RuntimeError as error:
            if not isinstance(error, distributed.DistError) and "gloo" not in str(error).lower():
                raise
            raise InputError(
                f"another process of the training has ended ({one_line(error, 80)}): start all again with --resume"
            ) from error

    def check_same(self, state: str, what: str, place: torch.device) -> None:
        """Check that all processes have the same state.

        Raises:
            InputError: they differ in ``what``.
        """
        if self.alone:
            return
        digest = hashlib.sha256(state.encode()).digest()
        least = torch.tensor([int.from_bytes(digest[i : i + 4], "big") for i in range(0, 32, 4)], device=place)
        most = least.clone()
        distributed.all_reduce(least, distributed.ReduceOp.MIN)
        distributed.all_reduce(most, distributed.ReduceOp.MAX)
        if not torch.equal(least, most):
            raise InputError(f"the processes of the training differ in {what}: give all the same, in a shared folder")

    def wait(self) -> None:
        """Wait until all processes are here."""
        if not self.alone:
            distributed.barrier()

    def share(self, parts: Sequence[tuple[_T, float]]) -> Sequence[tuple[_T, float]]:
        """Return this process's parts of a batch with their weights; the first, without weight, if it has none."""
        return parts[self.rank :: self.count] or [(parts[0][0], 0.0)]

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one type by their sums over all processes."""
        tensors = list(tensors)
        if self.alone or not tensors:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        distributed.all_reduce(flat)
        for tensor, values in zip(tensors, flat.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(values.reshape(tensor.shape))

    def average_buffers(self, network: nn.Module) -> None:
        """Let the running statistics of batch normalisation be the means over all processes."""
        if self.alone:
            return
        norms = [layer for layer in network.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
        buffers = [buffer for layer in norms for buffer in layer.buffers() if buffer.is_floating_point()]
        self.add(buffers)
        for buffer in buffers:
            buffer.div_(self.count)
