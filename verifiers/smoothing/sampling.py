"""Count a network's votes on noisy copies of images, independent of the batch, the shard and the number of threads.

The noise of an image comes in blocks, each from its own generator keyed by (seed, sample index, purpose, block). It is
drawn on the CPU, so counts do not depend on the device's random numbers either. Copies of several images share a
forward pass, whose shape never changes, because the last bits of logits can depend on it.

NumPy's float32 ziggurat has the normal law's full tail. torch's CPU float32 normals end at sqrt(48 ln 2) = 5.768. One
of 40,000 CIFAR images and one of 800 ImageNet images would exceed that: as much as a certificate's whole alpha.
"""

import copy
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from verifiers.runtime.deadline import check
from verifiers.runtime.oom import MEMORY_ERRORS, out_of_memory, pass_on_memory
from verifiers.runtime.samples import device_of
from verifiers.smoothing.statistics import Noise

GENERATOR = "numpy SFC64, float32 ziggurat normals or float32 uniforms"
#: Copies drawn by one generator.
BLOCK = 64
#: Copies in a forward pass: the best fit for a CPU's caches, or enough to fill a GPU.
FORWARD = {"cpu": 64, "cuda": 1024}


class Purpose(IntEnum):
    """The purposes of noise; no copy serves two of them."""

    SELECTION = 0
    ESTIMATION = 1
    PREVIEW = 2


@dataclass(frozen=True)
class Draw:
    """Copies ``first`` to ``last`` (exclusive) of one image, at ``position`` in its batch, of sample ``index``."""

    position: int
    index: int
    first: int
    last: int


def noise_block(
    seed: int, index: int, purpose: Purpose, block: int, size: Sequence[int], noise: Noise
) -> Float[np.ndarray, "copies *shape"]:
    """Draw the first copies of one block of noise with standard deviation 1; a longer draw starts with a shorter one.

    ``size``: (copies, *shape).
    """
    key = np.random.SeedSequence(seed, spawn_key=(int(purpose), index, block))
    generator = np.random.Generator(np.random.SFC64(key))
    if noise is Noise.GAUSSIAN:
        return generator.standard_normal(tuple(size), dtype=np.float32)
    return (generator.random(tuple(size), dtype=np.float32) - 0.5) * np.float32(_up(2 * 3**0.5))


