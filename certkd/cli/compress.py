"""``certkd compress``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.networks import loader, named_data, network
from certkd.cli.options import Value, data_places, network_options, overwrite_option
from certkd.cli.output import Command
from certkd.cli.places import new_file
from verifiers.core.errors import InputError, did_you_mean, quoted
from verifiers.core.table import counted, percent

if TYPE_CHECKING:
    from certkd.cli.networks import Load
    from certkd.config.copies import Compression, Int8
    from certkd.networks.checkpoint import Checkpoint

#: The options that are settings of one way to compress.
_SETTINGS = ("share", "what", "form", "ranks", "format", "scales", "images")
_CHECKPOINTS = (".pt", ".pth", ".safetensors")


@click.command(cls=Command)
@click.argument("model", metavar="NETWORK")
@click.option("--how", required=True, metavar="KIND", help="prune, low-rank or int8.")
@click.option("--out", required=True, metavar="FILE", help="The copy: a checkpoint; for int8 an .onnx file.")
@click.option("--share", type=Value(), metavar="S", help="prune: of the weights or channels, like 0.8.  [default: 0.5]")
@click.option("--what", help="prune: weights, which become 0, or channels, which are removed.  [default: weights]")
@click.option("--form", help="low-rank: of convolutions, tucker, cp or tt.  [default: tucker]")
@click.option("--ranks", metavar="RULE", help="low-rank: 2x fewer weights, energy=0.95, or vbmf.  [default: 2x]")
@click.option("--format", help="int8: of the file, qdq or qoperator.  [default: qdq]")
@click.option("--scales", help="int8: of the weights, per-channel or per-tensor.  [default: per-channel]")
@click.option("--images", type=Value(), metavar="N", help="int8: training images that set the ranges.  [default: 256]")
@click.option("--data", metavar="NAME", help="Data set.  [default: the checkpoint's own]")
@network_options
@data_places
@overwrite_option
def compress(model: str, how: str, out: str, **options: Any) -> int:
    """Make a compressed copy of a network: pruned, low-rank or int8.

    NETWORK is a checkpoint. A pruned or low-rank copy is one too: it is trained further, certified, exported and
    matched like any other, and says what it is a copy of. Linear layers and convolutions are compressed: by setting
    weights to 0, by removing channels, or by products of smaller layers (linear layers by the SVD, convolutions by
    Tucker's decomposition, CP or tensor trains). An int8 copy is an ONNX file, which is certified as it runs.
    """
    from certkd.config.copies import Int8
    from certkd.networks import checkpoint
    from certkd.networks.copies.compress import compressed
    from certkd.networks.copies.facts import Copied
    from certkd.report.console import display, record
    from certkd.report.tables import sizes

    settings = _settings(how, options)
    if Path(out).exists() and Path(model).exists() and Path(out).samefile(model):
        raise InputError(f"--out {out} is the network itself: give the copy another name")
    endings = (".onnx",) if isinstance(settings, Int8) else _CHECKPOINTS
    place, load = new_file(out, endings, overwrite=options["overwrite"]), loader()
    original = network(model, {**options, "kinds": {model.endswith(".onnx")}}, load)
    if isinstance(settings, Int8):
        return _quantised(original, settings, place, (options, load))
    copy = compressed(original, settings)
    checkpoint.save(copy, place)
    about = Copied.parse(copy.copied)
    for line in copy.remarks:
        display(line)
    display(sizes({Path(model).name: (about.original, Path(model)), place.name: (about.facts, place)}))
    record(copy=str(place), bytes=place.stat().st_size, **dict(copy.copied))
    return 0


def _quantised(original: "Checkpoint", settings: "Int8", place: Path, given: tuple[dict[str, Any], "Load"]) -> int:
    """Write an int8 copy, with the ranges of training images, and say how it answers them."""
    from certkd.copying import calibration_images
    from certkd.networks import resolve as networks
    from certkd.networks.copies.compress import check_compressible
    from certkd.networks.copies.int8 import agreement, quantise
    from certkd.report.console import display, record

    options, load = given
    check_compressible(original.model)
    wanted = networks.data_of(original, named_data(options))
    images = calibration_images(original, load(wanted), settings)
    quantise(original, settings, images, place)
    same = agreement(original, place, images)
    display(
        f"{place}: int8 ({settings.format}, {settings.scales}), {place.stat().st_size:,} bytes; it gives the "
        f"original's class for {percent(same)} of {counted(len(images), 'training image')}"
    )
    record(copy=str(place), bytes=place.stat().st_size, of=original.sha256, same_class=same)
    return 0


def _settings(how: str, options: dict[str, Any]) -> "Compression":
    """Build the settings of one way to compress from the options that were given.

    Raises:
        InputError: there is no such way, or an option belongs to another one or is no setting.
    """
    from certkd.config.copies import COMPRESSIONS

    kinds = {str(kind.model_fields["kind"].default): kind for kind in COMPRESSIONS}
    if how not in kinds:
        raise InputError(f"--how {quoted(how)} is unknown.{did_you_mean(how, list(kinds))}")
    given = {name: options.pop(name) for name in _SETTINGS}
    given = {name: value for name, value in given.items() if value is not None}
    idle = next((name for name in given if name not in kinds[how].model_fields), None)
    if idle is not None:
        raise InputError(f"--{idle} {quoted(given[idle])} is no setting of {how}: drop it")
    return kinds[how].parse(given, source=f"--how {how}")  # type: ignore[return-value] # one of those
