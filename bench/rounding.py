"""What a proof for float32 costs: mean certified radius by CROWN over that in real arithmetic, and the ratio of times.

The reference checkpoints of the digits, and the published networks of a folder as in ``reference_instances.py``, with
their data in CERTKD_DATA. Radii are searched to a tenth of the usual tolerance. Times are of one evaluation of a batch
at the radius given, by engines that take turns; medians.

    uv run python bench/rounding.py [FOLDER] [--images 12] [--runs 5] [--nets kdiga,wk_mnist]
"""

import argparse
import csv
import statistics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from reference_instances import network_of
from timing import alternate, machine
from torch import Tensor, nn

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.networks.resolve import load as load_network
from verifiers.bound_propagation.native.engine import Native
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.memory import reuse_memory
from verifiers.core.quantities import Arithmetic, Norm
from verifiers.geometry.balls import Balls
from verifiers.geometry.margins import margin_specification
from verifiers.methods.crown import Crown

DIGITS = Path(__file__).parents[1] / "artifacts" / "reference" / "digits"
#: Published networks with the radius of the timed evaluation, in pixel units.
PUBLISHED = {"wk_mnist": 0.1, "mnist_cnn_a_adv": 0.1, "resnet_2b": 1 / 255, "cifar_cnn_a_mix": 2 / 255}


def networks(folder: Path | None, chosen: list[str]) -> Iterator[tuple[str, nn.Module, Tensor, Tensor, float]]:
    """Names, networks, test images, true classes and radii."""
    for name in ("teacher", "kdiga"):
        if not chosen or name in chosen:
            test = data.load(DataConfig(name="digits")).splits["test"]
            yield (
                f"digits {name}",
                load_network(str(DIGITS / f"{name}.pt")).model.eval(),
                test.images,
                test.labels,
                0.05,
            )
    if folder is None:
        return
    with open(folder / "nets.csv", newline="", encoding="utf-8") as file:
        known = {row["net"]: row for row in csv.DictReader(file)}
    for name, eps in PUBLISHED.items():
        if not chosen or name in chosen:
            model, test = network_of(known[name], folder)
            yield name, model, test.images, test.labels, eps


def radii(model: nn.Module, x: Tensor, labels: Tensor, eps: float, arithmetic: Arithmetic) -> tuple[np.ndarray, float]:
    """CROWN's radii, and the mean rounding of a margin."""
    method = Crown(tolerance=5e-4, cross_check=0, engine="native")
    config = CertifyConfig(eps=f"{eps:.12g}", methods=(method,), arithmetic=arithmetic)
    rows = certify(model, (x, labels), config)["crown"]
    return rows["radius"], float(np.nanmean(rows["rounding"]))


def times(model: nn.Module, x: Tensor, eps: float, runs: int) -> float:
    """The median ratio of the times of one evaluation."""
    rows = margin_specification(model(x).argmax(1), model(x).shape[1], torch.float64)
    balls = Balls.around(x.double(), eps, Norm.LINF)
    engines = {a: Native(model, x[:2], arithmetic=a) for a in (Arithmetic.REAL, Arithmetic.FLOAT32)}
    seconds = alternate({a: lambda e=engine: e.ask(balls, rows, "crown") for a, engine in engines.items()}, runs)
    pairs = zip(seconds[Arithmetic.FLOAT32], seconds[Arithmetic.REAL], strict=True)
    return statistics.median(one / other for one, other in pairs)


def main() -> None:
    """Print one line per network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=12)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--nets", default="")
    chosen = parser.parse_args()
    reuse_memory()
    print(f"{machine()}\n")
    print("| network | eps | images | mean radius, float32 / real | worst image | rounding of a margin | time |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, model, images, labels, eps in networks(chosen.folder, [n for n in chosen.nets.split(",") if n]):
        with torch.no_grad():
            rows = (model(images[torch.arange(4 * chosen.images)]).argmax(1) == labels[: 4 * chosen.images]).nonzero()
            rows = rows.flatten()[: chosen.images]
            x, y = images[rows], labels[rows]
            real, rounded = (radii(model, x, y, eps, a) for a in (Arithmetic.REAL, Arithmetic.FLOAT32))
            worst = float((rounded[0] / real[0])[real[0] > 0].min())
            ratio = times(model, x, eps, chosen.runs)
        share = rounded[0].sum() / real[0].sum()
        print(
            f"| {name} | {eps:.4g} | {len(x)} | {share:.4f} | {worst:.3f} | {rounded[1]:.2g} | {ratio:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
