"""``certkd export``."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.certify import network
from certkd.cli.options import EpsilonType, data_places
from verifiers.errors import InputError
from verifiers.quantities import Epsilon

if TYPE_CHECKING:
    from certkd.checkpoint import Checkpoint


@click.command()
@click.option("--model", required=True, metavar="NETWORK", help="Checkpoint, .onnx, or source:name.")
@click.option("--out", required=True, metavar="DIR", help="Folder for NAME.onnx, vnnlib/ and instances.csv.")
@click.option("--eps", type=EpsilonType(), help="Write properties for linf balls of this radius too, like 2/255.")
@click.option("--data", metavar="NAME", help="Data set.  [default: the checkpoint's own]")
@click.option("--split", default="test", show_default=True, help="train, validation or test.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many samples.")
@click.option("--timeout", type=click.IntRange(min=1), default=300, show_default=True, help="Seconds per property.")
@click.option("--arch", metavar="NAME[,KEY=VALUE]", help="What bare weights belong to: certkd:resnet,depth=20")
@click.option("--mean", metavar="M,...", help="Normalisation that bare weights or an .onnx file expect.")
@click.option("--std", metavar="S,...", help="Normalisation that bare weights or an .onnx file expect.")
@click.option("--layout", help="How an .onnx file arranges images: nchw, nhwc or flat.  [default: nchw]")
@data_places
def export(model: str, out: str, eps: Epsilon | None, **options: Any) -> int:
    """Write a network, and questions about its robustness, for other tools.

    NAME.onnx takes any number of images in [0, 1]: normalisation is inside. With --eps there is one VNN-LIB property
    for every sample that is classified right, and instances.csv lists them as VNN-COMP does.
    """
    from certkd import data
    from certkd.exchange.onnx_export import export as export_network
    from certkd.networks import is_path
    from certkd.report.console import stderr, stdout

    if eps is None and options["limit"] is not None:
        raise InputError(f"--limit {options['limit']} chooses samples of properties: add --eps")
    options["kinds"], load = {model.endswith(".onnx")}, cache(data.load)
    known = network(model, options, load)
    file = Path(out) / f"{Path(model).stem if is_path(model) else model.replace(':', '-')}.onnx"
    if is_path(model) and file.exists() and file.samefile(model):
        raise InputError(f"--out {out} would overwrite {model}: give another folder")
    properties = None if eps is None else _samples(known, options, load)
    refusal = export_network(known.model, file)
    console = stdout()
    console.print(
        f"{file}: images {known.model.spec.shape} in [0, 1], {known.model.spec.classes} logits", soft_wrap=True
    )
    if refusal is not None:
        stderr().print(f"warning: certkd itself does not read it back: {refusal}")
    if eps is not None and properties is not None:
        _write_properties(known, *properties, file, eps, options["timeout"])
    return 0


def _samples(known: "Checkpoint", options: dict[str, Any], load: Any) -> tuple[Any, str]:
    """The samples to ask about, and the name of where they are from."""
    from certkd import networks
    from certkd.certification import chosen_samples
    from certkd.selection import Selection

    config = networks.data_of(known, options["data"], options["data_root"], options["download"])
    samples = chosen_samples(known, load(config), options["split"], Selection(limit=options["limit"]))
    return samples, f"{Path(config.name).stem}_{options['split']}"


def _write_properties(known: "Checkpoint", samples: Any, name: str, file: Path, eps: Epsilon, timeout: int) -> None:
    from certkd.exchange.instances import write_instances
    from certkd.report.console import stderr, stdout

    made = write_instances(known.model, samples, file.parent, network=file.name, name=name, eps=eps, timeout=timeout)
    stdout().print(f"{file.parent / 'instances.csv'}: {len(made.properties)} properties, eps {eps}", soft_wrap=True)
    if made.misclassified:
        few = ", ".join(map(str, made.misclassified[:10])) + (", ..." if len(made.misclassified) > 10 else "")
        stderr().print(f"left out, misclassified: {len(made.misclassified)} of {len(samples)} samples ({few})")
