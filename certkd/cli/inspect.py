"""``certkd inspect``."""

from typing import TYPE_CHECKING, Any

import click

from certkd.cli.networks import loader, named_data
from certkd.cli.networks import network as load_network
from certkd.cli.options import EpsilonType, Whole, data_places, network_options
from certkd.cli.output import Command
from verifiers.core.errors import InputError
from verifiers.core.quantities import Epsilon

if TYPE_CHECKING:
    from certkd.networks.builders import Classifier


@click.command(cls=Command)
@click.argument("network")
@click.option("--eps", default="1/255", show_default=True, type=EpsilonType(), help="Radius of the estimates.")
@click.option("--norm", default="linf", show_default=True, help="linf, l2 or l1.")
@click.option("--data", metavar="NAME", help="Data set that gives shape and classes, where the file does not.")
@click.option("--shape", metavar="C,H,W", help="Image shape of source:name.  [default: the data's, or 3,224,224]")
@click.option("--classes", type=Whole(2), help="Its number of classes.  [default: the data's, or 1000]")
@network_options
@data_places
def inspect(network: str, eps: Epsilon, norm: str, shape: str | None, classes: int | None, **options: Any) -> int:
    """Report which methods take a network, and their cost.

    The report lists both engines, what they refuse and why, and the cost of a sample. NETWORK is a checkpoint, an
    .onnx file, bare weights with --arch and --data, or source:name[,key=value] such as timm:vit_tiny_patch16_224 or
    your own file.py:Class, then with random weights.
    """
    import torch

    from certkd.report import tables
    from certkd.report.console import display
    from verifiers.certify.inspect import preflight
    from verifiers.core.quantities import parse_norm
    from verifiers.runtime.modes import trusted_arithmetic

    model = _model(network, shape, classes, options)
    images = torch.rand(2, *model.spec.shape, generator=torch.Generator().manual_seed(0))
    with trusted_arithmetic():
        found = preflight(model, images, eps.value, norm=parse_norm(norm))
    display(*tables.inspection(found, eps.text, norm))
    return 0 if found.costs or None in found.engines.values() else 1


def _model(network: str, shape: str | None, classes: int | None, options: dict[str, Any]) -> "Classifier":
    from certkd.networks import resolve as networks

    load = loader()
    if networks.is_path(network) or ":" not in network:
        if shape is not None or classes is not None:
            given = f"--shape {shape}" if shape is not None else f"--classes {classes}"
            raise InputError(f"{given} is for source:name: {network} says that itself, or with --data; drop it")
        return load_network(network, {**options, "kinds": {network.endswith(".onnx")}}, load).model.eval()
    if options["arch"] is not None:
        raise InputError(f"{network} names its own network: drop --arch")
    data = None if options["data"] is None else load(named_data(options))
    sizes = _sizes(shape) if shape else (3, 224, 224) if data is None else data.shape
    return networks.randomly_initialised(network, classes or (1000 if data is None else data.classes), sizes)


def _sizes(shape: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in shape.split(","))
    except ValueError:
        raise InputError(f"--shape {shape!r} must be whole numbers like 3,224,224") from None
    if min(sizes) < 1:
        raise InputError(f"--shape {shape!r} must be positive numbers like 3,224,224")
    return sizes
