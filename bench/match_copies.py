"""Copies of published networks: what ``match`` decides of every property, and what their differences add to bounds.

Needs the folder of bench/reference_instances.py, and MNIST and CIFAR-10 in CERTKD_DATA. The tolerance of ``close`` and
``not-worse`` is twice the largest difference of two logits at the images, so that no image refutes alone. Limits and
times are CPU seconds. Bounds of the difference of two logits count row by row: the better of both graphs, which the
script compares with the joint graph's alone. It fails where a row is looser.

    uv run python bench/match_copies.py FOLDER [--nets resnet_2b] [--samples 10] [--time-limit 10]
"""

import argparse
import csv
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from changed_copies import pruned, rounded, tuned
from reference_instances import network_of
from timing import machine
from torch import Tensor, nn

import certkd
from certkd.config.settings import DataConfig
from certkd.data import sources
from verifiers.bound_propagation.joint import JointEngine
from verifiers.core.memory import reuse_memory
from verifiers.core.quantities import Arithmetic, Epsilon, Norm
from verifiers.core.relation import TOLERANT, Property
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls

#: The networks, with the radius they are asked at.
NETS = {"mnist_cnn_a_adv": "0.02", "resnet_2b": "1/255"}


def copies(network: nn.Module, dataset: str) -> Iterator[tuple[str, nn.Module]]:
    """Make the copies of a network."""
    for share in (0.05, 0.1, 0.3):
        yield f"pruned by {share:.0%}", pruned(network, share)
    yield "8-bit weights", rounded(network)
    yield "fine-tuned", tuned(network, sources.load(DataConfig(name=dataset)).splits["train"])


def tighter(engine: JointEngine, x: Tensor, eps: str) -> tuple[int, int, float]:
    """Compare bounds of logits' differences: rows that the coupled graph improves, all rows, and by how much."""
    classes = engine.joint.graph.classes // 2
    eye = torch.eye(classes, dtype=torch.float64)
    rows = torch.cat([torch.cat([eye, -eye], 1), torch.cat([-eye, eye], 1)]).expand(len(x), -1, -1)
    balls = Balls.around(x, Epsilon.parse(eps).value, Norm.LINF)
    alone, both = engine.joint.ask(balls, rows, "crown").bound, engine.ask(balls, rows, "crown").bound
    assert (both >= alone).all(), "a row is looser than the joint graph's"
    return int((both > alone).sum()), both.numel(), float((alone / both).median())


def decided(
    student: nn.Module, teacher: nn.Module, samples: tuple[Tensor, Tensor], eps: str, limit: float
) -> list[str]:
    """Return the tolerance, and a cell a property: proved, refuted, open, and CPU seconds a sample."""
    x = samples[0]
    with torch.no_grad():
        apart = 2 * float((student(x) - teacher(x)).abs().max())
    cells = [f"{apart:.2g}"]
    for kind in Property:
        options = {"property": str(kind), "time_limit": limit}
        if kind in TOLERANT:
            options["tolerance"] = float(f"{apart:.2g}")
        config = certkd.CertifyConfig(eps=eps, methods=["match"], options=options)
        started = time.process_time()
        rows = certkd.certify(student, samples, config, teacher=teacher)["match"]
        spent = (time.process_time() - started) / len(x)
        ends = rows.count(Status.CERTIFIED), rows.count(Status.FALSIFIED)
        cells.append(f"{ends[0]}, {ends[1]}, {len(x) - sum(ends)} ({spent:.2f})")
    return cells


def main() -> None:
    """Print a line for each copy."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--nets", default=",".join(NETS))
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--time-limit", type=float, default=10.0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    reuse_memory()  # as the commands do
    time.monotonic = time.process_time  # the limits of searches are in CPU seconds too
    listed = {row["net"]: row for row in csv.DictReader((given.folder / "nets.csv").open())}
    print(f"{machine()}\n\n{given.samples} images, {given.time_limit:g} s each: proved, refuted, open (s a sample)\n")
    print(f"| network, eps | copy | tolerance | {' | '.join(Property)} | rows tighter | joint / both |")
    print(f"| --- | --- | --: |{' --- |' * len(Property)} --: | --: |")
    for name in given.nets.split(","):
        teacher, test = network_of(listed[name], given.folder)
        samples = test.batch(torch.arange(given.samples), torch.device("cpu"))
        for kind, student in copies(teacher, listed[name]["dataset"]):
            engine = JointEngine(student, teacher, samples[0][:2], Arithmetic.FLOAT32)
            better, rows, factor = tighter(engine, samples[0], NETS[name])
            cells = decided(student, teacher, samples, NETS[name], given.time_limit)
            line = [f"{name}, {NETS[name]}", kind, *cells, f"{better} of {rows}", f"{factor:.1f}"]
            print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
