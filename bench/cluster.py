"""Time a certification by one process, by two processes and by two Dask workers, alternated; the seconds of the wall.

Wants two free cores and OMP_NUM_THREADS=1. The overhead of Dask is what its time is above that of the processes; both
include the start of the workers.

    uv run python bench/cluster.py [--samples N] [--copies N] [--runs N]
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import certkd
from certkd.config.settings import DataConfig
from certkd.data.sources import load

ROOT = Path(__file__).resolve().parents[1]
WAYS: dict[str, dict[str, Any]] = {
    "one process": {},
    "--workers 2": {"workers": 2},
    "--cluster local:2": {"cluster": "local:2"},
}


def main() -> None:
    """Print the median seconds of each way and their ratio to one process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=120)
    parser.add_argument("--copies", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    network = certkd.load_checkpoint(str(ROOT / "artifacts/reference/digits/standard.pt")).model
    split = load(DataConfig(name="digits")).splits["test"]
    x, y = split.batch(torch.arange(options.samples), torch.device("cpu"))
    spent: dict[str, list[float]] = {name: [] for name in WAYS}
    radii: list[Any] = []
    for _ in range(options.runs):
        for name, way in WAYS.items():
            settings = {"sigma": 0.1, "n": options.copies, "question": "full"}
            config = certkd.CertifyConfig(
                eps="0.1", norm="l2", methods=("smoothing",), options=settings, batch_size=5, **way
            )
            started = time.perf_counter()
            radii.append(certkd.certify(network, (x, y), config)["smoothing"]["radius"])
            spent[name].append(time.perf_counter() - started)
    table = Table("way", "seconds", "of one process")
    first = statistics.median(spent["one process"])
    for name, each in spent.items():
        table.add_row(name, f"{statistics.median(each):.1f}", f"{statistics.median(each) / first:.2f}")
    Console().print(table)
    same = sum(bool(np.array_equal(radii[0], other)) for other in radii)
    Console().print(f"{same} of {len(radii)} runs have the radii of the first, to the last bit")


if __name__ == "__main__":
    main()
