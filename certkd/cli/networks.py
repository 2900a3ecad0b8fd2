"""Load the networks that commands name."""

from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from certkd.cli.options import numbers
from verifiers.core.errors import InputError

if TYPE_CHECKING:
    from certkd.config.settings import DataConfig
    from certkd.data.splits import DataSet
    from certkd.networks.checkpoint import Checkpoint

    Load = Callable[[DataConfig], DataSet]


def loader() -> "Load":
    """Load each data set once for all networks of a command, and print how it was read where that could surprise."""
    from certkd.data.sources import load
    from certkd.report.console import stderr

    said = set[str]()

    @cache
    def read(config: "DataConfig") -> "DataSet":
        data = load(config)
        for line in (f"{Path(data.name).name}: {remark}" for remark in data.remarks):
            if line not in said:
                stderr().print(line, soft_wrap=True)
                said.add(line)
        return data

    return read


def named_data(options: dict[str, Any]) -> "DataConfig":
    """The settings of data that a command was given.

    Raises:
        InputError: one of them is not a setting.
    """
    from certkd.config.settings import DataConfig

    given = {
        "name": options["data"],
        "root": options["data_root"],
        "download": options["download"] or None,
        "image_size": options["image_size"],
    }
    return DataConfig(**{name: value for name, value in given.items() if value is not None})


def teacher_of(name: str, options: dict[str, Any], load: "Load") -> "Checkpoint":
    """Load a teacher by its name: with its own architecture, or with the student's if its file needs one.

    Raises:
        InputError: as ``resolve.load``.
    """
    from certkd.networks import resolve as networks

    given = options.get("teacher_arch")
    if given is None and options["arch"] is not None and networks.describes_itself(name):
        return network(name, {**options, "arch": None, "mean": None, "std": None, "weights_key": None}, load)
    return network(name, {**options, "arch": given or options["arch"], "weights_key": None}, load)


def network(name: str, options: dict[str, Any], load: "Load") -> "Checkpoint":
    """Load a network by its name, and print how its file was read where that could surprise.

    Where a command names networks of two kinds (checkpoint, ONNX), each gets the options of its own kind alone.

    Raises:
        InputError: as ``resolve.load``.
    """
    from certkd.networks import resolve as networks
    from certkd.networks.builders import check_present

    if networks.is_fetched(name) and not options["download"]:
        raise InputError(f"{name} is described and fetched from a network: add --download to allow that")
    if options["data"] and not options["download"] and not networks.is_path(name):
        check_present(name)
    onnx = name.endswith(".onnx")
    wanted = named_data(options) if options["data"] else None
    mixed = len(options["kinds"]) > 1
    normalised = not mixed or onnx or options["arch"] is not None
    architecture = None if mixed and onnx else options["arch"]
    form = networks.FileFormat(
        mean=numbers(options["mean"], "--mean") if normalised else (),
        std=numbers(options["std"], "--std") if normalised else (),
        layout=None if mixed and not onnx else options["layout"],
        output=None if mixed and not onnx and options["arch"] is None else options["output"],
        weights_key=options.get("weights_key"),
    )
    networks.check_units(form.mean, form.std)  # before data are loaded
    networks.check_names(name, architecture)
    free = wanted is not None and wanted.in_folders and options["image_size"] is None
    if free and architecture is not None:
        wanted = named_data({**options, "image_size": networks.image_size(architecture)})
    elif free:
        with suppress(InputError):  # the images can have any size: the network decides, if it can
            known = networks.load(name, form=form)
            if len(known.model.spec.shape) == 3:
                return _said(known, name)
    data = None if wanted is None else load(wanted)
    return _said(networks.load(name, architecture=architecture, data=data, form=form), name)


def check_network(name: str) -> None:
    """Check a network's file, before anything large is loaded.

    Raises:
        InputError: it is missing, empty, a folder, or another kind of file.
    """
    from certkd.files import sniff
    from certkd.networks import resolve as networks

    if networks.is_path(name) or Path(name).is_dir():
        sniff(Path(name), "ONNX file" if name.endswith(".onnx") else "checkpoint")


def _said(known: "Checkpoint", name: str) -> "Checkpoint":
    """Print how a network was read where that could surprise."""
    from certkd.report.console import stderr

    for remark in known.remarks:
        stderr().print(f"{Path(name).name}: {remark}", soft_wrap=True)
    return known
