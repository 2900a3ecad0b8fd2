"""``certkd figure``."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from certkd.cli.options import label_option, overwrite_option
from certkd.cli.output import Command
from certkd.cli.places import new_file
from verifiers.core.errors import InputError, loading

if TYPE_CHECKING:
    from certkd.report.plots import Caption
    from verifiers.results.rows import Certificates

KINDS = ("curve", "scatter", "distribution", "bracket", "stages", "training")


@click.command(cls=Command)
@click.argument("kind", metavar="KIND", type=click.Choice(KINDS))
@click.argument("files", nargs=-1, required=True)
@click.option("--out", required=True, metavar="FILE", help="The figure: .pdf, .svg or .png.")
@label_option
@overwrite_option
def figure(kind: str, files: tuple[str, ...], out: str, labels: tuple[str, ...], overwrite: bool) -> None:
    """Draw a figure for print from certificate files.

    KIND is one of these. curve: certified accuracy over the radius, with its band; seeds are grouped as in 'certkd
    compare'. scatter: each sample's radius in the second file against the first. distribution: the share of samples
    whose critical eps is at most r, between proof and attack. bracket: per network, from proof to attack at eps.
    stages: what each stage of complete verification decided. training: validation accuracy over the epochs, from
    the log.jsonl of trainings, or their folders.

    Colour-blind readers can tell the colours apart, and each has a line style of its own; fonts are embedded.
    """
    from certkd.comparison.groups import group
    from certkd.report import plots
    from certkd.report.console import display, record

    path = new_file(out, plots.FORMATS, overwrite=overwrite)
    groups = group(files, labels)
    if kind == "training":
        plots.training_curves(path, {label: _history(Path(each[0])) for label, each in _single(groups).items()})
    else:
        with loading(" or ".join(files), "a certificate file"):
            _draw(kind, path, groups)
    record(figure=str(path))
    display(f"written to {path}")


def _single(groups: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Make every file of its own a network, where seeds cannot be averaged."""
    return {
        f"{label} {i + 1}" if len(each) > 1 else label: (file,)
        for label, each in groups.items()
        for i, file in enumerate(each)
    }


def _history(path: Path) -> list[dict[str, Any]]:
    """Read a training's log."""
    place = path / "log.jsonl" if path.is_dir() else path
    if not place.is_file():
        raise InputError(f"no log of a training at {place}: give a folder of 'certkd train', or its log.jsonl")
    with loading(place, "the log of a training", why="each line must be JSON with an epoch and its validation"):
        records = [json.loads(line) for line in place.read_text(encoding="utf-8").splitlines() if line.strip()]
        if not records or not all(isinstance(one["epoch"], int) and dict(one["validation"]) for one in records):
            raise ValueError("its lines hold no epochs")
        return records


def _draw(kind: str, path: Path, groups: dict[str, tuple[str, ...]]) -> None:
    from certkd.comparison.compare import figures, radii
    from certkd.comparison.critical import critical
    from certkd.comparison.methods import check_same, common_methods, falsifying
    from certkd.report import plots
    from verifiers.results.reader import read

    chosen = groups if kind == "curve" else _single(groups)
    found = {label: [read(file) for file in each] for label, each in chosen.items()}
    every = [certificates for each in found.values() for certificates in each]
    for other in every[1:]:
        check_same(every[0], other)
    if kind == "stages":
        return _stages(path, {label: each[0] for label, each in found.items()})
    names = common_methods(every, "best")
    about = _caption(every[0], tuple(names))
    if kind == "curve":
        curves = {label: [radii(one, names) for one in each] for label, each in found.items()}
        return plots.radius_curves(path, curves, about)
    single = {label: each[0] for label, each in found.items()}
    found_by = dict.fromkeys([*names, *(rows.name for one in every for rows in falsifying(one))])
    attacked = replace(about, methods=tuple(found_by))
    if kind == "scatter":
        if len(single) != 2:
            raise InputError(f"scatter draws one network against another: give two files, not {len(single)}")
        (first, one), (second, two) = single.items()
        return plots.paired_radii(path, radii(one, names), radii(two, names), about, (first, second))
    if kind == "distribution":
        return plots.distributions(path, {label: critical(one) for label, one in single.items()}, attacked)
    sides = {label: figures(one) for label, one in single.items()}
    plots.brackets(path, {label: (side.certified, side.pgd, side.clean) for label, side in sides.items()}, attacked)


def _caption(certificates: "Certificates", methods: tuple[str, ...]) -> "Caption":
    from certkd.report.plots import Caption

    samples = int(certificates.attributes["samples"])
    return Caption(certificates.norm, certificates.eps, samples, methods)


def _stages(path: Path, files: "dict[str, Certificates]") -> None:
    from certkd.comparison.critical import decided
    from certkd.report import plots

    counts, open_ = {}, {}
    for label, certificates in files.items():
        answer = decided(certificates)
        if answer is None:
            raise InputError(f"{certificates.path} has no rows of complete: certify with --complete")
        counts[label], open_[label] = answer
    plots.stages(path, counts, open_, _caption(next(iter(files.values())), ("complete",)))
