"""``certkd report``."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.options import data_places, label_option, overwrite_option
from certkd.cli.output import Command
from certkd.cli.places import new_file
from verifiers.core.errors import InputError, loading

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from verifiers.results.rows import Certificates


@click.command(cls=Command)
@click.argument("files", nargs=-1, required=True, metavar="EXPERIMENT|FILES...")
@click.option("--out", default="report.html", show_default=True, metavar="FILE", help="The page.")
@label_option
@click.option("--title", default="Certified robustness", show_default=True, help="The page's heading.")
@click.option("--data", metavar="NAME", help="Data set of the pictures.  [default: the files', where certkd knows it]")
@overwrite_option
@data_places
def report(files: tuple[str, ...], out: str, labels: tuple[str, ...], title: str, **options: Any) -> None:
    """Write one HTML page about certificate files: nothing is loaded from outside, so it can be handed to anybody.

    EXPERIMENT is the folder of a 'certkd run'; of FILES the reference's comes first. The page has the answer in a
    sentence, radius curves and scatter plots that answer to the mouse, a table of samples to filter and sort, images
    and counterexamples where the data set is here, what carries over, and how to verify again.
    """
    from certkd.comparison.groups import group
    from certkd.files import write_whole
    from certkd.report.console import display, record
    from certkd.report.page import Page, render
    from verifiers.results.reader import read

    path = new_file(out, (".html", ".htm"), overwrite=options["overwrite"])
    found = {}
    for label, each in group(_files(files), labels).items():
        for number, file in enumerate(each):
            certificates = read(file)
            if not _relates(certificates):
                found[f"{label} {number + 1}" if len(each) > 1 else label] = certificates
    if not found:
        raise InputError(f"{', '.join(files)}: rows of match alone say nothing about a network: give its own file too")
    with loading(" or ".join(files), "a certificate file"):
        images, remark = _images(next(iter(found.values())), options)
        page = render(Page(title, found, images, remark))
    write_whole(path, lambda place: place.write_text(page, encoding="utf-8"))
    record(page=str(path), bytes=path.stat().st_size)
    display(f"written to {path} ({path.stat().st_size / 1e6:.1f} MB)")


def _relates(certificates: "Certificates") -> bool:
    """Return whether all rows relate two networks, as those of further properties of ``match`` do."""
    from verifiers.methods.registry import RELATIONAL

    return all(rows.name in RELATIONAL for rows in certificates)


def _files(given: tuple[str, ...]) -> list[str]:
    """List the certificate files of an experiment, the teacher's first, or take those that are given."""
    found = []
    for name in given:
        place = Path(name)
        inside = sorted((place / "certificates").glob("*.h5"), key=lambda file: (file.stem != "teacher", file.stem))
        if place.is_dir() and not inside:
            raise InputError(f"{name} holds no certificates/*.h5: give the folder of a 'certkd run', or files")
        found += [str(file) for file in inside] or [name]
    return found


def _images(certificates: "Certificates", options: dict[str, Any]) -> "tuple[Mapping[int, np.ndarray], str]":
    """Read the images of a file's samples by row, or say why there are none.

    A data set that only the file names is read if certkd knows it by name: a path in a stranger's file is not followed.
    """
    from certkd.certification import samples_of
    from certkd.cli.networks import named_data
    from certkd.data.sources import NAMES, load

    name = options["data"] or str(certificates.attributes.get("data", ""))
    if not options["data"] and name not in NAMES:
        return {}, "No images: the data set is not one that certkd knows by name; --data names it."
    try:
        config = named_data({**options, "data": name}).model_copy(
            update={"seed": int(certificates.attributes.get("data_seed", 0))}
        )
        images = samples_of(certificates, load(config))
    except InputError as error:
        if options["data"]:
            raise
        return {}, f"No images: {error}"
    return images, "Images: samples whose certificate changed, and falsified ones, come first."
