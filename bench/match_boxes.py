"""Copies of small control networks on whole boxes: both relations of a pair of ReLUs against either alone.

Networks with 5 inputs, 6 layers of 50 ReLUs and 5 outputs, the shape of ACAS Xu's, are trained on random functions.
Their copies have noise on the weights, lack 5 to 30 % of them, or are in half precision. A question is whether no
output differs by more than 0.05 on a box. Each is asked with a limit of CPU time, by splitting the box, with the
relaxations of the two networks alone (joint), of their difference alone, and with both.

    uv run python bench/match_boxes.py [--pairs 50] [--seconds 10] [--only 7,13] [--relaxations joint,both]
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from itertools import pairwise
from typing import NamedTuple

import torch
from timing import machine
from torch import Tensor, nn

from verifiers.bound_propagation import HalfSpaces, InputSplitting, JointEngine
from verifiers.bound_propagation.boxes.bounders import PairByMatrices, pair_bounder_of
from verifiers.bound_propagation.boxes.pair import Relations
from verifiers.core.memory import reuse_memory
from verifiers.core.quantities import Arithmetic
from verifiers.geometry.boxes import Boxes

INPUTS, OUTPUTS, TOLERANCE = 5, 5, 0.05


@cache
def trained(seed: int, steps: int = 600) -> nn.Sequential:
    """A network that was trained on a random function with kinks."""
    g = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    widths = [INPUTS, *[50] * 6, OUTPUTS]
    layers = [layer for a, b in pairwise(widths) for layer in (nn.Linear(a, b), nn.ReLU())]
    network = nn.Sequential(*layers[:-1])
    inner, outer = torch.randn(INPUTS, 24, generator=g), torch.randn(24, OUTPUTS, generator=g) / 24**0.5
    shift = torch.randn(24, generator=g) / 2
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for step in range(steps):
        x = torch.rand(512, INPUTS, generator=g) - 0.5
        y = ((x @ inner + shift).abs() + torch.sin(3 * (x @ inner))) @ outer
        loss = (network(x) - y).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.param_groups[0]["lr"] = 2e-3 * (1 - step / steps)
        optimizer.step()
    return network.eval().requires_grad_(False)


def noisy(size: float) -> Callable[[nn.Module, int], None]:
    """Multiply every weight by 1 + size times noise."""

    def change(network: nn.Module, seed: int) -> None:
        g = torch.Generator().manual_seed(seed)
        for parameter in network.parameters():
            parameter *= 1 + size * torch.randn(parameter.shape, generator=g)

    return change


def pruned(share: float) -> Callable[[nn.Module, int], None]:
    """Remove the smallest weights of every layer."""

    def change(network: nn.Module, seed: int) -> None:
        for parameter in network.parameters():
            if parameter.ndim > 1:
                parameter *= parameter.abs() > parameter.abs().flatten().quantile(share)

    return change


def halved(network: nn.Module, seed: int) -> None:
    """Round every weight to half precision."""
    for parameter in network.parameters():
        parameter.copy_(parameter.half().float())


#: Copies with the widths of their boxes; the inputs are from -1/2 to 1/2.
COPIES: dict[str, tuple[Callable[[nn.Module, int], None], tuple[float, ...]]] = {
    "noise 1e-3": (noisy(1e-3), (0.25, 0.4)),
    "noise 5e-3": (noisy(5e-3), (0.12, 0.25)),
    "noise 1e-2": (noisy(1e-2), (0.06, 0.12)),
    "pruned 5 %": (pruned(0.05), (0.12, 0.2)),
    "pruned 10 %": (pruned(0.1), (0.05, 0.1)),
    "pruned 30 %": (pruned(0.3), (0.02, 0.04)),
    "half precision": (halved, (0.3, 0.5)),
}


class Pair(NamedTuple):
    """A network, its copy, and a box."""

    kind: str
    student: nn.Module
    teacher: nn.Module
    low: Tensor
    high: Tensor


def pairs(numbers: Iterable[int]) -> Iterator[Pair]:
    """Draw the pairs of some numbers: kinds of copies in turn, a network for every seven pairs, both widths."""
    kinds = list(COPIES)
    for i in numbers:
        change, widths = COPIES[kinds[i % len(kinds)]]
        teacher, width = trained(i // len(kinds)), widths[i // len(kinds) % 2]
        student = copy.deepcopy(teacher)
        with torch.no_grad():
            change(student, i)
        center = (torch.rand(1, INPUTS, generator=torch.Generator().manual_seed(i)).double() - 0.5) * (1 - width)
        yield Pair(kinds[i % len(kinds)], student, teacher, center - width / 2, center + width / 2)


def close() -> HalfSpaces:
    """The cases in which an output differs by the tolerance or more."""
    eye = torch.eye(OUTPUTS, dtype=torch.float64)
    rows = torch.cat([torch.cat([-eye, eye], 1), torch.cat([eye, -eye], 1)])
    return HalfSpaces(rows, None, torch.full((2 * OUTPUTS,), TOLERANCE).double(), torch.arange(2 * OUTPUTS))


class Result(NamedTuple):
    """The end of one search: ``proved``, ``refuted`` or ``open``, the parts that were bounded, and CPU seconds."""

    end: str
    parts: int
    seconds: float


def decide(pair: Pair, engine: JointEngine, relations: Relations, seconds: float) -> Result:
    """Split the box until every part is decided or the limit comes."""
    bounder, hits = pair_bounder_of(engine, close()), []
    assert isinstance(bounder, PairByMatrices)
    bounder.relations = relations

    def tries(points: Tensor) -> Tensor:
        apart = (pair.student(points.float()).double() - pair.teacher(points.float()).double()).abs().amax(1)
        hits.append(bool((apart >= TOLERANCE).any()))
        return apart >= TOLERANCE

    started = time.process_time()
    splitting = InputSplitting(bounder, close(), deadline=time.monotonic() + seconds, tries=tries)
    end = splitting.run(Boxes.between(pair.low, pair.high))
    name = "proved" if end.proved else "refuted" if any(hits) else "open"
    return Result(name, end.parts, time.process_time() - started)


def one_pass(pair: Pair, engine: JointEngine, relations: Relations, boxes: int = 1000) -> tuple[int, float]:
    """Bound parts of the box, each an eighth as wide, of which nothing is known; return the proved, and CPU seconds."""
    bounder = pair_bounder_of(engine, close())
    assert isinstance(bounder, PairByMatrices)
    bounder.relations = relations
    place = torch.rand(boxes, INPUTS, generator=torch.Generator().manual_seed(0)).double()
    low = pair.low + place * (pair.high - pair.low) * 7 / 8
    high = low + (pair.high - pair.low) / 8
    started = time.process_time()
    found, _ = bounder(low, high, torch.zeros((boxes, bounder.neurons), dtype=torch.int8))
    return int((found.values > 0).all(1).sum()), time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=10.0, help="limit of each search")
    parser.add_argument("--only", help="numbers of pairs, from 0, instead of the first ones")
    parser.add_argument("--relaxations", default=",".join(Relations), help="joint, difference and both")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()  # as the commands do
    time.monotonic = time.process_time  # the limits of searches are in CPU seconds too
    print(machine())
    chosen = [Relations(name) for name in arguments.relaxations.split(",")]
    numbers = map(int, arguments.only.split(",")) if arguments.only else range(arguments.pairs)
    results: dict[Relations, list[Result]] = {relations: [] for relations in chosen}
    passes: dict[Relations, list[tuple[int, float]]] = {relations: [] for relations in chosen}
    for pair in pairs(numbers):
        engine = JointEngine(pair.student, pair.teacher, torch.rand(2, INPUTS), Arithmetic.FLOAT32)
        for relations in chosen:
            results[relations].append(decide(pair, engine, relations, arguments.seconds))
            passes[relations].append(one_pass(pair, engine, relations))
        ends = ", ".join(f"{relations} {results[relations][-1].end}" for relations in chosen)
        print(f"{pair.kind:<16}{float((pair.high - pair.low)[0, 0]):.2f}  {ends}", flush=True)
    print("relaxations   proved refuted open   CPU s (median)   parts per CPU s   one pass: ms a box, proved per CPU s")
    for relations in chosen:
        found, ends = results[relations], [result.end for result in results[relations]]
        seconds, parts = sum(result.seconds for result in found), sum(result.parts for result in found)
        proved, took = (sum(each) for each in zip(*passes[relations], strict=True))
        print(
            f"{relations:<14}{ends.count('proved'):6}{ends.count('refuted'):8}{ends.count('open'):5}"
            f"{statistics.median(result.seconds for result in found):17.2f}{parts / seconds:18.0f}"
            f"{took / len(found):22.3f}{proved / took:20.0f}"
        )


if __name__ == "__main__":
    main()
