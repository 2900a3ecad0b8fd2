"""Published networks and verdicts: which stage decides which instance, in what time; and published certified shares.

Needs a folder with nets.csv (net, file, dataset, mean, std), instances.csv (net, image_index, label, eps, truth) and
the ONNX files, and MNIST and CIFAR-10 in CERTKD_DATA. An instance whose truth is a counterexample must never be
certified: the script fails then.

    uv run python bench/reference_instances.py FOLDER [--nets resnet_2b,...] [--time-limit 60] [--shares]
"""

import argparse
import csv
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from timing import machine
from torch import nn

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.data.splits import Split
from certkd.networks.resolve import FileFormat
from certkd.networks.resolve import load as load_network
from verifiers.bound_propagation.native.engine import Native
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.core.status import Status
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.methods.complete import Complete
from verifiers.results.summaries.complete import Stage

ENGINES = ("native", "auto-lirpa")


class Wide(nn.Module):
    """The network on images moved from [-0.5, 1.5] to [0, 1]: no ball of radius 0.5 around a pixel is clipped."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(2 * x - 0.5)


def network_of(row: dict[str, str], folder: Path) -> tuple[nn.Module, Split]:
    """A network with its normalisation, and its test images."""
    known = data.load(DataConfig(name=row["dataset"]))
    mean, std = (tuple(map(float, row[key].split())) for key in ("mean", "std"))
    model = load_network(str(folder / row["file"]), data=known, form=FileFormat(mean=mean, std=std)).model
    return model.eval(), known.splits["test"]


def decided(
    row: dict[str, str], listed: Sequence[dict[str, str]], folder: Path, engine: str, limit: float
) -> list[str]:
    """One line: how many instances each stage decided and its seconds per instance that it was asked."""
    model, test = network_of(row, folder)
    rows = torch.tensor([int(one["image_index"]) for one in listed])
    truth = np.array([one["truth"] for one in listed])
    chosen = test.take(rows)
    (eps,) = {one["eps"] for one in listed}
    config = CertifyConfig(eps=eps, methods=(Complete(engine=engine, time_limit=limit),))
    found = certify(model, (chosen.images, chosen.labels), config)["complete"]
    wrong = (found["status"] == Status.CERTIFIED) & (truth == "falsified")
    assert not wrong.any(), f"{row['net']}: certified, but a counterexample is known: {rows[wrong].tolist()}"
    assert not ((found["status"] == Status.FALSIFIED) & (truth == "verified")).any(), "falsified, but it was proved"
    cells = []
    asked = np.isin(found["stage"], list(Stage))
    for stage in Stage:
        here = (found["stage"] == stage) & np.isin(found["status"], (Status.CERTIFIED, Status.FALSIFIED))
        seconds = found[stage.column][asked].mean() if asked.any() else float("nan")
        cells.append(f"{int(here.sum())} ({seconds:.2f})" if asked.any() else "")
        asked &= found["stage"] != stage
    counts = [int((truth == kind).sum()) for kind in ("verified", "falsified")]
    open_ = int((~np.isin(found["status"], (Status.CERTIFIED, Status.FALSIFIED))).sum())
    reason = "" if not found.count(Status.UNSUPPORTED) else str(found.attributes.get("reason", ""))[:60]
    return [row["net"], engine, eps, *map(str, counts), *cells, str(open_), reason]


def share(model: nn.Module, samples: Split, eps: float, batch: int = 50) -> tuple[float, float, float]:
    """Clean accuracy, share that CROWN certifies at eps, and seconds a correct sample; in float32."""
    engine = Native(model, samples.images[torch.arange(2)], arithmetic=Arithmetic.FLOAT32)
    correct = certified = 0
    started = time.perf_counter()
    for rows in torch.arange(len(samples)).split(batch):
        x, labels = samples.images[rows], samples.labels[rows]
        with torch.no_grad():
            logits = model(x)
        right = logits.argmax(1) == labels
        x, logits = x[right], logits[right]
        if len(x):
            question = margin_specification(logits.argmax(1), logits.shape[1], torch.float64)
            radius = torch.full((len(x),), eps, dtype=torch.float64)
            bound = engine.ask(Balls(x, radius, Norm.LINF), question, "crown").bound
            certified += int((bound.amin(1) > 0).sum())
        correct += int(right.sum())
    return correct / len(samples), certified / len(samples), (time.perf_counter() - started) / max(correct, 1)


def shares(nets: dict[str, dict[str, str]], folder: Path) -> None:
    """Certified shares beside the published ones."""
    print("| network | eps | images | clean | CROWN certifies | published | s/image |\n|---|---|--:|--:|--:|---|--:|")
    for net, text, eps, count, published in (
        ("resnet_2b", "1/255", 1 / 255, 1000, "57.16 % of all 10,000"),
        ("resnet_2b", "2/255", 2 / 255, 1000, "26.88 % of all 10,000"),
        ("wk_mnist", "0.1, ball not clipped", 0.1, 10_000, "94.18 % (error 5.82 %)"),
    ):
        model, test = network_of(nets[net], folder)
        samples = test.take(torch.arange(count))
        if "clipped" in text:
            moved = (samples.images[torch.arange(count)] + 0.5) / 2
            model, samples, eps = Wide(model).eval(), Split(moved, samples.labels, samples.indices), eps / 2
        clean, certified, seconds = share(model, samples, eps)
        print(f"| {net} | {text} | {count} | {clean:.2%} | {certified:.2%} | {published} | {seconds:.3f} |", flush=True)


def main() -> None:
    """Print the tables."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("folder", type=Path)
    arguments.add_argument("--nets", default="")
    arguments.add_argument("--time-limit", type=float, default=60.0)
    arguments.add_argument("--shares", action="store_true")
    given = arguments.parse_args()
    torch.set_num_threads(1)
    nets = {row["net"]: row for row in csv.DictReader((given.folder / "nets.csv").open())}
    listed = list(csv.DictReader((given.folder / "instances.csv").open()))
    print(machine(), end="\n\n")
    if given.shares:
        shares(nets, given.folder)
        return
    titles = [stage.title for stage in Stage]
    print(f"Decided by each stage (seconds per instance asked), at most {given.time_limit:g} s an instance\n")
    print(f"| network | IBP and CROWN by | eps | verified | falsified | {' | '.join(titles)} | open | |")
    print("|---|---|---|--:|--:|" + "--:|" * (len(titles) + 1) + "---|")
    for net in given.nets.split(",") if given.nets else nets:
        mine = [one for one in listed if one["net"] == net]
        for engine in ENGINES if mine else ():
            print(f"| {' | '.join(decided(nets[net], mine, given.folder, engine, given.time_limit))} |", flush=True)


if __name__ == "__main__":
    main()
