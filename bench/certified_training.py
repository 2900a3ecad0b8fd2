"""Cost of differentiable bounds for certified training: native against auto-LiRPA, forward and backward, alternated.

The ratio is the median of those of successive runs; memory is reused, as in ``certkd train``.

uv run python bench/certified_training.py [--runs 11] [--batch 128]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from certkd.networks.builders.small import mlp
from verifiers.bound_propagation.auto_lirpa import training as auto_lirpa
from verifiers.bound_propagation.native import training as native
from verifiers.core.memory import reuse_memory


def _digits_cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 10))


def _mnist_cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 4, stride=2, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 4, stride=2, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(1568, 100), nn.ReLU(), nn.Linear(100, 10))


def _batch_norm_cnn() -> nn.Module:
    layers = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.AvgPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "digits MLP": (lambda: mlp((1, 8, 8), 10, hidden=(64, 64)), (1, 8, 8)),
    "digits CNN": (_digits_cnn, (1, 8, 8)),
    "batch-norm CNN": (_batch_norm_cnn, (1, 8, 8)),
    "MNIST CNN": (_mnist_cnn, (1, 28, 28)),
}


def halves(model: nn.Module, box: native.Box, y: Tensor) -> Tensor:
    """Half of CROWN-IBP's bounds and half of IBP's, one after the other."""
    return (auto_lirpa.lower_margins(model, box, y, "crown-ibp") + auto_lirpa.lower_margins(model, box, y, "ibp")) / 2


def blended(model: nn.Module, box: native.Box, y: Tensor) -> Tensor:
    """The same, over one set of intervals."""
    return native.blended_margins(model, box, y, 0.5)


def timed(bound: Callable[..., Tensor], model: nn.Module, *given: object) -> tuple[float, Tensor]:
    """CPU seconds of one bound with its gradient, and the bound."""
    model.zero_grad()
    started = time.process_time()
    found = bound(model, *given)
    torch.logsumexp(-found, 1).mean().backward()
    return time.process_time() - started, found.detach()


def main() -> None:
    """Print the table."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--runs", type=int, default=11)
    arguments.add_argument("--batch", type=int, default=128)
    chosen = arguments.parse_args()
    reuse_memory()
    print("| network | method | auto-LiRPA, ms | native, ms | native / auto-LiRPA | apart |\n|---|---|--:|--:|--:|--:|")
    for name, (build, shape) in NETWORKS.items():
        torch.manual_seed(0)
        model, x = build().train(), torch.rand(chosen.batch, *shape)
        y = torch.randint(0, 10, (chosen.batch,))
        for method in ("ibp", "crown-ibp", "half of each"):
            given: tuple[object, ...] = (native.ball(x, 0.02), y, method)
            ways = {"auto-LiRPA": auto_lirpa.lower_margins, "native": native.lower_margins}
            if method == "half of each":
                given, ways = (native.ball(x, 0.02), y), {"auto-LiRPA": halves, "native": blended}
            seconds: dict[str, list[float]] = {way: [] for way in ways}
            bounds: dict[str, Tensor] = {}
            for run in range(chosen.runs + 2):
                for way in list(ways)[:: 1 if run % 2 else -1]:
                    spent, bounds[way] = timed(ways[way], model, *given)
                    if run >= 2:
                        seconds[way].append(spent)
            theirs, ours = (1e3 * statistics.median(seconds[way]) for way in ways)
            ratio = statistics.median(a / b for a, b in zip(seconds["native"], seconds["auto-LiRPA"], strict=True))
            apart = float((bounds["native"] - bounds["auto-LiRPA"]).abs().max())
            print(f"| {name} | {method} | {theirs:.1f} | {ours:.1f} | {ratio:.2f} | {apart:.1g} |", flush=True)


if __name__ == "__main__":
    main()
