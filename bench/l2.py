"""Certified l2 radii: CROWN, the Lipschitz bounds and sdp-crown, between nothing and the nearest counterexample found.

For each network, over the first images that it classifies correctly: mean certified radius by each method, its ratio
to CROWN's, the mean distance of the nearest counterexample that PGD finds by bisection (no radius can be larger), the
share of the gap between CROWN and PGD that each method closes, and the CPU seconds per sample.

The digits networks are those of artifacts/reference. Others come from a folder of ONNX files with nets.csv, as in
reference_instances.py.

    uv run python bench/l2.py [--nets kdiga,standard,teacher] [--folder FOLDER] [--samples 50] [--iterations 30]
"""

import argparse
import csv
import time
from pathlib import Path

import torch
from reference_instances import network_of
from torch import Tensor, nn

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.networks import checkpoint
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.quantities import Norm
from verifiers.geometry.attack import Attack
from verifiers.methods.base import Method
from verifiers.methods.crown import Crown, SdpCrown
from verifiers.methods.lipschitz import Lipschitz

DIGITS = "artifacts/reference/digits"
#: Bisection steps of the attack, and the largest distance tried.
BISECTIONS, FARTHEST = 9, 4.0


def known(name: str, folder: Path | None) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with its test images and labels."""
    path = Path(DIGITS) / f"{name}.pt"
    if path.is_file():
        test = data.load(DataConfig(name="digits")).splits["test"]
        model: nn.Module = checkpoint.load(path).model
    else:
        assert folder is not None, f"{name} is no digits network: give a folder"
        with (folder / "nets.csv").open() as file:
            row = next(row for row in csv.DictReader(file) if row["net"] == name)
        model, test = network_of(row, folder)
    return model.eval(), test.images, test.labels


def nearest(model: nn.Module, x: Tensor, predicted: Tensor) -> Tensor:
    """The distance of the nearest counterexample that PGD finds for each image, by bisection over the radius."""
    found = torch.full((len(x),), FARTHEST)
    for i in range(len(x)):
        low, high = 0.0, FARTHEST
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            attack = Attack(middle, Norm.L2, 0, 40, 2)(model, x[i : i + 1], predicted[i : i + 1], [i])
            low, high = (low, min(middle, float(attack.distance))) if bool(attack.broken) else (middle, high)
        found[i] = high
    return found


def table(name: str, model: nn.Module, x: Tensor, y: Tensor, iterations: int) -> None:
    """The lines of one network."""
    with torch.no_grad():
        predicted = model(x).argmax(1)
    x, y = x[predicted == y], y[predicted == y]
    attacked = float(nearest(model, x, y).mean())
    methods: tuple[Method, ...] = (
        Crown(cross_check=0),
        Lipschitz(),
        SdpCrown(cross_check=0, iterations=iterations),
    )
    crown = 0.0
    for method in methods:
        started = time.process_time()
        config = CertifyConfig(eps=0.2, norm="l2", methods=(method,))
        radius = float(certify(model, (x, y), config)[method.kind]["radius"].mean())
        seconds = (time.process_time() - started) / len(x)
        crown = crown or radius
        closed = (radius - crown) / (attacked - crown)
        print(
            f"  {name:14} {method.kind:10} mean radius {radius:.4f} = {radius / crown:.3f} of CROWN's; "
            f"{closed:.0%} of the gap to PGD's {attacked:.4f} closed; {seconds:.2f} s a sample",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="kdiga,standard,teacher")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--samples", type=int, default=50)
    parser.add_argument("--iterations", type=int, default=30)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name in options.nets.split(","):
        model, images, labels = known(name, options.folder)
        rows = torch.arange(options.samples)
        table(name, model, images[rows], labels[rows], options.iterations)


if __name__ == "__main__":
    main()
