"""CROWN bounds of one batch: certkd's native engine against auto-LiRPA, both in float32 and both in float64.

auto-LiRPA 0.3 runs as installed, with certkd's compatibility points (CROWN does not need the clamp gradient among
them); same clipped linf balls, same margins, one thread, runs that take turns. Memory is the most that a fresh process
grows by during one batch, watched every millisecond (Linux).

    uv run python bench/bound_propagation.py [--nets mlp,cnn,resnet] [--batches 1,8,64] [--runs 5] [--dtypes float32]
"""

import argparse
import copy
import multiprocessing
import resource
import statistics
import threading
from collections.abc import Callable
from pathlib import Path

import torch
from nets import Case, case
from timing import alternate
from torch import Tensor

from verifiers.bound_propagation.auto_lirpa import compat
from verifiers.bound_propagation.native.engine import Native
from verifiers.core.quantities import Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification

ENGINES = ("auto-LiRPA", "native")


def prepared(engine: str, known: Case, batch: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    """The bounds of one batch as a function, its graph built."""
    x = known.images[:batch]
    with torch.no_grad():
        predicted = known.network(x).argmax(1)
    rows = margin_specification(predicted, 10, dtype)
    if engine == "native":
        native = Native(known.network, known.images[:2], dtype=dtype)
        native.batch_size = batch
        eps = torch.full((batch,), known.eps, dtype=dtype)
        return lambda: native.ask(Balls(x, eps, Norm.LINF), rows, "crown").bound
    return _auto_lirpa(known, x.to(dtype), rows, dtype)


def _auto_lirpa(known: Case, x: Tensor, rows: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    lirpa = compat.load()
    box = {"x_L": (x - known.eps).clamp(0, 1), "x_U": (x + known.eps).clamp(0, 1)}
    torch.set_default_dtype(dtype)
    graph = lirpa.BoundedModule(copy.deepcopy(known.network).to(dtype), x[:1])
    torch.set_default_dtype(torch.float32)

    def run() -> Tensor:
        torch.set_default_dtype(dtype)
        try:
            with torch.no_grad():
                ball = lirpa.BoundedTensor(x, lirpa.PerturbationLpNorm(norm=float("inf"), **box))
                return graph.compute_bounds(x=(ball,), C=rows, method="CROWN", bound_upper=False)[0]
        finally:
            torch.set_default_dtype(torch.float32)

    return run


def peak(known: Case, engine: str, batch: int, dtype: torch.dtype) -> float:
    """Megabytes that one batch adds to a fresh process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return float(pool.apply(_peak, (known, engine, batch, dtype)))


def _peak(known: Case, engine: str, batch: int, dtype: torch.dtype) -> float:
    torch.set_num_threads(1)
    run = prepared(engine, known, batch, dtype)
    seen, running = [_resident()], threading.Event()

    def watch() -> None:
        while not running.wait(0.001):
            seen.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    run()
    running.set()
    watcher.join()
    return max(seen) - seen[0]


def _resident() -> float:
    """Megabytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Print one line per network, batch size and dtype."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--nets", default="mlp,cnn,resnet")
    arguments.add_argument("--batches", default="1,8,64")
    arguments.add_argument("--dtypes", default="float32,float64")
    arguments.add_argument("--runs", type=int, default=5)
    chosen = arguments.parse_args()
    torch.set_num_threads(1)
    print(f"median seconds a batch, {chosen.runs} alternating runs, {torch.get_num_threads()} thread")
    print("net     batch dtype    auto-LiRPA    native  speed-up [range]       MB auto-LiRPA  MB native  bounds apart")
    for name in chosen.nets.split(","):
        known = case(name)
        for batch in map(int, chosen.batches.split(",")):
            for dtype in (getattr(torch, text) for text in chosen.dtypes.split(",")):
                print(line(name, known, batch, dtype, chosen.runs), flush=True)


def line(name: str, known: Case, batch: int, dtype: torch.dtype, runs: int) -> str:
    """One line of the table."""
    ways = {engine: prepared(engine, known, batch, dtype) for engine in ENGINES}
    apart = float((ways["native"]() - ways["auto-LiRPA"]()).abs().max())
    seconds = alternate(ways, runs, warmup=0)
    ratios = sorted(a / b for a, b in zip(seconds["auto-LiRPA"], seconds["native"], strict=True))
    medians = [statistics.median(seconds[engine]) for engine in ENGINES]
    memory = [peak(known, engine, batch, dtype) for engine in ENGINES]
    return (
        f"{name:<7} {batch:5d} {str(dtype).removeprefix('torch.'):<8} {medians[0]:9.4f} {medians[1]:9.4f}"
        f"  {statistics.median(ratios):6.2f}x [{ratios[0]:.2f}, {ratios[-1]:.2f}] {memory[0]:12.0f} {memory[1]:12.0f}"
        f"   {apart:.1e}"
    )


if __name__ == "__main__":
    main()
