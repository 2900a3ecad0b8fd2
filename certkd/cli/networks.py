"""Load the networks that commands name."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from certkd.cli.options import numbers

if TYPE_CHECKING:
    from certkd.config.settings import DataConfig
    from certkd.data.splits import DataSet
    from certkd.networks.checkpoint import Checkpoint

    Load = Callable[[DataConfig], DataSet]


def network(name: str, options: dict[str, Any], load: "Load") -> "Checkpoint":
    """Load a network by its name.

    Where a command names networks of two kinds (checkpoint, ONNX), each gets the options of its own kind alone.

    Raises:
        InputError: as ``resolve.load``.
    """
    from certkd.config.settings import DataConfig
    from certkd.networks import resolve as networks
    from verifiers.core.errors import InputError

    if networks.is_fetched(name) and not options["download"]:
        raise InputError(f"{name} is described and fetched from a network: add --download to allow that")
    data, onnx = options["data"], name.endswith(".onnx")
    wanted = DataConfig(name=data, root=options["data_root"], download=options["download"]) if data else None
    mixed = len(options["kinds"]) > 1
    normalised = not mixed or onnx or options["arch"] is not None
    return networks.load(
        name,
        architecture=None if mixed and onnx else options["arch"],
        data=None if wanted is None else load(wanted),
        mean=numbers(options["mean"], "--mean") if normalised else (),
        std=numbers(options["std"], "--std") if normalised else (),
        layout=None if mixed and not onnx else options["layout"],
    )
