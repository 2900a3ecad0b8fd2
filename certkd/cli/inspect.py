"""``certkd inspect``."""

from typing import TYPE_CHECKING

import click

from certkd.cli.options import EpsilonType, Whole
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon

if TYPE_CHECKING:
    from certkd.networks.builders import Classifier


@click.command()
@click.argument("network")
@click.option("--eps", default="1/255", show_default=True, type=EpsilonType(), help="Radius of the estimates.")
@click.option("--norm", default="linf", show_default=True, help="linf, l2 or l1.")
@click.option("--shape", default="3,224,224", show_default=True, help="Image shape of a network without a checkpoint.")
@click.option("--classes", type=Whole(2), default=1000, show_default=True, help="Its number of classes.")
@click.option("--arch", metavar="FILE.py:CLASS", help="The class of a checkpoint that was trained from it; it is run.")
def inspect(network: str, eps: Epsilon, norm: str, shape: str, classes: int, arch: str | None) -> int:
    """Report which methods take a network, and their cost.

    The report lists both engines, what they refuse and why, and the cost of a sample. NETWORK is a checkpoint, an
    .onnx file, or source:name[,key=value] such as timm:vit_tiny_patch16_224 or your own file.py:Class, then with random
    weights.
    """
    import torch

    from certkd.report import tables
    from certkd.report.console import display
    from verifiers.certify.inspect import preflight
    from verifiers.core.quantities import parse_norm
    from verifiers.runtime.modes import trusted_arithmetic

    model = _model(network, shape, classes, arch)
    images = torch.rand(2, *model.spec.shape, generator=torch.Generator().manual_seed(0))
    with trusted_arithmetic():
        found = preflight(model, images, eps.value, norm=parse_norm(norm))
    display(*tables.inspection(found, eps.text, norm))
    return 0 if found.costs or None in found.engines.values() else 1


def _model(network: str, shape: str, classes: int, arch: str | None) -> "Classifier":
    from certkd.networks import resolve as networks

    if networks.is_path(network) or ":" not in network:
        return networks.load(network, architecture=arch).model.eval()
    try:
        sizes = tuple(int(part) for part in shape.split(","))
    except ValueError:
        raise InputError(f"--shape {shape!r} must be whole numbers like 3,224,224") from None
    if min(sizes) < 1:
        raise InputError(f"--shape {shape!r} must be positive numbers like 3,224,224")
    return networks.randomly_initialised(network, classes, sizes)
