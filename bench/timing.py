"""Alternating runs of several ways to do one thing, in one process: medians and the ratio of each pair of runs."""

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable

import torch


def alternate(ways: dict[str, Callable[[], object]], runs: int, warmup: int = 1) -> dict[str, list[float]]:
    """CPU seconds of each run of each way; the ways take turns, so that drift of the machine hits all of them."""
    for _ in range(warmup):
        for way in ways.values():
            way()
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, way in ways.items():
            start = time.process_time()
            way()
            seconds[name].append(time.process_time() - start)
    return seconds


def report(title: str, seconds: dict[str, list[float]], base: str) -> None:
    """Median CPU seconds of each way, and the median of the run-by-run ratios to ``base``."""
    print(f"{title}   ({torch.get_num_threads()} threads, {len(seconds[base])} alternating runs)")
    for name, values in seconds.items():
        ratios = sorted(value / other for value, other in zip(values, seconds[base], strict=True))
        print(
            f"  {name:<44} median {statistics.median(values):9.4f} s   ratio to {base}: "
            f"{statistics.median(ratios):.3f} [{ratios[0]:.3f}, {ratios[-1]:.3f}]"
        )


def machine() -> str:
    """The command that measures, and what it runs on: the first lines of a page of results."""
    return (
        f"    uv run python {shlex.join(sys.argv)}\n\n"
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def table(title: str, seconds: dict[str, list[float]], base: str, steps: int = 1) -> str:
    """Median milliseconds of a step of each way, and the median of the run-by-run ratios to ``base``, in Markdown.

    Args:
        steps: in one run.
    """
    lines = [
        f"{title}; {len(seconds[base])} alternating runs of {steps} steps",
        "",
        f"| way | ms a step | ratio to {base} | least, largest |",
    ]
    lines.append("| --- | --: | --: | --: |")
    for name, values in seconds.items():
        ratios = sorted(value / other for value, other in zip(values, seconds[base], strict=True))
        middle, span = statistics.median(ratios), f"{ratios[0]:.2f}, {ratios[-1]:.2f}"
        lines.append(f"| {name} | {1000 * statistics.median(values) / steps:.2f} | {middle:.2f} | {span} |")
    return "\n".join([*lines, ""])
