"""Lipschitz bounds: how tight, how fast, and what radius they prove in l2 beside CROWN's.

Networks: the digits reference (its CNN teacher and its MLP students, see artifacts/reference). Three tables:

* all 45 global constants by each method over the steepest gradient that a search over inputs finds (a lower bound of
  the constant, so ratios overstate looseness), and the time;
* local constants of 64 images in one batch against a loop over single images;
* mean certified l2 radius of 100 images over plain CROWN's, and of the larger of the two.

    uv run python bench/lipschitz.py [--nets kdiga,standard,teacher] [--runs 3]
"""

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from timing import alternate
from torch import Tensor, nn

from certkd.config.settings import DataConfig
from certkd.data import sources as data
from certkd.networks import checkpoint
from verifiers.bound_propagation.native.engine import Native
from verifiers.certify.certify import certify
from verifiers.certify.config import CertifyConfig
from verifiers.core.errors import Unsupported
from verifiers.core.quantities import Norm
from verifiers.lipschitz.chains import eclipse_fast, lipsdp
from verifiers.lipschitz.global_bounds import chain_form, liplt_pairs, over_pairs, pair_rows, product
from verifiers.lipschitz.jacobians import jacobian
from verifiers.lipschitz.layers import written_out
from verifiers.lipschitz.local_bounds import bounds_on, local_constants, slope_ranges

FOLDER = "artifacts/reference/digits"


def steepest_found(model: nn.Module, x: Tensor, rounds: int = 600) -> Tensor:
    """The largest gradient norm of each pair of classes that a random search over all inputs finds."""
    generator = torch.Generator().manual_seed(0)
    starts = [x, *(scale * torch.randn((1000, *x.shape[1:]), generator=generator).double() for scale in (0.5, 1, 4))]
    points = torch.cat(starts)
    best, where = _pairs_at(model, points).max(0)
    places, flat = points[where.flatten()], best.flatten()
    pair = torch.arange(len(flat))
    for _ in range(rounds):
        tried = places + torch.randn(places.shape, generator=generator).double() * places.std() * 0.3
        found = _pairs_at(model, tried).flatten(1)[pair, pair]
        better = found > flat
        places[better], flat = tried[better], torch.maximum(found, flat)
    return flat.reshape(best.shape)


def _pairs_at(model: nn.Module, points: Tensor) -> Tensor:
    gradients = torch.cat([jacobian(model, part).flatten(2) for part in points.split(256)])
    return torch.cdist(gradients, gradients)


def global_table(name: str, model: nn.Module, x: Tensor) -> None:
    native = Native(model, x[:2])
    layers = written_out(native.graph)
    chain, rows = chain_form(layers), pair_rows(10, native.graph.like)
    methods: dict[str, Callable[[], Tensor]] = {
        "product": lambda: product(native.graph),
        "LipLT": lambda: liplt_pairs(layers),
        "ECLipsE-Fast": lambda: over_pairs(eclipse_fast(chain, rows), 10),
        "LipSDP-Neuron": lambda: over_pairs(lipsdp(chain, rows), 10),
    }
    found, pairs = steepest_found(native.model, x.double()), torch.triu_indices(10, 10, 1)
    for method, run in methods.items():
        started = time.perf_counter()
        try:
            ratio = (run() / found)[pairs[0], pairs[1]]
        except Unsupported as error:
            print(f"  {name:9} {method:14} {error}")
            continue
        seconds = time.perf_counter() - started
        figures = f"{ratio.min():.3f} {ratio.mean():.3f} {ratio.max():.3f}"
        print(f"  {name:9} {method:14} over the steepest gradient found: min mean max {figures}   {seconds:.2f} s")


def local_table(name: str, model: nn.Module, x: Tensor, runs: int) -> None:
    native = Native(model, x[:2])
    layers = written_out(native.graph)
    x = x[:64].double()
    rows = torch.eye(10, dtype=torch.float64)[None, :1] - torch.eye(10, dtype=torch.float64)[None, 1:]

    def constants(part: Tensor) -> Tensor:
        limits = torch.full((len(part),), 0.2, dtype=torch.float64)
        ranges = slope_ranges(bounds_on(native, part, limits, Norm.L2), layers)
        return local_constants(ranges, rows.expand(len(part), -1, -1), Norm.L2)

    whole, single = constants(x), torch.cat([constants(one) for one in x.split(1)])
    apart = float(((whole - single) / single).abs().max())
    times = alternate({"batch": lambda: constants(x), "loop": lambda: [constants(one) for one in x.split(1)]}, runs)
    batch, loop = (np.median(times[key]) for key in ("batch", "loop"))
    ratio = f"{loop / batch:.1f} times; {apart:.0e} apart"
    print(f"  {name:9} 64 images at once {batch:.3f} s, one by one {loop:.3f} s: {ratio}")


def radius_table(name: str, model: nn.Module, x: Tensor, y: Tensor) -> None:
    config = CertifyConfig(eps=0.2, norm="l2", methods=("crown", "lipschitz"), options={"cross_check": 0})
    found = certify(model, (x[:100], y[:100]), config)
    crown, lipschitz = (found[method]["radius"] for method in ("crown", "lipschitz"))
    seconds = [float(np.nanmean(found[method]["seconds"])) for method in ("crown", "lipschitz")]
    larger = np.maximum(crown, lipschitz).mean() / crown.mean()
    ratio = f"{lipschitz.mean() / crown.mean():.3f}, the larger of both {larger:.3f}"
    costs = f"{seconds[1]:.3f} and {seconds[0]:.3f} s a sample"
    print(f"  {name:9} mean radius {lipschitz.mean():.4f}, CROWN's {crown.mean():.4f}: {ratio}; {costs}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nets", default="kdiga,standard,teacher")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    test = data.load(DataConfig(name="digits")).splits["test"]
    x, y = test.images[torch.arange(len(test))], test.labels
    networks = {name: checkpoint.load(f"{FOLDER}/{name}.pt").model.eval() for name in options.nets.split(",")}
    for title, table in (
        ("Global constants of all 45 pairs, l2", lambda n, m: global_table(n, m, x)),
        ("Local constants at 0.2, l2", lambda n, m: local_table(n, m, x, options.runs)),
        ("Certified l2 radius", lambda n, m: radius_table(n, m, x, y)),
    ):
        print(title)
        for name, model in networks.items():
            table(name, model)


if __name__ == "__main__":
    main()
