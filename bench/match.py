"""Student and teacher decided by ``match``, against one merged network given to ``complete``, as others do.

The merged network of the property ``close`` has the outputs 0, t - |S_k - T_k| with both signs: output 0 is the largest
where the property fails nowhere, so ``complete`` asks for it. Both ways get the same images, radius and time limit. CPU
seconds are of whole runs, alternating.

    uv run python bench/match.py [--samples 24] [--time-limit 10] [--runs 3]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from changed_copies import pruned, rounded
from timing import machine
from torch import Tensor, nn

import certkd
from certkd.config.settings import DataConfig
from certkd.data import sources
from certkd.networks import checkpoint
from verifiers.core.status import Status
from verifiers.results.rows import MethodRows

FOLDER = "artifacts/reference/digits"


class Merged(nn.Module):
    """Scores of which the first is never below another one if and only if all logits differ by at most t."""

    def __init__(self, student: nn.Module, teacher: nn.Module, tolerance: float) -> None:
        super().__init__()
        self.student, self.teacher, self.tolerance = student, teacher, tolerance

    def forward(self, x: Tensor) -> Tensor:
        apart = self.student(x) - self.teacher(x)
        return torch.cat([torch.zeros_like(apart[:, :1]), apart - self.tolerance, -apart - self.tolerance], 1)


class Pair(NamedTuple):
    """Two networks and the tolerance asked for."""

    name: str
    student: nn.Module
    teacher: nn.Module
    tolerance: float


def pairs() -> list[Pair]:
    """Load the pairs of the digits experiment, and copies of its students."""
    load = {name: checkpoint.load(f"{FOLDER}/{name}.pt").model for name in ("teacher", "kdiga", "kdiga-projection")}
    kdiga, teacher = load["kdiga"], load["teacher"]
    return [
        Pair("kdiga-projection and teacher", load["kdiga-projection"], teacher, 3.0),
        *(Pair(f"kdiga pruned by {s:.0%}", pruned(kdiga, s), kdiga, t) for s, t in ((0.05, 0.2), (0.3, 1.5))),
        Pair("kdiga with 8-bit weights", rounded(kdiga), kdiga, 0.1),
        Pair("teacher with 8-bit weights", rounded(teacher), teacher, 0.3),
    ]


def ways(pair: Pair, x: Tensor, labels: Tensor, eps: str, limit: float) -> dict[str, Callable[[], MethodRows]]:
    """Return both ways to decide the property."""

    def matched() -> MethodRows:
        options = {"property": "close", "tolerance": pair.tolerance, "time_limit": limit}
        config = certkd.CertifyConfig(eps=eps, methods=["match"], options=options)
        return certkd.certify(pair.student, (x, labels), config, teacher=pair.teacher)["match"]

    def merged() -> MethodRows:
        network = Merged(pair.student, pair.teacher, pair.tolerance).eval()
        config = certkd.CertifyConfig(eps=eps, methods=["complete"], options={"time_limit": limit})
        return certkd.certify(network, (x, torch.zeros_like(labels)), config)["complete"]

    return {"match": matched, "merged": merged}


def tally(rows: MethodRows) -> tuple[int, int, int]:
    """Count proved, refuted and open samples; for the merged network an image that is misclassified refutes."""
    status = rows["status"]
    refuted = (status == Status.FALSIFIED) | (status == Status.MISCLASSIFIED)
    proved = status == Status.CERTIFIED
    return int(proved.sum()), int(refuted.sum()), int((~proved & ~refuted).sum())


def main() -> None:
    """Print a line for each pair."""
    given = argparse.ArgumentParser(description=__doc__)
    given.add_argument("--samples", type=int, default=24)
    given.add_argument("--eps", default="0.05")
    given.add_argument("--time-limit", type=float, default=10.0)
    given.add_argument("--runs", type=int, default=3)
    arguments = given.parse_args()
    torch.set_num_threads(1)
    test = sources.load(DataConfig(name="digits")).splits["test"]
    x, labels = test.images[: arguments.samples], test.labels[: arguments.samples]
    print(
        f"{machine()}\n\nclose on digits, linf {arguments.eps}, {len(x)} samples, {arguments.time_limit:g} s a sample\n"
    )
    print("| pair | tolerance | match: proved, refuted, open | merged: the same | CPU s match | CPU s merged | ratio |")
    print("| --- | --: | --- | --- | --: | --: | --: |")
    for pair in pairs():
        spent: dict[str, list[float]] = {"match": [], "merged": []}
        found = {}
        for _ in range(arguments.runs):
            for name, way in ways(pair, x, labels, arguments.eps, arguments.time_limit).items():
                started = time.process_time()
                found[name] = tally(way())
                spent[name].append(time.process_time() - started)
        ours, theirs = (statistics.median(spent[name]) for name in ("match", "merged"))
        ratio = statistics.median(a / b for a, b in zip(spent["merged"], spent["match"], strict=True))
        counts = [", ".join(map(str, found[name])) for name in ("match", "merged")]
        cells = [pair.name, f"{pair.tolerance:g}", *counts, f"{ours:.1f}", f"{theirs:.1f}", f"{ratio:.2f}"]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