class Voter:
    """Count the classes that a network gives to noisy copies of images.

    Args:
        model: maps images to logits, with normalisation inside, in eval mode; it is copied.
        noise: law of the noise.
        sigma: standard deviation of the noise in each pixel, in pixel units.
        seed: run seed.
        dtype: dtype of the forward pass; the certificate is for the network in this dtype.
        other: a second network, which votes on the same copies.
    """

    def __init__(
        self,
        model: nn.Module,
        noise: Noise,
        sigma: float,
        seed: int,
        dtype: torch.dtype = torch.float32,
        other: nn.Module | None = None,
    ) -> None:
        self.models = [_Network(network, dtype) for network in (model, other) if network is not None]
        self.noise, self.sigma, self.seed = noise, _up(sigma), seed
        self.size = FORWARD.get(device_of(model).type, FORWARD["cuda"])

    def fit(self, x: Float[Tensor, "1 *shape"]) -> None:
        """Halve the copies of a pass until one fits into memory.

        Raises:
            RuntimeError: not even one copy fits; an error of memory, as torch raises it.
        """
        while True:
            try:
                list(self.labels(x, [Draw(0, 0, 0, self.size)], Purpose.PREVIEW))
                return
            except MEMORY_ERRORS as error:
                if not out_of_memory(error) or self.size == 1:
                    raise
                self.size //= 2

    def labels(
        self, x: Float[Tensor, "batch *shape"], draws: Sequence[Draw], purpose: Purpose
    ) -> Iterator[tuple[Int[Tensor, " copies"], list[Int[Tensor, " copies"]]]]:
        """Yield for every forward pass the positions of its copies' images and the classes from each network.

        Logits that are not finite vote for no class: -1.
        """
        size = self.size
        with torch.no_grad(), ThreadPoolExecutor(1) as ahead:  # draws noise for the next pass during this one
            batches = _in_batches(draws, size)
            upcoming = ahead.submit(self._noise, next(batches, []), size, x.shape[1:], purpose)
            while (pass_ := upcoming.result()) is not None:
                check()
                upcoming = ahead.submit(self._noise, next(batches, []), size, x.shape[1:], purpose)
                owners, noise = pass_
                positions = torch.as_tensor(owners, device=x.device)
                padded = torch.nn.functional.pad(positions, (0, size - len(positions)))
                copies = noise.to(x.device).mul_(self.sigma).add_(x[padded])  # in the noise's memory format
                logits = [model(copies)[: len(positions)] for model in self.models]
                yield positions, [_votes(values) for values in logits]

    def _noise(
        self, draws: Sequence[Draw], size: int, shape: Sequence[int], purpose: Purpose
    ) -> tuple[np.ndarray, Tensor] | None:
        """Draw the owners and the noise of one pass; the noise is padded to its size.

        The noise of images is drawn channels last, the fastest memory format for convolutions.
        """
        if not draws:
            return None
        image = len(shape) == 3
        shape = (*shape[1:], shape[0]) if image else shape
        noise = np.empty((size, *shape), np.float32)
        owners = np.repeat([draw.position for draw in draws], [draw.last - draw.first for draw in draws])
        filled = 0
        for draw in draws:
            for block in range(draw.first // BLOCK, -(-draw.last // BLOCK)):
                first, last = max(draw.first - block * BLOCK, 0), min(draw.last - block * BLOCK, BLOCK)
                part = noise_block(self.seed, draw.index, purpose, block, (last, *shape), self.noise)[first:]
                noise[filled : filled + len(part)] = part
                filled += len(part)
        noise[filled:] = 0.0
        whole = torch.from_numpy(noise)
        return owners, whole.permute(0, 3, 1, 2) if image else whole

    def histogram(
        self, x: Float[Tensor, "batch *shape"], draws: Sequence[Draw], purpose: Purpose, classes: int
    ) -> Int[Tensor, "tables batch classes"]:
        """Count votes by image and class on the device.

        There is one table for the network. A second network adds its own, and one of copies with that class from both.
        """
        tables = torch.zeros((2 * len(self.models) - 1, len(x) * (classes + 1)), dtype=torch.int64, device=x.device)
        for positions, found in self.labels(x, draws, purpose):
            if len(found) == 2:
                found.append(torch.where(found[0] == found[1], found[0], -1))
            for table, labels in zip(tables, found, strict=True):
                table += torch.bincount(positions * (classes + 1) + labels + 1, minlength=len(table))
        return tables.reshape(len(tables), len(x), classes + 1)[..., 1:]


class _Network:
    """A copy of a network, channels last if that gives the same logits; code that reshapes by ``view`` fails so."""

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self._model = copy.deepcopy(model).to(dtype).eval().requires_grad_(False)
        self._dtype = dtype
        self._last: bool | None = None

    def __call__(self, copies: Float[Tensor, "copies *shape"]) -> Float[Tensor, "copies classes"]:
        copies = copies.to(self._dtype)
        if self._last is None:
            self._last = copies.dim() == 4 and self._works_channels_last(copies)
        found: Tensor = self._model(copies if self._last else copies.contiguous())
        return found

    def _works_channels_last(self, copies: Tensor) -> bool:
        plain = self._model(copies.contiguous()).float()
        try:
            found = self._model.to(memory_format=torch.channels_last)(copies).float()
            slack = 1e-3 * max(1.0, float(plain.nan_to_num().abs().max()))
            if torch.allclose(found, plain, rtol=0.0, atol=slack, equal_nan=True):
                return True
        except RuntimeError as error:
            pass_on_memory(error)
        self._model.to(memory_format=torch.contiguous_format)
        return False


def _up(value: float) -> float:
    """Return the next float32 that is not smaller, so that the noise is never narrower than the certified law."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) >= value else np.nextafter(nearest, np.float32(np.inf)))


def _votes(logits: Float[Tensor, "copies classes"]) -> Int[Tensor, " copies"]:
    return torch.where(torch.isfinite(logits).all(1), logits.argmax(1), -1)


def _in_batches(draws: Sequence[Draw], size: int) -> Iterator[list[Draw]]:
    """Cut the copies, in order, into batches of ``size``."""
    batch: list[Draw] = []
    room = size
    for draw in draws:
        first = draw.first
        while first < draw.last:
            last = min(draw.last, first + room)
            batch.append(Draw(draw.position, draw.index, first, last))
            room -= last - first
            first = last
            if not room:
                yield batch
                batch, room = [], size
    if batch:
        yield batch
